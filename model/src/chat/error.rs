//! What can be wrong with a conversation or an answer.

use dsa_files::printable;
use thiserror::Error;

/// A result of this module.
pub type Result<T, E = ChatError> = std::result::Result<T, E>;

/// A conversation that cannot become a prompt, or an answer that breaks its format.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ChatError {
    /// A part of the conversation is missing, of another type, or does not fit the others.
    #[error(
        "{} is {}, expected {}",
        printable(at, 200),
        printable(value, 200),
        printable(expected, 300)
    )]
    Message {
        /// The place: `messages[3].role`.
        at: String,
        /// What is there, as JSON, or `missing`.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// An answer of the model is not in the format it was taught.
    #[error(
        "the answer has {} at byte {at}, expected {}",
        printable(found, 200),
        printable(expected, 300)
    )]
    Answer {
        /// The place in the answer's text, in bytes.
        at: usize,
        /// What is there, or `its end`.
        found: String,
        /// What would have been accepted.
        expected: String,
    },

    /// No way of making prompts was chosen, and the checkpoint names none.
    #[error(
        "no chat template, neither chat_template.jinja nor in tokenizer_config.json; expected --chat jinja with one of \
         them, --chat dsv32 (DeepSeek-V3.2's format) or --chat raw (the text alone)"
    )]
    NoTemplate,

    /// The checkpoint's chat template is no Jinja, or cannot make a prompt of this conversation.
    #[error(
        "chat template, line {line}: {}, expected a prompt of this conversation",
        printable(detail, 400)
    )]
    Template {
        /// The line, from 1; 0 if none is to blame.
        line: usize,
        /// What is wrong.
        detail: String,
    },
}

impl ChatError {
    /// An error of the conversation at `at`.
    pub(crate) fn message(
        at: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Message { at: at.into(), value: value.to_string(), expected: expected.into() }
    }
}
