//! Tensors on a device.

use crate::Result;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::KernelError;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// Elements of a tensor of `shape`; `None` if they are more than a usize counts.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis))
}

/// Rows of a tensor, and elements of a row, that an i32 can number: indices, slots, positions and ranges are.
const MOST_NUMBERED: usize = i32::MAX as usize;

/// Refuses a tensor of `shape` whose rows, or their elements, are more than an i32 numbers. This is the only
/// limit of a tensor: its elements as a whole are addressed in 32 or 64 bits, as they need it
/// ([`Device::addresses`](crate::Device::addresses)).
pub(crate) fn expect_indexable(tensor: &'static str, shape: &[usize]) -> Result<()> {
    let (cols, rows) = shape.split_last().map_or((1, &[][..]), |(cols, rows)| (*cols, rows));
    let numbered = |n: usize| n <= MOST_NUMBERED;
    if numbered(cols) && elements(rows).is_some_and(numbered) && elements(shape).is_some() {
        return Ok(());
    }
    let expected = "fewer than 2^31 rows of fewer than 2^31 elements".to_string();
    Err(KernelError::Shape { tensor, got: shape.to_vec(), expected })
}

/// Whether elements of this shape and these strides follow each other without gaps.
pub(crate) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    for (size, stride) in shape.iter().zip(strides).rev() {
        if *size != 1 && *stride != step {
            return false;
        }
        step *= size;
    }
    true
}

/// Whether the elements of each row, of the last axis, follow each other without gaps.
pub(crate) fn has_whole_rows(shape: &[usize], strides: &[usize]) -> bool {
    shape.last() == Some(&1) || strides.last() == Some(&1)
}

/// A strided view of a device's memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    device: Device,
    handle: Handle,
    shape: Vec<usize>,
    strides: Vec<usize>,
    dtype: DType,
    /// Elements of the underlying buffer from the view's start on.
    extent: usize,
    /// Elements of the underlying buffer before the view's start.
    offset: usize,
}

impl Tensor {
    /// `shape` is one that [`elements`] counts.
    pub(crate) fn contiguous(
        device: &Device,
        handle: Handle,
        shape: &[usize],
        dtype: DType,
    ) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let extent = shape.iter().product();
        let device = device.clone();
        Self { device, handle, shape: shape.to_vec(), strides, dtype, extent, offset: 0 }
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stride of each axis, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements of the view.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the view has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a contiguous tensor. Waits for the kernels that write it, and reports if one of
    /// them failed.
    pub fn download(&self) -> Result<Vec<u8>> {
        self.expect_contiguous("downloaded tensor")?;
        let len = self.len() * self.dtype.size();
        // Of a view, what lies behind it in its buffer stays where it is.
        let behind = self.handle.size_in_used().saturating_sub(len.max(1) as u64);
        let mut bytes = self.device.read(self.handle.clone().offset_end(behind))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The elements of a contiguous tensor, widened to f32.
    pub fn download_f32(&self) -> Result<Vec<f32>> {
        Ok(self.dtype.decode(&self.download()?))
    }

    /// The elements of a contiguous i32 tensor.
    pub fn download_i32(&self) -> Result<Vec<i32>> {
        self.expect_dtype("downloaded tensor", &[DType::I32])?;
        Ok(i32::from_bytes(&self.download()?).to_vec())
    }

    /// Whether the elements follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        is_contiguous(&self.shape, &self.strides)
    }

    /// The view of `length` elements of `axis` from `start` on; the same memory.
    pub fn narrow(&self, axis: usize, start: usize, length: usize) -> Result<Self> {
        let end = start.saturating_add(length);
        if axis >= self.shape.len() || end > self.shape[axis] {
            return Err(KernelError::Value {
                name: "narrow",
                got: format!("{start}..{end} of axis {axis}"),
                expected: format!("a range within shape {:?}", self.shape),
            });
        }
        let mut view = self.clone();
        let skip = start * self.strides[axis];
        view.shape[axis] = length;
        view.offset += skip;
        view.extent = self.extent.saturating_sub(skip);
        view.handle = view.handle.offset_start((skip * self.dtype.size()) as u64);
        Ok(view)
    }

