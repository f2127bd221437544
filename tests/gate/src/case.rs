//! A case: the tensors and scalars that one kernel is run on, in memory and as a safetensors file.

use dsa_files::{FileError, printable};
use dsa_kernels::{DType, Device, KernelError, Tensor};
use ndarray::{Array1, Array2, Array3, ArrayD, Dimension, IxDyn};
use std::collections::BTreeMap;
use std::str::FromStr;

mod file;

pub use file::save_outputs;

/// Why a case cannot be run. What comes from a file is printed without control characters, and cut.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The case lacks a tensor.
    #[error(
        "the case of {kernel} has no tensor {name:?}; it has {}",
        printable(&present.join(", "), 300)
    )]
    MissingTensor {
        /// The kernel.
        kernel: String,
        /// The tensor's name.
        name: String,
        /// The names it has.
        present: Vec<String>,
    },
    /// The case has a tensor or a scalar that the kernel does not read.
    #[error(
        "{kernel} reads no {what} named {:?}; {} reads {}",
        printable(name, 60),
        nearest.map_or("it".to_string(), |name| format!("did you mean {name}? It")),
        if reads.is_empty() { "none".to_string() } else { reads.join(", ") }
    )]
    Unread {
        /// The kernel.
        kernel: &'static str,
        /// `tensor` or `scalar`.
        what: &'static str,
        /// The name that nobody reads.
        name: String,
        /// The name that is most like it, if one is.
        nearest: Option<&'static str>,
        /// The names that are read.
        reads: Vec<&'static str>,
    },
    /// The case lacks a scalar, or it is not what the kernel takes.
    #[error(
        "scalar {name} of {kernel} is {}, expected {expected}",
        got.as_ref().map_or("missing".to_string(), |got| format!("{:?}", printable(got, 60)))
    )]
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
    #[error("tensor {} is {}, expected {expected}", printable(name, 60), printable(got, 200))]
    Tensor {
        /// The tensor's name.
        name: String,
        /// Its type and shape.
        got: String,
        /// What is expected.
        expected: String,
    },
    /// The outputs, with what the launcher takes beside them, do not fit in memory.
    #[error(
        "the outputs of {kernel} take {bytes} bytes, expected at most {most} (64 GiB, and a quarter \
         of the memory that is free)"
    )]
    TooLarge {
        /// The kernel.
        kernel: &'static str,
        /// What they take.
        bytes: u128,
        /// What they may take.
        most: u64,
    },
    /// The reference would compute for hours.
    #[error(
        "the reference of {kernel} takes {work} = {operations} operations, expected at most {most}"
    )]
    TooMuchWork {
        /// The kernel.
        kernel: &'static str,
        /// Its operations as an expression of the sizes.
        work: &'static str,
        /// Its operations.
        operations: u128,
        /// What they may be.
        most: u128,
    },
    /// No kernel of this name.
    #[error("there is no kernel {:?}; `dsa run --help` lists them", printable(.0, 60))]
    UnknownKernel(String),
    /// The file cannot be read or written, or is no case.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel refused or failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The reference refused.
    #[error("the reference refused: {0}")]
    Reference(#[from] dsa_reference::Error),
}

/// The scalar that tests of the launchers set to `NAME within rows` or `NAME behind rows`: where the tensor NAME has
/// gaps.
pub const MISPLACED: &str = "misplaced";

/// A word for gaps behind rows, and how many elements of a type they are.
pub type Gap = (&'static str, fn(DType) -> usize);

/// Elements of a type behind each row of a strided case: none; 3, so that no row but the first is aligned; 16 bytes;
/// the 128 of FlashMLA's layout.
pub const GAPS: &[Gap] =
    &[("false", |_| 0), ("true", |_| 3), ("aligned", |dtype| 16 / dtype.size()), ("wide", |_| 128)];

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
    pub fn download(tensor: &Tensor) -> Result<Self, KernelError> {
        let bytes = tensor.download()?;
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

    /// The tensor `name` on the device, without gaps; or laid out as no launcher takes it, by the scalar
    /// [`MISPLACED`], which no contract has.
    pub fn upload(&self, device: &Device, name: &str) -> Result<Tensor, CaseError> {
        let tensor = self.tensor(name)?;
        let misplaced = self.scalars.get(MISPLACED).and_then(|text| text.strip_prefix(name));
        match (misplaced, tensor.shape.len()) {
            (Some(" within rows"), 1) => {
                let first = &tensor.bytes[..tensor.dtype.size().min(tensor.bytes.len())];
                let first = device.upload(first, &[1], tensor.dtype)?;
                return Ok(first.broadcast(0, tensor.shape[0])?);
            }
            (Some(" within rows"), rank @ 2..) => {
                let mut stored = tensor.shape.clone();
                stored.swap(rank - 2, rank - 1);
                let stored = device.upload(&tensor.bytes, &stored, tensor.dtype)?;
                return Ok(stored.transpose(rank - 2, rank - 1)?);
            }
            (Some(" behind rows"), 1..) => return self.upload_with_gap(device, name, 1),
            _ => {}
        }
        Ok(device.upload(&tensor.bytes, &tensor.shape, tensor.dtype)?)
    }

    /// Elements of `dtype` that a strided upload puts behind each row, by the scalar `strided`, a word of [`GAPS`].
    pub fn gap(&self, dtype: DType) -> Result<usize, CaseError> {
        let got = self.scalars.get("strided");
        let word = got.map_or(GAPS[0].0, String::as_str);
        match GAPS.iter().find(|(known, _)| *known == word) {
            Some((_, gap)) => Ok(gap(dtype)),
            None => Err(CaseError::Scalar {
                kernel: self.kernel.clone(),
                name: "strided".to_string(),
                got: got.cloned(),
                expected: "false, true, aligned or wide".to_string(),
            }),
        }
    }

    /// The tensor `name` on the device, with a [gap](Case::gap) of poison (NaN, or 0xff bytes) behind each row.
    pub fn upload_rows(&self, device: &Device, name: &str) -> Result<Tensor, CaseError> {
        let tensor = self.tensor(name)?;
        let gap = self.gap(tensor.dtype)?;
        // Rows without columns are free in a file; their gaps would not be.
        if gap == 0 || tensor.shape.is_empty() || tensor.bytes.is_empty() {
            return self.upload(device, name);
        }
        self.upload_with_gap(device, name, gap)
    }

    fn upload_with_gap(
        &self,
        device: &Device,
        name: &str,
        gap: usize,
    ) -> Result<Tensor, CaseError> {
        let tensor = self.tensor(name)?;
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
    pub fn array_i32<D: Dimension>(&self, name: &str) -> Result<ndarray::Array<i32, D>, CaseError> {
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
