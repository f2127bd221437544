//! Checkpoint reading: safetensors files, memory-mapped, checked whole before the first use.
//!
//! ```text
//! let checkpoint = Checkpoint::open(folder)?;
//! let attention = checkpoint.root().at("model.layers").at(0).at("self_attn");
//! let q_a = attention.values("q_a_proj.weight", &[q_lora_rank, hidden_size])?;
//! ```
//!
//! Weights are [out, in], row-major, little-endian. f32, bf16 and f16 become f32 exactly. e4m3 is
//! multiplied by its block's scale from `weight_scale_inv`, f32 [⌈out/128⌉, ⌈in/128⌉].
//! Nothing is converted before it is asked for, and pickle formats are never read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dsa_kernels::DType;
use memmap2::Mmap;

pub use path::WeightPath;
pub use safetensors::Dtype;
pub use source::{Random, Weights};

use crate::config::QUANT_BLOCK;
use crate::error::{Error, Result};

mod file;
mod index;
mod path;
mod source;
#[cfg(test)]
mod tests;

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
            Err(index::no_weights(folder)?)
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
            let map = file::map_file(&path)?;
            for (name, mut entry) in file::read_header(&path, &map)? {
                entry.file = files.len();
                if let Some(first) = tensors.get(&name) {
                    let first = files[first.file].0.clone();
                    return Err(Error::DuplicateTensor { name, first, second: path });
                }
                tensors.insert(name, entry);
            }
            files.push((path, map));
        }
        Ok(Self { files, tensors })
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

    /// The elements of a tensor of shape `shape`, in f32 and row-major.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] unless the shape is `shape`, [`Error::Dtype`]
    /// unless the elements are f32, bf16, f16, or e4m3 in a matrix with its `…_scale_inv`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Tensor { dtype, shape: found, bytes } = self.tensor(name)?;
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
                let scales = self.values(&scale_name, &blocks)?;
                Ok(dequantise(bytes, columns, &scales))
            }
            _ => plain_values(dtype, bytes)
                .ok_or_else(|| self.wrong_dtype(name, "F32, BF16, F16, or F8_E4M3 with two axes")),
        }
    }

    fn wrong_shape(&self, name: &str, expected: &[usize]) -> Error {
        let found = self.tensors.get(name).map_or(Vec::new(), |entry| entry.shape.clone());
        Error::Shape { name: name.into(), found, expected: expected.into() }
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str) -> Error {
        match self.tensors.get(name) {
            Some(entry) => Error::Dtype { name: name.into(), found: entry.dtype, expected },
            None => Error::MissingTensor { name: name.into(), nearest: None },
        }
    }
}

/// e4m3 [rows, columns] times its scales [⌈rows/128⌉, ⌈columns/128⌉], row-major.
fn dequantise(bytes: &[u8], columns: usize, scales: &[f32]) -> Vec<f32> {
    let table = DType::E4m3.decode(&(0..=255).collect::<Vec<u8>>());
    let across = columns.div_ceil(QUANT_BLOCK).max(1);
    let mut values = Vec::with_capacity(bytes.len());
    for (row, bytes) in bytes.chunks_exact(columns.max(1)).enumerate() {
        let scales = &scales[row / QUANT_BLOCK * across..][..across];
        for (block, scale) in bytes.chunks(QUANT_BLOCK).zip(scales) {
            values.extend(block.iter().map(|&byte| table[usize::from(byte)] * scale));
        }
    }
    values
}

/// Elements that need no scale, in f32; `None` for another type.
fn plain_values(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::Bf16,
        Dtype::F16 => DType::F16,
        _ => return None,
    };
    Some(dtype.decode(bytes))
}

/// The name that shares most with `name` at its two ends; none if that is less than half of it.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let same = |(a, b): &(u8, u8)| a == b;
    let likeness = |other: &&str| {
        let (a, b) = (name.bytes(), other.bytes());
        let start = a.clone().zip(b.clone()).take_while(same).count();
        let end = a.rev().zip(b.rev()).take_while(same).count();
        // The shorter other name wins among equals, then the alphabetically last.
        ((start + end).min(name.len()), std::cmp::Reverse(other.len()))
    };
    let best = names.max_by_key(likeness)?;
    (likeness(&best).0 * 2 >= name.len()).then(|| best.to_string())
}
