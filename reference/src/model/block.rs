//! One layer's two halves, each from the normalised hidden state to what is added to the residual.
use crate::arithmetic::Arithmetic;
use crate::attention::{
    AttentionWeights, Form, attend, index, latents, output, queries, query_latent, store_latent,
};
use crate::attention_layer::{AttentionConfig, Mode};
use crate::error::{Error, Result, check_shape};
use crate::experts::{ExpertsWeights, experts};
use crate::feed_forward::{FeedForwardWeights, feed_forward};
use crate::router::RouterConfig;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis};

/// Weights of one layer, `model.layers.N.*`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// `[hidden_size]`.
    pub input_layernorm: Array1<f32>,
    /// The attention's.
    pub self_attn: AttentionWeights,
    /// `[hidden_size]`.
    pub post_attention_layernorm: Array1<f32>,
    /// The second half's.
    pub mlp: Mlp,
}

/// The second half of a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum Mlp {
    /// One network for all tokens: the first layers.
    Dense(FeedForwardWeights),
    /// A gate and experts: the others.
    Experts(ExpertsWeights),
}

/// The attention of `x` `[s, hidden_size]`, and the keys it attended to, `[s, k]`.
///
/// A layer without an indexer attends to `source`, the keys of the layer before it. Tokens from
/// `decode_from` on take the decoding form.
#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    x: ArrayView2<f32>,
    decode_from: usize,
    source: Option<&Array2<i32>>,
    config: &AttentionConfig,
    weights: &AttentionWeights,
    arithmetic: &Arithmetic,
    mode: Mode,
) -> Result<(Array2<f32>, Array2<i32>)> {
    let s = x.nrows();
    let qr = query_latent(x, config, weights, arithmetic)?; // [s, q_lora_rank]
    let q = queries(qr.view(), 0, config, weights, arithmetic)?; // [s, h, nope + rope]
    let (c, k_pe) = latents(x, 0, config, weights, arithmetic)?; // [s, rank], [s, rope]
    let c = store_latent(c.view(), arithmetic)?; // [s, rank]
    let keys = match (mode, &weights.indexer, source) {
        (Mode::Dense, _, _) => causal_keys(s), // [s, s]
        (Mode::Sparse, Some(indexer), _) => index(x, qr.view(), config, indexer, arithmetic)?, // [s, index_topk]
        (Mode::Sparse, None, Some(source)) => source.clone(), // [s, index_topk]
        (Mode::Sparse, None, None) => return Err(no_source()),
    };
    check_shape("keys", keys.shape(), &[s, keys.ncols()])?;
    let split = decode_from.min(s);
    let (q_prompt, q_after) = q.view().split_at(Axis(0), split); // [split, h, nope + rope] and the rest
    let (keys_prompt, keys_after) = keys.view().split_at(Axis(0), split); // [split, k] and the rest
    let run =
        |q, keys, form| attend(q, c.view(), k_pe.view(), keys, form, config, weights, arithmetic);
    let prompt = run(q_prompt, keys_prompt, Form::Prefill)?; // [split, h, v]
    let after = run(q_after, keys_after, Form::Decode)?; // [s - split, h, v]
    let mut o = Array3::zeros((s, config.num_attention_heads, config.v_head_dim)); // [s, h, v]
    o.slice_axis_mut(Axis(0), (..split).into()).assign(&prompt);
    o.slice_axis_mut(Axis(0), (split..).into()).assign(&after);
    Ok((output(o.view(), config, weights, arithmetic)?, keys))
}

/// The second half of `x` `[n, hidden_size]`; the result is as large.
pub(super) fn mlp(
    x: ArrayView2<f32>,
    weights: &Mlp,
    router: &RouterConfig,
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    match weights {
        Mlp::Dense(weights) => feed_forward(x, weights, arithmetic),
        Mlp::Experts(weights) => experts(x, weights, router, arithmetic),
    }
}

/// The first layer has nobody to share with.
fn no_source() -> Error {
    Error::Value { name: "indexer of layer 0", found: "none".into(), expected: "its weights" }
}

/// Every token up to each, `[s, s]`: 0 .. t in row t, then −1.
fn causal_keys(s: usize) -> Array2<i32> {
    Array2::from_shape_fn((s, s), |(t, n)| if n <= t { n as i32 } else { -1 })
}
