//! Dollars: what a token costs, measured or projected.
//!
//! The projection is a fit, not a prediction. Each straight piece of the paper's cost figure has
//! two numbers, and the model spends two on it, so it meets the lines by construction. What does
//! speak for the accounting: the decode rate of sparse attention comes out near FlashMLA's
//! published 410 TFLOP/s, the decode knee near the 2048 chosen keys, and both dense rates equal.

use crate::dimensions::{AttentionForm, Dimensions};
use crate::{Error, Stage, Variant};

/// US$ per million tokens: price / 3600 · 10⁶ · seconds per token.
pub fn usd_per_mtok(price_per_hour: f64, seconds_per_token: f64) -> f64 {
    price_per_hour / 3600.0 * 1e6 * seconds_per_token
}

/// A device's limits by its data sheet (dense, no structured sparsity). Only for projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// The device.
    pub name: &'static str,
    /// bf16 matrix FLOP per second.
    pub bf16_flops: f64,
    /// fp8 matrix FLOP per second.
    pub fp8_flops: f64,
    /// Bytes per second of its memory.
    pub bytes_per_s: f64,
}

impl Peaks {
    /// NVIDIA H800 SXM: the arithmetic and memory of the H100 SXM data sheet (NVLink differs).
    pub const H800: Peaks =
        Peaks { name: "H800", bf16_flops: 989e12, fp8_flops: 1979e12, bytes_per_s: 3.35e12 };
    /// NVIDIA H200 SXM data sheet: the H100's arithmetic, 141 GB at 4.8 TB/s.
    pub const H200: Peaks =
        Peaks { name: "H200", bf16_flops: 989e12, fp8_flops: 1979e12, bytes_per_s: 4.8e12 };
    /// AMD Instinct MI355X data sheet: 288 GB at 8 TB/s, 1400 W.
    pub const MI355X: Peaks =
        Peaks { name: "MI355X", bf16_flops: 2516e12, fp8_flops: 5033e12, bytes_per_s: 8e12 };
}

/// How many tokens share a call, which decides what limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// So many that arithmetic is the limit: time is FLOP over rate. The paper's figure.
    Production,
    /// This many (at least 1): each stage takes the longer of FLOP/rate and bytes/bandwidth.
    Tokens(u64),
}

/// How far a [`Projection`] is from something observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Rates fitted to the paper's figure, same device.
    FittedToFigure,
    /// Those rates scaled by the ratio of data-sheet peaks: not observed by anyone.
    ScaledByPeaks,
}

/// A projected time of one token of the whole model on one GPU. Not a measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Fitted or scaled.
    pub basis: Basis,
    /// Seconds that do not depend on the context: projections, experts, network, launches.
    pub constant_s: f64,
    /// Seconds of the indexer, the choice of keys included.
    pub indexer_s: f64,
    /// Seconds of attention.
    pub attention_s: f64,
    /// The form of attention that was the fastest here.
    pub form: AttentionForm,
}

impl Projection {
    /// GPU-seconds per token.
    pub fn total_s(&self) -> f64 {
        self.constant_s + self.indexer_s + self.attention_s
    }

    /// US$ per million tokens at this price of a GPU-hour.
    pub fn usd_per_mtok(&self, price_per_hour: f64) -> f64 {
        usd_per_mtok(price_per_hour, self.total_s())
    }
}

/// Effective rates on H800, fitted to the four curves of the paper's figure.
struct Fit {
    /// Seconds per token that do not depend on the context.
    constant_s: f64,
    /// FLOP/s of the indexer, counting its 16,384 FLOP a key only. 1 where there is none.
    indexer: f64,
    /// FLOP/s of MHA, dense or masked.
    mha: f64,
    /// FLOP/s of MQA, dense or sparse.
    mqa: f64,
}

/// Sparse decode: its slope asks for 407 TFLOP/s and its plateau for 396, because the figure's
/// knee is at 2105 keys, not 2048. The mean keeps every position within half a percent.
fn fit(variant: Variant, stage: Stage) -> Result<Fit, Error> {
    let fit = |micros: f64, indexer: f64, mha: f64, mqa: f64| Fit {
        constant_s: micros * 1e-6,
        indexer: indexer * 1e12,
        mha: mha * 1e12,
        mqa: mqa * 1e12,
    };
    match (variant, stage) {
        (Variant::V31Terminus, Stage::Prefill) => Ok(fit(95.2, 1.0, 593.7, 593.7)),
        (Variant::V32Exp, Stage::Prefill) => Ok(fit(110.0, 791.6, 549.7, 567.0)),
        (Variant::V31Terminus, Stage::Decode) => Ok(fit(126.9, 1.0, 593.7, 593.7)),
        (Variant::V32Exp, Stage::Decode) => Ok(fit(171.3, 692.7, 593.7, 401.5)),
        (Variant::Neither, _) => Err(Error::value("variant", "\"\"", "V3.1-Terminus or V3.2-Exp")),
    }
}

