//! Checkpoint reading: safetensors files, memory-mapped, checked whole before the first use.
//!
//! ```text
//! let checkpoint = Checkpoint::open(folder)?;
//! let attention = checkpoint.root().at("model.layers").at(0).at("self_attn");
//! let q_a = attention.array2("q_a_proj.weight", [q_lora_rank, hidden_size])?;
//! ```
//!
//! Weights are [out, in], row-major, little-endian. f32, bf16 and f16 become f32 exactly. e4m3 is
//! multiplied by its block's scale from `weight_scale_inv`, f32 [⌈out/128⌉, ⌈in/128⌉].
//! Nothing is converted before it is asked for, and pickle formats are never read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use dsa_reference::quant::e4m3_decode;
use half::{bf16, f16};
use memmap2::Mmap;
use ndarray::{Array1, Array2, ArrayD};
use safetensors::SafeTensors;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

pub use safetensors::Dtype;

use crate::config::{QUANT_BLOCK, read_text};
use crate::error::{Error, Result};

/// A header larger than this is refused (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// An index larger than this is refused; V3.2's has 9 MB.
const MAX_INDEX_BYTES: u64 = 1 << 28;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// File names that hold pickles.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// An open checkpoint. The files must not be changed while it is open.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A tensor as it is in the file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// The type of an element.
    pub dtype: Dtype,
    /// The shape; a weight is [out, in].
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian, at any alignment.
    pub bytes: &'a [u8],
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors`, or else with `model.safetensors.index.json` and
    /// the shards it names. Every header is read and checked; no weight is.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::Pickle`], [`Error::Index`], [`Error::Truncated`],
    /// [`Error::Safetensors`], [`Error::DuplicateTensor`], [`Error::Io`], [`Error::Json`].
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() {
            Self::open_files(vec![single])
        } else if index.exists() {
            Self::open_index(folder, &index)
        } else {
            Err(no_weights(folder)?)
        }
    }

    /// Opens one or more safetensors files as one checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], without those of the index.
    pub fn open_files(paths: Vec<PathBuf>) -> Result<Self> {
        let mut files: Vec<(PathBuf, Mmap)> = Vec::with_capacity(paths.len());
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for path in paths {
            let map = map_file(&path)?;
            for (name, mut entry) in read_header(&path, &map)? {
                entry.file = files.len();
                if let Some(first) = tensors.get(&name) {
                    let first = files[first.file].0.clone();
                    return Err(Error::DuplicateTensor {
                        name,
                        first,
                        second: path,
                    });
                }
                tensors.insert(name, entry);
            }
            files.push((path, map));
        }
        Ok(Self { files, tensors })
    }

    /// Opens the shards that an index names, and checks that each tensor is where it says.
    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
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
            let plain = matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            );
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
                return Err(wrong(
                    shard,
                    "a file that exists (is the download complete?)",
                ));
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

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files, in the order opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.bytes.len()).sum()
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor as stored.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with the nearest name there is.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            name: name.to_string(),
            nearest: nearest(name, self.names()),
        })?;
        Ok(Tensor {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.files[entry.file].1[entry.bytes.clone()],
        })
    }

    /// A tensor in f32, of any number of axes.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] unless the shape is `shape`, [`Error::Dtype`]
    /// unless the elements are f32, bf16, f16, or e4m3 in a matrix with its `…_scale_inv`.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<ArrayD<f32>> {
        let values = self.values(name, shape)?;
        ArrayD::from_shape_vec(shape, values).map_err(|_| self.wrong_shape(name, shape))
    }

    /// A vector [n] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array1(&self, name: &str, n: usize) -> Result<Array1<f32>> {
        Ok(Array1::from_vec(self.values(name, &[n])?))
    }

    /// A matrix [rows, columns] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array2(&self, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        let values = self.values(name, &shape)?;
        Array2::from_shape_vec(shape, values).map_err(|_| self.wrong_shape(name, &shape))
    }

    /// The path of all tensors, from which to walk down.
    pub fn root(&self) -> WeightPath<'_> {
        WeightPath {
            checkpoint: self,
            path: String::new(),
        }
    }

    /// The elements of a tensor of shape `shape`, in f32 and row-major.
    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Tensor {
            dtype,
            shape: found,
            bytes,
        } = self.tensor(name)?;
        if found != shape {
            return Err(self.wrong_shape(name, shape));
        }
        match (dtype, shape) {
            (Dtype::F8_E4M3, &[_, columns]) => {
                let scale_name = format!("{name}_scale_inv");
                let blocks = [shape[0], columns].map(|n| n.div_ceil(QUANT_BLOCK));
                if self.tensor(&scale_name)?.dtype == Dtype::F8_E4M3 {
                    return Err(self.wrong_dtype(&scale_name, "F32, BF16 or F16"));
                }
                let scales = self.array2(&scale_name, blocks)?;
                Ok(dequantise(bytes, columns, &scales))
            }
            _ => plain_values(dtype, bytes)
                .ok_or_else(|| self.wrong_dtype(name, "F32, BF16, F16, or F8_E4M3 with two axes")),
        }
    }

    fn wrong_shape(&self, name: &str, expected: &[usize]) -> Error {
        let found = self
            .tensors
            .get(name)
            .map_or(Vec::new(), |entry| entry.shape.clone());
        Error::Shape {
            name: name.into(),
            found,
            expected: expected.into(),
        }
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str) -> Error {
        match self.tensors.get(name) {
            Some(entry) => Error::Dtype {
                name: name.into(),
                found: entry.dtype,
                expected,
            },
            None => Error::MissingTensor {
                name: name.into(),
                nearest: None,
            },
        }
    }
}

