//! Rows to token ids and targets.
//!
//! A chat is rendered and tokenized once, as transformers' `apply_chat_template` does, and the
//! targets are found by position: from where the prompt for a turn ends up to and including the token
//! that ends the turn. A token that lies across the start of an answer holds some of the answer and is
//! a target.

#[cfg(test)]
mod tests;

use kinglet_tensor::{Error, Result};
use serde_json::Value;

use crate::dataset::{Dataset, Row, RowContent, at};
use crate::template::{ChatTemplate, Message};
use crate::tokenizer::{Span, Tokenizer};
use crate::turns::{RenderedChat, Turn, render};

/// A tokenized row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, `[tokens]`.
    pub ids: Vec<i32>,
    /// Whether each token is to be learnt, `[tokens]`.
    pub is_target: Vec<bool>,
    /// The line of the file, from 1.
    pub line: usize,
}

impl Example {
    /// What is to be predicted at each token: the id of the next token where that is a target, else -1.
    pub fn shifted_targets(&self) -> impl Iterator<Item = i32> + '_ {
        let next = self.ids.iter().zip(&self.is_target).skip(1);
        next.map(|(&id, &is_target)| if is_target { id } else { -1 }).chain((!self.ids.is_empty()).then_some(-1))
    }

    /// The number of tokens that are predicted. The first token of a row never is.
    #[must_use]
    pub fn target_tokens(&self) -> usize {
        self.is_target.iter().skip(1).filter(|&&t| t).count()
    }

    /// Drops what is beyond `max_length` tokens; whether anything was.
    fn truncate(&mut self, max_length: usize) -> bool {
        let cut = self.ids.len() > max_length;
        self.ids.truncate(max_length);
        self.is_target.truncate(max_length);
        cut
    }
}

/// How rows are encoded.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// No chat template: prompt and completion are joined as they are.
    pub raw: bool,
    /// Longer rows lose their end, in tokens.
    pub max_length: usize,
}

/// The rows of a data set, ready for training.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The rows that have something to learn, in the order of the file.
    pub examples: Vec<Example>,
    /// What happened to the rows.
    pub report: EncodeReport,
}

/// Counts to show before training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeReport {
    /// Rows of the file.
    pub rows: usize,
    /// Tokens of the rows that are kept.
    pub tokens: usize,
    /// Predicted tokens of the rows that are kept.
    pub target_tokens: usize,
    /// Rows that were longer than the maximum and lost their end, left-out rows included.
    pub rows_cut: usize,
    /// Rows left out, because all of their targets were cut off.
    pub rows_left_out: usize,
    /// The line of the first row left out.
    pub first_left_out: Option<usize>,
}

impl EncodeReport {
    /// The one warning about rows left out, if any.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let line = self.first_left_out?;
        Some(format!(
            "{} rows are left out, as their answers lie wholly beyond --max-length; the first is line {line}",
            self.rows_left_out
        ))
    }
}

/// A prompt to generate from, and what the row says is the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<i32>,
    /// The answer's text.
    pub reference: String,
    /// The line of the file, from 1.
    pub line: usize,
}

/// Encodes rows for one model. `finetune`, `eval` and `generate` all go through here.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    options: EncodeOptions,
}

