//! The weight of a linear layer, dense or quantised, and its products both ways.

use crate::{FourBit, GgufMatrix, strips};
use kinglet_tensor::cpu::gemm::{Accumulate, Dense, Options, Panels, gemm_and};
use kinglet_tensor::cpu::{Cpu, Simd};
use kinglet_tensor::kernels::{Epilogue, LowRank};
use kinglet_tensor::{DType, Device, Error, Result, Tensor, TensorMut, kernel};
use std::sync::Arc;

/// A frozen matrix [out, in] in its stored form. On a CPU no widened copy of it ever exists: products
/// decode a tile at a time. A GPU widens strips of at most 128 MiB where many rows meet it.
#[derive(Clone)]
pub enum Weight {
    /// f32, bf16 or f16 elements.
    Dense(Tensor),
    /// NF4 or FP4 blocks.
    FourBit(Arc<FourBit>),
    /// ggml blocks, as a GGUF file has them.
    Gguf(GgufMatrix),
    /// Any other form.
    Custom(Arc<dyn CustomWeight>),
}

/// A stored form of a weight that kinglet does not know.
pub trait CustomWeight: Send + Sync {
    /// Rows: the outputs of the layer.
    fn out_features(&self) -> usize;
    /// Columns: the inputs of the layer.
    fn in_features(&self) -> usize;
    /// The operand of a product in the given direction.
    fn panels(&self, simd: Simd, direction: Direction) -> Box<dyn Panels + '_>;
    /// Where it lives.
    fn device(&self) -> &Device;
    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// Which way a product with a weight W [out, in] goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// y = x Wᵀ: from inputs to outputs.
    Forward,
    /// dx = dy W: from the gradient of outputs to that of inputs.
    Backward,
}

impl Weight {
    /// Rows and columns: outputs and inputs of the layer.
    ///
    /// # Errors
    /// When a dense weight is no matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Weight::Dense(w) => w.dims2("weight"),
            Weight::FourBit(w) => Ok(w.shape().into()),
            Weight::Gguf(w) => Ok(w.shape().into()),
            Weight::Custom(w) => Ok((w.out_features(), w.in_features())),
        }
    }

    /// Where the weight lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        match self {
            Weight::Dense(w) => w.device(),
            Weight::FourBit(w) => w.device(),
            Weight::Gguf(w) => w.device(),
            Weight::Custom(w) => w.device(),
        }
    }

    /// The operand of a product in the given direction.
    ///
    /// # Errors
    /// When the weight is not on the host, or a dense one is no matrix.
    pub fn panels(&self, simd: Simd, direction: Direction) -> Result<Box<dyn Panels + '_>> {
        Ok(match self {
            Weight::Dense(w) => {
                let w = w.as_mat("linear")?; // [out, in]
                Box::new(Dense::new(simd, if direction == Direction::Forward { w.transposed() } else { w }))
            }
            Weight::FourBit(w) => w.panels(simd, direction)?,
            Weight::Gguf(w) => w.panels(simd, direction)?,
            Weight::Custom(w) => w.panels(simd, direction),
        })
    }

    /// x Wᵀ for `Forward` (x [t, in]), x W for `Backward` (x [t, out]), in the dtype of `x`.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub fn matmul(&self, x: &Tensor, direction: Direction) -> Result<Tensor> {
        let (out_features, in_features) = self.dims()?;
        let columns = match direction {
            Direction::Forward => out_features,
            Direction::Backward => in_features,
        };
        let (rows, _) = x.dims2("linear")?;
        let mut out = x.device().alloc(&[rows, columns], x.dtype())?;
        self.matmul_into(x, direction, out.view(), Accumulate::Store, 1.0)?;
        Ok(out.finish())
    }

    /// As [`Weight::matmul`], times `alpha`, stored into or added to `out`.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub fn matmul_into(
        &self,
        x: &Tensor,
        direction: Direction,
        out: TensorMut<'_>,
        accumulate: Accumulate,
        alpha: f32,
    ) -> Result<()> {
        self.product_into(x, direction, out, Epilogue { alpha, accumulate, ..Epilogue::default() })
    }

    /// As [`Weight::matmul`], into `out` by way of an epilogue: a factor, an adapter's term, a bias, adding to `out`.
    ///
    /// # Errors
    /// When shapes or devices do not fit.
    pub fn product_into(
        &self,
        x: &Tensor,
        direction: Direction,
        out: TensorMut<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let (out_features, in_features) = self.dims()?;
        let (from, to) = match direction {
            Direction::Forward => (in_features, out_features),
            Direction::Backward => (out_features, in_features),
        };
        let (rows, columns) = x.dims2("linear")?;
        if columns != from || out.shape() != [rows, to] {
            let w = format!("weight [{out_features}, {in_features}]");
            return Err(Error::shape(
                "linear",
                format!("x {:?}, {w}, {direction:?}, out {:?}", x.shape(), out.shape()),
            ));
        }
        if x.device() != self.device() {
            return Err(Error::device("linear", format!("x on {:?}, weight on {:?}", x.device(), self.device())));
        }
        let (x, weight) = (&x.forwards()?, &self.forwards()?);
        let Epilogue { alpha, accumulate, low_rank, bias } = epilogue;
        let bias = bias.map(Tensor::contiguous).transpose()?;
        let narrow = low_rank.map(|l| Ok::<_, Error>((l.u.forwards()?, l.v.forwards()?))).transpose()?;
        let low_rank = low_rank.zip(narrow.as_ref()).map(|(LowRank { scale, .. }, (u, v))| LowRank { u, v, scale });
        Epilogue { low_rank, bias: bias.as_ref(), ..epilogue }.check(1, rows, to)?;
        // Beside bf16 activations every weight becomes bf16, but for f16, which widens as they do.
        let options = Options { alpha, accumulate, round_bf16: x.dtype() == DType::BF16 && !weight.is_f16() };
        let bias = bias.as_ref();
        x.device().run(&LINEAR, LinearArgs { x, weight, direction, out, options, low_rank, bias })
    }
}