/// A place in the tree of dotted names, so that a layer's fields read like its weights.
#[derive(Clone, Debug)]
pub struct WeightPath<'a> {
    checkpoint: &'a Checkpoint,
    path: String,
}

impl<'a> WeightPath<'a> {
    /// One step down, or several: a name, dotted names, or a number.
    pub fn at(&self, part: impl Display) -> WeightPath<'a> {
        WeightPath {
            checkpoint: self.checkpoint,
            path: self.name(part),
        }
    }

    /// The full name of `leaf` here.
    pub fn name(&self, leaf: impl Display) -> String {
        if self.path.is_empty() {
            leaf.to_string()
        } else {
            format!("{}.{leaf}", self.path)
        }
    }

    /// Whether there is a tensor `leaf` here.
    pub fn contains(&self, leaf: &str) -> bool {
        self.checkpoint.contains(&self.name(leaf))
    }

    /// A tensor as stored.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub fn tensor(&self, leaf: &str) -> Result<Tensor<'a>> {
        self.checkpoint.tensor(&self.name(leaf))
    }

    /// A tensor in f32, of any number of axes.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn f32(&self, leaf: &str, shape: &[usize]) -> Result<ArrayD<f32>> {
        self.checkpoint.f32(&self.name(leaf), shape)
    }

    /// A vector [n] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array1(&self, leaf: &str, n: usize) -> Result<Array1<f32>> {
        self.checkpoint.array1(&self.name(leaf), n)
    }

    /// A matrix [rows, columns] in f32.
    ///
    /// # Errors
    /// As [`Checkpoint::f32`].
    pub fn array2(&self, leaf: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        self.checkpoint.array2(&self.name(leaf), shape)
    }
}

/// e4m3 [rows, columns] times its scales [⌈rows/128⌉, ⌈columns/128⌉], row-major.
fn dequantise(bytes: &[u8], columns: usize, scales: &Array2<f32>) -> Vec<f32> {
    let table: Vec<f32> = (0..=255).map(e4m3_decode).collect();
    let mut values = Vec::with_capacity(bytes.len());
    for (row, bytes) in bytes.chunks_exact(columns.max(1)).enumerate() {
        let scales = scales.row(row / QUANT_BLOCK);
        for (block, scale) in bytes.chunks(QUANT_BLOCK).zip(scales) {
            values.extend(block.iter().map(|&byte| table[usize::from(byte)] * scale));
        }
    }
    values
}

