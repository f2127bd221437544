//! A case: the tensors and scalars that one kernel is run on, in memory and as a safetensors file.

use dsa_kernels::{DType, Device, KernelError, Tensor};
use ndarray::{Array1, Array2, Array3, ArrayD, Dimension, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Why a case cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The case lacks a tensor.
    #[error("the case of {kernel} has no tensor {name:?}; it has {present:?}")]
    MissingTensor {
        /// The kernel.
        kernel: String,
        /// The tensor's name.
        name: String,
        /// The names it has.
        present: Vec<String>,
    },
    /// The case lacks a scalar, or it does not parse.
    #[error("scalar {name} of {kernel} is {got:?}, expected {expected}")]
    Scalar {
        /// The kernel.
        kernel: String,
        /// The scalar's name in the file's metadata.
        name: String,
        /// Its value; `None` if there is none.
        got: Option<String>,
        /// What the kernel takes.
        expected: String,
    },
    /// A tensor's shape or type does not fit.
    #[error("tensor {name} is {got}, expected {expected}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// Its type and shape.
        got: String,
        /// What is expected.
        expected: String,
    },
    /// No kernel of this name.
    #[error("there is no kernel {0:?}; `dsa run --help` lists them")]
    UnknownKernel(String),
    /// The file cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The kernel refused or failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The reference refused.
    #[error("the reference refused: {0}")]
    Reference(#[from] dsa_reference::Error),
}

/// A dense tensor in host memory.
#[derive(Clone, PartialEq)]
pub struct HostTensor {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

impl HostTensor {
    /// `values` rounded to `dtype`.
    pub fn new(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        Self { dtype, shape: shape.to_vec(), bytes: dtype.encode(values) }
    }

    /// A tensor of i32.
    pub fn i32(shape: &[usize], values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DType::I32, shape: shape.to_vec(), bytes }
    }

    /// A tensor of bytes.
    pub fn u8(shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype: DType::U8, shape: shape.to_vec(), bytes }
    }

    /// The elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.dtype.decode(&self.bytes)
    }

    /// The elements of an i32 tensor.
    pub fn to_i32(&self) -> Vec<i32> {
        self.bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Reads a contiguous tensor back from the device.
    pub fn download(device: &Device, tensor: &Tensor) -> Result<Self, KernelError> {
        let bytes = device.download(tensor)?;
        Ok(Self { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), bytes })
    }

    /// Of an ndarray of f32, as f32.
    pub fn of<D: Dimension>(array: &ndarray::Array<f32, D>) -> Self {
        Self::new(DType::F32, array.shape(), &array.iter().copied().collect::<Vec<_>>())
    }

    /// Rounds the elements to another type.
    pub fn cast(&self, dtype: DType) -> Self {
        Self::new(dtype, &self.shape, &self.to_f32())
    }
}

/// What a kernel or its reference returns, by name.
pub type Outputs = BTreeMap<&'static str, HostTensor>;

/// The inputs of one run of one kernel.
#[derive(Clone, PartialEq)]
pub struct Case {
    /// The kernel's name in [`kernels::ALL`](crate::kernels::ALL).
    pub kernel: String,
    /// Its tensors, by the names of the launcher's docstring.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Its scalars, by the same names.
    pub scalars: BTreeMap<String, String>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.kernel, self.tensors, self.scalars)
    }
}

impl Case {
    /// A case without tensors.
    pub fn new(kernel: &str) -> Self {
        let kernel = kernel.to_string();
        Self { kernel, tensors: BTreeMap::new(), scalars: BTreeMap::new() }
    }

    /// Adds a tensor.
    pub fn with(mut self, name: &str, tensor: HostTensor) -> Self {
        self.tensors.insert(name.to_string(), tensor);
        self
    }

    /// Adds a scalar.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.scalars.insert(name.to_string(), value.to_string());
        self
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<&HostTensor, CaseError> {
        self.tensors.get(name).ok_or_else(|| CaseError::MissingTensor {
            kernel: self.kernel.clone(),
            name: name.to_string(),
            present: self.tensors.keys().cloned().collect(),
        })
    }

    /// The scalar `name`.
    pub fn scalar<T: FromStr>(&self, name: &str) -> Result<T, CaseError> {
        let got = self.scalars.get(name);
        got.and_then(|v| v.parse().ok()).ok_or_else(|| CaseError::Scalar {
            kernel: self.kernel.clone(),
            name: name.to_string(),
            got: got.cloned(),
            expected: std::any::type_name::<T>().to_string(),
        })
    }

    /// The scalar `name`, or `default` if the case has none.
    pub fn scalar_or<T: FromStr>(&self, name: &str, default: T) -> Result<T, CaseError> {
        if self.scalars.contains_key(name) { self.scalar(name) } else { Ok(default) }
    }

    /// The tensor `name` on the device, without gaps.
    pub fn upload(&self, device: &Device, name: &str) -> Result<Tensor, CaseError> {
        let tensor = self.tensor(name)?;
        Ok(device.upload(&tensor.bytes, &tensor.shape, tensor.dtype)?)
    }

    /// Elements of `dtype` that a strided upload puts behind each row, by the scalar `strided`: none (`false`),
    /// 3, so that no row but the first is aligned (`true`), 16 bytes (`aligned`), or the 128 of FlashMLA's
    /// layout (`wide`).
    pub fn gap(&self, dtype: DType) -> Result<usize, CaseError> {
        match self.scalars.get("strided").map(String::as_str) {
            None | Some("false") => Ok(0),
            Some("true") => Ok(3),
            Some("aligned") => Ok(16 / dtype.size()),
            Some("wide") => Ok(128),
            Some(got) => Err(CaseError::Scalar {
                kernel: self.kernel.clone(),
                name: "strided".to_string(),
                got: Some(got.to_string()),
                expected: "false, true, aligned or wide".to_string(),
            }),
        }
    }

