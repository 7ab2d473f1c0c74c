//! The command line. Names follow transformers' TrainingArguments, PEFT's LoraConfig and bitsandbytes' configuration.

use crate::bench::args::BenchArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kinglet_train::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;

/// Fine-tune and run Llama-style language models: LoRA, QLoRA and full, in Hugging Face's file formats.
#[derive(Parser)]
#[command(name = "kinglet", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Train an adapter (or a whole model) on a JSONL file; without options, the built-in demo
    Finetune(Box<FinetuneArgs>),
    /// Continue a prompt
    Generate(GenerateArgs),
    /// Loss, perplexity and exact match of a model on a data file
    Eval(EvalArgs),
    /// Write base and adapter as one Hugging Face folder
    Merge(MergeArgs),
    /// Write a model with its linear layers quantised, in bitsandbytes' format
    Quantize(QuantizeArgs),
    /// Say what is in a model, adapter, checkpoint or weight file
    Inspect(InspectArgs),
    /// Measure speed and memory beside PyTorch and llama.cpp
    Bench(BenchArgs),
    /// Render chats for another process of kinglet: requests on standard input, answers on standard output
    #[command(hide = true)]
    RenderChats,
}

/// Where and how to compute.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DeviceArgs {
    /// cpu, cuda:N or emulated [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Threads of the CPU device [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// A folder of CUDA kernels, X.cu or X.ptx, to run instead of the built-in ones of the same names
    #[arg(long, value_name = "DIR")]
    pub(crate) kernels: Option<PathBuf>,
    /// The dtype of activations: f32 or bf16 [default: f32]
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,
}

/// A model, and what to run it with.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: PathBuf,
    /// A PEFT adapter folder, or a checkpoint-N folder of a run
    #[arg(long, value_name = "A")]
    pub(crate) adapter: Option<PathBuf>,
    /// Quantise the linear layers while loading, as QLoRA trains them [default: none, the stored form]
    #[arg(long, value_name = "KIND")]
    pub(crate) quant: Option<Quant>,
    /// Keep block scales in f32 instead of quantising them too
    #[arg(long)]
    pub(crate) no_double_quant: bool,
    /// A Jinja chat template to use instead of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// No chat template: prompt and completion are joined as they are
    #[arg(long)]
    pub(crate) raw: bool,
    /// Read weight files into memory instead of mapping them
    #[arg(long)]
    pub(crate) no_mmap: bool,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Quant {
    Nf4,
    Fp4,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    Qlora,
    Lora,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Schedule {
    Linear,
    Cosine,
    Constant,
    WarmupStableDecay,
}

#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
pub(crate) struct FinetuneArgs {
    /// A TOML file with the same names as these options (- or _); an option given here beats it
    #[arg(value_name = "run.toml")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: FinetuneOptions,
}

/// Everything that a run can be told, from flags or from run.toml alike.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct FinetuneOptions {
    /// The base: a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: Option<PathBuf>,
    /// Training rows: JSONL or JSON (Alpaca, prompt/completion, messages, ShareGPT, text)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// qlora, lora or full [default: qlora]
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<Method>,
    /// Rank of the adapters [default: 16]
    #[arg(long, value_name = "R")]
    pub(crate) lora_r: Option<usize>,
    /// Scale of the adapters: alpha / r [default: 32]
    #[arg(long, value_name = "X")]
    pub(crate) lora_alpha: Option<f64>,
    /// Dropout before the adapters [default: 0]
    #[arg(long, value_name = "P")]
    pub(crate) lora_dropout: Option<f32>,
    /// all-linear, names separated by commas, or a regular expression [default: all-linear]
    #[arg(long, value_name = "T")]
    #[serde(deserialize_with = "names")]
    pub(crate) target_modules: Option<String>,
    /// Scale by alpha / sqrt(r)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) use_rslora: Option<bool>,
    /// Modules to train in full and save beside the adapter, separated by commas
    #[arg(long, value_name = "NAMES")]
    #[serde(deserialize_with = "names")]
    pub(crate) modules_to_save: Option<String>,
    /// nf4, fp4 or none: how the base is held; by default nf4 under qlora unless it is quantised already [default: nf4].
    /// It beats the method: lora with nf4 is qlora, and qlora with none is lora on the base as it is stored
    #[arg(long, value_name = "KIND")]
    pub(crate) quant: Option<Quant>,
    /// Keep block scales in f32 instead of quantising them too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) no_double_quant: Option<bool>,
    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "X")]
    pub(crate) learning_rate: Option<f64>,
    /// linear, cosine, constant or warmup_stable_decay [default: linear]
    #[arg(long, value_name = "S")]
    pub(crate) lr_scheduler_type: Option<Schedule>,
    /// Share of the steps that warm up [default: 0]
    #[arg(long, value_name = "X")]
    pub(crate) warmup_ratio: Option<f64>,
    /// Steps that warm up; beats the ratio [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) warmup_steps: Option<u64>,
    /// AdamW's decoupled weight decay [default: 0]
    #[arg(long, value_name = "X")]
    pub(crate) weight_decay: Option<f64>,
    /// Clip the gradient to this norm; 0 does not clip [default: 1]
    #[arg(long, value_name = "X")]
    pub(crate) max_grad_norm: Option<f64>,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "X")]
    pub(crate) num_train_epochs: Option<f64>,
    /// Optimiser steps; beats epochs and wraps round the data
    #[arg(long, value_name = "N")]
    pub(crate) max_steps: Option<u64>,
    /// Rows (or packs) in a micro-batch [default: 8]
    #[arg(long, value_name = "N")]
    pub(crate) per_device_train_batch_size: Option<usize>,
    /// Micro-batches in an optimiser step [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) gradient_accumulation_steps: Option<usize>,
    /// Tokens of a row; longer rows lose their end [default: 1024]
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// Put several rows into one sequence of max-length; no row sees another
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) packing: Option<bool>,
    /// One row a sequence (the default)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) no_packing: Option<bool>,
    /// Take rows in the order of the file
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) no_shuffle: Option<bool>,
    /// Run each layer again in the backward pass: less memory, more time
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) gradient_checkpointing: Option<bool>,
    /// Seed of everything random [default: 42]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// The dtype of activations: f32 or bf16 [default: f32]
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// cpu, cuda:N or emulated [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Threads of the CPU device [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// A folder of CUDA kernels, X.cu or X.ptx, to run instead of the built-in ones of the same names
    #[arg(long, value_name = "DIR")]
    pub(crate) kernels: Option<PathBuf>,
    /// Refuse a run that needs more memory than this, such as 6GiB, and say what would fit [default: all that a GPU has]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_budget: Option<ByteSize>,
    /// Rows to evaluate on, during the run and at its end
    #[arg(long, value_name = "FILE")]
    pub(crate) eval_data: Option<PathBuf>,
    /// Evaluate every N steps [default: only at the end]
    #[arg(long, value_name = "N")]
    pub(crate) eval_steps: Option<u64>,
    /// Save a checkpoint every N steps; 0 only at the end [default: 50]
    #[arg(long, value_name = "N")]
    pub(crate) save_steps: Option<u64>,
    /// Keep only the newest N checkpoints
    #[arg(long, value_name = "N")]
    pub(crate) save_total_limit: Option<usize>,
    /// Print every N steps; log.jsonl has every step [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) logging_steps: Option<u64>,
    /// Start from this adapter instead of a new one; its rank, alpha, dropout and modules are the run's
    #[arg(long, value_name = "DIR")]
    pub(crate) init_adapter: Option<PathBuf>,
    /// No chat template: prompt and completion are joined as they are
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) raw: Option<bool>,
    /// A Jinja chat template to use instead of the model's
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Train a new model: MODEL has a config.json and a tokenizer but no weights
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) from_scratch: Option<bool>,
    /// Read weight files into memory instead of mapping them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) no_mmap: Option<bool>,
    /// Continue the run in OUTPUT from its newest checkpoint
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", conflicts_with = "overwrite")]
    pub(crate) resume: Option<bool>,
    /// Replace the run in OUTPUT
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) overwrite: Option<bool>,
    /// Print the plan and stop before step 1
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) dry_run: Option<bool>,
}

