//! What the reference takes: the layer's sizes, switches and weights, in its own structures.

use dsa_model::config::{AttentionOptions, Config};
use dsa_model::error::{Error, Result};
use dsa_model::weights::{Checkpoint, Weights};
use dsa_reference::attention_layer::{AttentionConfig, AttentionWeights, IndexerWeights, Options};
use dsa_reference::quant::ScaleFmt;
use dsa_reference::rope;
use ndarray::{Array1, Array2};

/// The sizes of one attention layer.
pub fn attention_config(c: &Config) -> AttentionConfig {
    AttentionConfig {
        hidden_size: c.hidden_size,
        num_attention_heads: c.num_attention_heads,
        q_lora_rank: c.q_lora_rank,
        kv_lora_rank: c.kv_lora_rank,
        qk_nope_head_dim: c.qk_nope_head_dim,
        qk_rope_head_dim: c.qk_rope_head_dim,
        v_head_dim: c.v_head_dim,
        index_n_heads: c.index_n_heads,
        index_head_dim: c.index_head_dim,
        index_topk: c.index_topk,
        rms_norm_eps: c.latent_norm_eps,
        rope_theta: c.rope_theta,
        yarn: c.rope_scaling.map(|y| rope::Yarn {
            factor: y.factor,
            original_max_position_embeddings: y.original_max_position_embeddings,
            beta_fast: y.beta_fast,
            beta_slow: y.beta_slow,
            mscale: y.mscale,
            mscale_all_dim: y.mscale_all_dim,
        }),
    }
}

/// The switches of the attention.
pub fn attention_options(c: &Config) -> Options {
    let AttentionOptions { hadamard, index_fp8, kv_fp8 } = c.attention_options;
    let pairing = |interleaved| match interleaved {
        true => rope::Pairing::Interleaved,
        false => rope::Pairing::HalfSplit,
    };
    Options {
        pairing: pairing(c.rope_interleaved),
        indexer_pairing: pairing(c.indexer_rope_interleaved),
        hadamard,
        index_fp8,
        kv_fp8,
        scale_fmt: if c.ue8m0() { ScaleFmt::Ue8m0 } else { ScaleFmt::Plain },
    }
}

/// The weights of one layer's attention, those of `weights` (`model.layers.N.self_attn`).
///
/// # Errors
/// What [`Weights::values`] refuses.
pub fn attention_weights<W: Weights>(c: &Config, weights: &W) -> Result<AttentionWeights> {
    let matrix = |name: &str, out, into| matrix(weights, name, [out, into]);
    let vector = |name: &str, n| weights.values(name, &[n]).map(Array1::from_vec);
    let (hidden, heads, query) = (c.hidden_size, c.num_attention_heads, c.q_lora_rank);
    let (rank, d) = (c.kv_lora_rank, c.index_head_dim);
    let indexer = weights.at("indexer");
    let of_indexer = |name: &str, n| indexer.values(name, &[n]).map(Array1::from_vec);
    let index_matrix = |name: &str, out, into| self::matrix(&indexer, name, [out, into]);
    Ok(AttentionWeights {
        q_a_proj: matrix("q_a_proj.weight", query, hidden)?,
        q_a_layernorm: vector("q_a_layernorm.weight", query)?,
        q_b_proj: matrix("q_b_proj.weight", heads * c.qk_head_dim(), query)?,
        kv_a_proj_with_mqa: matrix("kv_a_proj_with_mqa.weight", c.latent_dim(), hidden)?,
        kv_a_layernorm: vector("kv_a_layernorm.weight", rank)?,
        kv_b_proj: matrix("kv_b_proj.weight", heads * (c.qk_nope_head_dim + c.v_head_dim), rank)?,
        o_proj: matrix("o_proj.weight", hidden, heads * c.v_head_dim)?,
        indexer: IndexerWeights {
            wq_b: index_matrix("wq_b.weight", c.index_n_heads * d, query)?,
            wk: index_matrix("wk.weight", d, hidden)?,
            k_norm_weight: of_indexer("k_norm.weight", d)?,
            k_norm_bias: of_indexer("k_norm.bias", d)?,
            weights_proj: index_matrix("weights_proj.weight", c.index_n_heads, hidden)?,
        },
    })
}

/// A matrix of `weights`.
fn matrix<W: Weights>(weights: &W, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
    array(name, shape, weights.values(name, &shape)?)
}

/// A matrix of a file.
pub fn stored_matrix(file: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
    array(name, shape, file.values(name, &shape)?)
}

fn array(name: &str, shape: [usize; 2], values: Vec<f32>) -> Result<Array2<f32>> {
    let found = vec![values.len()];
    Array2::from_shape_vec(shape, values).map_err(|_| Error::Shape {
        name: name.into(),
        found,
        expected: shape.into(),
    })
}
