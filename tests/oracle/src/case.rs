//! What one op states once, for every test and benchmark.

use crate::array::Array;
use crate::scalar::{Real, Scalar};
use crate::traced::{Trace, Traced};
use kinglet_autograd::{Tape, Var};
use kinglet_tensor::{DType, Device, Result, Tensor};
use std::fmt::Debug;

/// What is true of an op. A value of the implementing type is one *instance*: one choice of shapes and parameters; its
/// `Debug` form is its name in messages.
pub trait Case: Debug + Sized + 'static {
    /// The name of the op, as its kernel or its record has it.
    const NAME: &'static str;

    /// The instances to test: odd sizes, size 1, sizes that cross tiles and vector widths, every parameter.
    fn instances() -> Vec<Self>;

    /// Instances of the sizes of real models: for benchmarks, too large for a truth written plainly.
    fn timed() -> Vec<Self> {
        Vec::new()
    }

    /// The inputs of this instance, in the order of the op's arguments.
    fn inputs(&self) -> Vec<Input>;

    /// The op, written plainly.
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S>;

    /// The op as kinglet runs it.
    ///
    /// # Errors
    /// Those of the op; any is a failure of the test.
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>>;

    /// The dtypes of the data that the op takes.
    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32, DType::BF16, DType::F16]
    }

    /// Floating-point operations of one forward call.
    fn flops(&self) -> usize {
        0
    }

    /// Bytes that a forward call must move: every input read once, the output written once.
    ///
    /// # Errors
    /// Those of [`Case::run`].
    fn bytes(&self, dtype: DType) -> Result<usize> {
        let (device, tape) = (Device::meta(), Tape::inert());
        let size = |t: &Tensor| t.len() * t.dtype().size();
        let inputs = self
            .inputs()
            .into_iter()
            .map(|input| Ok(tape.constant(Tensor::zeros(&input.shape, input.dtype(dtype), &device)?)));
        let inputs: Vec<Var<'_>> = inputs.collect::<Result<_>>()?;
        let output = self.run(&inputs)?;
        Ok(inputs.iter().chain([&output]).map(|v| size(v.value())).sum())
    }
}

/// One input of an instance.
#[derive(Clone, Debug)]
pub struct Input {
    /// The argument's name, for messages.
    pub name: &'static str,
    /// The size of each dimension.
    pub shape: Vec<usize>,
    /// What it holds.
    pub kind: Kind,
}

/// What an input holds.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Random values in `range`; a gradient flows to them unless `frozen`. `dtype` is the data's unless given.
    Float {
        /// The least and the largest value.
        range: [f64; 2],
        /// An input without a gradient, such as a table.
        frozen: bool,
        /// A dtype that does not follow the data's, such as f32 for a parameter.
        dtype: Option<DType>,
    },
    /// Random integers below this number, i32.
    Ids(usize),
    /// Given integers, i32: offsets, positions.
    Integers(Vec<i32>),
    /// Random bytes, 0 or 1.
    Mask,
}

/// Random values in [-2, 2] of the data's dtype.
#[must_use]
pub fn float(name: &'static str, shape: &[usize]) -> Input {
    Input { name, shape: shape.to_vec(), kind: Kind::Float { range: [-2.0, 2.0], frozen: false, dtype: None } }
}

/// Random integers below `n`, i32.
#[must_use]
pub fn ids(name: &'static str, shape: &[usize], n: usize) -> Input {
    Input { name, shape: shape.to_vec(), kind: Kind::Ids(n) }
}

/// The given integers, i32.
#[must_use]
pub fn integers(name: &'static str, shape: &[usize], values: &[i32]) -> Input {
    Input { name, shape: shape.to_vec(), kind: Kind::Integers(values.to_vec()) }
}

/// Random bytes, 0 or 1.
#[must_use]
pub fn mask(name: &'static str, shape: &[usize]) -> Input {
    Input { name, shape: shape.to_vec(), kind: Kind::Mask }
}

