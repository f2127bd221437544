//! Writing whole files or nothing.

use crate::FileError;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Makes the file at `path` hold what `write` writes: the whole of it, or the file stays as it was.
///
/// - A regular file is written beside its place under another name, forced to the disk and renamed over
///   the old one, whose permissions it keeps. A new file has the permissions of any new file.
/// - A symbolic link stays; what it points to is replaced. A link that points nowhere makes its target.
/// - A device, a pipe or a socket is written into, never replaced.
///
/// Folders on the way are not made: a mistyped one would be made in silence.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), FileError> {
    let failed = |error| FileError::io(path, error);
    // Asked of the path as it is: where /dev/stdout is a pipe, its links lead to a name that is none.
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return write_into(path, write).map_err(failed);
    }
    let target = resolve(path).map_err(failed)?;
    let permissions = match fs::metadata(&target) {
        Ok(old) if old.is_file() => Some(old.permissions()),
        Ok(old) if old.is_dir() => return Err(FileError::refused(path, "is a folder")),
        Ok(_) => return Err(FileError::refused(path, "became a device while it was looked at")),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    beside(&target, permissions, write).map_err(failed)
}

/// Whether `a` and `b` are one file, by whatever names and links.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Where the links at `path` lead, also if nothing is there yet.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    // As many links as Linux follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            // No link (`InvalidInput`), or nothing there.
            Err(_) => return Ok(path),
        }
    }
    Err(std::io::Error::other("too many symbolic links"))
}

fn write_into(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut out = BufWriter::new(OpenOptions::new().write(true).open(path)?);
    write(&mut out)?;
    out.flush()
}

fn beside(
    path: &Path,
    permissions: Option<Permissions>,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // tempfile makes files that only their owner can read; a new file is made as any other is, so that
    // the umask decides.
    let made = tempfile::Builder::new()
        .prefix(".dsa-")
        .suffix(".part")
        .make_in(folder, |path| File::options().write(true).create_new(true).open(path))?;
    // The file under it: tempfile's own errors name the temporary file, which nobody knows.
    let mut out = BufWriter::new(made.as_file());
    write(&mut out)?;
    out.into_inner().map_err(|error| error.into_error())?;
    if let Some(permissions) = permissions {
        made.as_file().set_permissions(permissions)?;
    }
    made.as_file().sync_all()?;
    made.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

    fn put(path: &Path, text: &str) -> Result<(), FileError> {
        replace(path, |out| out.write_all(text.as_bytes()))
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        put(&path, "old").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_ne!(mode(&path), 0o600, "a new file is as open as the umask leaves it");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        put(&path, "new").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o640));
        assert_eq!(names(folder.path()), ["f"]);
    }

    #[test]
    fn what_fails_on_the_way_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        put(&path, "old").unwrap();
        let full = replace(&path, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::from(ErrorKind::StorageFull))
        });
        let full = full.unwrap_err();
        assert_eq!(full.kind, ErrorKind::StorageFull);
        assert!(full.to_string().starts_with(&path.display().to_string()), "{full}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(folder.path()), ["f"]);
        assert!(put(folder.path(), "x").unwrap_err().to_string().ends_with(": is a folder"));
        assert!(put(&folder.path().join("none/f"), "x").is_err());
        assert_eq!(names(folder.path()), ["f"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("f"), folder.path().join("link"));
        symlink("f", &link).unwrap();
        put(&link, "made through it").unwrap();
        put(&link, "replaced through it").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "replaced through it");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(same_file(&file, &link) && !same_file(&file, folder.path()));
        let circle = folder.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(put(&circle, "x").is_err());
    }

    #[test]
    fn a_device_and_a_pipe_are_written_into() {
        put(Path::new("/dev/null"), "x").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let reader = {
            let pipe = pipe.clone();
            std::thread::spawn(move || fs::read_to_string(pipe).unwrap())
        };
        put(&pipe, "through the pipe").unwrap();
        assert_eq!(reader.join().unwrap(), "through the pipe");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
