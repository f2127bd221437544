//! Reading with a bound.

use crate::FileError;
use std::fs::{File, metadata};
use std::io::Read;
use std::path::Path;

/// The bytes of the regular file at `path` (a link to one is followed).
///
/// Refused before anything is read: what is no regular file (a device or a pipe never ends) and a file
/// of more than `limit` bytes. A file that grows while it is read is refused too.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let size = metadata(path).map_err(|error| FileError::io(path, error))?;
    if !size.is_file() {
        return Err(FileError::refused(path, "not a regular file"));
    }
    let too_long = |bytes: u64| {
        FileError::refused(path, format!("{bytes} bytes, expected at most {limit} bytes"))
    };
    if size.len() > limit {
        return Err(too_long(size.len()));
    }
    let file = File::open(path).map_err(|error| FileError::io(path, error))?;
    let mut bytes = Vec::with_capacity(size.len() as usize);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| FileError::io(path, error))?;
    if bytes.len() as u64 > limit { Err(too_long(bytes.len() as u64)) } else { Ok(bytes) }
}

/// [`read`] of text in UTF-8; the error names the first line that is not.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    String::from_utf8(read(path, limit)?).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        FileError::refused(path, format!("line {line} is not UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_or_too_long_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let long = read(&path, 4).unwrap_err().to_string();
        assert!(long.ends_with("f: 5 bytes, expected at most 4 bytes"), "{long}");
        for endless in [Path::new("/dev/zero"), folder.path()] {
            let error = read(endless, 4).unwrap_err().to_string();
            assert_eq!(error, format!("{}: not a regular file", endless.display()));
        }
    }

    #[test]
    fn a_pipe_is_refused_instead_of_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(read(&path, 4).unwrap_err().to_string().ends_with("not a regular file"));
    }

    #[test]
    fn a_line_that_is_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"a\nb\xff\n").unwrap();
        let error = read_text(&path, 9).unwrap_err().to_string();
        assert!(error.ends_with("line 2 is not UTF-8"), "{error}");
    }
}
