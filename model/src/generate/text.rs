//! The text of an answer as it comes: whole characters, up to a stop text.

use crate::tokenizer::Decoder;

/// Makes text of ids, and holds back what may become a stop text.
#[derive(Clone, Debug)]
pub(super) struct Text<'a> {
    decoder: Decoder<'a>,
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl<'a> Text<'a> {
    pub fn new(decoder: Decoder<'a>, stops: Vec<String>) -> Self {
        Self { decoder, stops, held: String::new(), stopped: false }
    }

    /// The text that `id` makes certain, and the stop text before which it ends, if one came.
    pub fn push(&mut self, id: u32) -> (String, Option<String>) {
        let more = self.decoder.push(id);
        self.held.push_str(&more);
        self.take()
    }

    /// What is left at the end of the answer; nothing behind a stop text.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let more = self.decoder.finish();
        self.held.push_str(&more);
        // What stands for half a character may complete a stop text.
        let (text, stop) = self.take();
        if stop.is_some() { text } else { text + &std::mem::take(&mut self.held) }
    }

    /// The certain part of what is held.
    fn take(&mut self) -> (String, Option<String>) {
        let first = self.stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        // Of two at one place, the one that was named first.
        if let Some((at, stop)) = first.min_by_key(|(at, _)| *at) {
            let stop = stop.clone();
            self.stopped = true;
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let places = self.held.char_indices().map(|(at, _)| at);
        let end = places.into_iter().find(begins).unwrap_or(self.held.len());
        (self.held.drain(..end).collect(), None)
    }
}
