//! A base model on disk with its tokenizer: what every command opens first.

use crate::settings::{Method, Quant, Settings};
use kinglet_data::{ChatTemplate, GgufVocab, Tokenizer};
use kinglet_models::gguf::Metadata;
use kinglet_models::mmap::Mapped;
use kinglet_models::{Config, Decoder, LoadOptions, QuantOptions, Source};
use kinglet_quant::nf4::Format;
use kinglet_tensor::{Device, Error, Result};
use std::path::Path;

/// An opened model: its description, tokenizer and template. Its weights are loaded by [`Base::load`].
pub struct Base {
    /// Its configuration.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, or the one given instead.
    pub template: Option<ChatTemplate>,
    /// Its weights; `None` for a configuration without weights.
    pub source: Option<Source>,
}

/// How to open a [`Base`].
#[derive(Clone, Copy, Debug, Default)]
pub struct BaseOptions<'a> {
    /// Read weight files into memory instead of mapping them.
    pub no_mmap: bool,
    /// A Jinja file to use instead of the model's template.
    pub chat_template: Option<&'a Path>,
    /// Take config.json and tokenizer only: the weights will be random.
    pub from_scratch: bool,
}

impl Base {
    /// Opens the Hugging Face folder or GGUF file at `path`.
    ///
    /// # Errors
    /// When there is no model that kinglet reads, or one of its files is malformed: the error names it.
    pub fn open(path: &Path, options: &BaseOptions<'_>) -> Result<Self> {
        let map = if options.no_mmap { Mapped::open_unmapped } else { Mapped::open };
        let source = if options.from_scratch { None } else { Some(Source::open(path, map)?) };
        let config = match &source {
            Some(source) => source.config.clone(),
            None => Config::read(&path.join("config.json"))?,
        };
        let mut tokenizer = match source.as_ref().and_then(|s| s.gguf.as_ref()) {
            Some(metadata) => gguf_vocab(metadata).and_then(|v| Tokenizer::from_gguf(&v)),
            None => Tokenizer::from_dir(path),
        }
        .map_err(|e| e.context(path.display()))?;
        if tokenizer.vocab_size() > config.vocab {
            let what = format!("{} tokens for a model of {} embeddings", tokenizer.vocab_size(), config.vocab);
            return Err(Error::invalid(format!("{}: the tokenizer has {what}", path.display())));
        }
        if let Some(file) = options.chat_template {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file.display(), e))?;
            tokenizer.set_chat_template(&text, &file.display().to_string())?;
        }
        let stop = source.as_ref().map_or_else(|| Ok(config.eos.clone()), Source::stop_tokens)?;
        tokenizer.add_eos_ids(&stop)?;
        let template = tokenizer.chat_template()?;
        Ok(Base { config, tokenizer, template, source })
    }

    /// Opens the base of a run.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn of(settings: &Settings) -> Result<Self> {
        let options = BaseOptions {
            no_mmap: settings.no_mmap,
            chat_template: settings.chat_template.as_deref(),
            from_scratch: settings.from_scratch,
        };
        Self::open(&settings.model, &options)
    }

    /// The model on `device`; random by `seed` where there are no weights.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load(&self, device: &Device, quant: Option<QuantOptions>, seed: u64) -> Result<Decoder> {
        match &self.source {
            Some(source) => Decoder::load(source, &LoadOptions { device: device.clone(), quant }),
            None => Decoder::random(self.config.clone(), seed, device),
        }
    }

    /// Whether the file holds block-quantised weights.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        let entries = self.source.iter().flat_map(|s| s.weights.entries.values());
        entries.into_iter().any(|e| e.dtype.is_block() || kinglet_quant::bnb::companion_of(&e.name).is_some())
    }

    /// How a run holds the base: as asked; by default NF4 under qlora, unless the base is quantised already.
    #[must_use]
    pub fn quant_of(&self, settings: &Settings) -> Option<QuantOptions> {
        let by_default = settings.method == Method::Qlora && !self.is_quantized();
        let format = match settings.quant {
            Some(Quant::Nf4) => Format::Nf4,
            Some(Quant::Fp4) => Format::Fp4,
            None if by_default => Format::Nf4,
            None | Some(Quant::None) => return None,
        };
        Some(QuantOptions { format, double: !settings.no_double_quant })
    }

    /// Bytes of the weight files.
    #[must_use]
    pub fn file_bytes(&self) -> usize {
        let entries = self.source.iter().flat_map(|s| s.weights.entries.values());
        entries.map(|e| e.range.len()).sum()
    }

    /// Checks that no weight file changed since it was opened.
    ///
    /// # Errors
    /// When one did: the error names it.
    pub fn check_unchanged(&self) -> Result<()> {
        self.source.as_ref().map_or(Ok(()), Source::check_unchanged)
    }
}

/// The vocabulary in a GGUF file's metadata.
fn gguf_vocab(metadata: &Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |name: &str| -> Result<Vec<String>> {
        Ok(metadata.get_strings(&key(name))?.map(<[String]>::to_vec).unwrap_or_default())
    };
    let text = |name: &str| -> Result<Option<String>> { Ok(metadata.get_str(&key(name))?.map(String::from)) };
    let model = metadata.require(&key("model"), text("model"))?;
    let types = metadata.get_i64s(&key("token_type"))?;
    Ok(GgufVocab {
        model,
        pre: text("pre")?,
        tokens: strings("tokens")?,
        scores: metadata.get_f32s(&key("scores"))?.map(<[f32]>::to_vec),
        // Types are 1 to 6; what does not fit an i32 is none of them.
        token_types: types.map(|t| t.into_iter().map(|t| i32::try_from(t).unwrap_or(0)).collect()),
        merges: strings("merges")?,
        bos: metadata.get_u32(&key("bos_token_id"))?,
        eos: metadata.get_u32(&key("eos_token_id"))?,
        unk: metadata.get_u32(&key("unknown_token_id"))?,
        pad: metadata.get_u32(&key("padding_token_id"))?,
        add_bos: metadata.get_bool(&key("add_bos_token"))?,
        add_eos: metadata.get_bool(&key("add_eos_token"))?,
        add_space_prefix: metadata.get_bool(&key("add_space_prefix"))?,
        chat_template: metadata.get_str("tokenizer.chat_template")?.map(String::from),
    })
}
