//! Where the bytes of tensors are: a file, or a tensor's parts in several.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file;
use crate::error::Result;

/// Bytes that are read by their places.
#[derive(Debug)]
pub(super) enum Bytes {
    /// Those of a file.
    File(Arc<File>),
    /// Those of one tensor, whose parts are in several files.
    Joined(Joined),
}

/// A tensor whose rows are equal stretches, one from each part in order. A tensor that is cut along its first axis is one
/// row.
#[derive(Debug)]
pub(super) struct Joined {
    /// Where each part is.
    pub parts: Vec<(PathBuf, Arc<File>, Range<u64>)>,
    /// Bytes of a row of one part.
    pub stretch: u64,
}

impl Bytes {
    /// The bytes at `range`. `path` names the file in errors.
    pub fn read(&self, path: &Path, range: Range<u64>) -> Result<Vec<u8>> {
        match self {
            Self::File(file) => file::read(path, file, range),
            Self::Joined(joined) => joined.read(range),
        }
    }
}

impl Joined {
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let (stretch, count) = (self.stretch.max(1), self.parts.len() as u64);
        let row = stretch * count;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        for (part, (path, file, place)) in (0..).zip(&self.parts) {
            // The rows that the range touches, and of the part what the range has of them.
            let mut stretches = Vec::new();
            for n in range.start / row..range.end.div_ceil(row) {
                let start = n * row + part * stretch;
                let wanted = start.max(range.start)..(start + stretch).min(range.end);
                if wanted.start < wanted.end {
                    stretches.push((wanted.clone(), n * stretch + (wanted.start - start)));
                }
            }
            let [Some((_, first)), Some((last, end))] = [stretches.first(), stretches.last()]
            else {
                continue;
            };
            let (first, end) = (*first, end + (last.end - last.start));
            let of_part = file::read(path, file, place.start + first..place.start + end)?;
            for (wanted, at) in stretches {
                let from =
                    &of_part[(at - first) as usize..][..(wanted.end - wanted.start) as usize];
                bytes[(wanted.start - range.start) as usize..][..from.len()].copy_from_slice(from);
            }
        }
        Ok(bytes)
    }
}
