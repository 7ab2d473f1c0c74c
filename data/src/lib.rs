//! From files of text to batches of token ids: tokenizers, chat templates, dataset readers, target
//! masks, packing.
//!
//! The way of a row: [`Dataset`] reads it, [`Encoder`] renders it through the [`ChatTemplate`],
//! tokenizes it with the [`Tokenizer`] and marks its targets, [`Batches`] groups it with others.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod batch;
pub mod dataset;
pub mod example;
mod formats;
pub mod packing;
pub mod philox;
mod read;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tokenizer;
mod turns;

pub use batch::{BatchOptions, Batches, Epoch, TokenBatch};
pub use dataset::{Dataset, Format, Row, RowContent};
pub use example::{EncodeOptions, EncodeReport, Encoded, Encoder, Example, Prompt};
pub use template::{ChatTemplate, Message, RenderOptions, Renderer, SpecialTokens};
pub use tokenizer::{GgufVocab, NamedFile, TextStream, Tokenizer};

#[cfg(test)]
mod tests {
    #[test]
    fn everything_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<crate::Tokenizer>();
        shared::<crate::ChatTemplate>();
        shared::<crate::Encoder<'_>>();
        shared::<crate::Batches>();
    }
}
