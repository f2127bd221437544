//! Cases and outputs as safetensors files.

use super::{Case, CaseError, HostTensor, Outputs};
use crate::contract::{COPIES_OF_INPUTS, expect_room};
use dsa_files::{FileError, printable};
use dsa_kernels::DType;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A header of more bytes is refused: a case has a dozen tensors and scalars.
const MOST_HEADER_BYTES: u64 = 1 << 20;
/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// More axes than any kernel's tensor has.
const MOST_AXES: usize = 8;

impl Case {
    /// Writes the case as a safetensors file, its scalars and the kernel's name as metadata, by
    /// [`dsa_files::replace`]. A folder that is not there is made.
    ///
    /// # Errors
    /// [`CaseError::File`], and the old file is as it was.
    pub fn save(&self, path: &Path) -> Result<(), CaseError> {
        let mut metadata: HashMap<String, String> =
            self.scalars.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        metadata.insert("kernel".to_string(), self.kernel.clone());
        let views = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| FileError::io(path, error))?;
        }
        save_tensors(path, views, Some(metadata))
    }

    /// Reads a case written by [`Case::save`], or by anyone with the same names. Whether its kernel takes
    /// them is not asked.
    ///
    /// # Errors
    /// [`CaseError::File`] for what is no regular file or no safetensors file, for one that the free memory
    /// has no room for, for a header of more than 1 MiB and for a name that is there twice;
    /// [`CaseError::Tensor`] for a type or a shape that no kernel takes.
    pub fn load(path: &Path) -> Result<Self, CaseError> {
        // The header first: a file of 20 GB that is none is refused by its first bytes.
        let size = check_header(path)?;
        if let Err(most) = expect_room(size.into(), COPIES_OF_INPUTS) {
            let why = "64 GiB, and a sixth of the memory that is free";
            return Err(refused(path, &format!("{size} bytes, expected at most {most} ({why})")));
        }
        let bytes = dsa_files::read(path, size)?;
        let wrong = |error: safetensors::SafeTensorError| refused(path, &error.to_string());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
        let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
        let mut case = Case::new("");
        for (name, view) in file.iter() {
            let refused = |expected: &str| {
                let got = format!("{:?}{:?}", view.dtype(), view.shape());
                let (name, expected) = (name.to_string(), expected.to_string());
                CaseError::Tensor { name, got, expected }
            };
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::BF16 => DType::Bf16,
                Dtype::F16 => DType::F16,
                Dtype::F8_E4M3 => DType::E4m3,
                Dtype::I32 => DType::I32,
                Dtype::U8 => DType::U8,
                _ => return Err(refused("F32, BF16, F16, F8_E4M3, I32 or U8")),
            };
            // Kernels count in 32 bits; and a tensor without elements has axes of any length for free.
            if view.shape().iter().any(|axis| *axis > i32::MAX as usize) {
                return Err(refused("axes below 2^31"));
            }
            if view.shape().len() > MOST_AXES {
                return Err(refused("at most 8 axes"));
            }
            let tensor =
                HostTensor { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            case.tensors.insert(name.to_string(), tensor);
        }
        for (key, value) in header.metadata().iter().flatten() {
            case.scalars.insert(key.clone(), value.clone());
        }
        case.kernel = case.scalars.remove("kernel").unwrap_or_default();
        Ok(case)
    }
}

fn refused(path: &Path, reason: &str) -> CaseError {
    CaseError::File(FileError::refused(path, printable(reason, 300)))
}

/// Refuses a file by its first bytes: what is no regular file, a header that is too long for a case or
/// for the file, a name that is there twice (of which the parser would keep the last in silence). Returns the
/// file's size in bytes.
fn check_header(path: &Path) -> Result<u64, CaseError> {
    let io = |error| FileError::io(path, error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(refused(path, "not a regular file"));
    }
    let mut file = File::open(path).map_err(io)?.take(LENGTH_BYTES + MOST_HEADER_BYTES);
    let mut start = Vec::new();
    file.read_to_end(&mut start).map_err(io)?;
    let Some((length, rest)) = start.split_first_chunk() else {
        let bytes = start.len();
        return Err(refused(path, &format!("{bytes} bytes, expected a safetensors file")));
    };
    let length = u64::from_le_bytes(*length);
    let what = format!("a header of {length} bytes, expected at most");
    if length > MOST_HEADER_BYTES {
        return Err(refused(path, &format!("{what} the {MOST_HEADER_BYTES} of a case")));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return Err(refused(path, &format!("{what} the {} that follow", rest.len())));
    };
    serde_json::from_slice::<Once>(header)
        .map_err(|error| refused(path, &format!("header: {error}")))?;
    Ok(metadata.len())
}

/// A JSON object in which no name is there twice; nothing of it is kept.
struct Once;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Once;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut names = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    // The names of scalars count too.
                    if name == "__metadata__" {
                        map.next_value::<Once>()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                    if names.contains(&name) {
                        let name = printable(&name, 60);
                        return Err(A::Error::custom(format!("{name:?} is there twice")));
                    }
                    names.insert(name);
                }
                Ok(Once)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Writes outputs as a safetensors file, by [`dsa_files::replace`].
///
/// # Errors
/// [`CaseError::File`], and the old file is as it was.
pub fn save_outputs(path: &Path, outputs: &Outputs) -> Result<(), CaseError> {
    save_tensors(path, outputs.iter().map(|(name, tensor)| (*name, tensor)), None)
}

fn save_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a HostTensor)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), CaseError> {
    let wrong = |error: safetensors::SafeTensorError| refused(path, &error.to_string());
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::E4m3 => Dtype::F8_E4M3,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
        };
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes).map_err(wrong)?;
        views.push((name.to_string(), view));
    }
    let bytes = safetensors::serialize(views, metadata).map_err(wrong)?;
    Ok(dsa_files::replace(path, |out| out.write_all(&bytes))?)
}
