//! Text from ids that come one at a time.

use super::Tokenizer;

/// What stands for bytes that are no text.
const UNKNOWN: char = '\u{fffd}';

/// Decodes ids as they come: what it gives is whole characters, and together what [`Tokenizer::decode`] gives.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The beginning of a character: up to three bytes.
    pub(super) held: Vec<u8>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, held: Vec::new() }
    }

    /// The characters that `id` completes.
    pub fn push(&mut self, id: u32) -> String {
        if let Some(bytes) = self.tokenizer.bytes.get(&id) {
            self.held.extend(bytes);
            return self.whole();
        }
        // Neither a control token nor what is none continues a character.
        let mut text = self.finish();
        match self.tokenizer.names.get(&id) {
            Some(name) => text.push_str(name),
            None => text.push(UNKNOWN),
        }
        text
    }

    /// What is left of a character that was never completed.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    /// Takes all but the beginning of a character at the end.
    fn whole(&mut self) -> String {
        let mut whole = self.held.len();
        for (start, chunk) in chunks(&self.held) {
            // Bytes at the end that are no character yet may become one.
            let broken = chunk.invalid();
            let end = start + chunk.valid().len() + broken.len();
            if !broken.is_empty() && end == self.held.len() && may_continue(broken) {
                whole = end - broken.len();
            }
        }
        let text = String::from_utf8_lossy(&self.held[..whole]).into_owned();
        self.held.drain(..whole);
        text
    }
}

/// The stretches of `bytes` with where they start.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (usize, std::str::Utf8Chunk<'_>)> {
    bytes.utf8_chunks().scan(0, |start, chunk| {
        let at = *start;
        *start += chunk.valid().len() + chunk.invalid().len();
        Some((at, chunk))
    })
}

/// Whether `bytes`, which are no character, begin one.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
