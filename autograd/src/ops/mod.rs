//! Differentiable operations: each pairs a forward function of `kinglet_tensor::ops` with its gradient rule.

mod binary;
