//! A matrix as the checkpoint stores it, and the product with it.
use crate::arithmetic::Arithmetic;
use crate::error::{Result, check_shape};
use crate::linear::{BLOCK, linear, linear_fp8};
use crate::quant::e4m3_decode;
use ndarray::{Array2, ArrayView2};

/// A weight `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Numbers, whatever precision they were stored in.
    F32(Array2<f32>),
    /// `code · scale`, one scale for 128×128.
    Fp8 {
        /// e4m3 codes `[out, in]`.
        codes: Array2<u8>,
        /// The checkpoint's `weight_scale_inv` `[ceil(out/128), ceil(in/128)]`.
        scale: Array2<f32>,
    },
}

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(w) => w.shape(),
            Self::Fp8 { codes, .. } => codes.shape(),
        }
    }

    /// The numbers `[out, in]`, in f32.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the scales do not cover the codes.
    pub fn dequantise(&self) -> Result<Array2<f32>> {
        let (codes, scale) = match self {
            Self::F32(w) => return Ok(w.clone()),
            Self::Fp8 { codes, scale } => (codes, scale),
        };
        let (out, into) = codes.dim();
        check_shape(
            "weight_scale_inv",
            scale.shape(),
            &[out.div_ceil(BLOCK), into.div_ceil(BLOCK)],
        )?;
        Ok(Array2::from_shape_fn((out, into), |(n, k)| {
            e4m3_decode(codes[(n, k)]) * scale[(n / BLOCK, k / BLOCK)]
        })) // [out, in]
    }

    /// `y = x·wᵀ`, rounded as `arithmetic` says: `x` `[m, in]`, `y` `[m, out]`. `name` is for the
    /// error.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the weight is not `[out, in]`, or as
    /// [`Weight::dequantise`].
    pub fn linear(
        &self,
        name: &'static str,
        x: ArrayView2<f32>,
        out: usize,
        arithmetic: &Arithmetic,
    ) -> Result<Array2<f32>> {
        check_shape(name, self.shape(), &[out, x.ncols()])?;
        let y = match self {
            Self::F32(w) => linear(x, w.view()), // [m, out]
            Self::Fp8 { codes, scale } if arithmetic.fp8_linear => {
                linear_fp8(x, codes.view(), scale.view(), arithmetic.scale_fmt)? // [m, out]
            }
            Self::Fp8 { .. } => linear(x, self.dequantise()?.view()), // [m, out]
        };
        Ok(arithmetic.rounded(y))
    }
}

impl From<Array2<f32>> for Weight {
    fn from(w: Array2<f32>) -> Self {
        Self::F32(w)
    }
}
