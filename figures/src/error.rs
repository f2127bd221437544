//! The one error type of the crate.

use std::path::PathBuf;

use plotters::drawing::DrawingAreaErrorKind;

use crate::gate::GateFailed;

/// What can go wrong between a row and a picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A line of a rows file is not a row.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// Why the line was refused.
        reason: String,
    },
    /// A value that is not allowed where it stands.
    #[error("{field} is {value}; expected {expected}")]
    Value {
        /// Which value.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A gate that did not pass.
    #[error(transparent)]
    Gate(#[from] GateFailed),
    /// Rows that must not share one picture.
    #[error(
        "{picture}: the rows come from {count} {what} ({found}); expected one, or allow_mixed set"
    )]
    Mixed {
        /// The picture that was asked for.
        picture: &'static str,
        /// What differs: devices, or the kernel hashes of one bench.
        what: String,
        /// How many there are.
        count: usize,
        /// Which ones, separated by commas.
        found: String,
    },
    /// Two rows claim the same point of one curve.
    #[error("{picture}: two rows for {point}; expected one (select one case, dtype and batch)")]
    Ambiguous {
        /// The picture that was asked for.
        picture: &'static str,
        /// The point they both claim.
        point: String,
    },
    /// There is no row that the picture could show.
    #[error("{picture}: nothing to draw; expected {expected}")]
    Nothing {
        /// The picture that was asked for.
        picture: &'static str,
        /// Which rows it needs.
        expected: &'static str,
    },
    /// The drawing back end failed.
    #[error("drawing failed: {0}")]
    Draw(String),
}

impl Error {
    /// A [`Error::Value`] with the value printed.
    pub(crate) fn value(field: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Error::Value { field, value: value.to_string(), expected }
    }

    /// An [`Error::Io`] for this path.
    pub(crate) fn io(path: &std::path::Path, reason: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), reason }
    }
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for Error {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Error::Draw(error.to_string())
    }
}
