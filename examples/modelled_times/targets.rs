//! What kernels are to reach, whether the model has them reach it, and why not.

use crate::job::Job;
use kinglet::tensor::{Error, Result};

/// Of the bandwidth of copies, for what is bound by memory; of cuBLAS's speed, on each of the GPUs: on Hopper 0.65 is the ceiling of
/// `mma.sync`; of FlashAttention-2's.
const COPY_SHARE: f64 = 0.85;
const GEMM: [f64; 2] = [0.9, 0.6];
const ATTENTION: f64 = 1.0;

/// What has fewer is bound by memory on every GPU from sm_80 on.
const MOST_FLOPS_PER_BYTE: f64 = 100.0;

/// Milliseconds of cuBLAS, or of FlashAttention-2, on each of the GPUs, where `published` has a figure of the same work: the fastest.
const PEERS: &[(&str, [Option<f64>; 2])] = &[
    ("matmul bf16", [Some(0.507), Some(0.192)]),
    ("matmul f32", [None, Some(0.347)]),
    ("attention forward, causal, d 128, bf16", [None, Some(0.83)]),
    ("attention backward, causal, d 128, bf16", [None, Some(4.14)]),
    ("attention both ways, causal, d 128, bf16", [Some(5.29), Some(3.12)]),
    ("attention forward, causal, d 64, bf16", [None, Some(0.93)]),
    ("attention both ways, causal, d 64, bf16", [Some(5.83), Some(3.52)]),
    ("attention forward, causal, d 256, bf16", [None, Some(0.93)]),
];

const AGAIN: &str = "A warp reads its rows again for what it knows of them at the end, as often as the model counts; on a GPU mostly from L1.";
const POLYNOMIAL: &str =
    "Exponentials are the CPU's polynomials, for its bits, not the special function unit's: instructions.";
const DECODED: &str = "Decoding half a byte and multiplying takes longer than copying it.";
const INTEGERS: &str = "Every warp of four rows of W asks for all of x anew, 80 bytes a run of 32 elements, which L1 has and the model \
                        does not know; and decoding takes instructions.";
const FEW_ROWS: &str =
    "Each warp of four rows of W asks for all rows of x anew: L1 has them, which the model does not know.";
const SOFTMAX: &str = "The softmax's instructions are issued beside the products', by the same warps; FlashAttention-2's exponentials \
                       are the special function unit's.";
const NARROW: &str = "As for d 128, with half as many operations of products for as many scores.";

/// Why kernels miss their targets, beside the roof that the table names.
const REASONS: &[(&str, &str)] = &[
    (
        "matmul bf16, 1 row",
        "A warp reads its row of W and x two bytes a thread at a time: each sector is asked for twice, and x beside every row of W. L1 \
         has most of these, which the model does not know.",
    ),
    (
        "matmul f32",
        "On plain cores in the CPU's order, for its bits: loads from shared memory are issued beside the multiplications. TF32 runs \
         only when asked for.",
    ),
    (
        "NF4 quantise, nested scales",
        "A code is found by comparing an element with levels: instructions, for 2.5 bytes.",
    ),
    (
        "NF4 dequantise to bf16, nested scales",
        "A warp's 256 elements ask for their blocks' scales, for the scales of these, and for a table: sectors that L1 has, which the \
         model does not know.",
    ),
    ("NF4 linear, 1 row", DECODED),
    ("NF4 linear, 8 rows", FEW_ROWS),
    (
        "Q8_0 dequantise to bf16",
        "Blocks of 34 bytes are read two bytes at a time: each sector is asked for several times.",
    ),
    ("Q4_K linear, 1 row, in integers", INTEGERS),
    ("Q4_K linear, 8 rows, in integers", FEW_ROWS),
    ("Q8_0 linear, 1 row, in integers", INTEGERS),
    ("attention forward, causal, d 128, bf16", SOFTMAX),
    ("attention both ways, causal, d 128, bf16", SOFTMAX),
    ("attention forward, causal, d 64, bf16", NARROW),
    ("attention both ways, causal, d 64, bf16", NARROW),
    (
        "attention forward, causal, d 256, bf16",
        "Blocks own 64 rows, as shared memory has room for: keys are read once for each.",
    ),
    ("RMSNorm bf16", AGAIN),
    ("RMSNorm backward, dx, bf16", AGAIN),
    (
        "RMSNorm backward, dW, bf16",
        "Sums over rows are in the CPU's order, column by column: two bytes a thread at a time.",
    ),
    ("LayerNorm bf16", AGAIN),
    ("LayerNorm backward, dx, bf16", AGAIN),
    ("softmax bf16", POLYNOMIAL),
    ("cross entropy bf16", POLYNOMIAL),
    ("SiLU bf16", POLYNOMIAL),
    ("normal numbers f32", "Philox, a logarithm and a sine as the CPU's polynomials: instructions, for 4 bytes."),
    ("gather bf16", "Elements anywhere in a row take a sector of 32 bytes each, of which 2 are wanted."),
    ("concatenate bf16", "An element a thread, whose place takes two divisions."),
    (
        "sampling, top-k and top-p",
        "One block a row walks over its logits up to 12 times; one row leaves all other multiprocessors idle, which the model does not \
         know either.",
    ),
];

