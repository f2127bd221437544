//! How far a layer may be from the reference. Kernels on their own have the table of [`tolerance`](crate::tolerance).

use dsa_kernels::DType;
use dsa_model::config::AttentionOptions;
use ndarray::{ArrayView2, Axis};

/// A bound for each arithmetic that a layer can have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// f32 without lossy steps.
    pub exact: f64,
    /// f32 with any of [`AttentionOptions`].
    pub lossy: f64,
    /// bf16 without lossy steps.
    pub bf16: f64,
    /// bf16 with any of them.
    pub bf16_lossy: f64,
}

/// Share of a token's selected keys that the reference selects too, mean of all tokens; at least.
///
/// Selection is a step function: where two scores are nearer than the rounding, their keys swap,
/// and both sets are right. In f32 that takes scores equal to 1e-6. An fp8 code flips where f32 and
/// f64 fall on two sides of a rounding boundary, 1 in 1e5, and then moves a score by up to a step
/// of fp8. bf16 moves every score by about 2^-9, and flips one fp8 code in thirty.
pub const RECALL: Threshold = Threshold { exact: 0.999, lossy: 0.99, bf16: 0.95, bf16_lossy: 0.9 };

/// Share of the keys of one token alone that the reference selects too; at least. Of k keys two may
/// differ, which is one pair of near equal scores at the boundary and its like, and twice the share that
/// may differ in the mean of all tokens ([`RECALL`]).
pub fn token_recall(mean: f64, k: usize) -> f64 {
    1.0 - 2.0 / k.max(1) as f64 - 2.0 * (1.0 - mean)
}

/// Share of the attention, mean of heads and tokens, that lies on keys which the reference selects and
/// the kernels do not; at most. If the attention did not follow the indexer at all, a share 1 - [`RECALL`]
/// of the selected keys would hold at most as much of it. But only keys at the boundary of the selection
/// swap, whose scores are the least of those selected: half of that. Measured with 16 keys of 50, 22 seeds:
/// 0, 0, 3.4e-3, 6.8e-3.
pub const MASS: Threshold = Threshold { exact: 5e-4, lossy: 5e-3, bf16: 2.5e-2, bf16_lossy: 5e-2 };

/// [`MASS`] of one token alone, in which a pair of keys may swap whatever they hold. Measured with 16 keys
/// of 50, where one key is a sixteenth, 22 seeds: 0, 0, 1e-2, 0.13.
pub const TOKEN_MASS: Threshold = Threshold { exact: 0.1, lossy: 0.1, bf16: 0.2, bf16_lossy: 0.3 };

/// Relative error `|a - b| / |b|` of a token's output, counted from its hidden state on, both sides
/// attending to the keys that the kernels selected; at most.
///
/// - exact: eight roundings of 6e-8 one after another, in sums of up to 16,384 products; measured
///   7e-7 on the golden checkpoint;
/// - lossy: a latent on a boundary of fp8 flips now and then, by a step of 2^-3 of its size, and an
///   fp8 record rounds k_pe to bf16; measured 1e-3 with records, 5e-7 without;
/// - bf16: eight roundings of 2^-9, those of the scores multiplied by the scores' size; measured
///   1.3e-2;
/// - bf16, lossy: one latent in thirty flips by a step of fp8. With a rank of 16, where a few flips
///   are not averaged out, 0.1 was measured; all of it with `kv_fp8` alone, 1.2e-2 without it.
pub const LAYER: Threshold = Threshold { exact: 1e-5, lossy: 1e-2, bf16: 3e-2, bf16_lossy: 0.25 };

/// [`LAYER`] for the last token decoded, against the same token in the prompt, both by the kernels: the
/// same steps on the same cache, so that only the last token's own latent can be rounded to another side;
/// and dense attention is expanded in one and absorbed in the other. Measured: 1e-6, 5e-6, 5e-3, 2.4e-2.
pub const DECODED: Threshold = Threshold { exact: 1e-5, lossy: 1e-2, bf16: 3e-2, bf16_lossy: 0.1 };

/// Relative error `|a - b| / |b|` of what a feed-forward network or the experts put out, of one token and counted from
/// their own input; at most. In fp8 a code of the inner activations flips now and then, by a step of 2^-3 of its size.
pub const FEED_FORWARD: f64 = 1e-2;

/// Share of the kernel's tolerance that its largest error uses; at most.
pub const KERNEL: f64 = 1.0;

impl Threshold {
    /// The bound for a layer of this type and these options.
    pub fn of(&self, dtype: DType, options: AttentionOptions) -> f64 {
        match (dtype, options == AttentionOptions::EXACT) {
            (DType::F32, true) => self.exact,
            (DType::F32, false) => self.lossy,
            (_, true) => self.bf16,
            (_, false) => self.bf16_lossy,
        }
    }
}

/// The largest relative error `|a - b| / |b|` of a row of `[s, n]`, and which row it is, among the
/// rows that count; `None` if none does. NaN is the largest error there is, and that of two shapes that
/// differ.
pub fn worst_row(
    got: ArrayView2<f32>,
    want: ArrayView2<f32>,
    counts: impl Fn(usize) -> bool,
) -> Option<(f64, usize)> {
    if got.dim() != want.dim() {
        return Some((f64::NAN, 0));
    }
    let square = |v: f64| v * v;
    let rows = got.axis_iter(Axis(0)).zip(want.axis_iter(Axis(0))).enumerate();
    let errors = rows.filter(|(t, _)| counts(*t)).map(|(t, (got, want))| {
        let pairs = || got.iter().zip(want.iter()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let error: f64 = pairs().map(|(a, b)| square(a - b)).sum();
        let size: f64 = pairs().map(|(_, b)| square(b)).sum();
        // 0 / 0: both rows are 0.
        (if error == 0.0 { 0.0 } else { (error / size).sqrt() }, t)
    });
    errors.max_by(|a, b| a.0.total_cmp(&b.0))
}
