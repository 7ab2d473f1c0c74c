//! run.toml and flags into one set of options: a flag beats the file.

use crate::args::{FinetuneArgs, FinetuneOptions};
use kinglet_models::fs::read_text;
use kinglet_tensor::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;

/// The options of a run: those of the flags and, where a flag is absent, those of run.toml.
///
/// # Errors
/// When run.toml cannot be read, is no TOML, or has a key or value that no option takes; the message names file,
/// line and key.
pub(crate) fn gather(args: FinetuneArgs) -> Result<FinetuneOptions> {
    let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
    Ok(args.options.resolve()?.over(file))
}

fn read(path: &Path) -> Result<FinetuneOptions> {
    let text = read_text(path, "the options of the run")?;
    parse(&text).and_then(FinetuneOptions::resolve).map_err(|e| e.context(path.display()))
}

type Keys = BTreeMap<Spanned<String>, toml::Value>;

fn parse(text: &str) -> Result<FinetuneOptions> {
    let keys: Keys = toml::from_str(text).map_err(|e| at(text, e.span().map_or(0, |s| s.start), e.message()))?;
    let mut options = FinetuneOptions::default();
    let mut seen = Vec::new();
    for (key, value) in keys {
        let name = key.get_ref().replace('_', "-");
        let fault = |what: &str| at(text, key.span().start, what);
        if seen.contains(&name) {
            return Err(fault(&format!("key `{name}` is given twice")));
        }
        // One key at a time, so that an error is known to be about it.
        let one = toml::Table::from_iter([(name.clone(), value)]).try_into::<FinetuneOptions>();
        let one = one.map_err(|e| match e.message() {
            m if m.starts_with("unknown field") => {
                fault(&format!("unknown key `{name}`; `kinglet finetune --help` lists them"))
            }
            m => fault(&format!("key `{name}`: {m}")),
        })?;
        options = options.or(one);
        seen.push(name);
    }
    Ok(options)
}

/// A fault at a byte of the text, with its line.
fn at(text: &str, byte: usize, what: &str) -> Error {
    let line = text.bytes().take(byte).filter(|&b| b == b'\n').count() + 1;
    Error::invalid(format!("line {line}: {what}"))
}

macro_rules! or {
    ($a:expr, $b:expr; $($field:ident)*) => {
        FinetuneOptions { $($field: $a.$field.or($b.$field),)* }
    };
}

impl FinetuneOptions {
    /// One option for what two names say.
    fn resolve(mut self) -> Result<Self> {
        if let Some(no) = self.no_packing.take() {
            if self.packing == Some(no) {
                return Err(Error::invalid("--packing and --no-packing exclude each other: leave one out"));
            }
            self.packing = Some(!no);
        }
        if self.resume == Some(true) && self.overwrite == Some(true) {
            return Err(Error::invalid("--resume and --overwrite exclude each other: leave one out"));
        }
        Ok(self)
    }

    /// These options over those of a file. What to do about an earlier run is one choice of two options.
    fn over(self, mut file: Self) -> Self {
        if self.resume.is_some() || self.overwrite.is_some() {
            (file.resume, file.overwrite) = (None, None);
        }
        self.or(file)
    }

    /// These options and, where one is absent, that of `other`.
    fn or(self, other: Self) -> Self {
        or!(self, other;
            model data output method lora_r lora_alpha lora_dropout target_modules use_rslora modules_to_save quant
            no_double_quant learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay max_grad_norm
            num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps max_length packing
            no_packing no_shuffle gradient_checkpointing seed dtype device threads kernels memory_budget eval_data eval_steps save_steps
            save_total_limit logging_steps init_adapter raw chat_template from_scratch no_mmap resume overwrite dry_run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Method;

    fn error(text: &str) -> String {
        parse(text).and_then(FinetuneOptions::resolve).unwrap_err().to_string()
    }

    #[test]
    fn underscores_and_dashes_are_the_same_key() {
        let options = parse("lora_r = 4\nlearning-rate = 1e-3\nmethod = \"full\"\npacking = true").unwrap();
        assert_eq!((options.lora_r, options.learning_rate), (Some(4), Some(1e-3)));
        assert_eq!((options.method, options.packing), (Some(Method::Full), Some(true)));
    }

    #[test]
    fn names_are_a_text_or_a_list() {
        let of = |text: &str| parse(text).unwrap().target_modules.unwrap();
        assert_eq!(of("target-modules = \"q_proj,v_proj\""), of("target_modules = [\"q_proj\", \"v_proj\"]"));
    }

    #[test]
    fn an_error_names_line_and_key() {
        let unknown = error("seed = 1\nlora-rank = 4");
        assert!(unknown.contains("line 2") && unknown.contains("lora-rank"), "{unknown}");
        assert!(error("seed = 1\nseed = 2").contains("line 2"));
        assert!(error("lora_r = 1\nlora-r = 2").contains("lora-r"));
        let typed = error("\n\nlora-r = \"x\"");
        assert!(typed.contains("line 3") && typed.contains("lora-r"), "{typed}");
        assert!(error("packing = true\nno-packing = true").contains("no-packing"));
    }

    #[test]
    fn a_flag_beats_the_file() {
        let file = parse("seed = 1\nlora-r = 8\npacking = true\noverwrite = true").unwrap();
        let flags = FinetuneOptions { seed: Some(2), no_packing: Some(true), resume: Some(true), ..Default::default() };
        let both = flags.resolve().unwrap().over(file);
        assert_eq!((both.seed, both.lora_r, both.packing), (Some(2), Some(8), Some(false)));
        assert_eq!((both.resume, both.overwrite), (Some(true), None));
    }
}
