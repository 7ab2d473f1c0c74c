//! The only file that knows the tokenizers crate.

use kinglet_tensor::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};
use tokenizers::{
    AddedToken as CrateToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as CrateTokenizer,
};

use super::file::{Bpe, TokenizerFile};

/// The largest text that is tokenized at once, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// A token with its place in the text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A byte-pair tokenizer without a post-processor: what goes around a text is [`super::Tokenizer`]'s.
pub(super) struct Backend {
    inner: CrateTokenizer,
    /// Text of each id; `None` where the vocabulary has a hole.
    texts: Vec<Option<String>>,
    /// Sorted ids of the special added tokens.
    special: Vec<u32>,
}

impl Backend {
    /// Builds from a checked file.
    pub(super) fn new(file: &TokenizerFile) -> Result<Self> {
        let mut inner = CrateTokenizer::new(build_model(&file.model)?);
        let normalizer: Option<NormalizerWrapper> = component("normalizer", &file.normalizer)?;
        let pre_tokenizer: Option<PreTokenizerWrapper> = component("pre_tokenizer", &file.pre_tokenizer)?;
        let decoder: Option<DecoderWrapper> = component("decoder", &file.decoder)?;
        inner.with_normalizer(normalizer).map_err(Error::invalid)?;
        inner.with_pre_tokenizer(pre_tokenizer);
        inner.with_decoder(decoder);
        add_tokens(&mut inner, file)?;
        let mut special: Vec<u32> = file.added_tokens.iter().filter(|t| t.special).map(|t| t.id).collect();
        special.sort_unstable();
        Ok(Backend { inner, texts: texts_by_id(file), special })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        check_length(text)?;
        let encoding = self.inner.encode_fast(text, false).map_err(Error::invalid)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`Backend::encode`], with the place of each token. Tokens that are parts of one character
    /// all have that character's place.
    pub(super) fn encode_spans(&self, text: &str) -> Result<Vec<Span>> {
        check_length(text)?;
        let encoding = self.inner.encode(text, false).map_err(Error::invalid)?;
        let places = encoding.get_offsets().iter();
        Ok(encoding.get_ids().iter().zip(places).map(|(&id, &(start, end))| Span { id, start, end }).collect())
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(Error::invalid)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize)?.as_deref()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }
}

fn build_model(bpe: &Bpe) -> Result<BPE> {
    let vocab: BpeVocab = bpe.vocab.0.iter().cloned().collect();
    let merges = bpe.merges.iter().filter_map(|merge| merge.sides());
    let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned())).collect();
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(bpe.fuse_unk)
        .byte_fallback(bpe.byte_fallback)
        .ignore_merges(bpe.ignore_merges)
        // The crate's cache is thread-local state that outlives the tokenizer.
        .cache_capacity(0);
    if let Some(unk) = &bpe.unk_token {
        builder = builder.unk_token(unk.clone());
    }
    builder.build().map_err(|e| Error::invalid(format!("model: {e}")))
}

fn component<T: DeserializeOwned>(what: &str, value: &Value) -> Result<Option<T>> {
    let parsed = Option::<T>::deserialize(value);
    parsed.map_err(|e| Error::invalid(format!("{what}: {e}")))
}

/// Adds the tokens and checks that each one got the id that the file gives it.
fn add_tokens(inner: &mut CrateTokenizer, file: &TokenizerFile) -> Result<()> {
    let tokens = file.added_tokens.iter().map(|token| {
        CrateToken::from(token.content.clone(), token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized)
    });
    inner.add_tokens(tokens).map_err(Error::invalid)?;
    for token in &file.added_tokens {
        if inner.token_to_id(&token.content) != Some(token.id) {
            return Err(Error::invalid(format!(
                "added token {:?} has id {}, which does not follow on from the vocabulary",
                token.content, token.id
            )));
        }
    }
    Ok(())
}

fn texts_by_id(file: &TokenizerFile) -> Vec<Option<String>> {
    let added = file.added_tokens.iter().map(|token| (&token.content, token.id));
    let entries = file.model.vocab.0.iter().map(|(text, id)| (text, *id)).chain(added);
    let mut texts = Vec::new();
    for (text, id) in entries {
        let index = id as usize;
        if texts.len() <= index {
            texts.resize(index + 1, None);
        }
        texts[index] = Some(text.clone());
    }
    texts
}

fn check_length(text: &str) -> Result<()> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Error::invalid(format!(
            "a text of {} bytes is too long to tokenize at once (at most {MAX_TEXT_BYTES})",
            text.len()
        )));
    }
    Ok(())
}
