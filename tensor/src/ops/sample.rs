//! Choosing the next token from logits, where they are.

use crate::cpu::Cpu;
use crate::cpu::sample::Choice;
use crate::cuda::{self, Arg, Cuda};
use crate::{DType, Error, Result, Tensor, TensorMut, kernel};

/// Arguments of [`SAMPLE`]: a token of each row.
pub struct SampleArgs<'a> {
    /// [rows, vocabulary], f32, contiguous, of 1 to 2²¹ tokens.
    pub logits: &'a Tensor,
    /// How to choose.
    pub choice: Choice,
    /// `[rows]`, i32: ids, or what [`cpu::sample`](crate::cpu::sample) says of bad logits.
    pub out: TensorMut<'a>,
}
kernel!(pub SAMPLE = "sample", SampleArgs, sample_cpu, sample_cuda);

/// The largest vocabulary: sums of so many weights fit 64 bits.
const MOST_TOKENS: usize = 1 << 21;

/// A token id for each row of `logits` (f32, [rows, vocabulary] or `[vocabulary]`): i32 `[rows]`, on the device of the
/// logits, and the same ones on every device. A row that is NaN somewhere gives [`IS_NAN`](crate::cpu::sample::IS_NAN), one
/// without a token to choose [`IS_EMPTY`](crate::cpu::sample::IS_EMPTY): both are negative.
///
/// # Errors
/// When logits are no f32 of that shape, the vocabulary is empty or larger than 2²¹, or a number of `choice` is out of range.
pub fn sample(logits: &Tensor, choice: &Choice) -> Result<Tensor> {
    let (rows, vocabulary) = match *logits.shape() {
        [vocabulary] => (1, vocabulary),
        [rows, vocabulary] => (rows, vocabulary),
        ref other => return Err(Error::shape("sample", format!("logits {other:?}, no rows of a vocabulary"))),
    };
    if logits.dtype() != DType::F32 {
        return Err(Error::dtype("sample", format!("logits of {}, not f32", logits.dtype())));
    }
    if !(1..=MOST_TOKENS).contains(&vocabulary) {
        return Err(Error::shape("sample", format!("a vocabulary of {vocabulary}, not 1 to {MOST_TOKENS} tokens")));
    }
    choice.validate()?;
    let logits = logits.contiguous()?.reshape(&[rows, vocabulary])?;
    let mut out = logits.device().alloc(&[rows], DType::I32)?;
    logits.device().run(&SAMPLE, SampleArgs { logits: &logits, choice: *choice, out: out.view() })?;
    Ok(out.finish())
}

fn sample_cpu(_: &Cpu, mut args: SampleArgs<'_>) -> Result<()> {
    let (_, vocabulary) = args.logits.dims2("sample")?;
    let rows = args.logits.as_slice::<f32>()?.chunks_exact(vocabulary);
    for (row, (id, logits)) in args.out.as_mut_slice::<i32>()?.iter_mut().zip(rows).enumerate() {
        *id = args.choice.choose(logits, row);
    }
    Ok(())
}

/// Threads of a block, which has a row.
const BLOCK: u32 = 1024;

fn sample_cuda(cuda: &Cuda, args: SampleArgs<'_>) -> Result<()> {
    let SampleArgs { logits, choice, out } = args;
    let (rows, vocabulary) = logits.dims2("sample")?;
    let args = [
        cuda::read(logits)?,
        Arg::F32(choice.temperature),
        // What does not fit is more than there are.
        Arg::U32(u32::try_from(choice.top_k).unwrap_or(u32::MAX)),
        Arg::U64(choice.share()),
        Arg::U32(choice.key.0[0]),
        Arg::U32(choice.key.0[1]),
        Arg::U64(choice.step),
        cuda::written(&out)?,
        cuda::number(vocabulary)?,
    ];
    cuda::start(cuda, "sample", "sample", rows, BLOCK, &args)
}
