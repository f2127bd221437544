//! Sizes, weights and switches of one attention layer, under the checkpoint's names.
use crate::error::{Result, check_shape, check_value};
use crate::quant::ScaleFmt;
use crate::rope::{Pairing, Yarn, cos_sin, frequencies, softmax_scale};
use ndarray::{Array1, Array2, ArrayView2};

/// Sizes of the layer; the values in brackets are DeepSeek-V3.2's.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Width of the hidden state (7168).
    pub hidden_size: usize,
    /// Query heads h (128).
    pub num_attention_heads: usize,
    /// Width of the query latent qr (1536).
    pub q_lora_rank: usize,
    /// Width of the key and value latent c (512).
    pub kv_lora_rank: usize,
    /// Dimensions of a head without position (128).
    pub qk_nope_head_dim: usize,
    /// Dimensions of a head with position (64).
    pub qk_rope_head_dim: usize,
    /// Dimensions of a head's value (128).
    pub v_head_dim: usize,
    /// Indexer heads H (64).
    pub index_n_heads: usize,
    /// Dimensions D of an indexer head (128); the first `qk_rope_head_dim` have position.
    pub index_head_dim: usize,
    /// Keys a query keeps (2048).
    pub index_topk: usize,
    /// eps of the RMSNorms (1e-6).
    pub rms_norm_eps: f64,
    /// Base of the frequencies (10000).
    pub rope_theta: f64,
    /// The stretched context, if it is.
    pub yarn: Option<Yarn>,
}

impl AttentionConfig {
    /// cos and sin `[s, qk_rope_head_dim / 2]` of the positions 0 .. s.
    pub fn cos_sin(&self, s: usize) -> (Array2<f32>, Array2<f32>) {
        let freqs = frequencies(self.qk_rope_head_dim, self.rope_theta, self.yarn.as_ref());
        let positions: Vec<usize> = (0..s).collect(); // [s]
        let (cos, sin) = cos_sin(&freqs, &positions);
        let factor = self.yarn.as_ref().map_or(1.0, Yarn::attention_factor) as f32;
        (cos * factor, sin * factor)
    }

    /// τ of the main attention, see [`softmax_scale`].
    pub fn softmax_scale(&self) -> f32 {
        softmax_scale(self.qk_head_dim(), self.yarn.as_ref()) as f32
    }

    /// Dimensions of a head's query and key in the expanded form.
    pub(crate) fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim.saturating_add(self.qk_rope_head_dim)
    }

    /// Rows of `kv_b_proj` that belong to one head.
    pub(crate) fn kv_b_head_dim(&self) -> usize {
        self.qk_nope_head_dim.saturating_add(self.v_head_dim)
    }
}

/// Weights of the indexer, `self_attn.indexer.*`; matrices are `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexerWeights {
    /// `[H · D, q_lora_rank]`.
    pub wq_b: Array2<f32>,
    /// `[D, hidden_size]`.
    pub wk: Array2<f32>,
    /// `[D]`.
    pub k_norm_weight: Array1<f32>,
    /// `[D]`.
    pub k_norm_bias: Array1<f32>,
    /// `[H, hidden_size]`.
    pub weights_proj: Array2<f32>,
}

/// Weights of the attention, `self_attn.*`; matrices are `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionWeights {
    /// `[q_lora_rank, hidden_size]`.
    pub q_a_proj: Array2<f32>,
    /// `[q_lora_rank]`.
    pub q_a_layernorm: Array1<f32>,
    /// `[h · (qk_nope + qk_rope), q_lora_rank]`; in each head nope comes first.
    pub q_b_proj: Array2<f32>,
    /// `[kv_lora_rank + qk_rope, hidden_size]`.
    pub kv_a_proj_with_mqa: Array2<f32>,
    /// `[kv_lora_rank]`.
    pub kv_a_layernorm: Array1<f32>,
    /// `[h · (qk_nope + v), kv_lora_rank]`; in each head the key's rows come first.
    pub kv_b_proj: Array2<f32>,
    /// `[hidden_size, h · v]`.
    pub o_proj: Array2<f32>,
    /// The indexer's.
    pub indexer: IndexerWeights,
}