    /// The tensor `name` on the device, with a [gap](Case::gap) of poison (NaN, or 0xff bytes) behind each row.
    pub fn upload_rows(&self, device: &Device, name: &str) -> Result<Tensor, CaseError> {
        let tensor = self.tensor(name)?;
        let gap = self.gap(tensor.dtype)?;
        if gap == 0 || tensor.shape.is_empty() {
            return self.upload(device, name);
        }
        let cols = tensor.shape[tensor.shape.len() - 1];
        let size = tensor.dtype.size();
        let mut bytes = Vec::new();
        for row in tensor.bytes.chunks(cols.max(1) * size) {
            bytes.extend_from_slice(row);
            bytes.extend(std::iter::repeat_n(0xff, gap * size));
        }
        let mut shape = tensor.shape.clone();
        let axis = shape.len() - 1;
        shape[axis] += gap;
        bytes.resize(shape.iter().product::<usize>() * size, 0xff);
        Ok(device.upload(&bytes, &shape, tensor.dtype)?.narrow(axis, 0, cols)?)
    }

    /// The tensor `name` as an array of f32.
    pub fn array<D: Dimension>(&self, name: &str) -> Result<ndarray::Array<f32, D>, CaseError> {
        let tensor = self.tensor(name)?;
        to_array(name, &tensor.shape, tensor.to_f32())
    }

    /// The tensor `name` as an array of i32.
    pub fn array_i32(&self, name: &str) -> Result<Array2<i32>, CaseError> {
        let tensor = self.tensor(name)?;
        to_array(name, &tensor.shape, tensor.to_i32())
    }

    /// The tensor `name` as an array of bytes.
    pub fn array_u8(&self, name: &str) -> Result<Array2<u8>, CaseError> {
        let tensor = self.tensor(name)?;
        to_array(name, &tensor.shape, tensor.bytes.clone())
    }

    /// The i32 vector `name`.
    pub fn vec_i32(&self, name: &str) -> Result<Vec<i32>, CaseError> {
        Ok(self.tensor(name)?.to_i32())
    }

    /// Writes the case as a safetensors file, its scalars and the kernel's name as metadata.
    pub fn save(&self, path: &Path) -> Result<(), CaseError> {
        let mut metadata: HashMap<String, String> =
            self.scalars.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        metadata.insert("kernel".to_string(), self.kernel.clone());
        let views = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        save_tensors(path, views, Some(metadata))
    }

    /// Reads a case written by [`Case::save`], or by anyone with the same names.
    pub fn load(path: &Path) -> Result<Self, CaseError> {
        let failed = |reason: String| file_error(path, reason);
        let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(e.to_string()))?;
        let mut case = Case::new("");
        for (name, view) in file.iter() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::BF16 => DType::Bf16,
                Dtype::F16 => DType::F16,
                Dtype::F8_E4M3 => DType::E4m3,
                Dtype::I32 => DType::I32,
                Dtype::U8 => DType::U8,
                other => {
                    let expected = "F32, BF16, F16, F8_E4M3, I32 or U8".to_string();
                    let got = format!("{other:?}{:?}", view.shape());
                    return Err(CaseError::Tensor { name: name.to_string(), got, expected });
                }
            };
            // Kernels count in 32 bits; and a tensor without elements has axes of any length for free.
            if view.shape().iter().any(|axis| *axis > i32::MAX as usize) {
                let expected = "axes below 2^31".to_string();
                let got = format!("{dtype}{:?}", view.shape());
                return Err(CaseError::Tensor { name: name.to_string(), got, expected });
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

/// Writes outputs as a safetensors file.
pub fn save_outputs(path: &Path, outputs: &Outputs) -> Result<(), CaseError> {
    save_tensors(path, outputs.iter().map(|(name, tensor)| (*name, tensor)), None)
}

fn save_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a HostTensor)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), CaseError> {
    let failed = |reason: String| file_error(path, reason);
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
        let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|e| failed(e.to_string()))?;
        views.push((name.to_string(), view));
    }
    let bytes = safetensors::serialize(views, metadata).map_err(|e| failed(e.to_string()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
    }
    // Written beside under a name of its own and renamed, so that a reader never sees half a file and
    // writers of the same file do not meet.
    static WRITES: AtomicUsize = AtomicUsize::new(0);
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{write}.partial", std::process::id()));
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(|e| failed(e.to_string()))
}

fn file_error(path: &Path, reason: String) -> CaseError {
    CaseError::File { path: path.display().to_string(), reason }
}

fn to_array<T, D: Dimension>(
    name: &str,
    shape: &[usize],
    values: Vec<T>,
) -> Result<ndarray::Array<T, D>, CaseError> {
    let wrong = || CaseError::Tensor {
        name: name.to_string(),
        got: format!("{shape:?}"),
        expected: format!("{} axes", D::NDIM.unwrap_or(0)),
    };
    ArrayD::from_shape_vec(IxDyn(shape), values)
        .map_err(|_| wrong())?
        .into_dimensionality::<D>()
        .map_err(|_| wrong())
}

/// Arrays of f32 by rank, as the reference takes them.
pub type Vector = Array1<f32>;
/// See [`Vector`].
pub type Matrix = Array2<f32>;
/// See [`Vector`].
pub type Cuboid = Array3<f32>;
