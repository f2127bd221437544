//! The whole model: from token ids to logits.
//!
//! ```text
//! x = embedding(ids), r = 0
//! each layer:   x, r = norm(x + r), x + r        x = attention(x)
//!               x, r = norm(x + r), x + r        x = feed_forward(x) or experts(x)
//! logits = norm(x + r)·Wheadᵀ                    f32
//! ```
//! There is no cache: the reference computes every position anew. A position depends only on those
//! before it, so decoding token by token is the same pass with a longer prompt.
//!
//! Source: `Transformer` and `Block` of the DeepSeek-V3.2-Exp inference demo (November 2025);
//! DeepSeek-V3.2 and GLM-5 of transformers, which differ in the latents' eps and share keys between
//! layers.
use crate::add_norm::add_rms_norm;
use crate::arithmetic::Arithmetic;
use crate::attention_layer::{AttentionConfig, Mode};
use crate::embedding::embedding;
use crate::error::{Result, check_shape, check_value};
use crate::linear::linear;
use crate::router::RouterConfig;
use crate::watch::Watch;
use block::{attention, mlp};
use ndarray::{Array1, Array2};

mod block;
pub use block::{LayerWeights, Mlp};

/// Sizes of the model that its weights do not say.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The attention's. Its `rms_norm_eps` is that of the two latents' norms: 1e-6 in every
    /// published DeepSeek and in transformers' GLM-5; vLLM and SGLang take the model's.
    pub attention: AttentionConfig,
    /// eps of all other RMSNorms (DeepSeek-V3.2 1e-6, GLM-5 1e-5).
    pub rms_norm_eps: f64,
    /// The gate's.
    pub router: RouterConfig,
}

/// Weights of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelWeights {
    /// `model.embed_tokens.weight` `[vocab_size, hidden_size]`.
    pub embed_tokens: Array2<f32>,
    /// `model.layers.*`, in order.
    pub layers: Vec<LayerWeights>,
    /// `model.norm.weight` `[hidden_size]`.
    pub norm: Array1<f32>,
    /// `lm_head.weight` `[vocab_size, hidden_size]`.
    pub lm_head: Array2<f32>,
}

/// What a pass returns.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// `[s, vocab_size]`, f32.
    pub logits: Array2<f32>,
    /// Each layer's output with the residual, `[s, hidden_size]`; not rounded.
    pub hidden: Vec<Array2<f32>>,
    /// The keys that each layer attends to, `[s, k]`; −1 is no key. A layer without indexer has
    /// those of the layer before it.
    pub keys: Vec<Array2<i32>>,
}

/// One pass over `ids` `[s]`, all positions at once.
///
/// From the position `decode_from` on, tokens take the form that the demo decodes with
/// ([`Form`](crate::attention::Form)); in exact arithmetic that changes nothing.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if an id is outside the vocabulary, the first layer has no
/// indexer, or sizes contradict each other; [`Error::Shape`](crate::Error::Shape) if weights do not
/// fit the configuration.
pub fn forward(
    ids: &[i32],
    decode_from: usize,
    config: &ModelConfig,
    weights: &ModelWeights,
    arithmetic: &Arithmetic,
    mode: Mode,
) -> Result<Forward> {
    watched(ids, decode_from, config, weights, arithmetic, mode, &mut Watch::none())
}

/// [`forward`] that shows what each stage returns to `watch`, which may give something in its place.
///
/// # Errors
/// As [`forward`], and if what is given has another shape.
pub fn watched(
    ids: &[i32],
    decode_from: usize,
    config: &ModelConfig,
    weights: &ModelWeights,
    arithmetic: &Arithmetic,
    mode: Mode,
    watch: &mut Watch,
) -> Result<Forward> {
    let hidden_size = config.attention.hidden_size;
    let vocab_size = weights.embed_tokens.nrows();
    check_shape("embed_tokens", weights.embed_tokens.shape(), &[vocab_size, hidden_size])?;
    check_shape("lm_head", weights.lm_head.shape(), &[vocab_size, hidden_size])?;
    let rope_dim = config.attention.qk_rope_head_dim;
    check_value("qk_rope_head_dim", rope_dim, "even", rope_dim.is_multiple_of(2))?;
    let eps = config.rms_norm_eps;
    let mut x = embedding(ids, weights.embed_tokens.view())?; // [s, hidden_size]
    let mut residual = Array2::zeros(x.dim()); // [s, hidden_size]
    let mut hidden = vec![]; // [layers][s, hidden_size]
    let mut keys: Vec<Array2<i32>> = vec![]; // [layers][s, k]
    for (number, layer) in weights.layers.iter().enumerate() {
        watch.enter(number);
        let (norm, source) = (layer.input_layernorm.view(), keys.last()); // [hidden_size], [s, k]
        (x, residual) = add_rms_norm(x.view(), residual.view(), norm, eps, arithmetic)?;
        x = watch.floats("mla.x", x)?; // [s, hidden_size]
        let (out, attended) = attention(
            x.view(),
            decode_from,
            source,
            &config.attention,
            &layer.self_attn,
            arithmetic,
            mode,
            watch,
        )?;
        let norm = layer.post_attention_layernorm.view(); // [hidden_size]
        (x, residual) = add_rms_norm(out.view(), residual.view(), norm, eps, arithmetic)?;
        residual = watch.floats("block.residual", residual)?; // [s, hidden_size]
        x = watch.floats("block.ffn_in", x)?; // [s, hidden_size]
        x = mlp(x.view(), &layer.mlp, &config.router, arithmetic, watch)?; // [s, hidden_size]
        hidden.push(&x + &residual);
        keys.push(attended);
    }
    let norm = weights.norm.view(); // [hidden_size]
    let (x, _) = add_rms_norm(x.view(), residual.view(), norm, eps, arithmetic)?; // [s, hidden_size]
    let logits = linear(x.view(), weights.lm_head.view()); // [s, vocab_size]
    Ok(Forward { logits, hidden, keys })
}

/// The `n` ids that follow `prompt`, each the one with the largest logit (the lower id wins a tie,
/// NaN never), and the logits `[n, vocab_size]` they were chosen from.
///
/// # Errors
/// As [`forward`]; [`Error::Value`](crate::Error::Value) if the prompt is empty.
pub fn greedy(
    prompt: &[i32],
    n: usize,
    config: &ModelConfig,
    weights: &ModelWeights,
    arithmetic: &Arithmetic,
) -> Result<(Vec<i32>, Array2<f32>)> {
    check_value("prompt length", prompt.len(), "at least 1 token", !prompt.is_empty())?;
    let mut ids = prompt.to_vec(); // [prompt + chosen]
    let mut chosen_from = Array2::zeros((n, weights.lm_head.nrows())); // [n, vocab_size]
    for mut chosen_from in chosen_from.rows_mut() {
        let pass = forward(&ids, prompt.len(), config, weights, arithmetic, Mode::Sparse)?;
        let logits = pass.logits.row(ids.len() - 1); // [vocab_size]
        chosen_from.assign(&logits);
        let mut best = 0;
        for (id, &logit) in logits.iter().enumerate() {
            if logit > logits[best] || logits[best].is_nan() {
                best = id;
            }
        }
        ids.push(best as i32);
    }
    Ok((ids.split_off(prompt.len()), chosen_from))
}