/// Elements that need no scale, in f32; `None` for another type.
fn plain_values(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let (two, _) = bytes.as_chunks::<2>();
    let (four, _) = bytes.as_chunks::<4>();
    match dtype {
        Dtype::F32 => Some(four.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => Some(
            two.iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
        ),
        Dtype::F16 => Some(
            two.iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

/// Maps a regular file.
fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    if !file.metadata().map_err(Error::io(path))?.is_file() {
        return Err(Error::io(path)(std::io::Error::other("not a file")));
    }
    // SAFETY: the map is read-only and lives as long as every slice of it, and any byte is a valid
    // u8. What no check can exclude is another process changing or cutting the file meanwhile;
    // `Checkpoint` says that this must not happen.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

/// Reads a file's header: its tensors with absolute byte ranges, all within the file.
fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<(String, Entry)>> {
    let wrong = |detail: String| Error::Safetensors {
        path: path.to_path_buf(),
        detail,
    };
    let size = bytes.len() as u64;
    let reach = |end: u64| match end.checked_sub(size) {
        Some(missing) if missing > 0 => Err(Error::Truncated {
            path: path.to_path_buf(),
            size,
            missing,
        }),
        _ => Ok(()),
    };
    reach(LENGTH_BYTES)?;
    let (length, rest) = bytes
        .split_first_chunk()
        .ok_or_else(|| wrong("too short".into()))?;
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
        return Err(Error::DuplicateTensor {
            name,
            first,
            second,
        });
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
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| (name, entry(info)))
        .collect())
}

/// What to say of a folder without safetensors.
fn no_weights(folder: &Path) -> Result<Error> {
    let mut names = Vec::new();
    for file in fs::read_dir(folder).map_err(Error::io(folder))? {
        names.push(file.map_err(Error::io(folder))?.path());
    }
    names.sort();
    let kind = |path: &PathBuf| {
        path.extension()
            .and_then(OsStr::to_str)
            .map(str::to_lowercase)
    };
    let pickle = |path: &PathBuf| kind(path).is_some_and(|kind| PICKLES.contains(&&*kind));
    let pickle = names.into_iter().find(pickle);
    Ok(pickle.map_or(Error::NoWeights(folder.to_path_buf()), Error::Pickle))
}

/// The name that shares most with `name` at its two ends; none if that is less than half of it.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let same = |(a, b): &(u8, u8)| a == b;
    let likeness = |other: &&str| {
        let (a, b) = (name.bytes(), other.bytes());
        let start = a.clone().zip(b.clone()).take_while(same).count();
        let end = a.rev().zip(b.rev()).take_while(same).count();
        // The shorter other name wins among equals, then the alphabetically last.
        (
            (start + end).min(name.len()),
            std::cmp::Reverse(other.len()),
        )
    };
    let best = names.max_by_key(likeness)?;
    (likeness(&best).0 * 2 >= name.len()).then(|| best.to_string())
}

/// The part of `model.safetensors.index.json` that counts.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Entries<String>,
}

/// The part of a tensor's header that is checked before the crate reads it; also takes the map of
/// free texts `__metadata__`.
#[derive(serde::Deserialize)]
struct Header {
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// The entries of a JSON object as written: a name that is there twice is there twice.
struct Entries<V>(Vec<(String, V)>);

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
fn first_duplicate<V>(entries: &[(String, V)]) -> Option<&str> {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::{TensorView, serialize};
    use tempfile::{TempDir, tempdir};

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny");

    /// Name, type, shape and bytes of a tensor to write.
    type Made<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

    /// The bytes of a safetensors file.
    fn file(tensors: &[Made]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize(views, None).unwrap()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// A file with a header written by hand.
    fn raw(header: &str, data: usize) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![0; data]].concat()
    }

    /// A folder with these files.
    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn one(bytes: &[u8]) -> Result<Checkpoint> {
        Checkpoint::open(folder(&[("model.safetensors", bytes)]).path())
    }