/// Names in run.toml: a text, as a flag takes it, or a list.
fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be a text or a list of names")]
    enum Names {
        Text(String),
        List(Vec<String>),
    }
    Ok(Some(match Names::deserialize(from)? {
        Names::Text(text) => text,
        Names::List(list) => list.join(","),
    }))
}

#[derive(Args, Clone, Debug)]
#[command(allow_negative_numbers = true)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to continue; - reads it from standard input
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A JSON file with a list of messages {role, content}
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) messages: Option<PathBuf>,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// The most tokens to make
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Choose among the K likeliest tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Choose among the likeliest tokens that sum to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Seed of the choice
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Rows to evaluate on
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// loss, perplexity, exact-match, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "loss,perplexity")]
    pub(crate) metrics: Vec<Metric>,
    /// Tokens of a row; longer rows lose their end
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) max_length: usize,
    /// Rows that go through the model at once for loss and perplexity: more take more memory and often less time, and
    /// change no bit of the result. Answers under exact-match are made one row at a time
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) batch_size: usize,
    /// The most tokens of an answer under exact-match
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_new_tokens: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Metric {
    Loss,
    Perplexity,
    ExactMatch,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct MergeArgs {
    /// The base: a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: PathBuf,
    /// The PEFT adapter folder, or a checkpoint of a run
    #[arg(long, value_name = "A")]
    pub(crate) adapter: PathBuf,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The dtype of the merged weights [default: as stored; bf16 from GGUF]
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// Merge into the dequantised weights of a bitsandbytes 4-bit base
    #[arg(long)]
    pub(crate) dequantize: bool,
    /// Replace OUTPUT if it holds a merged model
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Threads of the CPU device [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct QuantizeArgs {
    /// A Hugging Face folder or a .gguf file
    #[arg(long, value_name = "M")]
    pub(crate) model: PathBuf,
    /// nf4 or fp4
    #[arg(long, value_name = "KIND")]
    pub(crate) quant: Quant,
    /// Keep block scales in f32 instead of quantising them too
    #[arg(long)]
    pub(crate) no_double_quant: bool,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Replace OUTPUT if it holds a quantised model
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Threads of the CPU device [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// A model folder, adapter folder, checkpoint, .safetensors or .gguf file
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
