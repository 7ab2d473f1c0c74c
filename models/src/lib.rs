//! kinglet-models
