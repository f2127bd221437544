//! Keeps a message's text from becoming control tokens on its way through a template.
//!
//! A template makes one text of its own words and of the messages'. So that the two can be told apart in it, a sign that
//! nobody wrote is put into every control token that a message spells: between its first letter and the rest. In the
//! prompt, the sign ends a stretch, and no control token reaches over that.

use super::error::{ChatError, Result};
use super::{Conversation, Json, Prompt};
use crate::tokenizer::Tokenizer;

/// Characters that mean nothing and stand in no text (Unicode's noncharacters).
const SIGNS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// What is done to a message's text before a template sees it.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    tokenizer: Option<&'a Tokenizer>,
    sign: char,
}

impl<'a> Guard<'a> {
    /// A guard that lets everything through: what a message spells, it means.
    pub fn open() -> Self {
        Self { tokenizer: None, sign: *SIGNS.start() }
    }

    /// A guard against the control tokens of `tokenizer` in `conversation`.
    ///
    /// # Errors
    /// [`ChatError::Message`] for a conversation that has every noncharacter of Unicode in it.
    pub fn new(tokenizer: &'a Tokenizer, conversation: &Conversation) -> Result<Self> {
        let text = conversation.to_string();
        let free = SIGNS.clone().find(|sign| !text.contains(*sign));
        let expected = "one of the noncharacters U+FDD0 to U+FDEF left";
        let sign = free.ok_or_else(|| ChatError::message("messages", "all of them", expected))?;
        Ok(Self { tokenizer: Some(tokenizer), sign })
    }

    /// `text` with the sign in every control token that it spells.
    ///
    /// # Errors
    /// [`ChatError::Message`] for a control token of one letter, which cannot be cut in two.
    pub fn text(&self, text: &str) -> Result<String> {
        let Some(tokenizer) = self.tokenizer else {
            return Ok(text.to_string());
        };
        let mut guarded = String::with_capacity(text.len());
        for (at, letter) in text.char_indices() {
            guarded.push(letter);
            let Some(name) = tokenizer.control_at(&text[at..]) else {
                continue;
            };
            if name.chars().nth(1).is_none() {
                let expected =
                    "no control token of one letter, which a template cannot tell from text";
                return Err(ChatError::message("messages", name, expected));
            }
            guarded.push(self.sign);
        }
        Ok(guarded)
    }

    /// The same of every text in `json`.
    ///
    /// # Errors
    /// As [`Guard::text`].
    pub fn json(&self, json: &Json) -> Result<Json> {
        Ok(match json {
            Json::String(text) => Json::String(self.text(text)?),
            Json::Array(values) => {
                Json::Array(values.iter().map(|value| self.json(value)).collect::<Result<_>>()?)
            }
            Json::Object(entries) => {
                let entry =
                    |(key, value): &(String, Json)| Ok((self.text(key)?, self.json(value)?));
                Json::Object(entries.iter().map(entry).collect::<Result<_>>()?)
            }
            other => other.clone(),
        })
    }

    /// The prompt that a template's text is.
    pub(super) fn prompt(&self, text: &str) -> Prompt {
        let mut prompt = Prompt::new();
        match self.tokenizer {
            Some(_) => text.split(self.sign).for_each(|stretch| prompt.push_marked(stretch)),
            None => prompt.push_marked(text),
        }
        prompt
    }
}
