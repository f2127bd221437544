//! One safetensors file: its header checked against its length, and its tensors read from their places.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::Entry;
use crate::error::{Error, Result};
use crate::json::Once;

/// A header larger than this is refused (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More tensors than this in one file are refused: all of DeepSeek-V3.2's are 92,000.
pub(super) const MAX_TENSORS: usize = 1 << 18;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;

/// Opens a regular file, and says how long it is.
pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    // Before it is opened: a pipe would wait for a writer.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(dsa_files::FileError::refused(path, "not a regular file").into());
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    Ok((file, size))
}

/// The bytes of a range that was within the file when its header was checked.
pub(super) fn read(path: &Path, file: &File, range: Range<u64>) -> Result<Vec<u8>> {
    // A range within a file, and a usize has 64 bits where there is a device to run on.
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => {
            let size = file.metadata().map_or(0, |metadata| metadata.len());
            let missing = range.end.saturating_sub(size);
            Error::Truncated { path: path.to_path_buf(), size, missing }
        }
        _ => Error::io(path)(error),
    })?;
    Ok(bytes)
}

/// Reads the header of a file of `size` bytes: its tensors with absolute byte ranges, all within it.
pub(super) fn read_header(path: &Path, file: &File, size: u64) -> Result<Vec<(String, Entry)>> {
    let wrong = |detail: String| Error::Safetensors { path: path.to_path_buf(), detail };
    let reach = |end: u64| match end.checked_sub(size) {
        Some(missing) if missing > 0 => {
            Err(Error::Truncated { path: path.to_path_buf(), size, missing })
        }
        _ => Ok(()),
    };
    reach(LENGTH_BYTES)?;
    let length = read(path, file, 0..LENGTH_BYTES)?;
    let length = u64::from_le_bytes(*length.first_chunk().ok_or_else(|| wrong("short".into()))?);
    if length > MAX_HEADER_BYTES {
        return Err(wrong(format!(
            "a header of {length} bytes, at most {MAX_HEADER_BYTES} allowed"
        )));
    }
    let data = LENGTH_BYTES + length;
    reach(data)?;
    let header = read(path, file, LENGTH_BYTES..data)?;

    // Our own look first: the crate keeps the last of two equal names, and does not say how much of a
    // file is missing.
    let entries: Entries =
        serde_json::from_slice(&header).map_err(|error| wrong(format!("header: {error}")))?;
    if let Some(name) = entries.first_duplicate() {
        let (name, first, second) = (name.to_string(), path.to_path_buf(), path.to_path_buf());
        return Err(Error::DuplicateTensor { name, first, second });
    }
    for (name, Once(tensor)) in &entries.0 {
        let Some(end) = tensor["data_offsets"][1].as_u64() else {
            continue;
        };
        let end = end.checked_add(data);
        reach(end.ok_or_else(|| wrong(format!("the offsets of {name:?} are beyond 64 bits")))?)?;
    }

    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| wrong(format!("header: {error}")))?;
    let (end, unused) = (metadata.data_len() as u64, size - data);
    if end != unused {
        return Err(wrong(format!(
            "tensors of {end} bytes in {unused} bytes, expected to fill them"
        )));
    }
    let entry = |info: &safetensors::tensor::TensorInfo| Entry {
        file: 0,
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: data + info.data_offsets.0 as u64..data + info.data_offsets.1 as u64,
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

/// The entries of a header as written: a name that is there twice is there twice.
struct Entries(Vec<(String, Once)>);

impl Entries {
    /// The first name, in alphabetical order, that is there twice.
    fn first_duplicate(&self) -> Option<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object { … }")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == MAX_TENSORS {
                        let many = format!("more than {MAX_TENSORS} tensors in one file");
                        return Err(A::Error::custom(many));
                    }
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(All)
    }
}
