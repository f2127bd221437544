//! The index of a checkpoint in shards, and what to say of a folder without weights.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use dsa_files::{printable, read_text};
use serde_json::Value;

use super::file::MAX_TENSORS;
use super::{Checkpoint, is_there};
use crate::error::{Error, Result};
use crate::json;

/// An index larger than this is refused; V3.2's has 9 MB.
const MAX_INDEX_BYTES: u64 = 1 << 26;
/// File names that hold pickles.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

impl Checkpoint {
    /// Opens the shards that an index names, and checks that each tensor is where it says. Of a tensor
    /// that lies in several shards, the one that the index names is taken.
    pub(super) fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let wrong = |value: &str, expected: &str| Error::Index {
            path: index.to_path_buf(),
            value: value.into(),
            expected: expected.into(),
        };
        let places = weight_map(index)?;
        if places.is_empty() || places.len() > MAX_TENSORS {
            return Err(wrong("weight_map", &format!("1 to {MAX_TENSORS} tensors")));
        }
        let shards: BTreeSet<&str> = places.values().map(String::as_str).collect();
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
            if !is_there(&path)? {
                return Err(wrong(shard, "a file that exists (is the download complete?)"));
            }
        }
        let shards: Vec<&str> = shards.into_iter().collect();
        let belongs =
            |name: &str, file: usize| places.get(name).is_none_or(|shard| shards[file] == shard);
        let paths = shards.iter().map(|shard| folder.join(shard)).collect();
        let checkpoint = Self::open_where(paths, belongs)?;
        for (name, shard) in &places {
            if !checkpoint.contains(name) {
                let shard = printable(shard, 80);
                let expected = format!("a tensor of \"{shard}\", which has none so named");
                return Err(wrong(name, &expected));
            }
        }
        Ok(checkpoint)
    }
}

/// The shard of each tensor.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let json = |detail| Error::Json { what: index.display().to_string(), detail };
    let text = read_text(index, MAX_INDEX_BYTES)?;
    let Value::Object(mut parsed) = json::parse(&text).map_err(json)? else {
        return Err(json("expected an object { … } with weight_map".into()));
    };
    let Some(Value::Object(map)) = parsed.remove("weight_map") else {
        return Err(json("expected weight_map, an object { … }".into()));
    };
    let place = |(name, shard)| match shard {
        Value::String(shard) => Ok((name, shard)),
        other => {
            let detail = format!("weight_map.{name} is {other}, expected the name of a file");
            Err(json(detail))
        }
    };
    map.into_iter().map(place).collect()
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
