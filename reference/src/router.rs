//! The gate: which experts a token goes to, and with which weights.
//!
//! ```text
//! g       = sigmoid(logits)                      one for each expert; logits = x·Wᵀ
//! b       = g + bias                             only the choice sees the bias
//! groups  = consecutive experts, n_group of them; a group's score is the sum of its two best b
//! b       = −inf outside the topk_group best groups
//! indices = the top_k best b
//! weights = g[indices] / Σ g[indices] · scale
//! ```
//! −inf and not 0: a biased score may be negative, and 0 would then be better than it.
//!
//! Source: `Gate` of the DeepSeek-V3.2-Exp inference demo; `noaux_tc` of the published
//! configurations. The denominator has transformers' 1e-20, so that gates that are all 0 give 0.
use crate::error::{Result, check_shape, check_value};
use ndarray::{Array2, ArrayView1, ArrayView2};

/// Sizes of the gate; the values in brackets are DeepSeek-V3.2's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    /// Experts a token goes to (8).
    pub num_experts_per_tok: usize,
    /// Groups of experts (8); 1 is none.
    pub n_group: usize,
    /// Groups a token may choose from (4).
    pub topk_group: usize,
    /// The weights are divided by their sum (true).
    pub norm_topk_prob: bool,
    /// What the weights are multiplied with at last (2.5).
    pub routed_scaling_factor: f32,
}

/// The gate's choice for each token, best expert first.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// `[n, num_experts_per_tok]`.
    pub indices: Array2<i32>,
    /// `[n, num_experts_per_tok]`.
    pub weights: Array2<f32>,
}

/// The choice for each row of `logits` `[n, experts]`, the gate's product; `bias` `[experts]`.
///
/// g, b and the groups' scores are f32, so a tie is one for everybody; the lower index wins it. NaN
/// is worse than any score; where it is chosen nevertheless, the weights are NaN.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together;
/// [`Error::Value`](crate::Error::Value) if the experts do not make `n_group` equal groups of two or
/// more, `topk_group` is not within 1 and `n_group`, or `num_experts_per_tok` not within 1 and the
/// experts of that many groups.
pub fn router(
    logits: ArrayView2<f32>,
    bias: ArrayView1<f32>,
    config: &RouterConfig,
) -> Result<Routing> {
    let (n, experts) = logits.dim();
    check_shape("e_score_correction_bias", bias.shape(), &[experts])?;
    let group_size = config.check(experts)?;
    let top_k = config.num_experts_per_tok;
    let g = logits.mapv(|x| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32); // [n, experts]
    let mut indices = Array2::zeros((n, top_k)); // [n, top_k]
    let mut weights = Array2::zeros((n, top_k)); // [n, top_k]
    for t in 0..n {
        let mut b: Vec<f32> = g.row(t).iter().zip(bias).map(|(g, bias)| g + bias).collect(); // [experts]
        if config.n_group > 1 {
            let groups: Vec<f32> = b.chunks(group_size).map(two_best).collect(); // [n_group]
            for group in &best_first(&groups)[config.topk_group..] {
                b[group * group_size..(group + 1) * group_size].fill(f32::NEG_INFINITY);
            }
        }
        let chosen = &best_first(&b)[..top_k]; // [top_k]
        let sum: f64 = chosen.iter().map(|&expert| f64::from(g[(t, expert)])).sum();
        let divisor = if config.norm_topk_prob { sum + 1e-20 } else { 1.0 };
        let scale = f64::from(config.routed_scaling_factor);
        for (slot, &expert) in chosen.iter().enumerate() {
            indices[(t, slot)] = expert as i32;
            weights[(t, slot)] = (f64::from(g[(t, expert)]) / divisor * scale) as f32;
        }
    }
    Ok(Routing { indices, weights })
}

impl RouterConfig {
    /// Refuses sizes that contradict each other; returns the experts of a group.
    fn check(&self, experts: usize) -> Result<usize> {
        let (groups, topk_group, top_k) = (self.n_group, self.topk_group, self.num_experts_per_tok);
        let equal = groups > 0 && experts.is_multiple_of(groups);
        check_value("n_group", groups, "a divisor of the number of experts", equal)?;
        let group_size = experts / groups;
        let pairs = groups == 1 || group_size > 1;
        check_value("n_group", groups, "at most half the number of experts", pairs)?;
        let within = (1..=groups).contains(&topk_group);
        check_value("topk_group", topk_group, "1 to n_group", within)?;
        let open = (1..=topk_group * group_size).contains(&top_k);
        let expected = "1 to the number of experts in topk_group groups";
        check_value("num_experts_per_tok", top_k, expected, open)?;
        Ok(group_size)
    }
}

/// The sum of the two best scores of a group.
fn two_best(group: &[f32]) -> f32 {
    best_first(group).iter().take(2).map(|&i| group[i]).sum()
}

/// The places of the scores, best first; the lower place wins a tie, NaN comes last.
fn best_first(scores: &[f32]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect(); // [scores]
    places.sort_by(|&a, &b| {
        let (a, b) = (scores[a], scores[b]);
        let either_is_nan = || a.is_nan().cmp(&b.is_nan());
        b.partial_cmp(&a).unwrap_or_else(either_is_nan)
    });
    places
}
