//! One safetensors file: its map, and its header checked against its length.

use std::fs::{self, File};
use std::marker::PhantomData;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::Entry;
use crate::error::{Error, Result};

/// A header larger than this is refused (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;

/// Maps a regular file.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::io(path)(std::io::Error::other("not a file")));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only and lives as long as every slice of it, and any byte is a valid
    // u8. What no check can exclude is another process changing or cutting the file meanwhile;
    // `Checkpoint` says that this must not happen.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Reads a file's header: its tensors with absolute byte ranges, all within the file.
pub(super) fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Entry)>> {
    let wrong = |detail: String| Error::Safetensors { path: path.to_path_buf(), detail };
    let size = bytes.len() as u64;
    let reach = |end: u64| match end.checked_sub(size) {
        Some(missing) if missing > 0 => {
            Err(Error::Truncated { path: path.to_path_buf(), size, missing })
        }
        _ => Ok(()),
    };
    reach(LENGTH_BYTES)?;
    let (length, rest) = bytes.split_first_chunk().ok_or_else(|| wrong("too short".into()))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(wrong(format!(
            "a header of {length} bytes, at most {MAX_HEADER_BYTES} allowed"
        )));
    }
    reach(LENGTH_BYTES + length)?;

    // Our own look first: the crate keeps the last of two equal names, does not say how much of a
    // file is missing, and adds offsets unchecked.
    let headers: Entries<Header> = serde_json::from_slice(&rest[..length as usize])
        .map_err(|error| wrong(format!("header: {error}")))?;
    if let Some(name) = first_duplicate(&headers.0) {
        let (name, first, second) = (name.to_string(), path.to_path_buf(), path.to_path_buf());
        return Err(Error::DuplicateTensor { name, first, second });
    }
    for (name, header) in &headers.0 {
        let (_, end) = header.data_offsets;
        let end = end.checked_add(LENGTH_BYTES + length);
        reach(end.ok_or_else(|| wrong(format!("the offsets of {name:?} are beyond 64 bits")))?)?;
    }

    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
    let data = (LENGTH_BYTES + length) as usize;
    let entry = |info: &safetensors::tensor::TensorInfo| Entry {
        file: 0,
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: data + info.data_offsets.0..data + info.data_offsets.1,
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// The part of a tensor's header that is checked before the crate reads it; also takes the map of
/// free texts `__metadata__`.
#[derive(serde::Deserialize)]
struct Header {
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// The entries of a JSON object as written: a name that is there twice is there twice.
pub(super) struct Entries<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct All<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for All<V> {
            type Value = Entries<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object { … }")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All(PhantomData))
    }
}

/// The first name, in alphabetical order, that is there twice.
pub(super) fn first_duplicate<V>(entries: &[(String, V)]) -> Option<&str> {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