impl AttentionWeights {
    /// Refuses a hidden state or weights that do not fit the configuration.
    pub(crate) fn check(&self, x: ArrayView2<f32>, config: &AttentionConfig) -> Result<()> {
        let c = config;
        let heads = |n: usize, dim: usize| n.saturating_mul(dim);
        let q_out = heads(c.num_attention_heads, c.qk_head_dim());
        let kv_a_out = c.kv_lora_rank.saturating_add(c.qk_rope_head_dim);
        let kv_b_out = heads(c.num_attention_heads, c.kv_b_head_dim());
        let o_in = heads(c.num_attention_heads, c.v_head_dim);
        let index_q_out = heads(c.index_n_heads, c.index_head_dim);
        let i = &self.indexer;
        check_shape("x", x.shape(), &[x.nrows(), c.hidden_size])?;
        check_shape("q_a_proj", self.q_a_proj.shape(), &[c.q_lora_rank, c.hidden_size])?;
        check_shape("q_a_layernorm", self.q_a_layernorm.shape(), &[c.q_lora_rank])?;
        check_shape("q_b_proj", self.q_b_proj.shape(), &[q_out, c.q_lora_rank])?;
        let kv_a = self.kv_a_proj_with_mqa.shape();
        check_shape("kv_a_proj_with_mqa", kv_a, &[kv_a_out, c.hidden_size])?;
        check_shape("kv_a_layernorm", self.kv_a_layernorm.shape(), &[c.kv_lora_rank])?;
        check_shape("kv_b_proj", self.kv_b_proj.shape(), &[kv_b_out, c.kv_lora_rank])?;
        check_shape("o_proj", self.o_proj.shape(), &[c.hidden_size, o_in])?;
        check_shape("indexer.wq_b", i.wq_b.shape(), &[index_q_out, c.q_lora_rank])?;
        check_shape("indexer.wk", i.wk.shape(), &[c.index_head_dim, c.hidden_size])?;
        check_shape("indexer.k_norm.weight", i.k_norm_weight.shape(), &[c.index_head_dim])?;
        check_shape("indexer.k_norm.bias", i.k_norm_bias.shape(), &[c.index_head_dim])?;
        let weights_proj = i.weights_proj.shape();
        check_shape("indexer.weights_proj", weights_proj, &[c.index_n_heads, c.hidden_size])?;
        let rope = c.qk_rope_head_dim;
        check_value("qk_rope_head_dim", rope, "even", rope.is_multiple_of(2))?;
        let holds_rope = c.index_head_dim >= rope;
        check_value("index_head_dim", c.index_head_dim, "at least qk_rope_head_dim", holds_rope)
    }
}

/// The points in which published versions of the model differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Options {
    /// Pairing of the main attention's rotary positions.
    pub pairing: Pairing,
    /// Pairing of the indexer's rotary positions.
    pub indexer_pairing: Pairing,
    /// Hadamard transform of the indexer's q and k.
    pub hadamard: bool,
    /// Indexer's q and k through e4m3, one scale a vector.
    pub index_fp8: bool,
    /// The latent c through e4m3 and back, one scale per 128; k_pe stays.
    pub kv_fp8: bool,
    /// How those scales are rounded.
    pub scale_fmt: ScaleFmt,
}

impl Default for Options {
    /// The corrected demo of November 2025.
    fn default() -> Self {
        Self {
            pairing: Pairing::Interleaved,
            indexer_pairing: Pairing::HalfSplit,
            hadamard: true,
            index_fp8: true,
            kv_fp8: true,
            scale_fmt: ScaleFmt::Ue8m0,
        }
    }
}
