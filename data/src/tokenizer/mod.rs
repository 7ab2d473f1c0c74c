//! Text to token ids and back.

mod backend;
mod config;
mod file;
mod gguf;
mod stream;
#[cfg(test)]
mod tests;

use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};

pub(crate) use backend::Span;
pub use gguf::GgufVocab;
pub use stream::TextStream;

use crate::read::read_at_most;
use crate::template::{ChatTemplate, Renderer, SpecialTokens};
use backend::Backend;
use config::TokenizerConfig;
use file::{MAX_FILE_BYTES, TokenizerFile};

/// The files of a Hugging Face folder that belong to its tokenizer; all but the first may be missing.
const FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"];
/// Read for its `eos_token_id`, but not the tokenizer's to write.
const GENERATION_CONFIG: &str = "generation_config.json";

/// A file of a model folder: its name there and its bytes.
pub type NamedFile = (String, Vec<u8>);

/// A byte-pair tokenizer from a Hugging Face folder or a GGUF file.
///
/// Text that spells a special token, such as `<|im_end|>`, becomes that token wherever it stands, as
/// in transformers.
pub struct Tokenizer {
    backend: Backend,
    /// Ids that go before and after a text that gets special tokens.
    before: Vec<u32>,
    after: Vec<u32>,
    special_tokens: SpecialTokens,
    eos_ids: Vec<u32>,
    /// The chat template and the file it came from.
    template: Option<(Value, String)>,
    files: Vec<NamedFile>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja` and `generation_config.json` of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, is malformed, or asks for something unknown; always with its name.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for name in FILES.into_iter().chain([GENERATION_CONFIG]) {
            let path = dir.join(name);
            if name == FILES[0] || path.exists() {
                files.push((name.to_owned(), read_at_most(&path, MAX_FILE_BYTES)?));
            }
        }
        Self::from_files(files).map_err(|e| e.context(dir.display()))
    }

    /// Like [`Tokenizer::from_dir`], from files in memory.
    ///
    /// # Errors
    /// No `tokenizer.json`, or a malformed file, with its name.
    pub fn from_files(mut files: Vec<NamedFile>) -> Result<Self> {
        let get = |name: &str| files.iter().find(|file| file.0 == name).map(|file| file.1.as_slice());
        let json = get(FILES[0]).ok_or_else(|| Error::invalid(format!("{} is missing", FILES[0])))?;
        let file = TokenizerFile::parse(json).map_err(|e| e.context(FILES[0]))?;

        let read_config = |name: &str| match get(name) {
            Some(bytes) => TokenizerConfig::parse(bytes).map_err(|e| e.context(name)),
            None => Ok(TokenizerConfig::default()),
        };
        let config = read_config(FILES[1])?.or(read_config(FILES[2])?);
        let template = match get(FILES[4]) {
            Some(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|e| Error::invalid(e).context(FILES[4]))?;
                Some((json!(text), FILES[4].to_owned()))
            }
            None => config.chat_template.clone().map(|template| (template, FILES[1].to_owned())),
        };
        let eos_ids = match get(GENERATION_CONFIG) {
            Some(bytes) => config::eos_ids(bytes).map_err(|e| e.context(GENERATION_CONFIG))?,
            None => Vec::new(),
        };
        files.retain(|file| FILES.contains(&file.0.as_str()));
        let mut tokenizer = Self::assemble(&file, files).map_err(|e| e.context(FILES[0]))?;
        tokenizer.template = template;
        tokenizer.use_config(&config, &file).map_err(|e| e.context(FILES[1]))?;
        tokenizer.add_eos_ids(&eos_ids).map_err(|e| e.context(GENERATION_CONFIG))?;
        Ok(tokenizer)
    }

    /// Builds the tokenizer that a GGUF file describes. Its [`Tokenizer::files`] are generated and load
    /// in transformers.
    ///
    /// # Errors
    /// An unknown model or pre-tokenizer, named; metadata that does not fit together.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self> {
        let file = vocab.to_file()?;
        let config = vocab.to_config();
        let mut files = vec![(FILES[0].to_owned(), pretty(&file)?), (FILES[1].to_owned(), pretty(&config)?)];
        if let Some(template) = &vocab.chat_template {
            files.push((FILES[4].to_owned(), template.clone().into_bytes()));
        }
        let mut tokenizer = Self::assemble(&file, files)?;
        let token = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize).cloned());
        tokenizer.special_tokens = SpecialTokens {
            bos_token: token(vocab.bos),
            eos_token: token(vocab.eos),
            unk_token: token(vocab.unk),
            pad_token: token(vocab.pad),
        };
        tokenizer.template =
            vocab.chat_template.as_ref().map(|text| (json!(text), "tokenizer.chat_template".to_owned()));
        tokenizer.add_eos_ids(&vocab.end_ids())?;
        Ok(tokenizer)
    }

    fn assemble(file: &TokenizerFile, files: Vec<NamedFile>) -> Result<Self> {
        let backend = Backend::new(file)?;
        let (before, after) = file.special_frame()?.unwrap_or_default();
        let tokenizer = Tokenizer {
            backend,
            before,
            after,
            special_tokens: SpecialTokens::default(),
            eos_ids: Vec::new(),
            template: None,
            files,
        };
        let framing = tokenizer.before.iter().chain(&tokenizer.after);
        framing.copied().try_for_each(|id| tokenizer.check_id(id))?;
        Ok(tokenizer)
    }

    /// Takes the named special tokens, and `add_bos_token` and `add_eos_token` where `tokenizer.json`
    /// has no template that says what goes around a text.
    fn use_config(&mut self, config: &TokenizerConfig, file: &TokenizerFile) -> Result<()> {
        self.special_tokens = SpecialTokens {
            bos_token: config.bos_token.clone(),
            eos_token: config.eos_token.clone(),
            unk_token: config.unk_token.clone(),
            pad_token: config.pad_token.clone(),
        };
        let missing =
            |what: &str| Error::invalid(format!("key `{what}` is set, but the token is not in the vocabulary"));
        if let Some(eos) = &config.eos_token {
            let id = self.backend.id(eos).ok_or_else(|| missing("eos_token"))?;
            self.add_eos_ids(&[id])?;
        }
        if file.special_frame()?.is_none() {
            if config.add_bos_token {
                self.before = vec![self.bos().ok_or_else(|| missing("add_bos_token"))?];
            }
            if config.add_eos_token {
                self.after = vec![self.eos().ok_or_else(|| missing("add_eos_token"))?];
            }
        }
        Ok(())
    }

    fn check_id(&self, id: u32) -> Result<()> {
        if self.backend.text(id).is_none() {
            return Err(Error::invalid(format!("token id {id} is not in the vocabulary")));
        }
        Ok(())
    }

    /// The ids of `text`; with `add_special`, with the tokens that the model expects around a text
    /// (often a beginning token).
    ///
    /// # Errors
    /// A text of more than 16 MiB.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = self.backend.encode(text)?;
        Ok(if add_special { [&self.before, &ids, &self.after].map(|v| v.as_slice()).concat() } else { ids })
    }

    /// The ids of a rendered chat. Nothing is added: the template writes every special token itself.
    ///
    /// # Errors
    /// A text of more than 16 MiB.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(rendered, false)
    }

    /// The tokens of `text` with their places, without special tokens around them.
    pub(crate) fn encode_spans(&self, text: &str) -> Result<Vec<Span>> {
        self.backend.encode_spans(text)
    }

    /// Ids that `encode(.., true)` puts before a text.
    pub(crate) fn ids_before(&self) -> &[u32] {
        &self.before
    }

    /// The text of `ids`. Ids that are not in the vocabulary have no text, and bytes that are no UTF-8
    /// become replacement characters, as in transformers.
    ///
    /// # Errors
    /// The decoder of `tokenizer.json` fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.backend.decode(ids, skip_special)
    }

    /// A decoder that takes one id at a time.
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// One more than the highest id. A model may have more rows than this, never fewer.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.backend.vocab_size()
    }

    /// The token that begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.special_tokens.bos_token.as_ref().and_then(|text| self.backend.id(text))
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.special_tokens.eos_token.as_ref().and_then(|text| self.backend.id(text))
    }

    /// All ids at which generation stops, sorted.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Adds ids at which generation stops, such as those of `config.json`.
    ///
    /// # Errors
    /// An id that is not in the vocabulary.
    pub fn add_eos_ids(&mut self, ids: &[u32]) -> Result<()> {
        ids.iter().try_for_each(|&id| self.check_id(id).map_err(|e| e.context("eos")))?;
        self.eos_ids.extend(ids);
        self.eos_ids.sort_unstable();
        self.eos_ids.dedup();
        Ok(())
    }

    /// The token as the vocabulary spells it.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.backend.text(id)
    }

    /// The id of a token that is spelt as in the vocabulary.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.backend.id(text)
    }

    /// Whether `id` is a special token (a control token, in GGUF's words).
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.backend.is_special(id)
    }

    /// The model's special tokens by role, as templates see them.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// The model's chat template, if it has one, compiled in this process.
    ///
    /// # Errors
    /// A template that does not parse, with its file and line.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        self.compile_template(None)
    }

    /// The model's chat template, if it has one, compiled and run in a process of its own.
    ///
    /// # Errors
    /// As [`ChatTemplate::apart`].
    pub fn chat_template_apart(&self, renderer: &Renderer) -> Result<Option<ChatTemplate>> {
        self.compile_template(Some(renderer))
    }

    fn compile_template(&self, renderer: Option<&Renderer>) -> Result<Option<ChatTemplate>> {
        let Some((source, origin)) = &self.template else { return Ok(None) };
        ChatTemplate::from_json(source, origin, &self.special_tokens, renderer).map(Some)
    }

    /// Replaces the chat template, here and in [`Tokenizer::files`]. `origin` names it in errors. It is compiled, and
    /// found to be wrong, by [`Tokenizer::chat_template`].
    ///
    /// # Errors
    /// A `tokenizer_config.json` that is none.
    pub fn set_chat_template(&mut self, source: &str, origin: &str) -> Result<()> {
        self.template = Some((json!(source), origin.to_owned()));
        self.files.retain(|file| file.0 != FILES[4]);
        self.files.push((FILES[4].to_owned(), source.as_bytes().to_vec()));
        // A template in both places would leave it to the reader's version which one counts.
        if let Some(config) = self.files.iter_mut().find(|file| file.0 == FILES[1]) {
            let mut json: Value = serde_json::from_slice(&config.1).map_err(|e| Error::invalid(e).context(FILES[1]))?;
            if json.as_object_mut().and_then(|keys| keys.shift_remove("chat_template")).is_some() {
                config.1 = pretty(&json)?;
            }
        }
        Ok(())
    }

    /// The files to store beside a model or an adapter: byte for byte those that were read, or the
    /// generated ones of a GGUF.
    #[must_use]
    pub fn files(&self) -> &[NamedFile] {
        &self.files
    }

    /// Writes [`Tokenizer::files`] into a folder that exists.
    ///
    /// # Errors
    /// A file that cannot be written, with its path.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, bytes)| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::io(path.display(), e))
        })
    }
}

fn pretty(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(Error::invalid)
}
