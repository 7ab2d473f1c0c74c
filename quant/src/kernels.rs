//! The kernels of this crate and their arguments, to replace or to launch, as in [`kinglet_tensor::kernels`].

pub use crate::four_bit::{
    DEQUANTIZE_4BIT, Dequantize4bitArgs, QUANTIZE_4BIT, QUANTIZE_ABSMAX, Quantize4bitArgs, QuantizeAbsmaxArgs,
};
pub use crate::gguf::{DEQUANTIZE_GGUF, DequantizeGgufArgs};
pub use crate::projection::{EMBEDDING_QUANTIZED, EmbeddingQuantizedArgs};
pub use crate::weight::{LINEAR, LinearArgs};
