//! Writing the file of rows. A row is there as a whole line or not at all, and nothing that is there is
//! lost: not to a full disk, not to Ctrl-C, not to a second run on the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dsa_files::{FileError, replace};

use crate::store::{LIMIT, parse};
use crate::{Device, Error, Key, Row};

/// Appends one row; the file is made if it is not there. The line goes out in one write and is forced to
/// the disk; if either fails, the file is as long as it was. A torn last line is cut off first.
pub fn append(path: &Path, row: &Row) -> Result<(), Error> {
    let failed = |error| Error::io(path, error);
    let json = serde_json::to_string(row).map_err(|error| failed(error.into()))?;
    let mut file = locked(path)?;
    let mut length = file.metadata().map_err(failed)?.len();
    let mut start = "";
    if !ends_a_line(&mut file).map_err(failed)? {
        match parse(path, &dsa_files::read(path, LIMIT)?)?.torn {
            None => start = "\n",
            Some(torn) => {
                length = torn.start as u64;
                file.set_len(length).map_err(failed)?;
            }
        }
    }
    let written = file.write_all(format!("{start}{json}\n").as_bytes());
    written.and_then(|()| forced(&file)).map_err(|error| match file.set_len(length) {
        Ok(()) => failed(error),
        Err(undo) => {
            let reason = format!("{error}, and part of a line stays behind: {undo}");
            FileError::refused(path, reason).into()
        }
    })
}

/// Makes the file if it is not there, and shows that it can be written.
pub fn writable(path: &Path) -> Result<(), Error> {
    locked(path).map(|_| ())
}

/// Drops every row of `keys` that has a newer row of the same key and device, by replacing the file; gives back
/// how many were dropped. Other lines stay as they are, to the byte.
pub fn drop_older(path: &Path, keys: &BTreeSet<Key>) -> Result<usize, Error> {
    let _held = locked(path)?;
    let bytes = dsa_files::read(path, LIMIT)?;
    let lines = parse(path, &bytes)?.lines;
    // Two machines may have processors of one name; a row of either is not older than the other's.
    let whole = |row: &Row| (row.key(), row.what().device.clone());
    let newest: BTreeMap<(Key, Device), usize> =
        lines.iter().enumerate().map(|(i, (_, row))| (whole(row), i)).collect();
    let stays =
        |i: usize, row: &Row| !keys.contains(&row.key()) || newest.get(&whole(row)) == Some(&i);
    let kept: Vec<_> = lines.iter().enumerate().filter(|(i, (_, row))| stays(*i, row)).collect();
    if kept.len() < lines.len() {
        replace(path, |out| {
            for (_, (place, _)) in &kept {
                out.write_all(&bytes[place.clone()])?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
    }
    Ok(lines.len() - kept.len())
}

/// The file, open and held against other runs until it is dropped.
fn locked(path: &Path) -> Result<File, Error> {
    let failed = |error| Error::io(path, error);
    loop {
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(FileError::refused(path, "not a regular file").into());
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(failed)?;
        // Some network file systems have no locks; a single run on a file needs none.
        let _ = file.lock();
        let (held, there) = (file.metadata().map_err(failed)?, fs::metadata(path));
        // Another run may have replaced the file while this one waited for it.
        match there {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Disks that are full say so here at the latest.
fn forced(file: &File) -> std::io::Result<()> {
    match file.sync_data() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Ok(())
        }
        done => done,
    }
}

fn ends_a_line(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
