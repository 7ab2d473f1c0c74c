//! A base model with its tokenizer and chat template, opened from a folder or a GGUF file.

use crate::settings::{Method, Quant, Settings};
use kinglet_data::{ChatTemplate, EncodeOptions, Encoder, GgufVocab, Renderer, Tokenizer};
use kinglet_models::fs::read_text;
use kinglet_models::gguf::Metadata;
use kinglet_models::mmap::Mapped;
use kinglet_models::{Config, Decoder, LoadOptions, ModelFiles, QuantOptions, Source, WeightFiles};
use kinglet_quant::nf4::Format;
use kinglet_tensor::{Device, Error, Result};
use std::path::Path;

/// A model that is opened: its weights are mapped, not yet loaded.
pub struct Base {
    /// Configuration and weight files (none with [`OpenOptions::from_scratch`]).
    pub source: Source,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template in force, if there is one.
    pub template: Option<ChatTemplate>,
    raw: bool,
}

/// How to open a [`Base`].
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions<'a> {
    /// A chat template to use instead of the model's.
    pub chat_template: Option<&'a Path>,
    /// Use no chat template.
    pub raw: bool,
    /// Compiles and runs the chat template in a process of its own, started so; else it is done in this one. See
    /// [`ChatTemplate`] for what that means.
    pub renderer: Option<&'a Renderer>,
    /// Read weight files into memory instead of mapping them.
    pub no_mmap: bool,
    /// Open a folder with config.json and tokenizer alone: the weights will be random.
    pub from_scratch: bool,
}

impl Base {
    /// Opens the model at `path`: a Hugging Face folder or a `.gguf` file.
    ///
    /// # Errors
    /// When model, tokenizer or template cannot be read, are malformed, or ask for something unknown.
    pub fn open(path: &Path, options: OpenOptions<'_>) -> Result<Self> {
        let map = if options.no_mmap { Mapped::open_unmapped } else { Mapped::open };
        let source = if options.from_scratch { without_weights(path)? } else { Source::open(path, map)? };
        let tokenizer = match &source.gguf {
            Some(metadata) => gguf_tokenizer(metadata).map_err(|e| e.context(path.display()))?,
            None => Tokenizer::from_dir(path)?,
        };
        Self::new(source, tokenizer, options)
    }

    fn new(source: Source, mut tokenizer: Tokenizer, options: OpenOptions<'_>) -> Result<Self> {
        if tokenizer.vocab_size() > source.config.vocab {
            let sizes = format!("{} tokens for a model of {}", tokenizer.vocab_size(), source.config.vocab);
            return Err(Error::invalid(format!("{}: the tokenizer has {sizes}", source.path.display())));
        }
        let known = source.stop_tokens()?.into_iter().filter(|&id| (id as usize) < tokenizer.vocab_size());
        tokenizer.add_eos_ids(&known.collect::<Vec<_>>())?;
        if let Some(file) = options.chat_template {
            let text = read_text(file, "the chat template")?;
            tokenizer.set_chat_template(&text, &file.display().to_string())?;
        }
        let template = match options.renderer {
            _ if options.raw => None,
            None => tokenizer.chat_template()?,
            Some(renderer) => tokenizer.chat_template_apart(renderer)?,
        };
        Ok(Base { source, tokenizer, template, raw: options.raw })
    }

    /// Opens the base of a run; `renderer` as in [`OpenOptions`].
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn of(settings: &Settings, renderer: Option<&Renderer>) -> Result<Self> {
        let options = OpenOptions {
            chat_template: settings.chat_template.as_deref(),
            raw: settings.raw,
            renderer,
            no_mmap: settings.no_mmap,
            from_scratch: settings.from_scratch,
        };
        Self::open(&settings.model, options)
    }

    /// The model as a run with these settings trains it.
    ///
    /// # Errors
    /// As [`Base::load`].
    pub fn model(&self, settings: &Settings, device: &Device) -> Result<Decoder> {
        if settings.from_scratch {
            return Decoder::random(self.source.config.clone(), settings.seed, device);
        }
        self.load(&LoadOptions { device: device.clone(), quant: self.quant(settings) })
    }