/// How a row stands to its target.
pub(crate) struct Verdict {
    kind: &'static str,
    wanted: f64,
    reached: f64,
}

impl Verdict {
    /// Of a job that takes `seconds`, `copying` of which its bytes would take at the bandwidth of copies, on the GPU of this number;
    /// `None` where there is nothing to judge by.
    pub(crate) fn of(job: &Job, gpu: usize, seconds: f64, copying: f64) -> Option<Self> {
        if job.flops <= MOST_FLOPS_PER_BYTE * job.bytes {
            return Some(Verdict { kind: "of copy bandwidth", wanted: COPY_SHARE, reached: copying / seconds });
        }
        let (_, peers) = PEERS.iter().find(|(name, _)| *name == job.name)?;
        let reached = peers[gpu]? * 1e-3 / seconds;
        Some(match job.name.starts_with("attention") {
            true => Verdict { kind: "of FlashAttention-2", wanted: ATTENTION, reached },
            false => Verdict { kind: "of cuBLAS", wanted: GEMM[gpu], reached },
        })
    }

    fn met(&self) -> bool {
        self.reached >= self.wanted
    }

    fn shown(&self) -> String {
        format!("{:.0}% {}", (100.0 * self.reached).floor(), self.kind)
    }

    pub(crate) fn cell(verdict: Option<&Self>) -> String {
        match verdict {
            None => String::new(),
            Some(v) if v.met() => format!("met: {}", v.shown()),
            Some(v) => format!("**missed**: {}", v.shown()),
        }
    }
}

/// A judged row.
pub(crate) struct Judged {
    pub(crate) name: &'static str,
    pub(crate) gpu: &'static str,
    pub(crate) roof: &'static str,
    pub(crate) verdict: Verdict,
}

/// The list of targets in Markdown: how many rows meet each on each GPU, and a line for each kernel that misses.
///
/// # Errors
/// When a kernel misses and nobody says why, or somebody does of one that does not.
pub(crate) fn list(rows: &[Judged], gpus: impl Iterator<Item = &'static str>) -> Result<String> {
    let mut text = String::from("\n## Targets\n\n");
    for gpu in gpus {
        for kind in ["of copy bandwidth", "of cuBLAS", "of FlashAttention-2"] {
            let judged: Vec<&Judged> = rows.iter().filter(|row| row.gpu == gpu && row.verdict.kind == kind).collect();
            let met = judged.iter().filter(|row| row.verdict.met()).count();
            let wanted = judged.first().map_or(0.0, |row| 100.0 * row.verdict.wanted);
            text += &format!("- {gpu}, {wanted:.0}% {kind}: met by {met} of {}\n", judged.len());
        }
    }
    text += "\nMissed, in the words of the model, and why:\n\n";
    let mut names: Vec<&str> = rows.iter().filter(|row| !row.verdict.met()).map(|row| row.name).collect();
    names.dedup();
    for &name in &names {
        let missed = rows.iter().filter(|row| row.name == name && !row.verdict.met());
        let missed: Vec<String> =
            missed.map(|row| format!("{} {} (bound by {})", row.gpu, row.verdict.shown(), row.roof)).collect();
        let reason = REASONS.iter().find(|(of, _)| *of == name);
        let (_, reason) = reason.ok_or_else(|| Error::invalid(format!("{name} misses its target: nobody says why")))?;
        text += &format!("- {name}: {}. {reason}\n", missed.join(", "));
    }
    match REASONS.iter().find(|(of, _)| !names.contains(of)) {
        Some((of, _)) => Err(Error::invalid(format!("{of} meets its target, and has a reason for missing it"))),
        None => Ok(text),
    }
}