    /// The same elements with another shape; the tensor must be contiguous.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if !self.is_contiguous() || elements(shape) != Some(self.len()) {
            return Err(KernelError::Shape {
                tensor: "reshaped tensor",
                got: self.shape.clone(),
                expected: format!("contiguous with as many elements as {shape:?}"),
            });
        }
        let mut view = Self::contiguous(&self.device, self.handle.clone(), shape, self.dtype);
        view.offset = self.offset;
        view.extent = self.extent;
        Ok(view)
    }

    /// The same bytes as elements of another type of the same size, or as bytes; only to bind them.
    pub(crate) fn reinterpret(&self, dtype: DType) -> Self {
        let mut view = self.clone();
        view.extent = self.extent * self.dtype.size() / dtype.size();
        view.offset = self.offset * self.dtype.size() / dtype.size();
        view.dtype = dtype;
        view
    }

    /// Refuses a tensor whose elements do not follow each other without gaps.
    pub(crate) fn expect_contiguous(&self, tensor: &'static str) -> Result<()> {
        if self.is_contiguous() {
            return Ok(());
        }
        let expected = "contiguous".to_string();
        Err(KernelError::Strides { tensor, got: self.strides.clone(), expected })
    }

    /// The view with one more axis, of one element, before `axis`; the same memory.
    pub fn unsqueeze(&self, axis: usize) -> Self {
        let mut view = self.clone();
        let axis = axis.min(view.shape.len());
        let stride =
            if axis < view.shape.len() { view.shape[axis] * view.strides[axis] } else { 1 };
        view.shape.insert(axis, 1);
        view.strides.insert(axis, stride);
        view
    }

    /// The view that repeats an axis of one element `n` times; the same memory.
    pub fn broadcast(&self, axis: usize, n: usize) -> Result<Self> {
        if self.shape.get(axis) != Some(&1) {
            return Err(KernelError::Shape {
                tensor: "broadcast tensor",
                got: self.shape.clone(),
                expected: format!("one element along axis {axis}"),
            });
        }
        let mut view = self.clone();
        view.shape[axis] = n;
        view.strides[axis] = 0;
        Ok(view)
    }

    /// Exchanges two axes; the same memory.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        if a >= self.shape.len() || b >= self.shape.len() {
            return Err(KernelError::Value {
                name: "transpose",
                got: format!("axes {a} and {b}"),
                expected: format!("axes of shape {:?}", self.shape),
            });
        }
        let mut view = self.clone();
        view.shape.swap(a, b);
        view.strides.swap(a, b);
        Ok(view)
    }

    /// Refuses a tensor whose type is not among `types`.
    pub(crate) fn expect_dtype(&self, tensor: &'static str, types: &[DType]) -> Result<()> {
        if types.contains(&self.dtype) {
            return expect_indexable(tensor, &self.shape);
        }
        let names: Vec<_> = types.iter().map(DType::to_string).collect();
        let expected = names.join(" or ");
        Err(KernelError::DType { tensor, got: self.dtype.to_string(), expected })
    }

    /// Rows `rows` of the first axis, which the tensor has; the same memory.
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        self.narrow(0, rows.start, rows.len())
    }

    /// The largest offset that a kernel computes to address this tensor, in elements. An axis may have a
    /// stride of 0: then a kernel counts more elements than the buffer has.
    pub(crate) fn reach(&self) -> usize {
        self.extent.max(self.len())
    }

    /// Refuses a tensor whose shape is not `expected`, given as axis names and sizes.
    pub(crate) fn expect_shape(
        &self,
        tensor: &'static str,
        expected: &[(&str, usize)],
    ) -> Result<()> {
        if self.shape.iter().eq(expected.iter().map(|(_, size)| size)) {
            return Ok(());
        }
        Err(self.wrong_shape(tensor, expected.iter().map(|(n, s)| format!("{n}={s}"))))
    }

    /// Refuses a tensor that does not have as many axes as `names`.
    pub(crate) fn expect_rank(&self, tensor: &'static str, names: &[&str]) -> Result<()> {
        if self.shape.len() == names.len() {
            return Ok(());
        }
        Err(self.wrong_shape(tensor, names.iter().map(|n| n.to_string())))
    }

    fn wrong_shape(&self, tensor: &'static str, axes: impl Iterator<Item = String>) -> KernelError {
        let expected = format!("[{}]", axes.collect::<Vec<_>>().join(", "));
        KernelError::Shape { tensor, got: self.shape.clone(), expected }
    }

    /// Whether every row of the last axis starts, and ends, at a multiple of `width` elements.
    pub(crate) fn in_vectors(&self, width: usize) -> bool {
        let outer = &self.strides[..self.strides.len() - 1];
        self.strides.last() == Some(&1)
            && self.shape.last().is_some_and(|n| n % width == 0)
            && outer.iter().all(|s| s % width == 0)
            && self.offset.is_multiple_of(width)
            && self.extent.is_multiple_of(width)
    }

    /// Whether the buffer, from the view's start on, is whole vectors of `width` elements, wherever in
    /// them its rows start.
    pub(crate) fn in_whole_vectors(&self, width: usize) -> bool {
        self.offset.is_multiple_of(width) && self.extent.is_multiple_of(width)
    }

    /// The argument that binds this tensor as a buffer of vectors of `width` elements.
    pub fn arg(&self, width: usize) -> BufferArg {
        let len = (self.extent / width).max(1);
        // SAFETY: the buffer holds at least `extent` elements from the view's start on (a tensor
        // without elements still has a buffer of one), and no launcher lets a kernel read past them.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), len) }
    }
}

/// Elements that a unit reads, or writes, together: 16 bytes of the first tensor where the rows of all of them begin and
/// end at a multiple of so many elements, and otherwise one.
pub(crate) fn width_of(tensors: &[&Tensor]) -> usize {
    let width = tensors.first().map_or(1, |first| 16 / first.dtype.size());
    if tensors.iter().all(|tensor| tensor.in_vectors(width)) { width } else { 1 }
}

impl Tensor {
    /// The view whose `axis` is cut into `n` parts, which become an axis before it.
    pub(crate) fn split(&self, axis: usize, n: usize) -> Self {
        let mut view = self.clone();
        let each = view.shape[axis] / n;
        view.shape[axis] = each;
        view.shape.insert(axis, n);
        view.strides.insert(axis, each * view.strides[axis]);
        view
    }

    /// The argument that binds this tensor, with its shape and strides, in vectors of `width` elements.
    pub(crate) fn view<T: CubePrimitive>(&self, width: usize) -> crate::tile::ViewLaunch<T> {
        let numbers = |of: &[usize]| of.iter().copied().collect();
        crate::tile::ViewLaunch::new(self.arg(width), numbers(&self.shape), numbers(&self.strides))
    }
}
