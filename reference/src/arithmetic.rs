//! Where a forward pass rounds: nowhere, or where the published model does.
use crate::attention_layer::Options;
use crate::quant::{ScaleFmt, bf16_round};
use crate::rope::Pairing;
use ndarray::{Array, Dimension};

/// The arithmetic of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    /// The points in which published versions of the attention differ.
    pub dsa: Options,
    /// A weight stored in 8 bits is multiplied in 8 bits, the activations quantised 1×128 on the
    /// way in ([`linear_fp8`](crate::linear::linear_fp8)); otherwise it is dequantised first.
    pub fp8_linear: bool,
    /// Results that the model keeps in bf16 are rounded to it, and so are the attention's scores
    /// and probabilities.
    pub bf16: bool,
    /// How the scales of quantised activations, latents, and index queries and keys are rounded.
    pub scale_fmt: ScaleFmt,
}

impl Arithmetic {
    /// f32 throughout, every sum f64: no Hadamard transform, no 8 bits. What transformers computes
    /// of the weights in f32.
    pub fn exact(indexer_pairing: Pairing) -> Self {
        let published = Options { indexer_pairing, ..Options::default() };
        let dsa = Options { hadamard: false, index_fp8: false, kv_fp8: false, ..published };
        Self { dsa, fp8_linear: false, bf16: false, scale_fmt: ScaleFmt::Ue8m0 }
    }

    /// The DeepSeek-V3.2-Exp inference demo of November 2025.
    pub fn official() -> Self {
        let dsa = Options::default();
        Self { dsa, fp8_linear: true, bf16: true, scale_fmt: ScaleFmt::Ue8m0 }
    }

    /// `x` as it is stored: rounded to bf16, or as it is.
    pub fn round(&self, x: f32) -> f32 {
        if self.bf16 { bf16_round(x) } else { x }
    }

    /// Every element [rounded](Self::round).
    pub fn rounded<D: Dimension>(&self, x: Array<f32, D>) -> Array<f32, D> {
        x.mapv_into(|x| self.round(x))
    }
}
