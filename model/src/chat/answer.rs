//! From what a DeepSeek-V3.2 model writes to its thoughts, its answer and the tools it calls.
//!
//! ```text
//! thoughts </think> answer \n\n<｜DSML｜function_calls>… <eos>
//! ```
//!
//! The parser takes the text in pieces, cut anywhere, and gives out what is certain: what may yet become a marker is
//! held back. The same text gives the same answer, or the same refusal at the same place, however it was cut.

use super::dsv32::{BOS, DSML, EOS, THINK, THOUGHT};
use super::error::{ChatError, Result};
use super::json::quoted;
use super::message::ToolCall;

mod calls;

use calls::Calls;

/// What the calls of an answer begin with.
const CALLS: &str = "\n\n<｜DSML｜function_calls";

/// A part of an answer, as soon as it is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// More of the thoughts; never empty.
    Reasoning(String),
    /// More of the answer; never empty.
    Content(String),
    /// A tool's call, whole; it has no id.
    ToolCall(ToolCall),
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What was thought before.
    pub reasoning_content: String,
    /// The answer.
    pub content: String,
    /// The tools to call; they have no ids.
    pub tool_calls: Vec<ToolCall>,
}

impl Answer {
    /// Adds a part.
    pub fn push(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning_content.push_str(&text),
            Delta::Content(text) => self.content.push_str(&text),
            Delta::ToolCall(call) => self.tool_calls.push(call),
        }
    }
}

/// The answer that `text` is, from what follows `<think>` (`thinking`) or `</think>` to the end of the sentence.
///
/// # Errors
/// As [`AnswerParser::finish`].
pub fn parse_answer(text: &str, thinking: bool) -> Result<Answer> {
    let mut answer = Answer::default();
    let mut parser = AnswerParser::new(thinking);
    parser.push(text)?.into_iter().for_each(|delta| answer.push(delta));
    parser.finish()?;
    Ok(answer)
}

/// Parses an answer as it is written.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    state: State,
    /// What is not certain yet.
    held: String,
    /// Where `held` begins in the text, in bytes.
    at: usize,
    /// What was wrong, which is said again from then on.
    refused: Option<ChatError>,
}

#[derive(Clone, Debug)]
enum State {
    Thinking,
    Answering,
    Calling(Calls),
    Ended,
}

impl AnswerParser {
    /// A parser of an answer that begins with thoughts, if `thinking`.
    pub fn new(thinking: bool) -> Self {
        let state = if thinking { State::Thinking } else { State::Answering };
        Self { state, held: String::new(), at: 0, refused: None }
    }

    /// Takes more of the text, and gives what it makes certain.
    ///
    /// # Errors
    /// [`ChatError::Answer`] with the place: a control token where none may be, text behind the calls or the end, calls
    /// in another form, an argument twice. What was given before stays given.
    pub fn push(&mut self, text: &str) -> Result<Vec<Delta>> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        self.held.push_str(text);
        let mut deltas = Vec::new();
        loop {
            match self.step(&mut deltas) {
                Ok(true) => {}
                Ok(false) => return Ok(deltas),
                // What was certain before the error is given first; the error is said on the next call.
                Err(error) => {
                    self.refused = Some(error.clone());
                    return if deltas.is_empty() { Err(error) } else { Ok(deltas) };
                }
            }
        }
    }

    /// Ends the text.
    ///
    /// # Errors
    /// As [`AnswerParser::push`]; a text that does not end with the end of the sentence.
    pub fn finish(self) -> Result<()> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let expected = match &self.state {
            State::Thinking => THOUGHT.to_string(),
            State::Answering => EOS.to_string(),
            State::Calling(calls) => calls.expected().to_string(),
            State::Ended => return Ok(()),
        };
        let at = self.at + self.held.len();
        Err(ChatError::Answer { at, found: "its end".into(), expected })
    }

    /// Ends a text that was cut short, by a limit or by who asked: gives what was held back of thoughts and answer. A
    /// call that is not whole is dropped.
    ///
    /// # Errors
    /// As [`AnswerParser::push`].
    pub fn cut(self) -> Result<Vec<Delta>> {
        match (self.refused, self.state) {
            (Some(error), _) => Err(error),
            (None, State::Thinking) if !self.held.is_empty() => {
                Ok(vec![Delta::Reasoning(self.held)])
            }
            (None, State::Answering) if !self.held.is_empty() => {
                Ok(vec![Delta::Content(self.held)])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// One step; whether there was one to make.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> Result<bool> {
        match &mut self.state {
            State::Thinking => {
                let Some(marker) = self.until([THOUGHT, CALLS, EOS, THINK, BOS, DSML], |text| {
                    deltas.push(Delta::Reasoning(text));
                }) else {
                    return Ok(false);
                };
                if marker != THOUGHT {
                    return Err(self.wrong(marker, THOUGHT));
                }
                self.take(marker.len());
                self.state = State::Answering;
            }
            State::Answering => {
                let Some(marker) = self.until([EOS, CALLS, THOUGHT, THINK, BOS, DSML], |text| {
                    deltas.push(Delta::Content(text));
                }) else {
                    return Ok(false);
                };
                self.state = match marker {
                    EOS => State::Ended,
                    CALLS => State::Calling(Calls::new()),
                    _ => return Err(self.wrong(marker, &format!("text, calls or {EOS}"))),
                };
                self.take(marker.len());
            }
            State::Calling(calls) => match calls.step(&self.held) {
                Ok(None) => return Ok(false),
                Ok(Some(taken)) => {
                    deltas.extend(calls.call().map(Delta::ToolCall));
                    if calls.ended() {
                        self.state = State::Ended;
                    }
                    self.take(taken);
                }
                Err((at, expected)) => {
                    self.take(at);
                    let found: String = self.held.chars().take(1).collect();
                    return Err(self.wrong(&found, &expected));
                }
            },
            State::Ended => {
                let found: String = self.held.chars().take(1).collect();
                if !found.is_empty() {
                    return Err(self.wrong(&found, &format!("nothing behind {EOS}")));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the text before the first of `markers`, which then begins what is held. `None`: none is here whole, and
    /// the end that may become one is held back.
    fn until(
        &mut self,
        markers: [&'static str; 6],
        mut give: impl FnMut(String),
    ) -> Option<&'static str> {
        let mut found = None;
        let mut end = self.held.len();
        // Every marker begins with one of these, and none begins another.
        for (at, _) in self.held.match_indices(['\n', '<', '｜']) {
            let rest = &self.held[at..];
            found = markers.into_iter().find(|marker| rest.starts_with(marker));
            if found.is_some() || markers.iter().any(|marker| marker.starts_with(rest)) {
                end = at;
                break;
            }
        }
        if end > 0 {
            give(self.held[..end].to_string());
            self.take(end);
        }
        found
    }

    /// Drops `n` bytes of what is held.
    fn take(&mut self, n: usize) {
        self.held.drain(..n);
        self.at += n;
    }

    /// What is held begins with `found`, which was not expected.
    fn wrong(&self, found: &str, expected: &str) -> ChatError {
        ChatError::Answer { at: self.at, found: quoted(found), expected: expected.to_string() }
    }
}
