//! Room on a disk.

use crate::FileError;
use std::path::Path;

/// Bytes that whoever runs this may still write to the disk of `folder`.
///
/// # Errors
/// If that cannot be found out.
pub fn free_bytes(folder: &Path) -> Result<u64, FileError> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| FileError::io(folder, std::io::Error::from(error)))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::free_bytes;

    #[test]
    fn a_folder_has_room_and_what_is_none_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_bytes(folder.path()).unwrap();
        assert!(free > 0 && free < 1 << 60, "{free}");
        assert!(free_bytes(&folder.path().join("none")).is_err());
    }
}
