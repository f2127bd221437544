//! The shape of a DeepSeek-V3.2-Exp model, read from a `config.json`.
//!
//! Two spellings are understood: Hugging Face's (with the older `rope_scaling` or the newer
//! `rope_parameters`) and that of the official demo (`dim`, `n_heads`, …), told apart by `dim`.
//! Fields here have the Hugging Face names. A [`Config`] that was read has been validated: every
//! width is at least 1 and bounded, and no product that sizes a weight overflows 32 bits.
//!
//! ```text
//! let config = Config::read(Path::new("checkpoint"))?;     // the folder or the file
//! let layer = Config::scaled(4)?;                          // a quarter, for the CPU
//! ```

use dsa_reference::attention_layer::{AttentionConfig, Options};
use dsa_reference::quant::ScaleFmt;
use dsa_reference::rope;
use serde::Serialize;

use crate::error::{Error, Result};

mod check;
mod demo;
mod describe;
mod fields;
mod known;
mod read;
mod rotary;
mod storage;
#[cfg(test)]
mod tests;

/// Weights and activations share one scale for each block of this many values.
pub const QUANT_BLOCK: usize = 128;

/// The hyperparameters. In the shapes, T is a number of tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
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
    /// The first layers have a dense feed-forward, the others experts.
    pub first_k_dense_replace: usize,
    /// Extra multi-token-prediction layers stored behind the others (never run). Default 0.
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
    /// Indexer's rotary pairs: (2i, 2i+1) if true, (i, i+d/2) if false. Default false, true for
    /// GLM. Hugging Face spells it without the final d; both are read.
    #[serde(rename = "indexer_rope_interleave")]
    pub indexer_rope_interleaved: bool,
    /// The main attention's rotary pairs, likewise. Default true.
    #[serde(rename = "rope_interleave")]
    pub rope_interleaved: bool,
    /// Positions the model is made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies. Default 10000.
    pub rope_theta: f64,
    /// Context extension; `None` is plain rotary embedding.
    pub rope_scaling: Option<Yarn>,
    /// Added to the mean square in every norm. Default 1e-6.
    pub rms_norm_eps: f64,
    /// First token of a text. Default 0; `null` in the file is the default too.
    pub bos_token_id: u32,
    /// Tokens that end a text (a number or a list in the file). Default 1.
    pub eos_token_id: Vec<u32>,
    /// How the weights are stored; `None` is unquantised.
    #[serde(skip)]
    pub quantization: Option<Quantization>,
    /// Which lossy steps the attention takes.
    pub attention_options: AttentionOptions,
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
    /// DeepSeek-V3.2-Exp itself: 61 layers, 671.88 billion parameters, fp8 weights.
    pub fn v32() -> Self {
        Self {
            vocab_size: 129_280,
            hidden_size: 7168,
            intermediate_size: 18_432,
            moe_intermediate_size: 2048,
            num_hidden_layers: 61,
            first_k_dense_replace: 3,
            num_nextn_predict_layers: 1,
            num_attention_heads: 128,
            q_lora_rank: 1536,
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            n_routed_experts: 256,
            n_shared_experts: 1,
            num_experts_per_tok: 8,
            n_group: 8,
            topk_group: 4,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            index_n_heads: 64,
            index_head_dim: 128,
            index_topk: 2048,
            indexer_rope_interleaved: false,
            rope_interleaved: true,
            max_position_embeddings: 163_840,
            rope_theta: 10_000.0,
            rope_scaling: Some(Yarn {
                factor: 40.0,
                original_max_position_embeddings: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                mscale: 1.0,
                mscale_all_dim: 1.0,
            }),
            rms_norm_eps: 1e-6,
            bos_token_id: 0,
            eos_token_id: vec![1],
            quantization: Some(Quantization { ue8m0: true }),
            attention_options: AttentionOptions::OFFICIAL,
        }
    }

    /// One dense layer of [`Config::v32`] divided by `divisor` (a power of two up to 64), with
    /// unquantised weights and the official attention arithmetic, for measuring on a CPU.
    ///
    /// | divided | kept |
    /// |---|---|
    /// | vocabulary, `hidden_size`, both inner widths | head widths 128 + 64, 128, indexer 128 |
    /// | heads, both ranks, `index_n_heads`, `index_topk` | experts, positions, YaRN, options |
    ///
    /// A context of L / `divisor` then keeps the share of keys that the full model keeps at L. Of
    /// the work for one (query, key) pair, the indexer's and that of dense attention over
    /// expanded heads shrink alike, so their ratio of 1 : 5 stays. Attention over the latent,
    /// heads · (2 · rank + 64), shrinks faster: 17 times the indexer's at 1, 5 at 4, 1.5 at 16.
    ///
    /// # Errors
    /// [`Error::Config`] for another divisor.
    pub fn scaled(divisor: usize) -> Result<Self> {
        if !divisor.is_power_of_two() || divisor > 64 {
            return Err(Error::config("divisor", divisor, "a power of two from 1 to 64"));
        }
        let full = Self::v32();
        let config = Self {
            vocab_size: full.vocab_size / divisor,
            hidden_size: full.hidden_size / divisor,
            intermediate_size: full.intermediate_size / divisor,
            moe_intermediate_size: full.moe_intermediate_size / divisor,
            num_hidden_layers: 1,
            first_k_dense_replace: 1,
            num_nextn_predict_layers: 0,
            num_attention_heads: full.num_attention_heads / divisor,
            q_lora_rank: full.q_lora_rank / divisor,
            kv_lora_rank: full.kv_lora_rank / divisor,
            index_n_heads: full.index_n_heads / divisor,
            index_topk: full.index_topk / divisor,
            quantization: None,
            ..full
        };
        config.validate()?;
        Ok(config)
    }

    /// Width of a head's query and expanded key: 192 in V3.2.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Width of one row of the cache, latent then rotary key: 576 in V3.2.
    pub fn latent_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
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

    /// Factor on q·k before the softmax: qk_head_dim^-½ · m² with m = 0.1 · mscale_all_dim ·
    /// ln(factor) + 1, and m = 1 without YaRN. 0.1352337789 in V3.2.
    pub fn softmax_scale(&self) -> f64 {
        rope::softmax_scale(self.qk_head_dim(), self.reference_yarn().as_ref())
    }

    /// Factor on the indexer's head weights: (index_n_heads · index_head_dim)^-½. It has no YaRN
    /// term. 0.0110485435 in V3.2.
    pub fn index_scale(&self) -> f64 {
        1.0 / ((self.index_n_heads * self.index_head_dim) as f64).sqrt()
    }

    /// The sizes of one attention layer, as the reference takes them.
    pub fn reference_config(&self) -> AttentionConfig {
        AttentionConfig {
            hidden_size: self.hidden_size,
            num_attention_heads: self.num_attention_heads,
            q_lora_rank: self.q_lora_rank,
            kv_lora_rank: self.kv_lora_rank,
            qk_nope_head_dim: self.qk_nope_head_dim,
            qk_rope_head_dim: self.qk_rope_head_dim,
            v_head_dim: self.v_head_dim,
            index_n_heads: self.index_n_heads,
            index_head_dim: self.index_head_dim,
            index_topk: self.index_topk,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            yarn: self.reference_yarn(),
        }
    }

    /// The switches of the attention, as the reference takes them.
    pub fn reference_options(&self) -> Options {
        let AttentionOptions { hadamard, index_fp8, kv_fp8 } = self.attention_options;
        let pairing = |interleaved| match interleaved {
            true => rope::Pairing::Interleaved,
            false => rope::Pairing::HalfSplit,
        };
        Options {
            pairing: pairing(self.rope_interleaved),
            indexer_pairing: pairing(self.indexer_rope_interleaved),
            hadamard,
            index_fp8,
            kv_fp8,
            scale_fmt: if self.ue8m0() { ScaleFmt::Ue8m0 } else { ScaleFmt::Plain },
        }
    }

    /// YaRN, as the reference takes it.
    fn reference_yarn(&self) -> Option<rope::Yarn> {
        self.rope_scaling.map(|y| rope::Yarn {
            factor: y.factor,
            original_max_position_embeddings: y.original_max_position_embeddings,
            beta_fast: y.beta_fast,
            beta_slow: y.beta_slow,
            mscale: y.mscale,
            mscale_all_dim: y.mscale_all_dim,
        })
    }
}
