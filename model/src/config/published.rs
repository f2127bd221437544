//! The dimensions of published models, and of smaller ones that keep their proportions.

use super::{AttentionOptions, Config, Family, LATENT_NORM_EPS, Quantization, Yarn, sharing};
use crate::error::{Error, Result};

impl Config {
    /// DeepSeek-V3.2-Exp itself: 61 layers, 671.88 billion parameters, fp8 weights.
    pub fn v32() -> Self {
        Self {
            family: Family::DeepseekV32,
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
            indexer_types: None,
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
            latent_norm_eps: LATENT_NORM_EPS,
            bos_token_id: Some(0),
            eos_token_id: vec![1],
            quantization: Some(Quantization { ue8m0: true }),
            attention_options: AttentionOptions::OFFICIAL,
            overrides: Vec::new(),
        }
    }

    /// GLM-5-FP8, which GLM-5.1 equals: 78 layers, each with an indexer; scales are any f32.
    pub fn glm_5() -> Self {
        Self {
            family: Family::GlmMoeDsa,
            vocab_size: 154_880,
            hidden_size: 6144,
            intermediate_size: 12_288,
            num_hidden_layers: 78,
            num_attention_heads: 64,
            q_lora_rank: 2048,
            qk_nope_head_dim: 192,
            v_head_dim: 256,
            n_group: 1,
            topk_group: 1,
            index_n_heads: 32,
            indexer_rope_interleaved: true,
            max_position_embeddings: 202_752,
            rope_theta: 1e6,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            bos_token_id: None,
            eos_token_id: vec![154_820, 154_827, 154_829],
            quantization: Some(Quantization { ue8m0: false }),
            ..Self::v32()
        }
    }

    /// GLM-5.2-FP8: [`Config::glm_5`] for a million positions, with an indexer in 21 layers of 78.
    pub fn glm_5_2() -> Self {
        let full = Self::glm_5();
        Self {
            indexer_types: Some(sharing::schedule(full.num_hidden_layers, 4, 3)),
            max_position_embeddings: 1 << 20,
            rope_theta: 8e6,
            ..full
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
}
