//! Mixture of experts: each token's chosen feed-forward networks, and the shared one.
//!
//! ```text
//! y[t] = Σ_e weights[t, e] · expert_e(x[t]) + shared(x[t])
//! ```
//! The sum is f32, over the chosen experts by ascending number, whatever order the gate lists them
//! in; the shared network comes last, and only then the result is rounded. A token's result depends
//! on nothing but the token.
//!
//! Source: `MoE` of the DeepSeek-V3.2-Exp inference demo.
use crate::arithmetic::Arithmetic;
use crate::error::{Result, check_shape, check_value};
use crate::feed_forward::{FeedForwardWeights, feed_forward};
use crate::linear::linear;
use crate::math::key;
use crate::router::{RouterConfig, Routing, router};
use crate::watch::Watch;
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// Weights of a layer with experts, `mlp.*`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsWeights {
    /// `gate.weight` `[experts, hidden_size]`.
    pub gate: Array2<f32>,
    /// `gate.e_score_correction_bias` `[experts]`.
    pub bias: Array1<f32>,
    /// `experts.*`.
    pub experts: Vec<FeedForwardWeights>,
    /// `shared_experts`: all of them are one network.
    pub shared: FeedForwardWeights,
}

/// The routed part of the sum, before the shared network: `[n, hidden_size]`, f32.
///
/// `x` `[n, hidden_size]`; an expert that is listed twice for a token counts twice.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the arrays do not fit together;
/// [`Error::Value`](crate::Error::Value) if an index names no expert.
pub fn routed_experts(
    x: ArrayView2<f32>,
    routing: &Routing,
    experts: &[FeedForwardWeights],
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let (n, top_k) = (x.nrows(), routing.indices.ncols());
    check_shape("indices", routing.indices.shape(), &[n, top_k])?;
    check_shape("weights", routing.weights.shape(), &[n, top_k])?;
    for &index in &routing.indices {
        let exists = key(index, experts.len()).is_some();
        check_value("expert", index, "at least 0 and below the number of experts", exists)?;
    }
    let mut y = Array2::zeros(x.dim()); // [n, hidden_size]
    for (number, expert) in experts.iter().enumerate() {
        let slots: Vec<(usize, usize)> = routing
            .indices
            .indexed_iter()
            .filter(|&(_, &index)| index as usize == number)
            .map(|(slot, _)| slot)
            .collect(); // [the expert's] (token, place in its list)
        let tokens: Vec<usize> = slots.iter().map(|slot| slot.0).collect(); // [the expert's]
        let out = feed_forward(x.select(Axis(0), &tokens).view(), expert, arithmetic)?; // [the expert's, hidden_size]
        for (&slot, out) in slots.iter().zip(out.rows()) {
            y.row_mut(slot.0).scaled_add(routing.weights[slot], &out);
        }
    }
    Ok(y)
}

/// All of it: `x` and the result `[n, hidden_size]`.
///
/// # Errors
/// As [`router`] and [`routed_experts`].
pub fn experts(
    x: ArrayView2<f32>,
    weights: &ExpertsWeights,
    config: &RouterConfig,
    arithmetic: &Arithmetic,
    watch: &mut Watch,
) -> Result<Array2<f32>> {
    let count = weights.experts.len();
    check_shape("gate.weight", weights.gate.shape(), &[count, x.ncols()])?;
    let gate_x = watch.floats("gate.x", x.to_owned())?; // [n, hidden_size]
    let logits = linear(gate_x.view(), weights.gate.view()); // [n, experts]
    let Routing { indices, weights: w } = router(logits.view(), weights.bias.view(), config)?;
    let w = watch.floats("gate.weights", w)?; // [n, top_k]
    let routing = Routing { weights: w, indices: watch.integers("gate.indices", indices)? };
    let routed = routed_experts(x, &routing, &weights.experts, arithmetic)?; // [n, hidden_size]
    let routed = watch.floats("moe.routed", routed)?; // [n, hidden_size]
    let shared = feed_forward(x, &weights.shared, arithmetic)?; // [n, hidden_size]
    let shared = watch.floats("moe.shared", shared)?; // [n, hidden_size]
    Ok(arithmetic.rounded(routed + shared))
}