    /// Whether the weights are stored in blocks of few bits.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        let mut entries = self.source.weights.entries.values();
        entries.any(|e| e.dtype.is_block() || kinglet_quant::bnb::companion_of(&e.name).is_some())
    }

    /// How a run holds the linear layers: as asked; by default in NF4 under qlora, unless they are quantised already.
    #[must_use]
    pub fn quant(&self, settings: &Settings) -> Option<QuantOptions> {
        let by_default = settings.method == Method::Qlora && !self.is_quantized();
        let format = match settings.quant {
            Some(Quant::Nf4) => Format::Nf4,
            Some(Quant::Fp4) => Format::Fp4,
            None if by_default => Format::Nf4,
            None | Some(Quant::None) => return None,
        };
        Some(QuantOptions { format, double: !settings.no_double_quant })
    }

    /// The decoder.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load(&self, options: &LoadOptions) -> Result<Decoder> {
        Decoder::load(&self.source, options).map_err(|e| e.context(self.source.path.display()))
    }

    /// What to say of stored tensors that are no part of `model`, which was loaded from here.
    #[must_use]
    pub fn unused_warning(&self, model: &Decoder) -> Option<String> {
        let unused = self.source.unused(model);
        let first = unused.first()?;
        Some(format!(
            "{}: {} of the stored tensors are no part of the model that its configuration describes and are not used, the \
             first is {first:?}: is the configuration this model's?",
            self.source.path.display(),
            unused.len()
        ))
    }

    /// Renders and tokenises rows of at most `max_length` tokens for this model.
    ///
    /// # Errors
    /// When `max_length` is below 2.
    pub fn encoder(&self, max_length: usize) -> Result<Encoder<'_>> {
        Encoder::new(&self.tokenizer, self.template.as_ref(), EncodeOptions { raw: self.raw, max_length })
    }
}

impl Base {
    /// Checks that no weight file changed since it was opened.
    ///
    /// # Errors
    /// When one did: the error names it.
    pub fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged()
    }
}

/// A folder whose weights are not there, or not wanted.
fn without_weights(path: &Path) -> Result<Source> {
    let generation_config = Some(path.join("generation_config.json")).filter(|p| p.is_file());
    Ok(Source {
        path: path.into(),
        config: Config::read(&path.join("config.json"))?,
        weights: WeightFiles::default(),
        gguf: None,
        files: ModelFiles { generation_config, ..ModelFiles::default() },
    })
}

fn gguf_tokenizer(metadata: &Metadata) -> Result<Tokenizer> {
    if metadata.get("tokenizer.ggml.model").is_none() {
        let what = "the file has no tokenizer (key \"tokenizer.ggml.model\")";
        return Err(Error::invalid(format!("{what}: convert the model again with its tokenizer, or give its folder")));
    }
    Tokenizer::from_gguf(&gguf_vocab(metadata)?)
}

/// The tokenizer's part of a GGUF file's metadata.
///
/// # Errors
/// When a key that every tokenizer has is missing, or one has the wrong type.
pub fn gguf_vocab(m: &Metadata) -> Result<GgufVocab> {
    let string = |key: &str| m.get_str(key).map(|s| s.map(String::from));
    let strings = |key: &str| m.get_strings(key).map(|s| s.map(<[String]>::to_vec));
    let types = m.get_i64s("tokenizer.ggml.token_type")?;
    Ok(GgufVocab {
        model: m.require("tokenizer.ggml.model", string("tokenizer.ggml.model"))?,
        pre: string("tokenizer.ggml.pre")?,
        tokens: m.require("tokenizer.ggml.tokens", strings("tokenizer.ggml.tokens"))?,
        scores: m.get_f32s("tokenizer.ggml.scores")?.map(<[f32]>::to_vec),
        token_types: types.map(|t| t.iter().map(|&t| i32::try_from(t).unwrap_or(-1)).collect()),
        merges: strings("tokenizer.ggml.merges")?.unwrap_or_default(),
        bos: m.get_u32("tokenizer.ggml.bos_token_id")?,
        eos: m.get_u32("tokenizer.ggml.eos_token_id")?,
        unk: m.get_u32("tokenizer.ggml.unknown_token_id")?,
        pad: m.get_u32("tokenizer.ggml.padding_token_id")?,
        add_bos: m.get_bool("tokenizer.ggml.add_bos_token")?,
        add_eos: m.get_bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: m.get_bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: string("tokenizer.chat_template")?,
    })
}
