//! kinglet-cuda
