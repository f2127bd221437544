//! A matrix as the checkpoint stores it, or one for each expert.

use crate::dtype::DType;

use crate::tensor::Tensor;
use crate::{KernelError, Result};

/// A weight `[.., out, in]`; with experts they are the first axis.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Numbers: f32, bf16 or f16.
    Plain(Tensor),
    /// `code · scale`, one scale for 128×128.
    Fp8 {
        /// e4m3 codes `[.., out, in]`.
        codes: Tensor,
        /// The checkpoint's `weight_scale_inv` `[.., ceil(out/128), ceil(in/128)]`, f32.
        scale: Tensor,
    },
}

impl Weight {
    /// A weight of 8 bits.
    ///
    /// # Errors
    /// [`KernelError::DType`] if the codes are not e4m3 or the scales not f32; [`KernelError::Shape`] if a matrix has
    /// fewer than two axes or the scales do not cover it.
    pub fn fp8(codes: Tensor, scale: Tensor) -> Result<Self> {
        codes.expect_dtype("weight", &[DType::E4m3])?;
        scale.expect_dtype("weight_scale_inv", &[DType::F32])?;
        let mut expected = codes.shape().to_vec();
        let Some(matrix) = expected.last_chunk_mut::<2>() else {
            let (got, expected) = (expected, "[.., out, in]".to_string());
            return Err(KernelError::Shape { tensor: "weight", got, expected });
        };
        *matrix = matrix.map(|n| n.div_ceil(crate::quant::BLOCK));
        if scale.shape() != expected {
            let (got, expected) = (scale.shape().to_vec(), format!("{expected:?}"));
            return Err(KernelError::Shape { tensor: "weight_scale_inv", got, expected });
        }
        Ok(Self::Fp8 { codes, scale })
    }

    /// `[.., out, in]`.
    pub fn shape(&self) -> &[usize] {
        self.stored().shape()
    }

    /// The numbers, or the codes.
    pub fn stored(&self) -> &Tensor {
        match self {
            Self::Plain(numbers) => numbers,
            Self::Fp8 { codes, .. } => codes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn fp8(codes: &[usize], scale: &[usize], dtypes: [DType; 2]) -> Result<Weight> {
        let device = Device::named("cpu").unwrap();
        let codes = device.empty(codes, dtypes[0]).unwrap();
        Weight::fp8(codes, device.empty(scale, dtypes[1]).unwrap())
    }

    #[test]
    fn scales_cover_the_matrix_of_every_expert() {
        const TYPES: [DType; 2] = [DType::E4m3, DType::F32];
        let weight = fp8(&[5, 130, 128], &[5, 2, 1], TYPES).unwrap();
        assert_eq!((weight.shape(), weight.stored().dtype()), (&[5, 130, 128][..], DType::E4m3));
        assert_eq!(fp8(&[1, 129], &[1, 2], TYPES).unwrap().shape(), [1, 129]);
        for wrong in [&[5, 1, 1][..], &[4, 2, 1], &[5, 2, 2], &[2, 1]] {
            let error = fp8(&[5, 130, 128], wrong, TYPES).unwrap_err().to_string();
            assert_eq!(error, format!("weight_scale_inv has shape {wrong:?}, expected [5, 2, 1]"));
        }
        let error = fp8(&[128], &[1], TYPES).unwrap_err().to_string();
        assert_eq!(error, "weight has shape [128], expected [.., out, in]");
        let error = fp8(&[1, 1], &[1, 1], [DType::U8, DType::F32]).unwrap_err().to_string();
        assert_eq!(error, "weight holds u8, expected e4m3");
        let error = fp8(&[1, 1], &[1, 1], [DType::E4m3, DType::Bf16]).unwrap_err().to_string();
        assert_eq!(error, "weight_scale_inv holds bf16, expected f32");
    }
}
