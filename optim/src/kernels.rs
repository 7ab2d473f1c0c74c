//! The kernels of this crate and their arguments, to replace or to launch, as in [`kinglet_tensor::kernels`].

pub use crate::adamw::{ADAMW, AdamwArgs};
pub use crate::norm::{GRAD_NORM, GradNormArgs};
