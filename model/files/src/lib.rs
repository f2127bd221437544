//! What every reader and every writer of files shares, whatever the file holds: nothing is read without a
//! bound ([`read`]), a file is replaced whole or not at all ([`replace`]) and so is a folder made ([`new_folder`]), and
//! text that came from a file reaches a terminal only through [`printable`].
#![forbid(unsafe_code)]

mod folder;
mod printable;
mod read;
mod replace;
mod space;

pub use folder::new_folder;
pub use printable::printable;
pub use read::{read, read_text};
pub use replace::{replace, same_file};
pub use space::free_bytes;

use std::path::{Path, PathBuf};

/// A file that cannot be read or written. Its message names the file once and says why once.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", printable(&path.to_string_lossy(), 500))]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system said, or what was expected.
    pub reason: String,
    /// The kind of the operating system's error; `Other` where a rule of ours refused.
    pub kind: std::io::ErrorKind,
}

impl FileError {
    /// The operating system's error at `path`.
    pub fn io(path: &Path, error: std::io::Error) -> Self {
        Self { path: path.to_path_buf(), kind: error.kind(), reason: error.to_string() }
    }

    /// A refusal of ours of `path`.
    pub fn refused(path: &Path, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { path: path.to_path_buf(), reason, kind: std::io::ErrorKind::Other }
    }
}