    fn index(pairs: &str) -> Vec<u8> {
        format!(r#"{{"metadata": {{"total_size": 4}}, "weight_map": {{{pairs}}}}}"#).into_bytes()
    }

    #[test]
    fn golden_tiny_opens_and_has_the_shapes_of_its_configuration() {
        let checkpoint = Checkpoint::open(Path::new(TINY)).unwrap();
        let layer = checkpoint.root().at("model.layers").at(1);
        let q_a = layer
            .at("self_attn")
            .array2("q_a_proj.weight", [48, 64])
            .unwrap();
        assert!(q_a.iter().all(|v| v.is_finite()) && q_a.iter().any(|v| *v != 0.0));
        assert_eq!(
            layer.array1("input_layernorm.weight", 64).unwrap().len(),
            64
        );
        assert!(layer.contains("mlp.gate.e_score_correction_bias"));
        assert!(!layer.contains("mlp.gate.bias"));
        let head = checkpoint.tensor("lm_head.weight").unwrap();
        assert_eq!(
            (head.dtype, head.shape, head.bytes.len()),
            (Dtype::BF16, &[320, 64][..], 40960)
        );
        assert!(checkpoint.names().is_sorted() && checkpoint.names().count() == 106);
        assert_eq!(
            (
                checkpoint.files().count(),
                checkpoint.tensor_bytes() > 600_000
            ),
            (1, true)
        );
    }

    #[test]
    fn a_missing_tensor_names_the_nearest() {
        let checkpoint = Checkpoint::open(Path::new(TINY)).unwrap();
        let attention = checkpoint.root().at("model.layers.0.self_attn");
        let error = attention
            .array2("q_a.weight", [48, 64])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"model.layers.0.self_attn.q_a_proj.weight\""),
            "{error}"
        );
        let error = checkpoint.tensor("zzz").unwrap_err().to_string();
        assert!(error.contains("no name there is like it"), "{error}");
    }

    #[test]
    fn wrong_shapes_and_types_are_refused() {
        let ids = [1u8, 0, 0, 0].repeat(3);
        let checkpoint = one(&file(&[
            ("ids", Dtype::I32, vec![3], ids),
            ("x", Dtype::F32, vec![0, 2], vec![]),
        ]));
        let checkpoint = checkpoint.unwrap();
        let error = checkpoint.array1("ids", 3).unwrap_err().to_string();
        assert!(error.contains("elements I32, expected F32"), "{error}");
        let error = checkpoint.array2("ids", [3, 1]).unwrap_err().to_string();
        assert!(error.contains("shape [3], expected [3, 1]"), "{error}");
        assert!(checkpoint.f32("x", &[0, usize::MAX]).is_err());
        assert_eq!(checkpoint.f32("x", &[0, 2]).unwrap().shape(), [0, 2]);
    }

    #[test]
    fn every_float_type_becomes_f32() {
        let values = [0.0, -1.5, 448.0, 0.0625];
        let half = values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect();
        let brain = values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect();
        let checkpoint = one(&file(&[
            ("a", Dtype::F32, vec![4], f32s(&values)),
            ("b", Dtype::F16, vec![4], half),
            ("c", Dtype::BF16, vec![4], brain),
        ]));
        for name in ["a", "b", "c"] {
            let array = checkpoint.as_ref().unwrap().array1(name, 4).unwrap();
            assert_eq!(array.to_vec(), values, "{name}");
        }
    }

    #[test]
    fn fp8_is_scaled_block_by_block() {
        // 130 × 200: the last row of blocks has 2 rows, the last column of blocks 72 columns.
        let scales = f32s(&[1.0, 2.0, 4.0, 8.0]);
        let weight = (
            "w.weight",
            Dtype::F8_E4M3,
            vec![130, 200],
            vec![0x3c; 130 * 200],
        );
        let scale = ("w.weight_scale_inv", Dtype::F32, vec![2, 2], scales);
        let good = one(&file(&[weight.clone(), scale.clone()])).unwrap();
        let array = good.root().at("w").array2("weight", [130, 200]).unwrap();
        for (at, value) in [
            ([0, 0], 1.5),
            ([127, 127], 1.5),
            ([0, 128], 3.0),
            ([128, 0], 6.0),
            ([129, 199], 12.0),
        ] {
            assert_eq!(array[at], value, "{at:?}");
        }
        let error = one(&file(&[weight.clone()]))
            .unwrap()
            .array2("w.weight", [130, 200]);
        assert!(matches!(error, Err(Error::MissingTensor { name, .. }) if name.ends_with("_inv")));
        let scale = (scale.0, scale.1, vec![4, 1], scale.3);
        let error = one(&file(&[weight, scale]))
            .unwrap()
            .array2("w.weight", [130, 200]);
        assert!(matches!(error, Err(Error::Shape { expected, .. }) if expected == [2, 2]));
        let vector = ("v", Dtype::F8_E4M3, vec![2], vec![0; 2]);
        let error = one(&file(&[vector])).unwrap().array1("v", 2);
        assert!(matches!(error, Err(Error::Dtype { .. })));
        let empty = ("e", Dtype::F8_E4M3, vec![3, 0], vec![]);
        let scale = ("e_scale_inv", Dtype::F32, vec![1, 0], vec![]);
        assert!(
            one(&file(&[empty, scale]))
                .unwrap()
                .array2("e", [3, 0])
                .is_ok()
        );
    }

    #[test]
    fn a_truncated_file_says_how_much_is_missing() {
        let whole = file(&[("x", Dtype::F32, vec![100], vec![0; 400])]);
        for cut in [
            1,
            17,
            400,
            401,
            whole.len() - 8,
            whole.len() - 7,
            whole.len(),
        ] {
            let error = one(&whole[..whole.len() - cut]).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "{cut}: {error}");
            let error = error.to_string();
            assert!(error.contains("model.safetensors"), "{cut}: {error}");
            let missing = format!("{cut} more");
            assert!(cut > 400 || error.contains(&missing), "{cut}: {error}");
        }
        let longer = [whole, vec![0; 3]].concat();
        assert!(matches!(one(&longer), Err(Error::Safetensors { .. })));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let max = u64::MAX;
        for header in [
            String::new(),
            "[]".into(),
            "\u{ff}".into(),
            r#"{"x": 1}"#.into(),
            r#"{"x": {"dtype": "F32", "shape": [1]}}"#.into(),
            r#"{"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#.into(),
            r#"{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#.into(),
            r#"{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#.into(),
            r#"{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#.into(),
            r#"{"x": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}}"#.into(),
            format!(r#"{{"x": {{"dtype": "U8", "shape": [{max}], "data_offsets": [0, {max}]}}}}"#),
            format!(r#"{{"x": {{"dtype": "U8", "shape": [{max}, 9], "data_offsets": [0, 4]}}}}"#),
        ] {
            assert!(
                matches!(one(&raw(&header, 4)), Err(Error::Safetensors { .. })),
                "{header}"
            );
        }
        let tensor = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
        let twice = format!(r#"{{"x": {tensor}, "x": {tensor}}}"#);
        assert!(matches!(
            one(&raw(&twice, 4)),
            Err(Error::DuplicateTensor { .. })
        ));
        let mut long = raw("{}", 0);
        long[..8].copy_from_slice(&max.to_le_bytes());
        assert!(matches!(one(&long), Err(Error::Safetensors { .. })));
        assert!(one(&raw(r#"{"__metadata__": {"format": "pt"}}"#, 0)).is_ok());
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let x = file(&[("x", Dtype::F32, vec![1], f32s(&[3.0]))]);
        let y = file(&[("y", Dtype::F32, vec![1], f32s(&[4.0]))]);
        let pairs = index(r#""x": "1.safetensors", "y": "2.safetensors""#);
        let name = "model.safetensors.index.json";
        let both = [
            (name, &pairs[..]),
            ("1.safetensors", &x),
            ("2.safetensors", &y),
        ];
        let opened = Checkpoint::open(folder(&both).path()).unwrap();
        assert_eq!(opened.array1("y", 1).unwrap()[0], 4.0);
        assert_eq!(opened.files().count(), 2);

        let missing = Checkpoint::open(folder(&both[..2]).path()).unwrap_err();
        assert!(matches!(&missing, Error::Index { value, .. } if value == "2.safetensors"));
        let same = [both[0], both[1], ("2.safetensors", &x)];
        let error = Checkpoint::open(folder(&same).path());
        assert!(matches!(error, Err(Error::DuplicateTensor { .. })));
        let swapped = [both[0], ("1.safetensors", &y[..]), ("2.safetensors", &x)];
        let error = Checkpoint::open(folder(&swapped).path());
        assert!(matches!(error, Err(Error::Index { value, .. }) if value == "x"));
    }

    #[test]
    fn hostile_indexes_are_refused() {
        let x = file(&[("x", Dtype::F32, vec![1], f32s(&[3.0]))]);
        let outside = folder(&[("x.safetensors", &x)]);
        let absolute = outside.path().join("x.safetensors").display().to_string();
        let open = |index: &[u8]| {
            let files = [
                ("model.safetensors.index.json", index),
                ("a.safetensors", &x),
            ];
            Checkpoint::open(folder(&files).path())
        };
        for shard in [
            "../a.safetensors",
            "./a.safetensors",
            "b/../a.safetensors",
            "a.safetensors/",
            "..",
            ".",
            "",
            "..\\\\a.safetensors",
            "C:a.safetensors",
            "a\\u0000.safetensors",
            "a.txt",
            "none.safetensors",
            &absolute,
        ] {
            let error = open(&index(&format!(r#""x": "{shard}""#)));
            assert!(
                matches!(error, Err(Error::Index { .. })),
                "{shard}: {error:?}"
            );
        }
        let twice = index(r#""x": "a.safetensors", "x": "b.safetensors""#);
        assert!(matches!(open(&twice), Err(Error::Index { value, .. }) if value == "x"));
        assert!(matches!(open(&index("")), Err(Error::Index { .. })));
        assert!(matches!(
            open(&index(r#""x": "a.bin""#)),
            Err(Error::Pickle(_))
        ));
        for text in [
            "",
            "{}",
            "[]",
            r#"{"weight_map": 3}"#,
            r#"{"weight_map": {"x": 3}}"#,
        ] {
            assert!(
                matches!(open(text.as_bytes()), Err(Error::Json { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn pickles_and_empty_folders_are_refused() {
        let open = |name| Checkpoint::open(folder(&[(name, &b""[..])]).path()).unwrap_err();
        for name in ["pytorch_model.bin", "model.pt", "MODEL.PTH"] {
            let error = open(name);
            assert!(matches!(error, Error::Pickle(_)), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(matches!(open("readme.md"), Error::NoWeights(_)));
        let nowhere = Checkpoint::open(Path::new("/nowhere/at/all"));
        assert!(matches!(nowhere, Err(Error::Io { .. })));
        let device = Checkpoint::open_files(vec!["/dev/zero".into()]);
        assert!(matches!(device, Err(Error::Io { .. })));
    }

    proptest! {
        #[test]
        fn random_bytes_are_an_error_not_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            length in 0u64..200,
            honest in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if honest && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
            prop_assert!(one(&bytes).is_err());
        }

        #[test]
        fn one_flipped_byte_or_a_cut_never_panics(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = file(&[
                ("a.weight", Dtype::F8_E4M3, vec![3, 5], vec![7; 15]),
                ("a.weight_scale_inv", Dtype::F32, vec![1, 1], f32s(&[2.0])),
                ("b", Dtype::BF16, vec![4], vec![1; 8]),
            ]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut.index(4));
            if let Ok(checkpoint) = one(&bytes) {
                for name in checkpoint.names() {
                    let shape = checkpoint.tensor(name).unwrap().shape.to_vec();
                    let _ = checkpoint.f32(name, &shape);
                }
            }
        }

        #[test]
        fn any_index_is_an_error_not_a_panic(shard in "\\PC{0,20}", text in "\\PC{0,60}") {
            let json = serde_json::json!({ "weight_map": { "x": shard } }).to_string();
            for text in [json, text] {
                let folder = folder(&[("model.safetensors.index.json", text.as_bytes())]);
                prop_assert!(Checkpoint::open(folder.path()).is_err());
            }
        }
    }
}
