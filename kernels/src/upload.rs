//! A tensor whose bytes come to the device part by part, so that the host never holds the whole of it.

use crate::Result;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::tensor::{Tensor, elements, expect_indexable};
use cubecl::server::Handle;
use cubecl_common::bytes::Bytes;

/// Bytes that may be on their way to the device at once.
const ON_THE_WAY: usize = 1 << 27;

/// A tensor on the device that is being filled from its first element to its last, from the host ([`Upload::write`]) or
/// by kernels ([`Upload::take`]).
///
/// ```text
/// let mut upload = Upload::new(&device, &[experts, out, into], DType::E4m3)?;
/// for part in file { upload.write(part)? }
/// let codes = upload.finish()?;
/// ```
/// The host holds a part until the device has it: of small parts 128 MiB at most, of larger ones one.
#[derive(Debug)]
pub struct Upload {
    tensor: Tensor,
    handle: Handle,
    /// Bytes that are written.
    written: usize,
    /// Bytes that may not be on the device yet.
    on_the_way: usize,
}

impl Upload {
    /// Room for a tensor of `shape`.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if kernels could not index it, or the device has no memory of this size.
    pub fn new(device: &Device, shape: &[usize], dtype: DType) -> Result<Self> {
        expect_indexable("tensor", shape)?;
        let most = device.client().properties().memory.max_page_size;
        let bytes = elements(shape).and_then(|n| n.max(1).checked_mul(dtype.size()));
        let Some(bytes) = bytes.filter(|bytes| *bytes as u64 <= most) else {
            let expected = format!("{dtype} of at most {most} bytes, what the device allocates");
            return Err(KernelError::Shape { tensor: "tensor", got: shape.to_vec(), expected });
        };
        let handle = device.client().empty(bytes);
        let tensor = Tensor::contiguous(device, handle.clone(), shape, dtype);
        Ok(Self { tensor, handle, written: 0, on_the_way: 0 })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Elements that are still to be written.
    pub fn left(&self) -> usize {
        self.tensor.len() - self.written / self.dtype().size()
    }

    /// Writes the next elements, little-endian.
    ///
    /// # Errors
    /// [`KernelError::Value`] for more bytes than there is room for, and for a part of an element;
    /// [`KernelError::Launch`] if the device did not take what came before.
    pub fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        let (n, size) = (bytes.len(), self.dtype().size());
        let at = self.advance(n / size, n % size == 0, format!("{n} bytes"))?;
        if n == 0 {
            return Ok(());
        }
        let behind = self.handle.size_in_used() - (at + n) as u64;
        let place = self.handle.clone().offset_start(at as u64).offset_end(behind);
        self.tensor.device().client().write(&place, Bytes::from_bytes_vec(bytes));
        self.on_the_way += n;
        if self.on_the_way > ON_THE_WAY {
            self.wait()?;
        }
        Ok(())
    }

    /// The next `n` elements, `[n]`, for a kernel to write.
    ///
    /// # Errors
    /// [`KernelError::Value`] for more elements than there is room for.
    pub fn take(&mut self, n: usize) -> Result<Tensor> {
        let at = self.advance(n, true, format!("{n} elements"))?;
        let all = self.tensor.reshape(&[self.tensor.len()])?;
        all.narrow(0, at / self.dtype().size(), n)
    }

    /// The tensor.
    ///
    /// # Errors
    /// [`KernelError::Value`] if elements are left to be written; [`KernelError::Launch`] if the device did not take
    /// all.
    pub fn finish(mut self) -> Result<Tensor> {
        let left = self.left();
        if left > 0 {
            let got = format!("{left} elements short");
            let expected = format!("all of shape {:?}", self.tensor.shape());
            return Err(KernelError::Value { name: "upload", got, expected });
        }
        self.wait()?;
        Ok(self.tensor)
    }

    /// Waits until the device has all that was written.
    fn wait(&mut self) -> Result<()> {
        self.on_the_way = 0;
        self.tensor.device().sync()
    }

    /// Goes on by `n` elements, and says at which byte they begin.
    fn advance(&mut self, n: usize, whole: bool, got: String) -> Result<usize> {
        let left = self.left();
        if n > left || !whole {
            let expected = format!("at most {left} whole elements of {}", self.dtype());
            return Err(KernelError::Value { name: "upload", got, expected });
        }
        let at = self.written;
        self.written += n * self.dtype().size();
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device::named("cpu").unwrap()
    }

    #[test]
    fn parts_follow_each_other_and_a_kernel_may_write_some() {
        let mut upload = Upload::new(&device(), &[3, 4], DType::F32).unwrap();
        let bytes = |from: usize, to: usize| -> Vec<u8> {
            (from..to).flat_map(|i| (i as f32).to_le_bytes()).collect()
        };
        upload.write(bytes(0, 5)).unwrap();
        upload.write(vec![]).unwrap();
        let taken = upload.take(2).unwrap();
        assert_eq!((taken.shape(), upload.left()), (&[2][..], 5));
        let slots = device().upload_i32(&[0], &[1]).unwrap();
        let x = device().upload_f32(&[5.0, 6.0], &[1, 1, 2], DType::F32).unwrap();
        let out = taken.reshape(&[1, 1, 2]).unwrap();
        crate::copy::place_rows(&x, &slots, &out).unwrap();
        upload.write(bytes(7, 12)).unwrap();
        let whole = upload.finish().unwrap();
        assert_eq!(whole.shape(), [3, 4]);
        assert_eq!(whole.download_f32().unwrap(), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    }

    #[test]
    fn too_much_too_little_and_half_an_element_are_refused() {
        let upload = || Upload::new(&device(), &[2], DType::Bf16).unwrap();
        let says = |bytes| upload().write(vec![0; bytes]).unwrap_err().to_string();
        assert_eq!(says(6), "upload is 6 bytes, expected at most 2 whole elements of bf16");
        assert_eq!(says(3), "upload is 3 bytes, expected at most 2 whole elements of bf16");
        let error = upload().take(3).unwrap_err().to_string();
        assert_eq!(error, "upload is 3 elements, expected at most 2 whole elements of bf16");
        let error = upload().finish().unwrap_err().to_string();
        assert_eq!(error, "upload is 2 elements short, expected all of shape [2]");
        let error = Upload::new(&device(), &[1 << 32, 1], DType::U8).unwrap_err().to_string();
        assert!(error.starts_with("tensor has shape [4294967296, 1], expected fewer"), "{error}");
        let empty = Upload::new(&device(), &[0, 3], DType::F32).unwrap().finish().unwrap();
        assert!(empty.is_empty());
    }
}
