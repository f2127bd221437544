//! Checkpoint reading: safetensors files, whose headers are checked whole before the first use.
//!
//! ```text
//! let checkpoint = Checkpoint::open(folder)?;
//! let attention = checkpoint.root().at("model.layers").at(0).at("self_attn");
//! let q_a = attention.values("q_a_proj.weight", &[q_lora_rank, hidden_size])?;
//! ```
//!
//! Weights are [out, in], row-major, little-endian. On the host f32, bf16 and f16 become f32 exactly, and e4m3 is
//! multiplied by its block's scale from `weight_scale_inv` (or, where there is none, `weight_scale`)
//! [⌈out/128⌉, ⌈in/128⌉]: f32, bf16, f16, or e8m0 (one byte, 2^(byte − 127)). To a device they go as they are stored,
//! part by part.
//! Nothing is read or converted before it is asked for, and pickle formats are never read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use manifest::manifest;
pub use path::WeightPath;
pub use random::{Random, Stored};
pub use safetensors::Dtype;
pub use source::Weights;
pub use split::Split;

use bytes::Bytes;

use crate::config::QUANT_BLOCK;
use crate::error::{Error, Result};
use crate::names::nearest;
use dsa_kernels::DType;
use dsa_kernels::upload::Upload;

mod bytes;
mod convert;
mod demo_names;
mod file;
mod index;
mod manifest;
mod path;
mod random;
mod ranks;
mod source;
mod split;
#[cfg(test)]
mod tests;

/// An open checkpoint. A file that is cut while it is open gives an error when a tensor is read.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<u64>,
}

