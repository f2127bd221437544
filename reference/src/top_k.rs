//! The selection: which keys of a query take part in the attention.
//!
//! `S_t = { n : I[t, n] ∈ Top-k(I[t, :]) }`, made unambiguous: the lower index wins a tie, indices
//! come out ascending, and a list that is not full ends in −1.
//!
//! Source: the token selection of the DeepSeek-V3.2 paper; the order and the tie rule are those of
//! a stable sort.
use crate::math::key_range;
use ndarray::{Array2, ArrayView2};
use std::cmp::Ordering;

/// How many keys a query keeps, and which of them without asking for the score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// `topk` keys, as published.
    #[default]
    Fixed,
    /// A share of the keys there are: `clamp(ceil(len · per_mille / 1000), min, topk)`, where
    /// `len = ke − ks` after clamping. Where `min` is above `topk`, `topk` wins.
    Fraction {
        /// Thousandths of the keys.
        per_mille: u32,
        /// At least so many.
        min: u32,
    },
    /// The first `sinks` and the last `window` positions of `[ks, ke)` are kept whatever their
    /// score, save NaN and −inf; they count towards `topk`, and the score fills the rest. If they
    /// alone are more than `topk`, the sinks go first, then the window from its end.
    Window {
        /// Most recent positions.
        window: u32,
        /// Earliest positions.
        sinks: u32,
    },
}

impl Policy {
    /// All of them by their words in cases and on command lines, with the names of their numbers.
    pub const ALL: &'static [(&'static str, &'static [&'static str])] =
        &[("fixed", &[]), ("fraction", &["per_mille", "min"]), ("window", &["window", "sinks"])];

    /// The policy that `word` stands for, with its numbers in the order of [`ALL`](Self::ALL).
    pub fn named(word: &str, numbers: &[u32]) -> Option<Self> {
        match (word, numbers) {
            ("fixed", []) => Some(Self::Fixed),
            ("fraction", &[per_mille, min]) => Some(Self::Fraction { per_mille, min }),
            ("window", &[window, sinks]) => Some(Self::Window { window, sinks }),
            _ => None,
        }
    }

    /// How many keys are kept of a range of `len`.
    pub fn k_eff(self, len: usize, topk: usize) -> usize {
        match self {
            Self::Fixed | Self::Window { .. } => topk,
            Self::Fraction { per_mille, min } => {
                let share = (len as u64).saturating_mul(u64::from(per_mille)).div_ceil(1000);
                usize::try_from(share.max(u64::from(min))).unwrap_or(topk).min(topk)
            }
        }
    }
}

/// A key that may be selected. Those that sort first are kept.
#[derive(Clone, Copy)]
struct Candidate {
    /// 0: a sink, 1: in the window, 2: by its score.
    class: u8,
    score: f32,
    n: usize,
}

impl Candidate {
    /// Best first. No two are equal, so the choice never depends on the algorithm that sorts.
    fn cmp(&self, other: &Self) -> Ordering {
        let within = match self.class.min(other.class) {
            0 => self.n.cmp(&other.n),
            1 => other.n.cmp(&self.n),
            _ => {
                let by_score = other.score.partial_cmp(&self.score); // −0.0 == +0.0; no NaN here
                by_score.unwrap_or(Ordering::Equal).then(self.n.cmp(&other.n))
            }
        };
        self.class.cmp(&other.class).then(within)
    }
}

/// Indices `[rows, topk]` of the selected keys: columns of `logits` `[rows, cols]` inside
/// `[ks, ke)`, ascending, −1 where there are no more.
///
/// Never selected: NaN, −inf, and columns outside the range, whatever they hold. +inf is a score.
/// A row that `ks` or `ke` `[rows]` has no entry for has an empty range.
pub fn top_k(
    logits: ArrayView2<f32>,
    ks: &[i32],
    ke: &[i32],
    topk: usize,
    policy: Policy,
) -> Array2<i32> {
    let (rows, cols) = logits.dim();
    let mut indices = Array2::from_elem((rows, topk), -1); // [rows, topk]
    for row in 0..rows.min(ks.len()).min(ke.len()) {
        let range = key_range(ks[row], ke[row], cols);
        let class = |n: usize| match policy {
            Policy::Window { sinks, .. } if n - range.start < sinks as usize => 0,
            Policy::Window { window, .. } if range.end - n <= window as usize => 1,
            _ => 2,
        };
        let mut kept: Vec<Candidate> = range
            .clone()
            .map(|n| Candidate { class: class(n), score: logits[(row, n)], n })
            .filter(|c| !c.score.is_nan() && c.score != f32::NEG_INFINITY)
            .collect(); // [selectable]
        let k = policy.k_eff(range.len(), topk);
        if k < kept.len() {
            kept.select_nth_unstable_by(k, Candidate::cmp); // the k best come first
            kept.truncate(k);
        }
        kept.sort_unstable_by_key(|c| c.n);
        for (j, c) in kept.iter().enumerate() {
            indices[(row, j)] = c.n as i32;
        }
    }
    indices
}
