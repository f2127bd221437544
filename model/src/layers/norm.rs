//! The norm before each half of a layer, and the residual's addition that stands before it.

use super::linear::Loader;
use crate::error::Result;
use crate::weights::Weights;
use dsa_kernels::Tensor;
use dsa_kernels::add_norm::add_rms_norm;
use dsa_kernels::norm::rms_norm;

/// RMSNorm of the sum of a layer's output and the residual.
#[derive(Clone)]
pub(crate) struct Norm {
    weight: Tensor, // [hidden] f32
    eps: f32,
}

impl Norm {
    pub fn new<W: Weights>(to: &Loader<W>, name: &str, hidden: usize, eps: f64) -> Result<Self> {
        let weight = to.vector(&format!("{name}.weight"), hidden)?;
        Ok(Self { weight, eps: eps as f32 })
    }

    /// The norm of `x + residual`, before that sum is rounded, and the sum itself, rounded, which is the new
    /// residual. All `[n, hidden]`; before the first layer there is no residual.
    pub fn forward(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> dsa_kernels::Result<(Tensor, Tensor)> {
        match residual {
            Some(residual) => add_rms_norm(x, residual, &self.weight, self.eps),
            None => Ok((rms_norm(x, &self.weight, self.eps)?, x.clone())),
        }
    }
}
