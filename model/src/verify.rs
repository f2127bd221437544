//! Whether the layer computes what the reference does, and what sparse attention costs in accuracy.
//!
//! ```text
//! let report = verify_checkpoint(&device, Path::new("checkpoint"))?;
//! println!("{report}");
//! assert!(report.passed());
//! ```
//!
//! A report holds *checks*, which pass or fail by the thresholds in [`thresholds`], and *facts*,
//! which depend on the weights and the text and have no right value: how much of the attention the
//! selected keys hold, how far sparse output is from dense. Every check names its worst case.
//!
//! Kernels are compared with the reference on their own inputs, by the table of tolerances in
//! `dsa_tests`, so that one kernel's rounding is not counted against the next; whole layers are
//! compared from the hidden states, which is where such rounding adds up.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Random, Weights};
use dsa_kernels::{DType, Device};
use dsa_tests::generate::Rng;
use ndarray::{Array2, ArrayView2};
use std::path::Path;

pub use report::{Bound, Check, Report, Section};

mod checkpoint;
mod layer;
pub mod reference;
mod report;
#[cfg(test)]
mod tests;
pub mod thresholds;

/// Compares the layer of `config` with `weights` with the reference, and sparse with dense, on one
/// sequence.
///
/// - `x`: `[s, hidden]`: hidden states after `input_layernorm`;
/// - `dtype`: of the layer, f32 or bf16. The reference gets weights and x rounded to it.
///
/// # Errors
/// [`Error::Argument`] if x is empty or its width is not the configuration's, or for another
/// `dtype`; [`Error::Shape`] for weights that are not the configuration's; [`Error::Kernel`] and
/// [`Error::Reference`] if a side refuses or fails.
pub fn verify<W: Weights + Clone>(
    device: &Device,
    config: &Config,
    weights: &W,
    x: ArrayView2<f32>,
    dtype: DType,
) -> Result<Report> {
    Ok(Report { sections: vec![layer::compare(device, config, weights, x, dtype, "layer")?] })
}

/// [`verify`] in f32 and in bf16 on random weights and `tokens` random hidden states.
///
/// # Errors
/// As [`verify`].
pub fn verify_random(device: &Device, config: &Config, tokens: usize, seed: u64) -> Result<Report> {
    // Beyond, the quadratic reference would not come back.
    Error::check((1..=1 << 16).contains(&tokens), "tokens", tokens, "1 to 65536")?;
    let weights = Random::new(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let x = Array2::from_shape_simple_fn((tokens, config.hidden_size), || rng.normal());
    both(device, config, &weights, x.view(), "random layer")
}

/// [`verify`] in f32 and in bf16 of layer 0 of the checkpoint in `folder`.
///
/// If the folder holds `expected.safetensors` (`input_ids` `[s]` i32, `layerN.topk` `[s, k]` i32,
/// `layerN.hidden` `[s, hidden]`), its text is taken, and in every layer that has a `topk` there,
/// the reference and the kernels must select exactly those keys, a key after its query not counted.
/// Otherwise the text is random.
///
/// # Errors
/// As [`verify`], and what [`Config::read`] and [`Checkpoint`](crate::weights::Checkpoint) refuse.
pub fn verify_checkpoint(device: &Device, folder: &Path) -> Result<Report> {
    checkpoint::verify(device, folder, None)
}

/// [`verify_checkpoint`] on a text given as token ids, without stored keys.
///
/// # Errors
/// As [`verify_checkpoint`]; [`Error::Argument`] for an id that is not in the vocabulary.
pub fn verify_ids(device: &Device, folder: &Path, ids: &[u32]) -> Result<Report> {
    checkpoint::verify(device, folder, Some(ids))
}

/// A section for each type that a layer can have.
fn both<W: Weights + Clone>(
    device: &Device,
    config: &Config,
    weights: &W,
    x: ArrayView2<f32>,
    title: &str,
) -> Result<Report> {
    let section = |dtype| layer::compare(device, config, weights, x, dtype, title);
    Ok(Report { sections: vec![section(DType::F32)?, section(DType::Bf16)?] })
}
