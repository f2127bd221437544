//! Matrix products with weights, and how weights come to a device.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::Weights;
use dsa_kernels::gemm::gemm;
use dsa_kernels::linear::linear_fp8;
use dsa_kernels::quant::ScaleFmt;
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Device, Tensor};

/// What weights and activations are on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precision {
    /// The type of activations and of all weights that are not kept in fp8: f32 or bf16.
    pub dtype: DType,
    /// Matrices that are stored in fp8 stay so, and what is multiplied with them is rounded to fp8 on the way in, as in
    /// the official arithmetic. If not, they are dequantised to `dtype`.
    pub fp8: bool,
}

impl Precision {
    /// As stored, with activations in bf16.
    pub const STORED: Self = Self { dtype: DType::Bf16, fp8: true };

    /// Everything in `dtype`.
    pub fn dequantised(dtype: DType) -> Self {
        Self { dtype, fp8: false }
    }
}

/// Brings the weights below a path to a device.
pub(crate) struct Loader<'a, W> {
    pub device: &'a Device,
    pub weights: W,
    pub precision: Precision,
    /// How the scales of activations are rounded.
    pub scale_fmt: ScaleFmt,
}

impl<'a, W: Weights> Loader<'a, W> {
    /// The loader of `weights`.
    pub fn new(device: &'a Device, weights: W, precision: Precision, config: &Config) -> Self {
        Self { device, weights, precision, scale_fmt: config.scale_fmt() }
    }

    /// The loader of what is below `part`.
    pub fn at(&self, part: &str) -> Self {
        Loader { weights: self.weights.at(part), ..*self }
    }

    /// The matrix `part.weight` of `[out, in]`.
    pub fn linear(&self, part: &str, shape: [usize; 2]) -> Result<Linear> {
        let name = format!("{part}.weight");
        let weight = self.matrices(std::slice::from_ref(&self.weights), &name, &shape)?;
        Ok(Linear { weight, scale_fmt: self.scale_fmt })
    }

    /// The matrices `N.part.weight` of `[out, in]`, N below `matrices`, as one tensor `[matrices, out, in]`.
    pub fn stack(&self, part: &str, shape: [usize; 3]) -> Result<Weight> {
        let each: Vec<W> = (0..shape[0]).map(|matrix| self.weights.at(matrix)).collect();
        self.matrices(&each, &format!("{part}.weight"), &shape)
    }

    /// The matrix `part.weight` of `[rows, columns]` in the layer's type, whose rows are looked up.
    pub fn table(&self, part: &str, shape: [usize; 2]) -> Result<Tensor> {
        self.tensor(&format!("{part}.weight"), &shape, self.precision.dtype)
    }

    /// The vector `name` of `[n]`, in f32.
    pub fn vector(&self, name: &str, n: usize) -> Result<Tensor> {
        self.tensor(name, &[n], DType::F32)
    }
}

/// A weight `[out, in]`.
#[derive(Clone)]
pub(crate) struct Linear {
    pub weight: Weight,
    scale_fmt: ScaleFmt,
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
        match &self.weight {
            Weight::Fp8 { codes, scale } => linear_fp8(x, codes, scale, self.scale_fmt, dtype),
            Weight::Plain(w) => {
                let (n, out) = (x.shape()[0], w.shape()[0]);
                let x = x.reshape(&[1, n, x.len() / n.max(1)])?;
                gemm(&x, &w.unsqueeze(0), dtype)?.reshape(&[n, out])
            }
        }
    }
}

/// Refuses a layer type that no kernel multiplies in.
pub(crate) fn check_dtype(dtype: DType) -> Result<()> {
    Error::check([DType::F32, DType::Bf16].contains(&dtype), "dtype", dtype, "f32 or bf16")
}
