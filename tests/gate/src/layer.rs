//! Whether the layer computes what the reference does, and what sparse attention costs in accuracy.
//!
//! ```text
//! let report = verify_checkpoint(&device, Path::new("checkpoint"), None, 1)?;
//! println!("{report}");
//! assert!(report.passed());
//! ```
//!
//! A report holds *checks*, which pass or fail by the thresholds in [`thresholds`], and *facts*,
//! which depend on the weights and the text and have no right value: how much of the attention the
//! selected keys hold, how far sparse output is from dense. Every check names its worst case. How many
//! checks there are depends on the configuration and on the number of tokens, never on the values: none
//! is left out where rounding makes the two sides select different keys. The reference is then given the
//! kernels' keys, and the difference of the keys is bounded by itself.
//!
//! Kernels are compared with the reference on their own inputs, by the table of tolerances in
//! `crate`, so that one kernel's rounding is not counted against the next; whole layers are
//! compared from the hidden states, which is where such rounding adds up.

use checkpoint::Text;
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device};
use dsa_model::config::Config;
use dsa_model::weights::{Random, Weights};
use ndarray::{Array2, ArrayView2};
use std::path::Path;

pub use error::{Error, Result};
pub use report::{Bound, Check, Report, Section};

mod checkpoint;
mod checks;
mod comparison;
mod error;
pub mod reference;
mod report;
#[cfg(test)]
mod tests;
pub mod thresholds;
pub mod timed;
mod trial;

/// Compares the layer of `config` with `weights` with the reference, and sparse with dense, on one
/// sequence.
///
/// - `x`: `[s, hidden]`: hidden states after `input_layernorm`;
/// - `dtype`: of the layer, f32 or bf16. The reference gets weights and x rounded to it.
///
/// # Errors
/// [`Error::Model`] if x is empty or its width is not the configuration's, for another `dtype`, for weights that
/// are not the configuration's, and if a kernel refuses or fails; [`Error::Reference`] if the reference does.
pub fn verify<W: Weights + Clone>(
    device: &Device,
    config: &Config,
    weights: &W,
    x: ArrayView2<f32>,
    dtype: DType,
) -> Result<Report> {
    let section = comparison::compare(device, config, weights, x, dtype, "layer")?;
    Ok(Report { settings: config.deciding(), sections: vec![section] })
}

/// Tokens of a random text where nobody says how many.
pub const TOKENS: usize = 192;
/// Most tokens of a sequence: the reference's time and memory grow with their square.
const MAX_TOKENS: usize = 1 << 16;

fn check_tokens(name: &'static str, tokens: usize) -> Result<()> {
    let right = (1..=MAX_TOKENS).contains(&tokens);
    let expected = format!("1 to {MAX_TOKENS} (the reference takes time by their square)");
    Ok(dsa_model::Error::check(right, name, format!("{tokens} tokens"), expected)?)
}

/// [`verify`] in f32 and in bf16 on random weights and `tokens` random hidden states.
///
/// # Errors
/// As [`verify`].
pub fn verify_random(device: &Device, config: &Config, tokens: usize, seed: u64) -> Result<Report> {
    check_tokens("tokens", tokens)?;
    let weights = Random::new(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let x = Array2::from_shape_simple_fn((tokens, config.hidden_size), || rng.normal());
    both(device, config, &weights, x.view(), "random layer")
}

/// [`verify`] in f32 and in bf16 of layer 0 of the checkpoint in `folder`.
///
/// If the folder holds `expected.safetensors` (`input_ids` `[s]` i32, `layerN.topk` `[s, index_topk]`
/// i32 of one layer or more, `layerN.hidden` `[s, hidden]` of the layers before those), its text is
/// taken, and in every layer that has a `topk` there, the reference and the kernels must select exactly
/// those keys, a key after its query not counted. A file of this name that cannot be opened, or holds no
/// keys, is an error. Otherwise the text is made up, of `tokens` ids ([`TOKENS`] if that is `None`) drawn
/// by `seed`, and the report says so.
///
/// # Errors
/// [`Error::Model`] for `tokens` beside a stored text; as [`verify`], and what [`Config::read`] and [`Checkpoint`](dsa_model::weights::Checkpoint) refuse.
pub fn verify_checkpoint(
    device: &Device,
    folder: &Path,
    tokens: Option<usize>,
    seed: u64,
) -> Result<Report> {
    checkpoint::verify(device, folder, Text::Stored { tokens, seed })
}

/// [`verify_checkpoint`] on a text given as token ids, without stored keys.
///
/// # Errors
/// As [`verify_checkpoint`]; [`Error::Model`] for an id that is not in the vocabulary.
pub fn verify_ids(device: &Device, folder: &Path, ids: &[u32]) -> Result<Report> {
    checkpoint::verify(device, folder, Text::Ids(ids))
}

/// A section for each type that a layer can have.
fn both<W: Weights + Clone>(
    device: &Device,
    config: &Config,
    weights: &W,
    x: ArrayView2<f32>,
    title: &str,
) -> Result<Report> {
    let section = |dtype| comparison::compare(device, config, weights, x, dtype, title);
    let mut settings = config.deciding();
    settings.push(("text".into(), format!("{} random hidden states", x.nrows())));
    Ok(Report { settings, sections: vec![section(DType::F32)?, section(DType::Bf16)?] })
}
