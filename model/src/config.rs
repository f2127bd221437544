//! The shape of a DeepSeek-V3.2 or GLM-5 model, read from a `config.json`.
//!
//! Two spellings are understood: Hugging Face's (with the older `rope_scaling` or the newer
//! `rope_parameters`), where `model_type` names the [`Family`], and that of the official demo (`dim`,
//! `n_heads`, …), told apart by a `dim` without `model_type`. Fields here have the Hugging Face names. A
//! [`Config`] that was read has been validated: every width is at least 1 and bounded, and no product
//! that sizes a weight overflows 32 bits.
//!
//! ```text
//! let config = Config::read(Path::new("checkpoint"))?;     // the folder or the file
//! let (config, warnings) = overrides.apply(config)?;       // --topk, --share-index, --max-seq
//! let layer = Config::scaled(4)?;                          // a quarter, for the CPU
//! ```

use std::ops::Range;

use dsa_kernels::quant::ScaleFmt;
use serde::Serialize;

use crate::run::temperature;

mod check;
mod demo;
mod describe;
mod family;
mod feed_forward;
mod fields;
mod known;
mod overrides;
mod published;
mod read;
mod rotary;
mod sharing;
mod storage;
#[cfg(test)]
mod tests;

pub use family::Family;
pub use overrides::{Overridden, Overrides};
pub use sharing::{Indexer, IndexerType};

/// Weights and activations share one scale for each block of this many values.
pub const QUANT_BLOCK: usize = 128;

/// The eps of the two latents' norms where the file does not say it.
const LATENT_NORM_EPS: f64 = 1e-6;

/// The hyperparameters. In the shapes, T is a number of tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// What the checkpoint is one of: `model_type` in the file.
    #[serde(skip)]
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream: x is [T, hidden_size].
    pub hidden_size: usize,
    /// Inner width of the dense feed-forward layers.
    pub intermediate_size: usize,
    /// Inner width of one expert.
    pub moe_intermediate_size: usize,
    /// Layers, without the multi-token-prediction ones.
    pub num_hidden_layers: usize,
    /// The first layers have a dense feed-forward, the others experts. `mlp_layer_types` says the same.
    pub first_k_dense_replace: usize,
    /// Extra multi-token-prediction layers stored behind the others (never run; see
    /// [`Config::skipped_layers`]). Default 0.
    pub num_nextn_predict_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the compressed query [T, q_lora_rank].
    pub q_lora_rank: usize,
    /// Width of the compressed key and value [T, kv_lora_rank].
    pub kv_lora_rank: usize,
    /// Width of a head's query and key without position.
    pub qk_nope_head_dim: usize,
    /// Width of a head's query and of the shared key with position; even.
    pub qk_rope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Experts to choose from.
    pub n_routed_experts: usize,
    /// Experts that every token visits; stored as one, this many times as wide.
    pub n_shared_experts: usize,
    /// Experts chosen for a token.
    pub num_experts_per_tok: usize,
    /// Groups the experts are divided in.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// Whether the chosen gates are divided by their sum. Default true.
    pub norm_topk_prob: bool,
    /// Factor on the gates.
    pub routed_scaling_factor: f64,
    /// Heads of the lightning indexer.
    pub index_n_heads: usize,
    /// Width of an indexer head; its first `qk_rope_head_dim` values carry the position.
    pub index_head_dim: usize,
    /// Keys that a query attends to.
    pub index_topk: usize,
    /// Which layers have an indexer, one entry for each layer; `None`: all. Read of `indexer_types`,
    /// `index_topk_pattern` or `index_topk_freq`; ask [`Config::indexer_of`].
    pub indexer_types: Option<Vec<IndexerType>>,
    /// Indexer's rotary pairs: (2i, 2i+1) if true, (i, i+d/2) if false. Default by family. Hugging Face spells it without the final d; both are read.
    #[serde(rename = "indexer_rope_interleave")]
    pub indexer_rope_interleaved: bool,
    /// The main attention's rotary pairs, likewise. Default true.
    #[serde(rename = "rope_interleave")]
    pub rope_interleaved: bool,
    /// Positions the model is made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies. Default by family.
    pub rope_theta: f64,
    /// Context extension; `None` is plain rotary embedding.
    pub rope_scaling: Option<Yarn>,
    /// Added to the mean square in the norms of the residual stream. Default by family.
    pub rms_norm_eps: f64,
    /// The same in the norms of the two latents (`q_a_layernorm`, `kv_a_layernorm`):
    /// `attention_options.latent_norm_eps`, our own field. Default 1e-6 whatever `rms_norm_eps` is, as in
    /// transformers and in DeepSeek's demo; vLLM and SGLang take `rms_norm_eps` here too.
    #[serde(skip)]
    pub latent_norm_eps: f64,
    /// First token of a text, if there is one. Default by family; `null` in the file is absent.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text (a number or a list in the file). Default by family.
    pub eos_token_id: Vec<u32>,
    /// How the weights are stored; `None` is unquantised.
    #[serde(skip)]
    pub quantization: Option<Quantization>,
    /// Which lossy steps the attention takes.
    pub attention_options: AttentionOptions,
    /// What the command line replaced, see [`Overrides`]. Not written to a file.
    #[serde(skip)]
    pub overrides: Vec<Overridden>,
}

