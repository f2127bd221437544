//! The one error type of this crate: every variant carries the value that was wrong and what was
//! expected instead, so that its message alone says what to change.
//!
//! What comes out of a file is printed without control characters, and cut where it is long: a
//! hostile file cannot write to the terminal through a message.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use thiserror::Error;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a configuration, a checkpoint, or a step of the layer.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A text that should be JSON is not.
    #[error("{what}: not the JSON expected here: {}", printable(detail, 300))]
    Json {
        /// The file, or "configuration" for a text that came from no file.
        what: String,
        /// The parser's words, with line and column.
        detail: String,
    },

    /// A field of the configuration is missing, of the wrong type or out of bounds.
    #[error("configuration: {field} is {value}, expected {expected}")]
    Config {
        /// The field, by its Hugging Face name; one inside another object is `object.field`.
        field: String,
        /// The offending value as JSON (cut when long), or `missing`.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// The folder holds no checkpoint that can be read.
    #[error(
        "{}: no weights, expected model.safetensors or model.safetensors.index.json",
        .0.display()
    )]
    NoWeights(PathBuf),

    /// A checkpoint in Python's pickle format, which is never read.
    #[error(
        "{}: refused: a pickle runs the code it holds when it is read; expected .safetensors \
         (convert it on a machine that may be lost)",
        .0.display()
    )]
    Pickle(PathBuf),

    /// An entry of `model.safetensors.index.json` is wrong.
    #[error("{}: {value:?}, expected {expected}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The offending tensor or shard name.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// A file ends before what its header promises.
    #[error("{}: truncated: {size} bytes, {missing} more expected", path.display())]
    Truncated {
        /// The safetensors file.
        path: PathBuf,
        /// Bytes there are.
        size: u64,
        /// Bytes that are missing.
        missing: u64,
    },

    /// A file whose header breaks the safetensors format.
    #[error("{}: not a safetensors file: {}", path.display(), printable(detail, 300))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Which rule of the format it breaks.
        detail: String,
    },

    /// Two tensors of one name.
    #[error(
        "tensor {name:?} is in {} and again in {}, expected once",
        first.display(), second.display()
    )]
    DuplicateTensor {
        /// The name.
        name: String,
        /// The file that holds it first.
        first: PathBuf,
        /// The file that holds it again (may be the same).
        second: PathBuf,
    },

    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor {name:?} is missing; {}", nearest_text(nearest))]
    MissingTensor {
        /// The name asked for.
        name: String,
        /// The existing name most like it, if one is at all like it.
        nearest: Option<String>,
    },

    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },

    /// A tensor has an element type that cannot be used here.
    #[error("tensor {name:?} has elements {found}, expected {expected}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its element type in the file.
        found: Dtype,
        /// The element types accepted.
        expected: &'static str,
    },

    /// An argument of a function is out of bounds.
    #[error("{name} is {value}, expected {expected}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// A kernel refused its arguments, or failed.
    #[error(transparent)]
    Kernel(#[from] dsa_kernels::KernelError),

    /// The reference refused its arguments.
    #[error("the reference: {0}")]
    Reference(#[from] dsa_reference::Error),
}

impl Error {
    /// An argument error, as the result of a check: `Ok` if `right`.
    pub(crate) fn check(
        right: bool,
        name: &'static str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Result<()> {
        if right {
            return Ok(());
        }
        Err(Error::Argument { name, value: value.to_string(), expected: expected.into() })
    }

    /// Makes the adapter that puts `path` into an input/output error.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// A configuration error; `value` is cut to 80 characters.
    pub fn config(
        field: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Error {
        let value = printable(&value.to_string(), 80);
        Error::Config { field: field.into(), value, expected: expected.into() }
    }
}

/// `text` cut to `most` characters, with `?` in place of control characters.
fn printable(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut short: String = text.chars().take(most).map(clean).collect();
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}

/// The end of the message for a missing tensor.
fn nearest_text(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("the nearest name there is {name:?}"),
        None => "no name there is like it".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_at_a_character() {
        let message = Error::config("f", "é".repeat(500), "less").to_string();
        assert!(message.contains(&"é".repeat(80)) && message.len() < 250, "{message}");
    }

    #[test]
    fn control_characters_from_files_are_not_printed() {
        let evil = || "a\u{1b}[2J\u{9b}\n".to_string();
        for error in [
            Error::MissingTensor { name: evil(), nearest: Some(evil()) },
            Error::Json { what: "x".into(), detail: evil() },
            Error::Safetensors { path: "x".into(), detail: evil() },
            Error::config("x", evil(), "y"),
        ] {
            assert!(error.to_string().chars().all(|c| !c.is_control()), "{error}");
        }
    }
}
