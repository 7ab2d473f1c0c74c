//! The command line of `kinglet bench`.

use crate::args::{Dtype, Method, Quant};
use crate::bench::jobs::OpName;
use crate::bench::shapes::RandomShape;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum What {
    /// Single operations, as shares of the machine's peak
    Op(OpArgs),
    /// A training step: tokens per second, peak memory, time to the first step
    Step(Box<StepArgs>),
    /// Reading a prompt and writing text: tokens per second, peak memory, time to the first token
    Decode(DecodeArgs),
    /// Do one job of another process of kinglet: the job on standard input, what was measured on standard output
    #[command(hide = true)]
    Measure,
}

/// How to measure, whatever is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Threads, on both sides [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// How often each side runs, in turns; medians count [default: 5; 3 where each run is a process]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) rounds: Option<usize>,
    /// The Python that has PyTorch [default: .venv/bin/python, which scripts/setup-pytorch makes]
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
    /// The folder of the PyTorch scripts
    #[arg(long, value_name = "DIR", default_value = "benches/pytorch")]
    pub(crate) scripts: PathBuf,
    /// Run kinglet alone
    #[arg(long, conflicts_with = "python")]
    pub(crate) no_peers: bool,
    /// Write the table to DIR too, as JSON and as Markdown
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct OpArgs {
    /// Which operations [default: all]
    #[arg(value_name = "OP")]
    pub(crate) ops: Vec<OpName>,
    /// Sizes instead of the usual ones, such as 64x64x64; what they mean is said by the names of the jobs
    #[arg(long, value_name = "AxBx..", requires = "ops", value_parser = shape)]
    pub(crate) shape: Option<Shape>,
    /// Only jobs of this dtype
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// Small sizes, two short rounds: to see that it works
    #[arg(long)]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "must be a positive number".into())
}

impl Common {
    /// Makes the folder of the results, so that one that cannot be made is told of before anything is measured.
    ///
    /// # Errors
    /// When a file is in its way, or the system refuses.
    pub(crate) fn make_output(&self) -> kinglet_tensor::Result<()> {
        let Some(folder) = &self.output else { return Ok(()) };
        std::fs::create_dir_all(folder)
            .map_err(|e| kinglet_tensor::Error::io(format!("--output {}", folder.display()), e))
    }
}

/// Sizes as `--shape` takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) Vec<usize>);

fn shape(text: &str) -> Result<Shape, String> {
    let size = |part: &str| part.parse::<usize>().ok().filter(|&n| n > 0 && n <= 1 << 30);
    let sizes: Option<Vec<usize>> = text.split('x').map(size).collect();
    sizes.map(Shape).ok_or_else(|| "must be positive numbers with an x between them, such as 64x64x64".into())
}

/// Which model is measured.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Subject {
    /// A Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<PathBuf>,
    /// Random weights in the shape of this config.json
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Random weights in the shape of a known model
    #[arg(long, value_name = "SHAPE")]
    pub(crate) random_shape: Option<RandomShape>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct StepArgs {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// full, lora or qlora, separated by commas. Without this, --dtype, --batch and --gradient-checkpointing: ten usual
    /// steps
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) method: Vec<Method>,
    /// f32 or bf16, separated by commas [default: f32]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) dtype: Vec<Dtype>,
    /// Rows of a step, separated by commas [default: 1]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) batch: Vec<usize>,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) length: usize,
    /// Run each layer again in the backward pass
    #[arg(long)]
    pub(crate) gradient_checkpointing: bool,
    /// Rank of the adapters
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub(crate) lora_r: usize,
    /// Timed steps of each run, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) steps: usize,
    /// The same for growing length, width (random shapes) or threads, or for given values: length=512,1024
    #[arg(long, value_name = "WHAT", value_parser = sweep)]
    pub(crate) sweep: Option<Sweep>,
    /// Print the time of each kernel, of kinglet alone
    #[arg(long, conflicts_with_all = ["output", "json"])]
    pub(crate) trace: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What `--sweep` varies, with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sweep {
    Length(Vec<usize>),
    Width(Vec<RandomShape>),
    Threads(Vec<usize>),
}

fn sweep(text: &str) -> Result<Sweep, String> {
    let (what, values) = text.split_once('=').map_or((text, None), |(what, values)| (what, Some(values)));
    let numbers = |usual: &[usize]| match values {
        None => Ok(usual.to_vec()),
        Some(values) => values
            .split(',')
            .map(|n| n.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{n:?} is no positive number")))
            .collect(),
    };
    match what {
        "length" => numbers(&[512, 1024, 2048, 4096, 8192, 16384]).map(Sweep::Length),
        "threads" => numbers(&[1, 2]).map(Sweep::Threads),
        "width" => match values {
            None => Ok(vec![RandomShape::Smollm2_135m, RandomShape::Qwen2_0_5b, RandomShape::Qwen2_1_5b]),
            Some(values) => values.split(',').map(|name| RandomShape::from_str(name, true)).collect(),
        }
        .map(Sweep::Width),
        _ => Err("must be length, width or threads, with values or without: length=512,1024".into()),
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DecodeArgs {
    /// A Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: PathBuf,
    /// How the linear layers are held, separated by commas: none is as they are stored
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none")]
    pub(crate) quant: Vec<Quant>,
    /// f32 or bf16, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "bf16")]
    pub(crate) dtype: Vec<Dtype>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens that are made
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) new_tokens: usize,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_sweeps_are_read() {
        assert_eq!(shape("64x3x1"), Ok(Shape(vec![64, 3, 1])));
        for bad in ["", "x", "4x", "0x4", "-1", "4,4", "9999999999x1"] {
            assert!(shape(bad).is_err(), "{bad}");
        }
        assert_eq!(sweep("length=512,1024"), Ok(Sweep::Length(vec![512, 1024])));
        assert_eq!(sweep("threads"), Ok(Sweep::Threads(vec![1, 2])));
        assert_eq!(sweep("width=1.5b"), Ok(Sweep::Width(vec![RandomShape::Qwen2_1_5b])));
        for bad in ["depth", "length=0", "length=a", "width=9b", ""] {
            assert!(sweep(bad).is_err(), "{bad}");
        }
    }
}
