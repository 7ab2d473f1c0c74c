//! Decoding token by token.

use kinglet_tensor::Result;

use super::Tokenizer;

/// The window is cut back to this many ids once it holds twice as many: the cost of a token stays
/// bounded, and no character is made of so many tokens.
const WINDOW: usize = 32;

/// Turns ids into text as they come. Text is given out once its last character is complete; what was
/// given out is never taken back.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The latest ids: decoding needs what came before.
    window: Vec<u32>,
    /// How much of the window's text was given out.
    given: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        TextStream { tokenizer, skip_special, window: Vec::new(), given: String::new() }
    }

    /// Takes the next id and returns the text that became certain, often empty.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        // A replacement character at the end may become a character with the next ids.
        let certain = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let Some(new) = certain.strip_prefix(self.given.as_str()).map(str::to_owned) else {
            return Ok(String::new());
        };
        self.given.push_str(&new);
        if self.window.len() >= 2 * WINDOW && self.given == text {
            self.cut_window()?;
        }
        Ok(new)
    }

    /// The rest: incomplete characters, as replacement characters.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        Ok(text.strip_prefix(self.given.as_str()).unwrap_or_default().to_owned())
    }

    fn cut_window(&mut self) -> Result<()> {
        let tail = self.window[self.window.len() - WINDOW..].to_vec();
        let text = self.tokenizer.decode(&tail, self.skip_special)?;
        // A window without text would lose its leading space, as the start of a text does; and one
        // that starts inside a character does not decode to the end of what was given out.
        if !text.is_empty() && self.given.ends_with(&text) {
            (self.window, self.given) = (tail, text);
        }
        Ok(())
    }
}