impl<'a> Encoder<'a> {
    /// An encoder; `template` may be absent if no row needs one.
    ///
    /// # Errors
    /// A maximum length below 2: nothing could be predicted.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, options: EncodeOptions) -> Result<Self> {
        if options.max_length < 2 {
            return Err(Error::invalid("--max-length must be at least 2"));
        }
        Ok(Encoder { tokenizer, template, options })
    }

    /// Encodes all rows, cuts them and leaves out those without a target.
    ///
    /// # Errors
    /// A row that cannot be encoded, with its file and line; no row left.
    pub fn encode(&self, dataset: &Dataset) -> Result<Encoded> {
        let mut examples = Vec::with_capacity(dataset.rows().len());
        let mut report = EncodeReport { rows: dataset.rows().len(), ..EncodeReport::default() };
        for row in dataset.rows() {
            let mut example = self.encode_row(row).map_err(|e| at(dataset.name(), row.line, e))?;
            report.rows_cut += usize::from(example.truncate(self.options.max_length));
            if example.target_tokens() == 0 {
                report.rows_left_out += 1;
                report.first_left_out.get_or_insert(row.line);
                continue;
            }
            report.tokens += example.ids.len();
            report.target_tokens += example.target_tokens();
            examples.push(example);
        }
        if examples.is_empty() {
            return Err(Error::invalid(format!(
                "{}: no row is left, as every answer lies wholly beyond {} tokens; raise --max-length",
                dataset.name(),
                self.options.max_length
            )));
        }
        Ok(Encoded { examples, report })
    }

    /// Encodes one row at its full length; targets are marked up to the maximum length, and perhaps beyond.
    ///
    /// # Errors
    /// A row that needs a template where there is none, a template that fails, no end token.
    pub fn encode_row(&self, row: &Row) -> Result<Example> {
        let (ids, is_target) = match &row.content {
            RowContent::Text(text) => self.encode_text(text)?,
            RowContent::Pair { before, prompt, completion } if self.options.raw => {
                check_raw(before)?;
                self.encode_raw(prompt, completion)?
            }
            RowContent::Pair { before, prompt, completion } => {
                let messages = pair_messages(before, prompt, completion);
                self.encode_chat(&messages, None, messages.len() - 1)?
            }
            RowContent::Chat { messages, tools, first_target } => {
                self.encode_chat(messages, tools.as_ref(), *first_target)?
            }
        };
        Ok(Example { ids: signed(&ids), is_target, line: row.line })
    }

    /// The prompt before the row's last answer, and that answer.
    ///
    /// # Errors
    /// A row without a prompt (plain text), or as [`Encoder::encode_row`].
    pub fn prompt(&self, row: &Row) -> Result<Prompt> {
        let (ids, reference) = match &row.content {
            RowContent::Text(_) => return Err(Error::invalid("a `text` row has no prompt to answer")),
            RowContent::Pair { before, prompt, completion } if self.options.raw => {
                check_raw(before)?;
                (self.raw_prompt(prompt)?, completion.clone())
            }
            RowContent::Pair { before, prompt, completion } => {
                let mut messages = pair_messages(before, prompt, completion);
                messages.pop();
                (self.chat_prompt(&messages, None)?, completion.clone())
            }
            RowContent::Chat { messages, tools, first_target } => {
                let answers = |m: &Message| m.role() == "assistant" && m.content().is_some();
                let last = messages.iter().rposition(answers).filter(|last| last >= first_target);
                let last = last.ok_or_else(|| Error::invalid("no assistant message has a text to compare with"))?;
                let reference = messages[last].content().unwrap_or_default().to_owned();
                (self.chat_prompt(&messages[..last], tools.as_ref())?, reference)
            }
        };
        Ok(Prompt { ids: signed(&ids), reference, line: row.line })
    }

    /// The ids of a chat up to where the assistant answers.
    ///
    /// # Errors
    /// No template, `--raw`, or a template that fails.
    pub fn chat_prompt(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        self.tokenizer.encode_chat(&render(self.need_template()?, messages, tools, true)?)
    }

    /// The ids of a prompt without a template, with the token that begins a text if the model has one.
    ///
    /// # Errors
    /// A text that is too long.
    pub fn raw_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.ids_before().to_vec();
        ids.extend(self.tokenizer.encode(prompt, false)?);
        Ok(ids)
    }

    /// The ids at which generation stops: the model's own, and the token that ends a turn in the
    /// template, which is what was learnt.
    ///
    /// # Errors
    /// A template that fails on one question and one answer.
    pub fn stop_ids(&self) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.eos_ids().to_vec();
        if let (Some(template), false) = (self.template, self.options.raw) {
            let messages = [Message::new("user", "question"), Message::new("assistant", "answer")];
            let mut chat = RenderedChat::new(template, &messages, None, Some(1))?;
            let tokens = self.tokenizer.encode_spans(&chat.text)?;
            let turn = chat.turn(1)?;
            ids.extend(self.end_token(&chat.text, &tokens, turn).map(|index| tokens[index].id));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Every token and the end token are targets.
    fn encode_text(&self, text: &str) -> Result<(Vec<u32>, Vec<bool>)> {
        let mut ids = self.tokenizer.encode(text, true)?;
        self.push_end(&mut ids)?;
        let is_target = vec![true; ids.len()];
        Ok((ids, is_target))
    }

    /// The completion and the end token are targets.
    fn encode_raw(&self, prompt: &str, completion: &str) -> Result<(Vec<u32>, Vec<bool>)> {
        let tokens = self.tokenizer.encode_spans(&format!("{prompt}{completion}"))?;
        let mut ids = self.tokenizer.ids_before().to_vec();
        let mut is_target = vec![false; ids.len()];
        is_target.extend(tokens.iter().map(|token| holds_text_from(token, prompt.len())));
        ids.extend(tokens.iter().map(|token| token.id));
        self.push_end(&mut ids)?;
        is_target.resize(ids.len(), true);
        Ok((ids, is_target))
    }

    /// The turns of the assistant from `first_target` on, each with its end token, are targets.
    fn encode_chat(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        first_target: usize,
    ) -> Result<(Vec<u32>, Vec<bool>)> {
        let assistant = |index: &usize| messages[*index].role() == "assistant";
        let mut turns = (first_target..messages.len()).filter(assistant).peekable();
        let mut chat = RenderedChat::new(self.need_template()?, messages, tools, turns.peek().copied())?;
        let mut tokens = self.tokenizer.encode_spans(&chat.text)?;
        let mut is_target = vec![false; tokens.len()];
        // Nothing after the first turn beyond the cut is learnt, and to find a turn the whole chat is rendered again.
        let cut = tokens.get(self.options.max_length).map_or(usize::MAX, |token| token.start);
        let mut ended = true;
        for index in turns {
            let turn = chat.turn(index)?;
            if turn.start > cut {
                break;
            }
            let end = self.end_token(&chat.text, &tokens, turn);
            ended = end.is_some() || index + 1 < messages.len();
            if !ended {
                // What the template puts after its last word cannot be learnt after; the end token can.
                tokens = self.tokenizer.encode_spans(&chat.text[..turn.text_end])?;
                is_target.truncate(tokens.len());
            }
            let stop = end.map_or(turn.text_end, |index| tokens[index].end);
            for (token, is_target) in tokens.iter().zip(&mut is_target) {
                *is_target |= holds_text_from(token, turn.start) && token.start < stop;
            }
        }
        let mut ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        if !ended {
            self.push_end(&mut ids)?;
            is_target.resize(ids.len(), true);
        }
        Ok((ids, is_target))
    }

    /// The index of the token that ends a turn: a special token right after the turn's text, with
    /// nothing but white space between.
    fn end_token(&self, text: &str, tokens: &[Span], turn: Turn) -> Option<usize> {
        let ends = |token: &Span| self.tokenizer.is_special(token.id) || self.tokenizer.eos_ids().contains(&token.id);
        let after = tokens.partition_point(|token| token.start < turn.text_end);
        let index = after + tokens[after..].iter().position(ends)?;
        text[turn.text_end..tokens[index].start].trim().is_empty().then_some(index)
    }

    /// Adds the end token, unless the tokenizer has already put it there.
    fn push_end(&self, ids: &mut Vec<u32>) -> Result<()> {
        let end = self.tokenizer.eos().or(self.tokenizer.eos_ids().first().copied());
        let end = end.ok_or_else(|| Error::invalid("the tokenizer has no end token (key `eos_token`)"))?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(())
    }

    fn need_template(&self) -> Result<&'a ChatTemplate> {
        match (self.options.raw, self.template) {
            (false, Some(template)) => Ok(template),
            (false, None) => Err(Error::invalid(
                "the model has no chat template: give one with --chat-template FILE, or use --raw to join prompt and \
                 completion as they are",
            )),
            (true, _) => Err(Error::invalid("a chat needs a template, which --raw turns off")),
        }
    }
}

/// Whether the token holds text from `start` on: also one that lies across it.
fn holds_text_from(token: &Span, start: usize) -> bool {
    token.end > start || token.start >= start
}

fn pair_messages(before: &[Message], prompt: &str, completion: &str) -> Vec<Message> {
    let turns = [Message::new("user", prompt), Message::new("assistant", completion)];
    before.iter().cloned().chain(turns).collect()
}

fn check_raw(before: &[Message]) -> Result<()> {
    if before.is_empty() {
        return Ok(());
    }
    Err(Error::invalid("keys `system` and `history` need a chat template, which --raw turns off"))
}

/// Ids as the kernels take them; [`Tokenizer`] keeps them far below 2^31.
fn signed(ids: &[u32]) -> Vec<i32> {
    ids.iter().map(|&id| id as i32).collect()
}