/// Projects the cost of one token at position `context` (in tokens).
///
/// total = t0 + 61 layers · (indexer + attention), each FLOP / fitted rate. Other devices scale
/// the indexer's rate and t0 by the ratio of fp8 peaks, attention's by that of bf16 peaks. With
/// [`Batch::Tokens`] each part is no shorter than its bytes over the device's bandwidth.
pub fn project(
    device: &Peaks,
    variant: Variant,
    stage: Stage,
    context: u64,
    batch: Batch,
) -> Result<Projection, Error> {
    let dims = Dimensions::V32;
    let fit = fit(variant, stage)?;
    let fp8 = device.fp8_flops / Peaks::H800.fp8_flops;
    let bf16 = device.bf16_flops / Peaks::H800.bf16_flops;
    let tokens = match batch {
        Batch::Production => 1,
        Batch::Tokens(tokens) => tokens,
    };
    let work = dims.layer_work(variant, stage, context, tokens)?;
    let sharing = if stage == Stage::Prefill { tokens } else { 1 };
    let layers = dims.layers as f64;
    let seconds = |flop: f64, rate: f64, bytes: f64| match batch {
        Batch::Production => layers * flop / rate,
        Batch::Tokens(_) => layers * (flop / rate).max(bytes / device.bytes_per_s),
    };

    let mut constant_s = fit.constant_s / fp8;
    if let Batch::Tokens(_) = batch {
        let weights = work.projections.bytes + work.moe.bytes;
        constant_s = constant_s.max(layers * weights / device.bytes_per_s);
    }
    let mut indexer_s = 0.0;
    if variant == Variant::V32Exp {
        let scores = dims.index_scores(context, sharing);
        indexer_s = seconds(scores.flop, fit.indexer * fp8, scores.bytes + work.top_k.bytes);
    }
    let attention = |form: AttentionForm| {
        let rate = match form {
            AttentionForm::DenseMha | AttentionForm::MaskedMha => fit.mha,
            AttentionForm::DenseMqa | AttentionForm::SparseMqa => fit.mqa,
        };
        let work = dims.attention(form, stage, context, sharing);
        (seconds(work.flop, rate * bf16, work.bytes), form)
    };
    let (attention_s, form) = AttentionForm::choices(variant, stage)
        .iter()
        .map(|form| attention(*form))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap_or((0.0, AttentionForm::DenseMqa));
    let basis = if *device == Peaks::H800 { Basis::FittedToFigure } else { Basis::ScaledByPeaks };
    Ok(Projection { basis, constant_s, indexer_s, attention_s, form })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::official::{Official, PRICE_PER_HOUR};

    #[test]
    fn the_fit_meets_the_figure_within_half_a_percent() {
        let official = Official::load().unwrap();
        for stage in Stage::ALL {
            for variant in Variant::MODELS {
                let curve = official.curve(stage, variant).unwrap();
                for context in (0..=131_071).step_by(19) {
                    let cost = project(&Peaks::H800, variant, stage, context, Batch::Production)
                        .unwrap()
                        .usd_per_mtok(PRICE_PER_HOUR);
                    let error = cost / curve.at(context as f64).unwrap() - 1.0;
                    assert!(error.abs() <= 0.005, "{stage:?} {variant:?} {context}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_projection_says_what_it_is() {
        let at = |device, batch| project(device, Variant::V32Exp, Stage::Decode, 65_536, batch);
        let h800 = at(&Peaks::H800, Batch::Production).unwrap();
        let amd = at(&Peaks::MI355X, Batch::Production).unwrap();
        assert_eq!(h800.basis, Basis::FittedToFigure);
        assert_eq!(amd.basis, Basis::ScaledByPeaks);
        assert!((h800.total_s() / amd.total_s() - 2.54).abs() < 0.01);
        assert!(at(&Peaks::H800, Batch::Tokens(0)).is_err());
        let neither = project(&Peaks::H800, Variant::Neither, Stage::Decode, 0, Batch::Production);
        assert!(neither.is_err());
    }

    #[test]
    fn one_token_alone_is_bound_by_bytes() {
        let cost = |batch| {
            project(&Peaks::H200, Variant::V31Terminus, Stage::Decode, 131_072, batch).unwrap()
        };
        let alone = cost(Batch::Tokens(1));
        assert!(alone.constant_s > 10.0 * cost(Batch::Production).constant_s);
        assert!(cost(Batch::Tokens(100_000)).constant_s <= alone.constant_s);
        assert!((usd_per_mtok(2.0, 1e-3) - 0.5556).abs() < 1e-3);
    }

    #[test]
    fn a_short_prefill_is_masked() {
        let form = |context| {
            project(&Peaks::H800, Variant::V32Exp, Stage::Prefill, context, Batch::Production)
                .unwrap()
                .form
        };
        assert_eq!(form(4096), AttentionForm::MaskedMha);
        assert_eq!(form(8192), AttentionForm::SparseMqa);
    }
}
