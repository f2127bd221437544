//! Matrix products with weights, and how weights come to a device.

use crate::error::{Error, Result};
use crate::weights::Weights;
use dsa_kernels::gemm::gemm;
use dsa_kernels::{DType, Device, Tensor};

/// Brings the weights below a path to a device.
pub(super) struct Loader<'a, W> {
    pub device: &'a Device,
    pub weights: W,
    /// The matrices' type on the device.
    pub dtype: DType,
}

impl<W: Weights> Loader<'_, W> {
    /// The loader of what is below `part`.
    pub fn at(&self, part: &str) -> Self {
        Loader { weights: self.weights.at(part), ..*self }
    }

    /// The matrix `part.weight` of `[out, in]`.
    pub fn linear(&self, part: &str, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.tensor(&format!("{part}.weight"), &shape, self.dtype)?;
        Ok(Linear { weight: weight.unsqueeze(0) })
    }

    /// The vector `name` of `[n]`, in f32.
    pub fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        self.tensor(name, &[n], DType::F32)
    }

    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        if let Some(bytes) = self.weights.stored(name, shape, dtype)? {
            return Ok(self.device.upload(&bytes, shape, dtype)?);
        }
        Ok(self.device.upload_f32(&self.weights.values(name, shape)?, shape, dtype)?)
    }
}

/// A weight `[1, out, in]`, the form that the product kernel takes.
#[derive(Clone)]
pub(super) struct Linear {
    weight: Tensor,
}

impl Linear {
    /// `x·wᵀ`: `[n, in]`, contiguous, to `[n, out]` of x's type.
    pub fn forward(&self, x: &Tensor) -> dsa_kernels::Result<Tensor> {
        self.product(x, x.dtype())
    }

    /// [`Linear::forward`] with the sums left in f32.
    pub fn forward_f32(&self, x: &Tensor) -> dsa_kernels::Result<Tensor> {
        self.product(x, DType::F32)
    }

    fn product(&self, x: &Tensor, dtype: DType) -> dsa_kernels::Result<Tensor> {
        let (n, out) = (x.shape()[0], self.weight.shape()[1]);
        let x = x.reshape(&[1, n, x.len() / n.max(1)])?;
        gemm(&x, &self.weight, dtype)?.reshape(&[n, out])
    }
}

/// Refuses a layer type that no kernel multiplies in.
pub(crate) fn check_dtype(dtype: DType) -> Result<()> {
    Error::check([DType::F32, DType::Bf16].contains(&dtype), "dtype", dtype, "f32 or bf16")
}
