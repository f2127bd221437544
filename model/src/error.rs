//! The one error type of this crate: every variant carries the value that was wrong and what was
//! expected instead, so that its message alone says what to change.
//!
//! What comes out of a file is printed by [`printable`], which replaces what a terminal acts on and cuts
//! what is long: a hostile file cannot write to the terminal through a message.

use std::path::{Path, PathBuf};

use dsa_files::{FileError, printable};
use safetensors::Dtype;
use thiserror::Error;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a configuration, a checkpoint, or a step of the layer.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error(transparent)]
    File(#[from] FileError),

    /// A text that should be JSON is not.
    #[error("{}: not the JSON expected here: {}", printable(what, 500), printable(detail, 300))]
    Json {
        /// The file, or "configuration" for a text that came from no file.
        what: String,
        /// The parser's words, with line and column.
        detail: String,
    },

    /// A field of the configuration is missing, of the wrong type or out of bounds.
    #[error("{}: {field} is {value}, expected {expected}", printable(what, 500))]
    Config {
        /// The file, or "configuration" for one that came from no file.
        what: String,
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
        shown(.0)
    )]
    NoWeights(PathBuf),

    /// A checkpoint in Python's pickle format, which is never read.
    #[error(
        "{}: refused: a pickle runs the code it holds when it is read; expected .safetensors \
         (convert it on a machine that may be lost)",
        shown(.0)
    )]
    Pickle(PathBuf),

    /// An entry of `model.safetensors.index.json` is wrong.
    #[error("{}: {}, expected {}", shown(path), name(value), printable(expected, 300))]
    Index {
        /// The index file.
        path: PathBuf,
        /// The offending tensor or shard name.
        value: String,
        /// What would have been accepted.
        expected: String,
    },

    /// A file ends before what its header promises.
    #[error("{}: truncated: {size} bytes, {missing} more expected", shown(path))]
    Truncated {
        /// The safetensors file.
        path: PathBuf,
        /// Bytes there are.
        size: u64,
        /// Bytes that are missing.
        missing: u64,
    },

    /// A file whose header breaks the safetensors format.
    #[error("{}: not a safetensors file: {}", shown(path), printable(detail, 300))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Which rule of the format it breaks.
        detail: String,
    },

    /// Two tensors of one name.
    #[error(
        "tensor {} is in {} and again in {}, expected once",
        self::name(name),
        shown(first),
        shown(second)
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
    #[error("tensor {} is missing; {}", self::name(name), nearest_text(nearest))]
    MissingTensor {
        /// The name asked for.
        name: String,
        /// The existing name most like it, if one is at all like it.
        nearest: Option<String>,
    },

    /// A tensor beside those that are read, which would decide something elsewhere.
    #[error(
        "tensor {} is read by nobody here; expected only the weights of the configuration",
        self::name(.0)
    )]
    Unread(String),

    /// A tensor has another shape than the configuration says.
    #[error("tensor {} has shape {}, expected {expected:?}", self::name(name), shape(found))]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },

    /// A tensor has an element type that cannot be used here.
    #[error("tensor {} has elements {found}, expected {expected}", self::name(name))]
    Dtype {
        /// The tensor.
        name: String,
        /// Its element type in the file.
        found: Dtype,
        /// The element types accepted.
        expected: &'static str,
    },

    /// A tensor has an element that makes the whole of it worthless.
    #[error("tensor {} holds {value}, expected {expected}", self::name(name))]
    Element {
        /// The tensor.
        name: String,
        /// The element.
        value: f32,
        /// What would have been accepted.
        expected: &'static str,
    },

    /// What a part of the model put out is not a number, or infinite.
    #[error("{part} puts out NaN or an infinity, first for token {token}; expected finite numbers")]
    NotFinite {
        /// The part, as its weights are named: `model.layers.3.mlp`.
        part: String,
        /// The first such token's position.
        token: usize,
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

    /// A conversation that cannot become a prompt, or an answer that breaks its format.
    #[error(transparent)]
    Chat(#[from] crate::chat::ChatError),

    /// A tokenizer that cannot be used, or a text that it cannot encode.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),

    /// A kernel refused its arguments, or failed.
    #[error(transparent)]
    Kernel(#[from] dsa_kernels::KernelError),
}

impl Error {
    /// An argument error, as the result of a check: `Ok` if `right`.
    ///
    /// # Errors
    /// [`Error::Argument`] if not: `name` is `value`, `expected` was expected.
    pub fn check(
        right: bool,
        name: &'static str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Result<()> {
        if right {
            return Ok(());
        }
        let value = printable(&value.to_string(), 200);
        Err(Error::Argument { name, value, expected: expected.into() })
    }

    /// The adapter that names `path` in an error of the operating system.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |error| FileError::io(&path, error).into()
    }

    /// A configuration error; field and value are cut to 80 characters.
    pub fn config(
        field: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Error {
        let field = printable(&field.into(), 80);
        let value = printable(&value.to_string(), 80);
        let expected = printable(&expected.into(), 300);
        Error::Config { what: "configuration".into(), field, value, expected }
    }
}

/// A name from a file, in quotes.
fn name(name: &str) -> String {
    format!("\"{}\"", printable(name, 120))
}

/// A path, which may end in a name from a file.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy(), 500)
}

/// A shape from a file.
fn shape(shape: &[usize]) -> String {
    printable(&format!("{shape:?}"), 120)
}

/// The end of the message for a missing tensor.
fn nearest_text(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("the nearest name there is {}", name(nearest)),
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
            Error::config(evil(), "x", "y"),
            Error::NoWeights(evil().into()),
            Error::Index { path: evil().into(), value: evil(), expected: evil() },
            Error::Shape { name: evil(), found: vec![1], expected: vec![2] },
        ] {
            assert!(error.to_string().chars().all(|c| !c.is_control()), "{error}");
        }
    }

    #[test]
    fn a_name_of_any_length_makes_a_short_message() {
        let long = || "x".repeat(200_000);
        for error in [
            Error::MissingTensor { name: long(), nearest: Some(long()) },
            Error::Index { path: long().into(), value: long(), expected: long() },
            Error::DuplicateTensor { name: long(), first: long().into(), second: long().into() },
            Error::Shape { name: long(), found: vec![7; 100_000], expected: vec![2] },
            Error::check(false, "x", long(), "y").unwrap_err(),
        ] {
            assert!(error.to_string().len() < 1500, "{}", error.to_string().len());
        }
    }

    #[test]
    fn no_error_says_its_reason_twice() {
        let file = std::io::Error::other("the reason");
        let shown = format!("{:#}", anyhow::Error::from(Error::io(Path::new("p"))(file)));
        assert_eq!(shown.matches("the reason").count(), 1, "{shown}");
    }
}
