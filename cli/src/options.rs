//! run.toml and flags into one set of options: a flag beats the file.

use crate::args::{FinetuneArgs, FinetuneOptions};
use kinglet_tensor::{Error, Result};
use std::path::Path;

/// The options of a run: those of the flags and, where a flag is absent, those of run.toml.
///
/// # Errors
/// When run.toml cannot be read, is no TOML, or has a key or value that no option takes; the message names file,
/// line and key.
pub(crate) fn gather(args: FinetuneArgs) -> Result<FinetuneOptions> {
    let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
    Ok(args.options.or(file))
}

fn read(path: &Path) -> Result<FinetuneOptions> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
    parse(&text).map_err(|e| e.context(path.display()))
}

fn parse(text: &str) -> Result<FinetuneOptions> {
    let table: toml::Table = toml::from_str(text).map_err(|e| Error::invalid(one_line(&e, text)))?;
    let mut options = toml::Table::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        if options.insert(name.clone(), value).is_some() {
            return Err(Error::invalid(format!("key `{name}` is given twice")));
        }
    }
    options.try_into().map_err(|e: toml::de::Error| Error::invalid(e.message().replace('\n', " ")))
}

/// The parser's message and the line that it is about.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => format!("line {}: {message}", text[..span.start.min(text.len())].matches('\n').count() + 1),
        None => message,
    }
}

macro_rules! or {
    ($a:expr, $b:expr; $($field:ident)*) => {
        FinetuneOptions { $($field: $a.$field.or($b.$field),)* }
    };
}

impl FinetuneOptions {
    /// These options and, where one is absent, that of `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        or!(self, other;
            model data output method lora_r lora_alpha lora_dropout target_modules use_rslora modules_to_save quant
            no_double_quant learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay max_grad_norm
            num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps max_length packing
            no_packing no_shuffle gradient_checkpointing seed dtype device threads eval_data eval_steps save_steps
            save_total_limit logging_steps init_adapter raw chat_template from_scratch no_mmap resume overwrite dry_run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Method;

    #[test]
    fn underscores_and_dashes_are_the_same_key() {
        let options = parse("lora_r = 4\nlearning-rate = 1e-3\nmethod = \"full\"\npacking = true").unwrap();
        assert_eq!((options.lora_r, options.learning_rate), (Some(4), Some(1e-3)));
        assert_eq!((options.method, options.packing), (Some(Method::Full), Some(true)));
    }

    #[test]
    fn an_unknown_key_is_named() {
        assert!(parse("lora-rank = 4").unwrap_err().to_string().contains("lora-rank"));
        assert!(parse("seed = 1\nseed = 2").unwrap_err().to_string().contains("line 2"));
        assert!(parse("lora_r = 1\nlora-r = 2").unwrap_err().to_string().contains("lora-r"));
        assert!(parse("lora-r = \"x\"").is_err());
    }

    #[test]
    fn a_flag_beats_the_file() {
        let file = FinetuneOptions { seed: Some(1), lora_r: Some(8), ..Default::default() };
        let flags = FinetuneOptions { seed: Some(2), ..Default::default() };
        let both = flags.or(file);
        assert_eq!((both.seed, both.lora_r), (Some(2), Some(8)));
    }
}
