//! The jobs of `kinglet bench op`: one definition for kinglet and for PyTorch, which reads it as JSON.

use crate::args::Dtype;
use crate::bench::args::OpArgs;
use clap::ValueEnum;
use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};

/// An operation that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OpName {
    /// C [m, n] = A [m, k] B [k, n]: MxKxN
    Gemm,
    /// Causal attention, forward and backward: HEADSxLENGTHxWIDTH
    Attention,
    /// NF4 with quantised scales to numbers: ROWSxCOLUMNS
    Nf4Dequantize,
    /// A linear layer in NF4: TOKENSxINxOUT
    Nf4Gemm,
    /// A linear layer in NF4 for one token: INxOUT
    Nf4Linear,
    /// Numbers to NF4 with quantised scales: ROWSxCOLUMNS
    Nf4Quantize,
    /// A step of AdamW: PARAMETERS
    Adamw,
    /// Output projection and loss, forward and the gradient of hidden states: TOKENSxVOCABULARYxHIDDEN
    CrossEntropy,
    /// RMSNorm, forward and both gradients: ROWSxWIDTH
    RmsNorm,
    /// silu(gate) · up, forward and backward: ROWSxWIDTH
    Swiglu,
    /// Rotary embedding, forward and backward: TOKENSxHEADSxWIDTH
    Rope,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) op: OpName,
    /// As the documentation of [`OpName`] says.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Which operands of a product lie transposed: nn, nt, tn or tt; empty for other operations.
    pub(crate) transposed: &'static str,
}

/// What a job has to do at least, which its speed is stated in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// Floating-point operations in the job's dtype.
    Flops(f64),
    /// Bytes of memory to be read or written.
    Bytes(f64),
}

impl Work {
    /// The unit of [`Work::speed`].
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Work::Flops(_) => "GFLOP/s",
            Work::Bytes(_) => "GB/s",
        }
    }

    /// How fast it is when done in `seconds`.
    pub(crate) fn speed(self, seconds: f64) -> f64 {
        let (Work::Flops(amount) | Work::Bytes(amount)) = self;
        amount / seconds / 1e9
    }
}

impl OpName {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    /// How many sizes a shape has.
    fn rank(self) -> usize {
        match self {
            Self::Adamw => 1,
            Self::Nf4Dequantize | Self::Nf4Linear | Self::Nf4Quantize | Self::RmsNorm | Self::Swiglu => 2,
            Self::Gemm | Self::Attention | Self::Nf4Gemm | Self::CrossEntropy | Self::Rope => 3,
        }
    }

    /// Sizes that are worth measuring; and small ones.
    fn shapes(self, quick: bool) -> Vec<Vec<usize>> {
        let (usual, small): (&[&[usize]], &[usize]) = match self {
            Self::Gemm => {
                (&[&[2048, 2048, 2048], &[1024, 1024, 1024], &[4096, 576, 1536], &[512, 2048, 2048]], &[64, 64, 64])
            }
            Self::Attention => (&[&[9, 1024, 64]], &[3, 64, 32]),
            Self::Nf4Dequantize | Self::Nf4Quantize => (&[&[2048, 2048]], &[64, 128]),
            Self::Nf4Gemm => (&[&[512, 2048, 2048]], &[32, 128, 64]),
            Self::Nf4Linear => (&[&[2048, 2048]], &[128, 64]),
            Self::Adamw => (&[&[100_000_000]], &[10_000]),
            Self::CrossEntropy => (&[&[512, 49_152, 576]], &[32, 512, 64]),
            Self::RmsNorm => (&[&[4096, 576]], &[64, 64]),
            Self::Swiglu => (&[&[4096, 1536]], &[64, 64]),
            Self::Rope => (&[&[4096, 9, 64]], &[64, 3, 64]),
        };
        if quick { vec![small.to_vec()] } else { usual.iter().map(|shape| shape.to_vec()).collect() }
    }

    fn dtypes(self) -> &'static [Dtype] {
        match self {
            Self::Nf4Gemm | Self::Nf4Linear => &[Dtype::Bf16],
            Self::Nf4Quantize | Self::Adamw => &[Dtype::F32],
            _ => &[Dtype::F32, Dtype::Bf16],
        }
    }

    /// Every way that operands lie for bf16; for f32 the plain way and that of a linear layer.
    fn transposes(self, dtype: Dtype) -> &'static [&'static str] {
        match (self, dtype) {
            (Self::Gemm, Dtype::F32) => &["nn", "nt"],
            (Self::Gemm, Dtype::Bf16) => &["nn", "nt", "tn", "tt"],
            _ => &[""],
        }
    }
}

impl Job {
    /// What a reader calls it.
    pub(crate) fn name(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let transposed = if self.transposed.is_empty() { String::new() } else { format!(" {}", self.transposed) };
        format!("{} {} {}{transposed}", self.op.name(), sizes.join("x"), self.dtype_name())
    }

