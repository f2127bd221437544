//! The index of a checkpoint in shards, and what to say of a folder without weights.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Checkpoint;
use super::file::{Entries, first_duplicate};
use crate::config::read_text;
use crate::error::{Error, Result};

/// An index larger than this is refused; V3.2's has 9 MB.
const MAX_INDEX_BYTES: u64 = 1 << 28;
/// File names that hold pickles.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// The part of `model.safetensors.index.json` that counts.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Entries<String>,
}

impl Checkpoint {
    /// Opens the shards that an index names, and checks that each tensor is where it says.
    pub(super) fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let wrong = |value: &str, expected: &str| Error::Index {
            path: index.to_path_buf(),
            value: value.into(),
            expected: expected.into(),
        };
        let text = read_text(index, MAX_INDEX_BYTES)?;
        let parsed: Index = serde_json::from_str(&text).map_err(|error| Error::Json {
            what: index.display().to_string(),
            detail: error.to_string(),
        })?;
        let entries = parsed.weight_map.0;
        if let Some(name) = first_duplicate(&entries) {
            return Err(wrong(name, "each tensor once in weight_map"));
        }
        let shards: BTreeSet<&str> = entries.iter().map(|(_, shard)| shard.as_str()).collect();
        if shards.is_empty() {
            return Err(wrong("weight_map", "at least one tensor"));
        }
        for shard in &shards {
            let mut parts = Path::new(shard).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain || shard.contains(['/', '\\', ':', '\0']) {
                return Err(wrong(shard, "the plain name of a file beside the index"));
            }
            let path = folder.join(shard);
            match path.extension().and_then(OsStr::to_str) {
                Some("safetensors") => {}
                Some(kind) if PICKLES.contains(&kind) => return Err(Error::Pickle(path)),
                _ => return Err(wrong(shard, "a name that ends in .safetensors")),
            }
            if !path.exists() {
                return Err(wrong(shard, "a file that exists (is the download complete?)"));
            }
        }
        let checkpoint = Self::open_files(shards.iter().map(|s| folder.join(s)).collect())?;
        let position = |shard: &str| shards.iter().position(|s| *s == shard);
        for (name, shard) in &entries {
            let found = checkpoint.tensors.get(name).map(|entry| entry.file);
            if found != position(shard) {
                return Err(wrong(
                    name,
                    &format!("a tensor of {shard:?}, which has none so named"),
                ));
            }
        }
        Ok(checkpoint)
    }
}

/// What to say of a folder without safetensors.
pub(super) fn no_weights(folder: &Path) -> Result<Error> {
    let mut names = Vec::new();
    for file in fs::read_dir(folder).map_err(Error::io(folder))? {
        names.push(file.map_err(Error::io(folder))?.path());
    }
    names.sort();
    let kind = |path: &PathBuf| path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
    let pickle = |path: &PathBuf| kind(path).is_some_and(|kind| PICKLES.contains(&&*kind));
    let pickle = names.into_iter().find(pickle);
    Ok(pickle.map_or(Error::NoWeights(folder.to_path_buf()), Error::Pickle))
}