impl Input {
    /// Values from `low` to `high`.
    #[must_use]
    pub fn within(mut self, low: f64, high: f64) -> Self {
        if let Kind::Float { range, .. } = &mut self.kind {
            *range = [low, high];
        }
        self
    }

    /// Without a gradient.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        if let Kind::Float { frozen, .. } = &mut self.kind {
            *frozen = true;
        }
        self
    }

    /// Always of this dtype, whatever the data's is.
    #[must_use]
    pub fn always(mut self, fixed: DType) -> Self {
        if let Kind::Float { dtype, .. } = &mut self.kind {
            *dtype = Some(fixed);
        }
        self
    }

    /// Whether a gradient flows to it.
    #[must_use]
    pub fn is_differentiable(&self) -> bool {
        matches!(self.kind, Kind::Float { frozen: false, .. })
    }

    /// Its dtype when the data has dtype `data`.
    #[must_use]
    pub fn dtype(&self, data: DType) -> DType {
        match self.kind {
            Kind::Float { dtype, .. } => dtype.unwrap_or(data),
            Kind::Ids(_) | Kind::Integers(_) => DType::I32,
            Kind::Mask => DType::U8,
        }
    }
}

/// A [`Case`] behind a pointer.
pub trait AnyCase {
    /// The op and the instance.
    fn label(&self) -> String;
    /// [`Case::inputs`]
    fn inputs(&self) -> Vec<Input>;
    /// [`Case::dtypes`]
    fn dtypes(&self) -> &'static [DType];
    /// [`Case::truth`] of values with bounds.
    fn truth(&self, inputs: &[Array<Real>]) -> Array<Real>;
    /// The gradients of Σ dy · truth by every differentiable input; `None` for the others.
    fn gradients(&self, inputs: &[Array<Real>], dy: &[Real]) -> Vec<Option<Array<Real>>>;
    /// [`Case::run`]
    ///
    /// # Errors
    /// Those of the op.
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>>;
    /// [`Case::flops`]
    fn flops(&self) -> usize;
    /// [`Case::bytes`]
    ///
    /// # Errors
    /// Those of the op.
    fn bytes(&self, dtype: DType) -> Result<usize>;
}

impl<C: Case> AnyCase for C {
    fn label(&self) -> String {
        format!("{} {self:?}", C::NAME)
    }

    fn inputs(&self) -> Vec<Input> {
        Case::inputs(self)
    }

    fn dtypes(&self) -> &'static [DType] {
        Case::dtypes(self)
    }

    fn truth(&self, inputs: &[Array<Real>]) -> Array<Real> {
        Case::truth(self, inputs)
    }

    fn gradients(&self, inputs: &[Array<Real>], dy: &[Real]) -> Vec<Option<Array<Real>>> {
        let trace = Trace::default();
        let differentiable: Vec<bool> = Case::inputs(self).iter().map(Input::is_differentiable).collect();
        let inputs: Vec<Array<Traced<'_>>> = inputs
            .iter()
            .zip(&differentiable)
            .map(|(x, &leaf)| x.map(|v| if leaf { trace.leaf(v) } else { Trace::constant(v) }))
            .collect();
        let output = Case::truth(self, &inputs);
        let leaves: Vec<Traced<'_>> = inputs.iter().flat_map(|x| x.data.iter().copied()).collect();
        let mut gradients = trace.gradients(&output.data, dy, &leaves).into_iter();
        let arrays = inputs.iter().map(|x| Array::new(&x.shape, gradients.by_ref().take(x.data.len()).collect()));
        arrays.zip(differentiable).map(|(g, leaf)| leaf.then_some(g)).collect()
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Case::run(self, inputs)
    }

    fn flops(&self) -> usize {
        Case::flops(self)
    }

    fn bytes(&self, dtype: DType) -> Result<usize> {
        Case::bytes(self, dtype)
    }
}

/// Instances of a case behind pointers.
#[must_use]
pub fn boxed<C: Case>(instances: Vec<C>) -> Vec<Box<dyn AnyCase>> {
    instances.into_iter().map(|c| Box::new(c) as Box<dyn AnyCase>).collect()
}
