//! Making a folder whole or not at all.

use crate::{FileError, free_bytes};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Makes the folder at `path` hold what `fill` puts into the folder it is given: all of it, or nothing is there.
///
/// It is filled beside its place under another name, and renamed when it is done. Folders on the way are not made.
///
/// # Errors
/// Before `fill` runs: there is something at `path` that is no empty folder, its parent is not there, or the disk has no
/// room for `bytes`. Whatever `fill` returns; then nothing is left.
pub fn new_folder<E: From<FileError>>(
    path: &Path,
    bytes: u64,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error| E::from(FileError::io(path, error));
    match fs::read_dir(path) {
        Ok(mut inside) => {
            if inside.next().is_some() {
                let reason = "the folder is not empty, expected none or an empty one";
                return Err(FileError::refused(path, reason).into());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let free = free_bytes(parent)?;
    if bytes > free {
        let reason = format!("{bytes} bytes to write, and the disk has room for {free}");
        return Err(FileError::refused(path, reason).into());
    }
    let made = tempfile::Builder::new().prefix(".dsa-").suffix(".part").tempdir_in(parent);
    let made = made.map_err(failed)?;
    fill(made.path())?;
    open_to_all(made.path(), parent).map_err(failed)?;
    fs::rename(made.path(), path).map_err(failed)?;
    // Nothing is left under the old name.
    let _ = made.keep();
    Ok(())
}

/// Gives a folder, which only its owner may look into, the permissions of the folder that it is in.
fn open_to_all(folder: &Path, parent: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(parent)?.permissions().mode() & 0o755;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path, bytes: u64) -> Result<(), FileError> {
        new_folder(path, bytes, |to| {
            fs::write(to.join("f"), "text").map_err(|error| FileError::io(to, error))
        })
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_is_made_whole_where_there_is_none_or_an_empty_one() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("new");
        make(&path, 4).unwrap();
        assert_eq!((names(outer.path()), names(&path)), (vec!["new".into()], vec!["f".into()]));
        fs::remove_file(path.join("f")).unwrap();
        make(&path, 4).unwrap();
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "text");
        assert_eq!(names(outer.path()), ["new"]);
    }

    #[test]
    fn what_is_there_stays_and_what_does_not_fit_is_not_begun() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("old");
        make(&path, 4).unwrap();
        let error = make(&path, 4).unwrap_err().to_string();
        assert!(
            error.ends_with("old: the folder is not empty, expected none or an empty one"),
            "{error}"
        );
        let error = make(&path.join("f"), 4).unwrap_err().to_string();
        assert!(error.contains("old/f: Not a directory"), "{error}");
        let begun = |path: &Path, bytes| {
            new_folder::<FileError>(path, bytes, |_| panic!("begun")).unwrap_err().to_string()
        };
        let error = begun(&outer.path().join("new"), u64::MAX);
        assert!(
            error
                .contains(&format!("new: {} bytes to write, and the disk has room for ", u64::MAX)),
            "{error}"
        );
        let error = begun(&outer.path().join("none/new"), 1);
        assert!(error.contains("none: No such file"), "{error}");
        assert_eq!(names(outer.path()), ["old"]);
    }

    #[test]
    fn what_fails_on_the_way_leaves_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let failed = new_folder(&outer.path().join("new"), 1, |to| {
            fs::write(to.join("half"), "x").map_err(|error| FileError::io(to, error))?;
            Err(FileError::refused(to, "half way"))
        });
        assert!(failed.unwrap_err().to_string().ends_with("half way"));
        assert_eq!(names(outer.path()), Vec::<String>::new());
    }
}
