//! `tokenizer.json`: checked, and taken apart into what makes text and what are control tokens.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::error::TokenizerError;
use crate::error::{Error, Result};
use crate::json;

/// What is taken of the file.
pub(super) struct File {
    /// The same file without its added tokens.
    pub text: String,
    /// The bytes of each id of the vocabulary.
    pub bytes: HashMap<u32, Box<[u8]>>,
    /// The added tokens.
    pub controls: BTreeMap<String, u32>,
}

/// The file as an object.
struct Object<'a> {
    what: &'a str,
    map: Map<String, Value>,
}

impl File {
    /// Reads `text`, which `what` names in errors.
    pub fn parse(what: &str, text: &str) -> Result<Self> {
        let json = |detail| Error::Json { what: what.into(), detail };
        let Value::Object(map) = json::parse(text).map_err(json)? else {
            return Err(json("expected an object { … } with model, decoder, …".into()));
        };
        let mut file = Object { what, map };
        file.expect("model.type", "BPE")?;
        file.expect("decoder.type", "ByteLevel")?;
        let vocab = file.vocab()?;
        let controls = file.added(&vocab)?;
        let letters = letters();
        let token = |(name, id): (&String, &u32)| (*id, bytes_of(name, &letters));
        let mut bytes: HashMap<_, _> = vocab.iter().map(token).collect();
        for id in controls.values() {
            bytes.remove(id);
        }
        // Text becomes a control token nowhere but where we put it, and nothing is added, cut or filled.
        file.map.insert("added_tokens".into(), Value::Array(Vec::new()));
        for name in ["post_processor", "truncation", "padding"] {
            file.map.insert(name.into(), Value::Null);
        }
        Ok(Self { text: Value::Object(file.map).to_string(), bytes, controls })
    }
}

impl Object<'_> {
    /// The value at a path of names.
    fn at(&self, path: &str) -> Option<&Value> {
        let mut names = path.split('.');
        let first = self.map.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    }

    fn wrong(&self, field: &str, value: Option<&Value>, expected: &'static str) -> Error {
        let value = value.map_or("missing".into(), ToString::to_string);
        TokenizerError::Unsupported { what: self.what.into(), field: field.into(), value, expected }
            .into()
    }

    fn expect(&self, path: &str, only: &'static str) -> Result<()> {
        let found = self.at(path);
        if found.and_then(Value::as_str) == Some(only) {
            return Ok(());
        }
        Err(self.wrong(path, found, only))
    }

    /// The ids of the vocabulary, each of them one token's.
    fn vocab(&self) -> Result<HashMap<String, u32>> {
        let field = "model.vocab";
        let found = self.at(field);
        let entries = found.and_then(Value::as_object);
        let entries =
            entries.ok_or_else(|| self.wrong(field, found, "an object of tokens and ids"))?;
        let mut vocab = HashMap::with_capacity(entries.len());
        let mut names = HashMap::with_capacity(entries.len());
        for (name, id) in entries {
            let field = || format!("{field}.{name}");
            let id = number(id).ok_or_else(|| self.wrong(&field(), Some(id), "a token id"))?;
            if names.insert(id, name).is_some() {
                return Err(self.wrong(&field(), Some(&id.into()), "an id of its own"));
            }
            vocab.insert(name.clone(), id);
        }
        Ok(vocab)
    }

    /// The added tokens, none of which takes another's id.
    fn added(&self, vocab: &HashMap<String, u32>) -> Result<BTreeMap<String, u32>> {
        let none = Vec::new();
        let field = "added_tokens";
        let list = match self.at(field) {
            None | Some(Value::Null) => &none,
            Some(Value::Array(list)) => list,
            found => return Err(self.wrong(field, found, "a list")),
        };
        let taken: HashMap<u32, &String> = vocab.iter().map(|(name, id)| (*id, name)).collect();
        let mut added = BTreeMap::new();
        let mut names: HashMap<u32, &str> = HashMap::new();
        for (n, token) in list.iter().enumerate() {
            let at = |name: &str| format!("{field}[{n}].{name}");
            let name = token["content"].as_str().filter(|name| !name.is_empty());
            let name =
                name.ok_or_else(|| self.wrong(&at("content"), token.get("content"), "a text"))?;
            let id = number(&token["id"])
                .ok_or_else(|| self.wrong(&at("id"), token.get("id"), "a token id"))?;
            for flag in ["lstrip", "rstrip", "single_word"] {
                if token.get(flag).is_some_and(|flag| *flag != Value::Bool(false)) {
                    return Err(self.wrong(&at(flag), token.get(flag), "false"));
                }
            }
            let other = if let Some(other) = added.get(name) {
                Some(format!("it was added with id {other} before"))
            } else if let Some(other) = names.get(&id) {
                Some(format!("\"{other}\" has it"))
            } else if let Some(other) = vocab.get(name).filter(|other| **other != id) {
                Some(format!("it has id {other} in the vocabulary"))
            } else {
                let other = taken.get(&id).filter(|other| **other != name);
                other.map(|other| format!("\"{other}\" of the vocabulary has it"))
            };
            if let Some(other) = other {
                let (what, token) = (self.what.into(), name.into());
                return Err(TokenizerError::Collision { what, token, id, other }.into());
            }
            added.insert(name.to_string(), id);
            names.insert(id, name);
        }
        Ok(added)
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The letter that stands for each byte in a byte-level vocabulary: itself where it is visible in Latin-1, and else the
/// letters from U+0100 on, in order (GPT-2's `bytes_to_unicode`).
pub(super) fn letters() -> HashMap<char, u8> {
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..=255u8).filter(|byte| !visible(byte)).zip('\u{100}'..);
    let hidden = hidden.map(|(byte, letter)| (letter, byte));
    (0..=255u8).filter(visible).map(|byte| (char::from(byte), byte)).chain(hidden).collect()
}

/// The bytes that a token stands for; its own if it is not spelled in the letters of bytes.
fn bytes_of(token: &str, letters: &HashMap<char, u8>) -> Box<[u8]> {
    let bytes: Option<Vec<u8>> =
        token.chars().map(|letter| letters.get(&letter).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        let letters = letters();
        assert_eq!(letters.len(), 256);
        let mut bytes: Vec<u8> = letters.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        // As GPT-2's vocabulary spells a space and a newline.
        assert_eq!((letters[&'Ġ'], letters[&'Ċ'], letters[&'a']), (b' ', b'\n', b'a'));
    }
}
