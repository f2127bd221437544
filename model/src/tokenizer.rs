//! From a prompt to token ids and back: byte-level BPE from a `tokenizer.json`, as DeepSeek and GLM have it.
//!
//! ```text
//! let tokenizer = Tokenizer::read(folder)?;
//! let warnings = tokenizer.check(&config)?;
//! let ids = tokenizer.encode(&prompt)?;
//! let mut text = tokenizer.decoder();
//! print!("{}", text.push(id));                                 // whole characters alone
//! ```
//!
//! The file's added tokens are control tokens here: text becomes one only in the stretches of a [`Prompt`] where they are
//! meant, never because of what it spells.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;

use dsa_files::read_text;

use crate::chat::{Piece, Prompt};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::is_there;

mod decode;
mod error;
mod file;
mod settings;
#[cfg(test)]
pub(crate) mod tests;

pub use decode::Decoder;
pub use error::TokenizerError;
pub use settings::Settings;

/// The file, beside `config.json`.
const FILE: &str = "tokenizer.json";
/// A larger file is refused unread: V3.2's has 8 MB, GLM-5's 20.
const MAX_BYTES: u64 = 1 << 26;

/// A tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// Splits text and merges bytes; knows no control token.
    text: tokenizers::Tokenizer,
    /// The bytes of each id that is no control token.
    bytes: HashMap<u32, Box<[u8]>>,
    /// The control tokens.
    controls: BTreeMap<String, u32>,
    /// The same by their first letter, the longest first.
    by_letter: HashMap<char, Vec<String>>,
    /// Their names.
    names: HashMap<u32, String>,
    settings: Settings,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `folder`, and `tokenizer_config.json` if it is there.
    ///
    /// # Errors
    /// [`TokenizerError`]: no such file, not a byte-level BPE tokenizer, or control tokens that collide; [`Error::File`] and
    /// [`Error::Json`] for files that cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !is_there(&path)? {
            return Err(TokenizerError::NotThere(folder.to_path_buf()).into());
        }
        let what = path.display().to_string();
        let mut tokenizer = Self::parse(&what, &read_text(&path, MAX_BYTES)?)?;
        tokenizer.settings = Settings::read(folder)?;
        Ok(tokenizer)
    }

    /// The tokenizer of the text of a `tokenizer.json`, without settings.
    ///
    /// # Errors
    /// As [`Tokenizer::read`].
    pub fn from_json(text: &str) -> Result<Self> {
        Self::parse(FILE, text)
    }

    fn parse(what: &str, text: &str) -> Result<Self> {
        let file = file::File::parse(what, text)?;
        let wrong =
            |error: tokenizers::Error| Error::Json { what: what.into(), detail: error.to_string() };
        let mut by_letter: HashMap<char, Vec<String>> = HashMap::new();
        for name in file.controls.keys() {
            by_letter
                .entry(name.chars().next().unwrap_or_default())
                .or_default()
                .push(name.clone());
        }
        for names in by_letter.values_mut() {
            names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        }
        Ok(Self {
            by_letter,
            text: tokenizers::Tokenizer::from_str(&file.text).map_err(wrong)?,
            bytes: file.bytes,
            names: file.controls.iter().map(|(name, id)| (*id, name.clone())).collect(),
            controls: file.controls,
            settings: Settings::default(),
        })
    }

    /// What `tokenizer_config.json` says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Checks that it is the tokenizer of the model of `config`: what is odd about it is returned, a sentence each.
    ///
    /// # Errors
    /// [`TokenizerError::Outside`] for an id that the model has no embedding of.
    pub fn check(&self, config: &Config) -> Result<Vec<String>> {
        let vocab = config.vocab_size;
        let ids = self.names.keys().chain(self.bytes.keys());
        if let Some(&id) = ids.filter(|id| **id as usize >= vocab).min() {
            let token = self.names.get(&id).cloned();
            let bytes = || String::from_utf8_lossy(&self.bytes[&id]).into_owned();
            let token = token.unwrap_or_else(bytes);
            return Err(TokenizerError::Outside { token, id, vocab }.into());
        }
        Ok(self.settings.differences(config, |name| self.id(name)))
    }

    /// The id of a control token.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.controls.get(name).copied()
    }

    /// The bytes that `id` stands for, a control token's name being its; `None` for an id without a token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes
            .get(&id)
            .map(|bytes| &bytes[..])
            .or_else(|| self.names.get(&id).map(String::as_bytes))
    }

    /// The names of all control tokens.
    pub fn controls(&self) -> impl Iterator<Item = &str> {
        self.controls.keys().map(String::as_str)
    }

    /// The ids of `prompt`. A control token that the tokenizer does not have is text, as Hugging Face's is.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] for text that it has no tokens for.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        // Text on both sides of what is no control token is one: bytes merge over it.
        let mut text = String::new();
        for piece in prompt.pieces() {
            match piece {
                Piece::Text(more) => text.push_str(more),
                Piece::Control(name) => match self.id(name) {
                    Some(id) => self.control(&mut text, id, &mut ids)?,
                    None => text.push_str(name),
                },
                Piece::Marked(marked) => {
                    let mut rest = &marked[..];
                    while let Some((at, name, id)) = self.first_control(rest) {
                        text.push_str(&rest[..at]);
                        self.control(&mut text, id, &mut ids)?;
                        rest = &rest[at + name.len()..];
                    }
                    text.push_str(rest);
                }
            }
        }
        self.encode_text(&text, &mut ids)?;
        Ok(ids)
    }

    /// Ends the text before a control token.
    fn control(&self, text: &mut String, id: u32, ids: &mut Vec<u32>) -> Result<()> {
        self.encode_text(text, ids)?;
        text.clear();
        ids.push(id);
        Ok(())
    }

    /// The first control token in `text`, the longest of those at one place.
    fn first_control(&self, text: &str) -> Option<(usize, &str, u32)> {
        text.char_indices().find_map(|(at, _)| {
            let name = self.control_at(&text[at..])?;
            Some((at, name, self.controls[name]))
        })
    }

    /// The longest control token that `text` begins with.
    pub(crate) fn control_at(&self, text: &str) -> Option<&str> {
        let named = self.by_letter.get(&text.chars().next()?)?;
        named.iter().map(String::as_str).find(|name| text.starts_with(name))
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let wrong = |detail: String| TokenizerError::Encode { detail };
        let encoded =
            self.text.encode_fast(text, false).map_err(|error| wrong(error.to_string()))?;
        // A tokenizer may hold the spelling of a control token among its ordinary ones.
        if let Some(name) = encoded.get_ids().iter().find_map(|id| self.names.get(id)) {
            return Err(wrong(format!("its text becomes the control token {name}")).into());
        }
        ids.extend(encoded.get_ids());
        Ok(())
    }

    /// A decoder of one answer.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// The text of `ids`, control tokens by their names. Bytes that are no text, and ids without a token, become `�`.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        text
    }
}
