//! One file an op: its truth, its shapes, how it runs.

pub mod adamw;
pub mod affine;
pub mod attention;
pub mod binary;
pub mod cat;
pub mod compare;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gather;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod matmul;
pub mod random;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod scale;
pub mod softmax;
pub mod swiglu;
pub mod unary;
pub mod views;

use crate::case::{AnyCase, Case, boxed};

/// Calls the macro `$callback` with every file here and the cases in it, `file: Case, OtherCase;`.
#[macro_export]
macro_rules! for_each_case {
    ($callback:ident) => {
        $callback! {
            adamw: Steps, GradNorm;
            affine: Affine;
            attention: Attention;
            binary: Binary;
            cat: Cat, Chunk, Stack;
            compare: Compare, Where;
            copy: Contiguous, ToDtype;
            cross_entropy: CrossEntropy;
            dropout: Dropout, AddDropout;
            embedding: Embedding;
            gather: Gather, IndexSelect, ScatterAdd;
            layer_norm: LayerNorm;
            linear: Linear, TrainedLinear, LoraLinear, Embed;
            linear_cross_entropy: LinearCrossEntropy, FrozenLinearCrossEntropy, AdaptedLinearCrossEntropy, TokenLosses, Logits;
            matmul: MatMul;
            random: Random;
            reduce: ArgMax, Reduce;
            rms_norm: RmsNorm, AddRmsNorm;
            rope: Rope, RopeTable;
            sample: Sample;
            scale: Scale, AddScaled;
            softmax: Softmax;
            swiglu: Swiglu;
            unary: Unary;
            views: View;
        }
    };
}

macro_rules! all {
    ($($file:ident: $($case:ident),+;)*) => {
        /// The names of all files.
        pub const FILES: &[&str] = &[$(stringify!($file)),*];

        /// The name of the op of each case.
        pub const NAMES: &[&str] = &[$($(<$file::$case as Case>::NAME),+),*];

        /// All instances of the cases of a file; none for a file that is not there.
        #[must_use]
        pub fn of(file: &str) -> Vec<Box<dyn AnyCase>> {
            match file {
                $(stringify!($file) => [$(boxed(<$file::$case as Case>::instances())),+].into_iter().flatten().collect(),)*
                _ => Vec::new(),
            }
        }

        /// The instances of all cases that benchmarks time.
        #[must_use]
        pub fn timed() -> Vec<Box<dyn AnyCase>> {
            [$($(boxed(<$file::$case as Case>::timed())),+),*].into_iter().flatten().collect()
        }
    };
}
for_each_case!(all);