    pub(crate) fn dtype_name(&self) -> &'static str {
        match self.dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }
    }

    /// As benches/pytorch/ops.py reads it.
    pub(crate) fn json(&self) -> Value {
        json!({
            "op": self.op.name(),
            "shape": self.shape,
            "dtype": self.dtype_name(),
            "transposed": self.transposed,
        })
    }

    pub(crate) fn work(&self) -> Work {
        let product: f64 = self.shape.iter().map(|&n| n as f64).product();
        let size = if self.dtype == Dtype::F32 { 4.0 } else { 2.0 };
        // Half a byte an element, and a byte of scale for 64 of them.
        let nf4 = 0.5 + 1.0 / 64.0;
        match self.op {
            OpName::Gemm | OpName::Nf4Gemm => Work::Flops(2.0 * product),
            // Two products forward and five backward, half of each behind the causal mask.
            OpName::Attention => Work::Flops(7.0 * product * self.shape[1] as f64),
            // The projection, and the gradient of hidden states.
            OpName::CrossEntropy => Work::Flops(4.0 * product),
            OpName::Nf4Dequantize => Work::Bytes(product * (nf4 + size)),
            OpName::Nf4Quantize => Work::Bytes(product * (4.0 + nf4)),
            OpName::Nf4Linear => Work::Bytes(product * nf4),
            // Parameter and moments both ways, the gradient.
            OpName::Adamw => Work::Bytes(product * 28.0),
            // Forward: x, y. Backward: dy, x, dx.
            OpName::RmsNorm => Work::Bytes(product * 5.0 * size),
            // Forward: gate, up, y. Backward: dy, gate, up and two gradients.
            OpName::Swiglu => Work::Bytes(product * 8.0 * size),
            OpName::Rope => Work::Bytes(product * 4.0 * size),
        }
    }
}

/// The jobs that the options ask for.
///
/// # Errors
/// When a shape has another number of sizes than an operation needs, or no job is left.
pub(crate) fn select(args: &OpArgs) -> Result<Vec<Job>> {
    let all = OpName::value_variants().iter().filter(|op| args.ops.is_empty() || args.ops.contains(op));
    let mut jobs = Vec::new();
    for &op in all {
        let shapes = match &args.shape {
            Some(shape) if shape.0.len() != op.rank() => {
                let found = shape.0.len();
                return Err(Error::invalid(format!("--shape has {found} sizes, {} needs {}", op.name(), op.rank())));
            }
            Some(shape) => vec![shape.0.clone()],
            None => op.shapes(args.quick),
        };
        for shape in shapes {
            for &dtype in op.dtypes().iter().filter(|&&dtype| args.dtype.is_none_or(|only| only == dtype)) {
                let job = |&transposed| Job { op, shape: shape.clone(), dtype, transposed };
                jobs.extend(op.transposes(dtype).iter().map(job));
            }
        }
    }
    if jobs.is_empty() {
        return Err(Error::invalid("there is no such job in this --dtype"));
    }
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(op: OpName, shape: &[usize], dtype: Dtype) -> Job {
        Job { op, shape: shape.to_vec(), dtype, transposed: "" }
    }

    #[test]
    fn work_is_counted() {
        let gemm = job(OpName::Gemm, &[2, 3, 4], Dtype::F32);
        assert_eq!(gemm.work(), Work::Flops(48.0));
        assert_eq!(gemm.work().speed(48e-9), 1.0);
        let attention = job(OpName::Attention, &[9, 1024, 64], Dtype::F32);
        assert_eq!(attention.work(), Work::Flops(3.5 * 2.0 * 9.0 * 1024.0 * 1024.0 * 64.0));
        assert_eq!(job(OpName::Adamw, &[10], Dtype::F32).work(), Work::Bytes(280.0));
        assert_eq!(job(OpName::Nf4Dequantize, &[64, 2], Dtype::Bf16).work(), Work::Bytes(64.0 + 2.0 + 256.0));
    }

    #[test]
    fn every_operation_has_shapes_of_its_rank() {
        for op in OpName::value_variants() {
            for shape in [true, false].into_iter().flat_map(|quick| op.shapes(quick)) {
                assert_eq!(shape.len(), op.rank(), "{op:?}");
            }
        }
    }

    #[test]
    fn names_say_what_is_measured() {
        let gemm = Job { transposed: "nt", ..job(OpName::Gemm, &[2, 3, 4], Dtype::Bf16) };
        assert_eq!(gemm.name(), "gemm 2x3x4 bf16 nt");
        assert_eq!(job(OpName::RmsNorm, &[2, 3], Dtype::F32).name(), "rms-norm 2x3 f32");
    }
}
