//! Weights in the form that they are stored in: dense, 4-bit blocks as bitsandbytes makes them, ggml blocks as
//! GGUF files hold them. Products with them decode a tile at a time, so no dense copy ever exists.
#![forbid(unsafe_code)]

pub mod bnb;
mod decode;
mod four_bit;
mod fused;
mod gguf;
pub mod kernels;
mod linear;
mod matvec;
mod panels;
mod projection;
mod strips;
mod weight;

pub use four_bit::{FourBit, Scales};
pub use gguf::{GgufMatrix, RowOrder};
pub use kinglet_tensor::cpu::{ggml, nf4};
pub use linear::{Lora, linear, linear_lora, linear_trained};
pub use projection::embed;
pub use weight::{CustomWeight, Direction, Weight};
