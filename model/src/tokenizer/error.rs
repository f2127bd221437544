//! What can be wrong with a tokenizer.

use std::path::PathBuf;

use dsa_files::printable;
use thiserror::Error;

/// A tokenizer that cannot be used, or a text that it cannot encode.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The folder holds none.
    #[error("{}: no tokenizer, expected tokenizer.json", printable(&.0.to_string_lossy(), 500))]
    NotThere(PathBuf),

    /// It works in a way that nobody here does.
    #[error(
        "{}: {} is {}, expected {expected}",
        printable(what, 500),
        printable(field, 120),
        printable(value, 120)
    )]
    Unsupported {
        /// The file.
        what: String,
        /// The field, with dots.
        field: String,
        /// Its value as JSON, or `missing`.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },

    /// Two tokens share an id, or one has two.
    #[error(
        "{}: the added token \"{}\" has id {id}, expected an id of its own: {}",
        printable(what, 500),
        printable(token, 120),
        printable(other, 200)
    )]
    Collision {
        /// The file.
        what: String,
        /// The added token.
        token: String,
        /// Its id.
        id: u32,
        /// What else has it, or which other id the token has.
        other: String,
    },

    /// A token whose id the model has no embedding of.
    #[error(
        "the token \"{}\" has id {id}, expected below the model's vocab_size {vocab}",
        printable(token, 120)
    )]
    Outside {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The configuration's `vocab_size`.
        vocab: usize,
    },

    /// A text that it cannot encode.
    #[error(
        "the text cannot be encoded: {}, expected text that the tokenizer has tokens for",
        printable(detail, 300)
    )]
    Encode {
        /// Why not.
        detail: String,
    },
}
