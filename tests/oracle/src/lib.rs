//! The oracle: what is true of every op, and the driver that checks it.
//!
//! A [`Case`] states an op once: its inputs, its truth over any [`Scalar`], and how kinglet runs it. From that one
//! statement [`Checker`] derives every test (values, gradients, layouts, dtypes, threads, guard bytes, the meta device),
//! and the benchmarks their shapes, bytes and flops. Nothing here is special to kinglet's own ops: a case for your own
//! op is checked in the same way.
//!
//! ```
//! use kinglet_autograd::{Save, Var};
//! use kinglet_oracle::{Array, Case, Checker, Input, Scalar, float};
//! use kinglet_tensor::{Result, cpu::Simd, ops};
//!
//! /// y = x³, an op from outside of kinglet.
//! #[derive(Debug)]
//! struct Cube(usize);
//!
//! fn cube<'t>(x: &Var<'t>) -> Result<Var<'t>> {
//!     let y = ops::mul(&ops::mul(x.value(), x.value())?, x.value())?;
//!     // dx = 3 x² dy
//!     x.tape().record("cube", &[x], y).save([Save::Var(x)]).rule(|dy, saved, sink| {
//!         let x = saved.tensor(0)?;
//!         let slope = ops::mul(&ops::mul(x, x)?, dy)?;
//!         sink.add(0, ops::add(&slope, &ops::add(&slope, &slope)?)?)
//!     })
//! }
//!
//! impl Case for Cube {
//!     const NAME: &'static str = "cube";
//!     fn instances() -> Vec<Self> {
//!         vec![Cube(1), Cube(1000)]
//!     }
//!     fn inputs(&self) -> Vec<Input> {
//!         vec![float("x", &[self.0])]
//!     }
//!     fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
//!         inputs[0].map(|x| x.powi(3))
//!     }
//!     fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
//!         cube(&inputs[0])
//!     }
//! }
//!
//! Checker::new(Simd::detect())?.check::<Cube>()?;
//! # Ok::<(), kinglet_tensor::Error>(())
//! ```
#![forbid(unsafe_code)]

mod array;
mod case;
pub mod cases;
mod check;
mod device;
mod place;
mod scalar;
mod traced;

pub use array::Array;
pub use case::{AnyCase, Case, Input, Kind, boxed, float, ids, integers, mask};
pub use check::{Checker, Report, Scope, tolerance};
pub use device::{device, emulated, gpu, gpu_or_emulated, simd};
pub use place::{Place, place};
pub use scalar::{Function, Real, Scalar};
pub use traced::{Trace, Traced};
