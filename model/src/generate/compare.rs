//! What sparse attention changes, token by token, where dense attention runs beside it on the same tokens.
//!
//! ```text
//! kl     = Σ_i p_i · ln(p_i / q_i)          p of dense logits, q of sparse ones, both at temperature 1
//! a_j    = Σ_h softmax_j(τ · q_h · k_j) / H   dense attention's share of key j, the mean over the heads
//! recall = |S ∩ top_|S| of a| / |S|           S: the keys that sparse attention selected
//! mass   = Σ_{j ∈ S} a_j
//! ```
//!
//! Both passes go through their own hidden states, so that what earlier layers changed counts too. The mean over the heads is
//! what the indexer was trained to follow (DeepSeek-V3.2-Exp, section 2.1).

use crate::error::Result;
use crate::sample::{check_logits, log_softmax};

/// Sparse attention against dense, at one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Of the next token's distribution under dense attention from that under sparse attention, in nats.
    pub kl: f64,
    /// Whether both find the same token most probable.
    pub same_top: bool,
    /// Of each layer what the selection kept; `None` where every key is selected.
    pub layers: Vec<Option<Kept>>,
}

/// What a selection kept of dense attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// Share of the keys with the most attention that were selected, 0 to 1.
    pub recall: f64,
    /// Share of the attention that the selected keys hold, 0 to 1.
    pub mass: f64,
}

/// The divergence of the distribution that the logits `p` stand for from that of `q`, in nats, and whether both have the
/// same largest logit, the lowest id of equals.
///
/// # Errors
/// As [`check_logits`]; [`Error::Argument`](crate::Error::Argument) for two lengths.
pub fn divergence(p: &[f32], q: &[f32]) -> Result<(f64, bool)> {
    let lengths = format!("{} and {}", p.len(), q.len());
    crate::Error::check(p.len() == q.len(), "logits", lengths, "as many of both")?;
    check_logits(p)?;
    check_logits(q)?;
    let (p_log, q_log) = (log_softmax(p)?, log_softmax(q)?);
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p), f64::from(*q));
        // A token that never comes adds nothing.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    };
    let kl: f64 = p_log.iter().zip(&q_log).map(term).sum();
    let top = |logits: &[f32]| {
        let better = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
        (0..logits.len()).fold(0, better)
    };
    // Rounding may make a divergence of equals a little less than none.
    Ok((kl.max(0.0), top(p) == top(q)))
}

/// The attention of each of `keys` keys, the mean over the heads, of `scores` `[heads, keys]`, which are yet to be
/// multiplied with `scale`.
pub(super) fn attention(scores: &[f32], keys: usize, scale: f64) -> Vec<f64> {
    let heads = scores.len() / keys.max(1);
    let mut shares = vec![0.0; keys];
    for head in scores.chunks_exact(keys.max(1)) {
        let max = f64::from(head.iter().copied().fold(f32::NEG_INFINITY, f32::max)) * scale;
        let weight = |score: &f32| (f64::from(*score) * scale - max).exp();
        let sum: f64 = head.iter().map(weight).sum();
        for (share, score) in shares.iter_mut().zip(head) {
            *share += weight(score) / sum / heads as f64;
        }
    }
    shares
}

/// What `selected`, positions ascending and then −1, kept of `attention`; `None` if that is every key.
pub(super) fn kept(selected: &[i32], attention: &[f64]) -> Option<Kept> {
    let keys = selected.iter().filter_map(|key| usize::try_from(*key).ok());
    let keys: Vec<usize> = keys.filter(|key| *key < attention.len()).collect();
    if keys.is_empty() || keys.len() == attention.len() {
        return None;
    }
    let mut order: Vec<usize> = (0..attention.len()).collect();
    order.sort_by(|a, b| attention[*b].total_cmp(&attention[*a]).then(a.cmp(b)));
    order.truncate(keys.len());
    order.sort_unstable();
    let both = keys.iter().filter(|key| order.binary_search(key).is_ok()).count();
    let mass = keys.iter().map(|key| attention[*key]).sum();
    Some(Kept { recall: both as f64 / keys.len() as f64, mass })
}