impl Weight {
    /// Whether its elements are stored as f16.
    pub(crate) fn is_f16(&self) -> bool {
        match self {
            Weight::Dense(w) => w.dtype() == DType::F16,
            Weight::Gguf(w) => w.format() == kinglet_tensor::cpu::ggml::Format::F16,
            _ => false,
        }
    }

    /// As [`Tensor::forwards`]; blocks never run backwards.
    fn forwards(&self) -> Result<Weight> {
        match self {
            Weight::Dense(w) => w.forwards().map(Weight::Dense),
            blocks => Ok(blocks.clone()),
        }
    }
}

/// Arguments of [`LINEAR`]: out = x Wᵀ or x W, or out += that; then the low-rank term and the bias.
pub struct LinearArgs<'a> {
    /// [t, in] forward, [t, out] backward; any float dtype; any layout without negative strides.
    pub x: &'a Tensor,
    /// [out, in], in any form; a dense one without negative strides.
    pub weight: &'a Weight,
    /// Which of the two products.
    pub direction: Direction,
    /// [t, out] forward, [t, in] backward; any float dtype; read only to be added to.
    pub out: TensorMut<'a>,
    /// Factor of the product, rounding, overwrite or add.
    pub options: Options,
    /// An adapter's term, which is added: u [t, r] and v [columns of `out`, r], float, without negative strides.
    pub low_rank: Option<LowRank<'a>>,
    /// `[columns of out]`, float, contiguous; added last.
    pub bias: Option<&'a Tensor>,
}
kernel!(pub LINEAR = "linear", LinearArgs, linear_cpu, strips::linear_cuda);

fn linear_cpu(cpu: &Cpu, args: LinearArgs<'_>) -> Result<()> {
    let LinearArgs { x, weight, direction, mut out, options, low_rank, bias } = args;
    let columns = out.shape()[1];
    let panels = weight.panels(cpu.simd(), direction)?;
    let mut wide = Vec::new();
    let after = Epilogue { low_rank, bias, ..Epilogue::default() }.on_cpu(&mut wide)?;
    gemm_and(cpu, &x.as_mat("linear")?, &*panels, out.as_out("linear")?, columns, options, after)
}
