//! Making a layer: its weights brought to a device.

use super::Attention;
use super::heads::KvB;
use super::indexer::Indexer;
use super::weights::{Uploader, random_weights, read_weights};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::WeightPath;
use dsa_kernels::indexer::ScoreFn;
use dsa_kernels::top_k::Policy;
use dsa_kernels::{DType, Device};
use dsa_reference::attention_layer::AttentionWeights;

impl Attention {
    /// The layer whose weights are below `weights` (`model.layers.N.self_attn`), in `dtype`, f32 or
    /// bf16, which is the type of its input and output too.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::Dtype`] for the weights;
    /// [`Error::Argument`] for another `dtype`; [`Error::Kernel`] if the device refuses.
    pub fn new(
        device: &Device,
        config: &Config,
        weights: &WeightPath,
        dtype: DType,
    ) -> Result<Self> {
        Self::from_weights(device, config, &read_weights(config, weights)?, dtype)
    }

    /// A layer with [`random_weights`], for measuring.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn random(device: &Device, config: &Config, dtype: DType, seed: u64) -> Result<Self> {
        Self::from_weights(device, config, &random_weights(config, seed)?, dtype)
    }

    /// A layer with weights that are in memory, which are rounded to `dtype`.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn from_weights(
        device: &Device,
        c: &Config,
        w: &AttentionWeights,
        dtype: DType,
    ) -> Result<Self> {
        let float = [DType::F32, DType::Bf16].contains(&dtype);
        Error::check(float, "dtype", dtype, "f32 or bf16")?;
        let to = Uploader { device, dtype };
        let (hidden, heads, query) = (c.hidden_size, c.num_attention_heads, c.q_lora_rank);
        let (q_out, o_in) = (heads * c.qk_head_dim(), heads * c.v_head_dim);
        let kv_a = &w.kv_a_proj_with_mqa;
        Ok(Self {
            q_a_proj: to.matrix("q_a_proj", &w.q_a_proj, [query, hidden])?,
            q_a_layernorm: to.vector("q_a_layernorm", &w.q_a_layernorm, query)?,
            q_b_proj: to.matrix("q_b_proj", &w.q_b_proj, [q_out, query])?,
            kv_a_proj_with_mqa: to.matrix("kv_a_proj_with_mqa", kv_a, [c.latent_dim(), hidden])?,
            kv_a_layernorm: to.vector("kv_a_layernorm", &w.kv_a_layernorm, c.kv_lora_rank)?,
            kv_b_proj: KvB::new(&to, c, &w.kv_b_proj)?,
            o_proj: to.matrix("o_proj", &w.o_proj, [hidden, o_in])?,
            indexer: Indexer::new(&to, c, &w.indexer)?,
            device: device.clone(),
            config: c.clone(),
            dtype,
            score_fn: ScoreFn::default(),
            policy: Policy::default(),
            expand_short_prefill: false,
        })
    }
}
