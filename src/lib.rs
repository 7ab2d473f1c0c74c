//! kinglet: an embedded ML framework. One dependency for tensors, autograd, quantised weights, Llama-style models,
//! optimisers and LoRA adapters.
#![forbid(unsafe_code)]

#[doc(inline)]
pub use kinglet_autograd as autograd;
#[cfg(feature = "data")]
#[doc(inline)]
pub use kinglet_data as data;
#[doc(inline)]
pub use kinglet_models as models;
#[doc(inline)]
pub use kinglet_optim as optim;
#[doc(inline)]
pub use kinglet_peft as peft;
#[doc(inline)]
pub use kinglet_quant as quant;
#[doc(inline)]
pub use kinglet_tensor as tensor;
#[doc(inline)]
pub use kinglet_tensor::{CpuOptions, DType, Device, Error, Result, Tensor};
#[cfg(feature = "train")]
#[doc(inline)]
pub use kinglet_train as train;

/// The README's example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
