//! Reading a checkpoint in the layout of DeepSeek-V3.2's inference demo: `model0-mp4.safetensors` and its like, one file
//! for each rank. Its tensors have Hugging Face's names and shapes here, joined from what the ranks hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bytes::{Bytes, Joined};
use super::demo_names::{Share, share, to_hugging_face};
use super::{Checkpoint, Entry, file, is_there};
use crate::error::{Error, Result};

/// More ranks than this are not looked for.
pub(super) const MAX_RANKS: usize = 1024;

/// The name of a rank's file.
pub(super) fn file_name(rank: usize, ranks: usize) -> String {
    format!("model{rank}-mp{ranks}.safetensors")
}

/// How many ranks the files in `folder` are made for; `None` if there are none.
///
/// # Errors
/// [`Error::Index`] for files of several numbers of ranks.
pub(super) fn ranks_in(folder: &Path) -> Result<Option<usize>> {
    let mut found = None;
    for ranks in 1..=MAX_RANKS {
        let path = folder.join(file_name(0, ranks));
        if is_there(&path)? && found.replace(ranks).is_some() {
            let expected = "the files of one conversion, for one number of ranks".into();
            return Err(Error::Index { path: folder.into(), value: file_name(0, ranks), expected });
        }
    }
    Ok(found)
}

/// What the ranks hold of a tensor.
struct Parts {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// The ranks' files and the places in them.
    places: Vec<(usize, std::ops::Range<u64>)>,
}

impl Checkpoint {
    /// Opens the files of `ranks` ranks in `folder`.
    pub(super) fn open_ranks(folder: &Path, ranks: usize) -> Result<Self> {
        let mut files: Vec<(PathBuf, Bytes)> = Vec::new();
        let mut opened = Vec::new();
        let mut all: BTreeMap<String, Parts> = BTreeMap::new();
        for rank in 0..ranks {
            let path = folder.join(file_name(rank, ranks));
            if !is_there(&path)? {
                let expected = format!("a file of each of the {ranks} ranks beside it");
                return Err(Error::Index {
                    path: folder.into(),
                    value: file_name(rank, ranks),
                    expected,
                });
            }
            let (file, size) = file::open(&path)?;
            for (demo, entry) in file::read_header(&path, &file, size)? {
                let name = to_hugging_face(&demo);
                let place = (rank, entry.bytes);
                match all.get_mut(&name) {
                    None => {
                        let (dtype, shape) = (entry.dtype, entry.shape);
                        all.insert(name, Parts { dtype, shape, places: vec![place] });
                    }
                    Some(parts) if parts.dtype != entry.dtype || parts.shape != entry.shape => {
                        let (found, expected) = (entry.shape, parts.shape.clone());
                        return Err(Error::Shape { name, found, expected });
                    }
                    Some(parts) => parts.places.push(place),
                }
            }
            let file = Arc::new(file);
            opened.push((path.clone(), file.clone()));
            files.push((path, Bytes::File(file)));
        }
        let mut tensors = BTreeMap::new();
        for (name, parts) in all {
            let entry = match share(&name) {
                Share::Axis(axis) if ranks > 1 => join(&name, axis, parts, &opened, &mut files)?,
                // Every rank's is the same, or an expert's is one rank's alone.
                Share::Whole | Share::Axis(_) => first(parts),
                Share::Expert(_) => match &parts.places[..] {
                    [_] => first(parts),
                    [(a, _), (b, _), ..] => {
                        let [first, second] = [a, b].map(|rank| opened[*rank].0.clone());
                        return Err(Error::DuplicateTensor { name, first, second });
                    }
                    [] => continue,
                },
            };
            tensors.insert(name, entry);
        }
        Ok(Self { files, tensors })
    }
}

/// A tensor that one file holds whole.
fn first(parts: Parts) -> Entry {
    let (file, bytes) = parts.places.into_iter().next().unwrap_or((0, 0..0));
    Entry { file, dtype: parts.dtype, shape: parts.shape, bytes }
}

/// A tensor of which each rank holds an equal part of `axis`.
fn join(
    name: &str,
    axis: usize,
    parts: Parts,
    opened: &[(PathBuf, Arc<std::fs::File>)],
    files: &mut Vec<(PathBuf, Bytes)>,
) -> Result<Entry> {
    let Parts { dtype, mut shape, places } = parts;
    if places.len() != opened.len() {
        let has = |rank: &usize| places.iter().any(|(other, _)| other == rank);
        let missing = (0..opened.len()).find(|rank| !has(rank)).unwrap_or(0);
        let (path, _) = opened[missing].clone();
        let expected = "a part of this tensor, as the other ranks have".into();
        return Err(Error::Index { path, value: name.into(), expected });
    }
    let bytes = places.first().map_or(0, |(_, place)| place.end - place.start);
    let rows: usize = shape.iter().take(axis).product();
    let Some(length) = shape.get_mut(axis) else {
        return Err(Error::Shape { name: name.into(), found: shape, expected: vec![0, 0] });
    };
    *length = length.saturating_mul(opened.len());
    let at = files.len();
    let stretch = bytes / rows.max(1) as u64;
    let part = |(rank, place): (usize, std::ops::Range<u64>)| {
        let (path, file) = &opened[rank];
        (path.clone(), file.clone(), place)
    };
    let joined = Joined { parts: places.into_iter().map(part).collect(), stretch };
    files.push((opened[0].0.clone(), Bytes::Joined(joined)));
    Ok(Entry { file: at, dtype, shape, bytes: 0..bytes * opened.len() as u64 })
}
