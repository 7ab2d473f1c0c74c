//! The checker's own test: an op with each kind of fault is caught, and by the check that is meant for it.
#![allow(clippy::unwrap_used)]

use kinglet_autograd::Var;
use kinglet_oracle::{Array, Case, Checker, Input, Scalar, float};
use kinglet_tensor::cpu::Simd;
use kinglet_tensor::{DType, Result, Tensor, ops};
use std::sync::atomic::{AtomicUsize, Ordering};

const SHAPE: [usize; 2] = [3, 70];

/// What each faulty version of y = x² does wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// One element is off by one part in a million.
    Value,
    /// The output is never written.
    Unwritten,
    /// The gradient is x dy.
    Slope,
    /// No gradient flows.
    Cut,
    /// Each call differs in the last bit.
    Unsteady,
    /// The result depends on the number of threads, in the last bit.
    Threads,
    /// The values are looked at where there are none.
    Meta,
    /// Elements are read in the order in which they lie.
    Strides,
}

/// How often an unsteady op has run.
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn square<'t>(fault: Fault, x: &Var<'t>) -> Result<Var<'t>> {
    let value = x.value();
    let device = value.device();
    // One bit up or not, element by element.
    let nudged = |y: Tensor, up: bool| {
        let values: Vec<f32> = y.to_vec::<f32>()?.iter().map(|v| if up { v.next_up() } else { *v }).collect();
        Tensor::from_vec(values, y.shape(), device)
    };
    let y = match fault {
        Fault::None | Fault::Slope | Fault::Cut => ops::mul(value, value)?,
        Fault::Value if device.is_meta() => ops::mul(value, value)?,
        Fault::Value => {
            let mut values = ops::mul(value, value)?.to_vec::<f32>()?;
            values[137] *= 1.000_001;
            Tensor::from_vec(values, &SHAPE, device)?
        }
        Fault::Unwritten => device.alloc(&SHAPE, DType::F32)?.finish(),
        Fault::Unsteady if !device.is_meta() => {
            nudged(ops::mul(value, value)?, CALLS.fetch_add(1, Ordering::Relaxed) % 2 == 1)?
        }
        Fault::Threads if !device.is_meta() => nudged(ops::mul(value, value)?, device.as_cpu()?.threads() == 3)?,
        Fault::Unsteady | Fault::Threads => ops::mul(value, value)?,
        Fault::Meta => {
            value.to_vec::<f32>()?;
            ops::mul(value, value)?
        }
        Fault::Strides => {
            let flat = value.transpose(0, 1)?.reshape(&SHAPE)?;
            let wrong = !value.is_contiguous();
            ops::mul(if wrong { &flat } else { value }, value)?
        }
    };
    if matches!(fault, Fault::Cut) {
        return Ok(x.tape().constant(y));
    }
    let factor = if matches!(fault, Fault::Slope) { 1.0 } else { 2.0 };
    x.tape()
        .record("square", &[x], y)
        .save([kinglet_autograd::Save::Var(x)])
        .rule(move |dy, saved, sink| sink.add(0, ops::affine(&ops::mul(dy, saved.tensor(0)?)?, factor, 0.0)?))
}

macro_rules! catches {
    ($($test:ident: $fault:ident, $message:expr;)*) => {$(
        #[test]
        fn $test() {
            #[derive(Debug)]
            struct Square;
            impl Case for Square {
                const NAME: &'static str = "square";
                fn instances() -> Vec<Self> {
                    vec![Square]
                }
                fn inputs(&self) -> Vec<Input> {
                    vec![float("x", &SHAPE).within(0.5, 2.0)]
                }
                fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
                    inputs[0].map(|x| x * x)
                }
                fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
                    square(Fault::$fault, &inputs[0])
                }
                fn dtypes(&self) -> &'static [DType] {
                    &[DType::F32]
                }
            }
            let message: &str = $message;
            let result = Checker::new(Simd::detect()).unwrap().check::<Square>().map_err(|e| e.to_string());
            match result {
                Ok(report) => assert!(message.is_empty() && report.runs == 5, "nothing was found wrong"),
                Err(error) => assert!(!message.is_empty() && error.contains(message), "{error}"),
            }
        }
    )*};
}
catches! {
    a_right_op_passes: None, "";
    a_small_error: Value, "square Square f32: Contiguous: output at [1, 67] is";
    unwritten_memory: Unwritten, "output at [0, 0] is NaN";
    a_wrong_slope: Slope, "gradient of x at [0, 0] is";
    a_cut_gradient: Cut, "gradient of x is missing";
    an_unsteady_op: Unsteady, "a second run gave other bits";
    an_op_that_depends_on_threads: Threads, "three threads gave other bits";
    an_op_that_reads_on_the_meta_device: Meta, "on the meta device";
    an_op_that_ignores_strides: Strides, "Transposed: output at";
}
