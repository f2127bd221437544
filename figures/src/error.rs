//! The one error type of the crate.

use std::path::PathBuf;

use dsa_files::{FileError, printable};
use plotters::drawing::DrawingAreaErrorKind;

use crate::gate::GateFailed;

/// What can go wrong between a row and a picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be made, read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Some pictures of a set were written, the others stayed as they were.
    #[error("{reason}; written before it: {written}; the other pictures are as they were")]
    Partly {
        /// The file that could not be written, and why.
        reason: FileError,
        /// The files that were, separated by commas.
        written: String,
    },
    /// A line of a rows file is not a row.
    #[error("{}, line {line}: {reason}", printable(&path.to_string_lossy(), 500))]
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
        "{picture}: the rows come from {count} {what} ({found}); expected one (--device NAME chooses, \
         --allow-mixed draws all)"
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
    /// No device, or several, of that name in the file.
    #[error("--device is {wanted:?}; expected {expected}")]
    Device {
        /// The name that was asked for.
        wanted: String,
        /// The names there are.
        expected: String,
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
    /// Two sets of rows without a measurement in common: there is nothing to judge.
    #[error("nothing was compared: {reason}")]
    NothingCompared {
        /// What is on either side.
        reason: String,
    },
    /// The drawing back end failed.
    #[error("drawing failed: {0}")]
    Draw(String),
}

impl Error {
    /// A [`Error::Value`] with the value printed; it may come from a file.
    pub(crate) fn value(field: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Error::Value { field, value: printable(&value.to_string(), 200), expected }
    }

    /// The operating system's error at this path.
    pub(crate) fn io(path: &std::path::Path, reason: std::io::Error) -> Self {
        FileError::io(path, reason).into()
    }
}

/// Makes a folder if it is not there.
pub(crate) fn make_folder(path: &std::path::Path) -> Result<(), Error> {
    if path.exists() && !path.is_dir() {
        return Err(FileError::refused(path, "is a file, expected a folder").into());
    }
    std::fs::create_dir_all(path).map_err(|error| Error::io(path, error))
}

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for Error {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Error::Draw(error.to_string())
    }
}