/// A tensor as it is in the file.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// The type of an element.
    pub dtype: Dtype,
    /// The shape; a weight is [out, in].
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian, at any alignment.
    pub bytes: Vec<u8>,
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors`, or else with `model.safetensors.index.json` and
    /// the shards it names, or else with `model0-mp4.safetensors` and its like, which [`Split`] makes: what
    /// the ranks hold is joined. Every header is read and checked; no weight is.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::Pickle`], [`Error::Index`], [`Error::Truncated`],
    /// [`Error::Safetensors`], [`Error::DuplicateTensor`], [`Error::File`], [`Error::Json`].
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if is_there(&single)? {
            Self::open_files(vec![single])
        } else if is_there(&index)? {
            Self::open_index(folder, &index)
        } else if let Some(ranks) = ranks::ranks_in(folder)? {
            Self::open_ranks(folder, ranks)
        } else {
            Err(index::no_weights(folder)?)
        }
    }

    /// Opens one or more safetensors files as one checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], without those of the index.
    pub fn open_files(paths: Vec<PathBuf>) -> Result<Self> {
        Self::open_where(paths, |_, _| true)
    }

    /// Opens files, and takes of each the tensors that belong to it by name and number of the file.
    fn open_where(paths: Vec<PathBuf>, belongs: impl Fn(&str, usize) -> bool) -> Result<Self> {
        let mut files: Vec<(PathBuf, Bytes)> = Vec::with_capacity(paths.len());
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for path in paths {
            let (file, size) = file::open(&path)?;
            for (name, mut entry) in file::read_header(&path, &file, size)? {
                entry.file = files.len();
                if !belongs(&name, entry.file) {
                    continue;
                }
                if let Some(first) = tensors.get(&name) {
                    // A file does not hold a name twice, so the first is another file.
                    let first = files[first.file].0.clone();
                    return Err(Error::DuplicateTensor { name, first, second: path });
                }
                tensors.insert(name, entry);
            }
            files.push((path, Bytes::File(Arc::new(file))));
        }
        Ok(Self { files, tensors })
    }

    /// The names of all tensors, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files, in the order opened.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = self.files.iter().filter(|(_, bytes)| matches!(bytes, Bytes::File(_)));
        files.map(|(path, _)| path.as_path())
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.bytes.end - entry.bytes.start).sum()
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The element type and the shape of a tensor, which is not read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with the nearest name there is.
    pub fn form(&self, name: &str) -> Result<(Dtype, &[usize])> {
        self.entry(name).map(|entry| (entry.dtype, &entry.shape[..]))
    }

    /// A tensor as stored.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], with the nearest name there is; [`Error::File`] or
    /// [`Error::Truncated`] if it cannot be read any more.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self.entry(name)?;
        let (path, file) = &self.files[entry.file];
        let bytes = file.read(path, entry.bytes.clone())?;
        Ok(Tensor { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// The bytes at `range` of a tensor as stored.
    fn part(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        let (path, file) = &self.files[entry.file];
        let start = entry.bytes.start;
        file.read(path, start + range.start..start + range.end)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            name: name.to_string(),
            nearest: nearest(name, self.names()),
        })
    }

    /// The elements of a tensor of shape `shape`, in f32 and row-major. Type and shape are checked
    /// before anything is read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] unless the shape is `shape`, [`Error::Dtype`]
    /// unless the elements are f32, bf16, f16, or e4m3 in a matrix with its `…_scale_inv`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check(name, shape)?;
        let Tensor { dtype, bytes, .. } = self.tensor(name)?;
        match (dtype, shape) {
            (Dtype::F8_E4M3, &[rows, columns]) => {
                Ok(convert::scaled(&bytes, columns, &self.scales(name, [rows, columns])?))
            }
            _ => convert::plain(dtype, &bytes).ok_or_else(|| wrong_type(name, dtype, NUMBERS)),
        }
    }

    /// The type in which a tensor of shape `shape` is stored.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType> {
        self.check(name, shape)?;
        match self.form(name)?.0 {
            Dtype::F32 => Ok(DType::F32),
            Dtype::BF16 => Ok(DType::Bf16),
            Dtype::F16 => Ok(DType::F16),
            Dtype::F8_E4M3 => Ok(DType::E4m3),
            other => Err(wrong_type(name, other, NUMBERS)),
        }
    }

    /// Writes the elements `rows` of the first axis of a tensor of shape `shape`, as they are stored, to a device.
    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()> {
        self.check(name, shape)?;
        let entry = self.entry(name)?;
        let (path, file) = &self.files[entry.file];
        // The header was checked: the elements fill the tensor's bytes, and the first axis divides them.
        let row =
            (entry.bytes.end - entry.bytes.start) / shape.first().map_or(1, |n| *n.max(&1) as u64);
        let [mut at, end] = [rows.start, rows.end].map(|n| entry.bytes.start + n as u64 * row);
        while at < end {
            let part = at..end.min(at + PART_BYTES);
            at = part.end;
            to.write(file.read(path, part)?)?;
        }
        Ok(())
    }

    /// Checks that [`Checkpoint::values`] can read the tensor `name` of shape `shape`, and reads nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::values`].
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (dtype, found) = self.form(name)?;
        if found != shape {
            return Err(self.wrong_shape(name, shape));
        }
        match (dtype, shape) {
            (Dtype::F8_E4M3, &[rows, columns]) => self.check_scales(name, [rows, columns]),
            (Dtype::F32 | Dtype::BF16 | Dtype::F16, _) => Ok(()),
            _ => Err(wrong_type(name, dtype, NUMBERS)),
        }
    }

    /// The name of the scales of the e4m3 weight `name`: `…_scale_inv`, or `…_scale` where only that is there.
    fn scale_name(&self, name: &str) -> String {
        let usual = format!("{name}{SCALE}");
        let other = format!("{name}{OTHER_SCALE}");
        if !self.contains(&usual) && self.contains(&other) { other } else { usual }
    }

    /// The e4m3 weight whose scales are the tensor `name`, if it is that.
    fn scaled_by<'a>(&self, name: &'a str) -> Option<&'a str> {
        let weight = name.strip_suffix(SCALE).or_else(|| name.strip_suffix(OTHER_SCALE))?;
        let (dtype, _) = self.form(weight).ok()?;
        (dtype == Dtype::F8_E4M3 && self.scale_name(weight) == name).then_some(weight)
    }

    /// What was understood otherwise than it is usually written, for whoever runs the model to see.
    pub fn notes(&self) -> Vec<String> {
        let other = |name: &&str| name.ends_with(OTHER_SCALE) && self.scaled_by(name).is_some();
        match self.names().filter(other).count() {
            0 => vec![],
            n => vec![format!(
                "{n} weights have their scales in weight_scale, which is read as weight_scale_inv: both multiply"
            )],
        }
    }

    /// Checks the form of the scales of the e4m3 weight `name` [rows, columns].
    fn check_scales(&self, name: &str, weight: [usize; 2]) -> Result<()> {
        let name = self.scale_name(name);
        let blocks = weight.map(|n| n.div_ceil(QUANT_BLOCK));
        let (dtype, found) = self.form(&name)?;
        if found != blocks {
            return Err(self.wrong_shape(&name, &blocks));
        }
        match dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F8_E8M0 => Ok(()),
            _ => Err(wrong_type(&name, dtype, SCALES)),
        }
    }

    /// The scales [⌈rows/128⌉, ⌈columns/128⌉] of the e4m3 weight `name` [rows, columns].
    fn scales(&self, name: &str, weight: [usize; 2]) -> Result<Vec<f32>> {
        self.check_scales(name, weight)?;
        let name = self.scale_name(name);
        let Tensor { dtype, bytes, .. } = self.tensor(&name)?;
        let values = match dtype {
            Dtype::F8_E8M0 => Some(convert::e8m0(&bytes)),
            _ => convert::plain(dtype, &bytes),
        };
        let values = values.ok_or_else(|| wrong_type(&name, dtype, SCALES))?;
        match values.iter().find(|scale| !(scale.is_finite() && **scale >= 0.0)) {
            Some(&value) => {
                Err(Error::Element { name, value, expected: "finite scales, none negative" })
            }
            None => Ok(values),
        }
    }

    fn wrong_shape(&self, name: &str, expected: &[usize]) -> Error {
        let found = self.tensors.get(name).map_or(Vec::new(), |entry| entry.shape.clone());
        Error::Shape { name: name.into(), found, expected: expected.into() }
    }
}

/// What stands behind the name of an e4m3 weight in that of its scales, and what some writers put there.
const SCALE: &str = "_scale_inv";
const OTHER_SCALE: &str = "_scale";

/// Bytes that are read at a time on their way to a device.
const PART_BYTES: u64 = 1 << 26;

/// The types of a weight, and of the scales of one.
const NUMBERS: &str = "F32, BF16, F16, or F8_E4M3 with two axes";
const SCALES: &str = "F32, BF16, F16 or F8_E8M0";

fn wrong_type(name: &str, found: Dtype, expected: &'static str) -> Error {
    Error::Dtype { name: name.into(), found, expected }
}

/// Whether there is anything at `path`, be it a link that leads nowhere: what is there but cannot be
/// read is an error when it is opened, never taken for absent.
///
/// # Errors
/// [`Error::File`] if that cannot be found out.
pub fn is_there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path)(error)),
    }
}
