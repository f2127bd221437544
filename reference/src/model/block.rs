//! One layer's two halves, each from the normalised hidden state to what is added to the residual.
use crate::arithmetic::Arithmetic;
use crate::attention::{
    AttentionWeights, Form, attend, index, latents, output, queries, query_latent, store_latent,
};
use crate::attention_layer::heads::join;
use crate::attention_layer::{AttentionConfig, Mode};
use crate::error::{Error, Result, check_shape};
use crate::experts::{ExpertsWeights, experts};
use crate::feed_forward::{FeedForwardWeights, feed_forward};
use crate::router::RouterConfig;
use crate::watch::Watch;
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
    watch: &mut Watch,
) -> Result<(Array2<f32>, Array2<i32>)> {
    let s = x.nrows();
    let qr = watch.floats("mla.qr", query_latent(x, config, weights, arithmetic)?)?; // [s, q_lora_rank]
    let q = queries(qr.view(), 0, config, weights, arithmetic)?; // [s, h, nope + rope]
    let (q_nope, q_pe) = q.view().split_at(Axis(2), config.qk_nope_head_dim);
    let q_nope = watch.floats("mla.q_nope", q_nope.to_owned())?; // [s, h, nope]
    let q_pe = watch.floats("mla.q_pe", q_pe.to_owned())?; // [s, h, rope]
    let q = join(q_nope.view(), q_pe.view()); // [s, h, nope + rope]
    let (c, k_pe) = latents(x, 0, config, weights, arithmetic)?; // [s, rank], [s, rope]
    let c = watch.floats("mla.c_before", c)?; // [s, rank]
    let c = watch.floats("mla.c", store_latent(c.view(), arithmetic)?)?; // [s, rank]
    let k_pe = watch.floats("mla.k_pe", k_pe)?; // [s, rope]
    let keys = match (mode, &weights.indexer, source) {
        (Mode::Dense, _, _) => causal_keys(s), // [s, s]
        (Mode::Sparse, Some(indexer), _) => {
            index(x, qr.view(), config, indexer, arithmetic, watch)? // [s, index_topk]
        }
        (Mode::Sparse, None, Some(source)) => watch.integers("index.topk", source.clone())?, // [s, index_topk]
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
    let o = watch.floats("mla.o", o)?; // [s, h, v]
    let out = output(o.view(), config, weights, arithmetic)?; // [s, hidden_size]
    Ok((watch.floats("mla.out", out)?, keys))
}

/// The second half of `x` `[n, hidden_size]`; the result is as large.
pub(super) fn mlp(
    x: ArrayView2<f32>,
    weights: &Mlp,
    router: &RouterConfig,
    arithmetic: &Arithmetic,
    watch: &mut Watch,
) -> Result<Array2<f32>> {
    let y = match weights {
        Mlp::Dense(weights) => feed_forward(x, weights, arithmetic),
        Mlp::Experts(weights) => experts(x, weights, router, arithmetic, watch),
    }?; // [n, hidden_size]
    watch.floats("block.ffn_out", y)
}

/// The first layer has nobody to share with.
fn no_source() -> Error {
    Error::Value { name: "indexer of layer 0", found: "none".into(), expected: "its weights" }
}

/// Every token up to each, `[s, s]`: 0 .. t in row t, then −1.
fn causal_keys(s: usize) -> Array2<i32> {
    Array2::from_shape_fn((s, s), |(t, n)| if n <= t { n as i32 } else { -1 })
}