/// YaRN: low rotary frequencies are divided by `factor`, high ones kept, with a ramp between.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// Positions before the extension.
    pub original_max_position_embeddings: usize,
    /// Rotations within the original context above which a frequency is kept. Default 32.
    pub beta_fast: f64,
    /// Rotations within the original context below which a frequency is divided. Default 1.
    pub beta_slow: f64,
    /// Temperature of cos and sin; must equal `mscale_all_dim`, so that they stay unscaled.
    pub mscale: f64,
    /// Temperature of the softmax, see [`Config::softmax_scale`].
    pub mscale_all_dim: f64,
}

/// Weights in fp8 (e4m3) with one scale for each block of 128 × 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Whether scales are powers of two (`scale_fmt` is `ue8m0`) or any f32 (it is `float`, or absent).
    /// Those of the weights are in the file; this is about those made of activations.
    pub ue8m0: bool,
}

/// The steps of the official arithmetic that lose precision, each of which can be left out.
///
/// Our own object in `config.json`. Where it is absent, all three are on for a quantised
/// checkpoint and off for another (as in transformers and mlx-lm).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AttentionOptions {
    /// Rotate the indexer's queries and keys by a Hadamard matrix (neutral in exact arithmetic).
    pub hadamard: bool,
    /// Round the indexer's queries and keys to e4m3, one scale for each vector.
    pub index_fp8: bool,
    /// Round the cached latent to e4m3 and back, one scale for each 128 values.
    pub kv_fp8: bool,
}

impl AttentionOptions {
    /// The official arithmetic: every step.
    pub const OFFICIAL: Self = Self { hadamard: true, index_fp8: true, kv_fp8: true };
    /// Exact arithmetic: none.
    pub const EXACT: Self = Self { hadamard: false, index_fp8: false, kv_fp8: false };
}

impl Config {
    /// Width of a head's query and expanded key: 192 in V3.2.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Width of one row of the cache, latent then rotary key: 576 in V3.2.
    pub fn latent_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// The numbers of the layers whose weights are in a checkpoint and are not read: 61 in V3.2, 78 in GLM-5.
    pub fn skipped_layers(&self) -> Range<usize> {
        let layers = self.num_hidden_layers;
        layers..layers.saturating_add(self.num_nextn_predict_layers)
    }

    /// Whether layer `layer` has experts rather than a dense feed-forward.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        layer >= self.first_k_dense_replace
    }

    /// Whether scales of activations are rounded up to powers of two: as the file says, and in an
    /// unquantised model whose lossy steps were asked for, as in DeepSeek-V3.2.
    pub fn ue8m0(&self) -> bool {
        self.quantization.is_none_or(|quantization| quantization.ue8m0)
    }

    /// How the scales of activations are rounded.
    pub fn scale_fmt(&self) -> ScaleFmt {
        if self.ue8m0() { ScaleFmt::Ue8m0 } else { ScaleFmt::Plain }
    }

    /// Factor on q·k before the softmax: qk_head_dim^-½ · m² with m = 0.1 · mscale_all_dim ·
    /// ln(factor) + 1, and m = 1 without YaRN. 0.1352337789 in V3.2.
    pub fn softmax_scale(&self) -> f64 {
        let m = self.rope_scaling.map_or(1.0, |yarn| temperature(&yarn, yarn.mscale_all_dim));
        m * m / (self.qk_head_dim() as f64).sqrt()
    }

    /// Factor on the indexer's head weights: (index_n_heads · index_head_dim)^-½. It has no YaRN
    /// term. 0.0110485435 in V3.2.
    pub fn index_scale(&self) -> f64 {
        1.0 / ((self.index_n_heads * self.index_head_dim) as f64).sqrt()
    }
}
