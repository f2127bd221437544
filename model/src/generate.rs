//! From prompts to answers, token by token.
//!
//! ```text
//! let mut generator = Generator::new(&model, &tokenizer, &config.eos_token_id, settings)?;
//! generator.begin(Request::new(tokenizer.encode(&prompt)?))?;
//! while generator.is_busy() {
//!     for event in generator.step()? {
//!         print!("{}", event.text());
//!     }
//! }
//! ```
//!
//! A step is one chunk of one prompt, or the next token of every request whose prompt has been read. So whoever drives the
//! generator can stop a request within a chunk or a token ([`Generator::cancel`]), and requests come and go while others
//! run. Neither changes a bit of the others' answers, nor does what an earlier request left in the cache: a prompt that
//! begins as the one before it in the same place is read from where they differ.

use crate::error::{Error, Result};
use crate::model::PAGE_SIZE;
use crate::run::KvFormat;
use crate::sample::Sampling;

mod compare;
mod generator;
mod pass;
mod text;
mod timeline;

#[cfg(test)]
mod tests;

pub use compare::{Comparison, Kept, divergence};
pub use generator::Generator;
pub use timeline::{Span, Timeline};

/// Most tokens of an answer where nobody says: the DeepSeek-V3.2-Exp demo's.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 200;
/// Most stop texts of a request.
const MOST_STOPS: usize = 16;

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attention {
    /// All up to its own.
    Dense,
    /// Those that the indexer selects.
    #[default]
    Sparse,
    /// Sparse, and beside it dense on the same tokens: each token comes with a [`Comparison`]. The answer is sparse
    /// attention's, to the bit.
    Both,
}

/// How a [`Generator`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which keys a token attends to.
    pub attention: Attention,
    /// Requests side by side.
    pub requests: usize,
    /// Most tokens of one request, prompt and answer.
    pub max_seq: usize,
    /// How latents are cached.
    pub format: KvFormat,
    /// Most tokens of a prompt in one step.
    pub chunk: usize,
    /// Tokens of a page of the cache.
    pub page_size: usize,
}

impl Default for Settings {
    /// One request of up to 4096 tokens, sparse, in chunks of 512.
    fn default() -> Self {
        let (attention, format) = (Attention::Sparse, KvFormat::Elements);
        Self { attention, requests: 1, max_seq: 4096, format, chunk: 512, page_size: PAGE_SIZE }
    }
}

/// A prompt and how it is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its number in the noise: two requests of one number, seed and prompt have one answer.
    pub number: u64,
    /// The prompt's token ids.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// Whether the tokens that end an answer are tokens like others.
    pub ignore_ends: bool,
    /// How many of the most probable tokens are told with each one drawn; `None`: no probability is told.
    pub logprobs: Option<usize>,
}

impl Request {
    /// The defaults for `prompt`.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            number: 0,
            prompt,
            max_new_tokens: DEFAULT_MAX_NEW_TOKENS,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_ends: false,
            logprobs: None,
        }
    }

    /// Refuses what cannot be run with `max_seq` tokens of room.
    ///
    /// # Errors
    /// [`Error::Argument`]: no prompt, or one that leaves no room for an answer; no token asked for; an empty stop text or
    /// more than 16; as [`Sampling::check`].
    pub fn check(&self, max_seq: usize) -> Result<()> {
        let n = self.prompt.len();
        Error::check(n > 0, "prompt", "0 tokens", "at least 1")?;
        let room = format!("at most {}, of {max_seq} tokens of context", max_seq.max(1) - 1);
        Error::check(n < max_seq, "prompt", format!("{n} tokens"), room)?;
        Error::check(self.max_new_tokens > 0, "max_new_tokens", 0, "at least 1")?;
        let stops = self.stop.len();
        let most = format!("at most {MOST_STOPS}");
        Error::check(stops <= MOST_STOPS, "stop", format!("{stops} texts"), most)?;
        Error::check(!self.stop.iter().any(String::is_empty), "stop", "\"\"", "a text")?;
        self.sampling.check()
    }
}

/// What a step did for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The request, as [`Generator::begin`] numbered it.
    pub slot: usize,
    /// What.
    pub what: What,
}

impl Event {
    /// The text of the answer that it makes certain.
    pub fn text(&self) -> &str {
        match &self.what {
            What::Read(..) => "",
            What::Token(token) => &token.text,
            What::Ended(ended) => &ended.text,
        }
    }
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// So many tokens of the prompt have been read, of so many.
    Read(usize, usize),
    /// A token was drawn.
    Token(Token),
    /// The answer has ended.
    Ended(Ended),
}

/// A token that was drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that is certain since the token before: whole characters, and no beginning of a stop text.
    pub text: String,
    /// The logarithm of its probability at temperature 1, if it was asked for.
    pub logprob: Option<f32>,
    /// The most probable ids with the same logarithm, the most probable first, as many as were asked for.
    pub top: Vec<(u32, f32)>,
    /// Sparse attention against dense, where both run.
    pub comparison: Option<Comparison>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub finish: Finish,
    /// The text that was held back, if it was no stop text.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens drawn, the one that ended the answer included.
    pub new_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, with this token, which is no part of the text.
    End(u32),
    /// This stop text came, which is no part of the text either.
    Stop(String),
    /// It has as many tokens as were asked for.
    Length,
    /// There is no room for more tokens.
    Full,
    /// Somebody cancelled it.
    Cancelled,
}
