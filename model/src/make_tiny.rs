//! A checkpoint of made-up weights in Hugging Face's layout: what a test or a measurement loads where no real one is.
//!
//! ```text
//! let make = MakeTiny { layers: Some(4), ..MakeTiny::like(Like::DeepseekV32) }.checked()?;
//! make.write(&device, Path::new("tiny"))?;
//! ```
//! The numbers are those of [`Random::stored_as`], so that the same model runs without a file.

use crate::config::{AttentionOptions, Config, Overrides};
use crate::error::Result;
use crate::weights::{Random, Stored};
use dsa_files::new_folder;
use dsa_kernels::Device;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

mod shards;
mod tokenizer;

/// Bytes of a shard at most, if no single tensor has more.
const SHARD_BYTES: u64 = 5_000_000_000;

/// The model that a made-up one is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// DeepSeek-V3.2: YaRN, groups of experts, half-split rotary pairs in the indexer.
    DeepseekV32,
    /// GLM-5: one group, interleaved pairs, an indexer in each layer.
    Glm5,
    /// GLM-5.2: GLM-5 of which most layers share an indexer's keys.
    Glm52,
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct MakeTiny {
    /// The model that it is like.
    pub like: Like,
    /// Layers; if `None`, few for small dimensions and all for true ones.
    pub layers: Option<usize>,
    /// The model's own dimensions instead of small ones.
    pub true_dims: bool,
    /// What the weights are stored in.
    pub stored: Stored,
    /// Decides the numbers.
    pub seed: u64,
    /// Which layers have an indexer, as in [`Overrides::share_index`].
    pub share_index: Option<String>,
}

impl MakeTiny {
    /// A small model in fp8.
    pub fn like(like: Like) -> Self {
        let stored = Stored::Fp8;
        Self { like, layers: None, true_dims: false, stored, seed: 0, share_index: None }
    }

    /// What will be made, checked.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for layers that are none or too many;
    /// [`Error::Argument`](crate::Error::Argument) for a pattern that does not fit them.
    pub fn checked(&self) -> Result<Checked> {
        let mut config = match self.like {
            Like::DeepseekV32 => Config::v32(),
            Like::Glm5 => Config::glm_5(),
            Like::Glm52 => Config::glm_5_2(),
        };
        if !self.true_dims {
            config = self.small(config);
        }
        let layers = self.layers.unwrap_or(config.num_hidden_layers);
        if self.like == Like::Glm52 {
            config.indexer_types = None;
        }
        config.num_hidden_layers = layers;
        config.num_nextn_predict_layers = 0;
        config.first_k_dense_replace = config.first_k_dense_replace.min(layers.saturating_sub(1));
        if self.stored != Stored::Fp8 {
            config.quantization = None;
            config.attention_options = AttentionOptions::EXACT;
        }
        config.validate()?;
        let glm_5_2 = (self.like == Like::Glm52).then(|| "4:3".to_string());
        let share_index = self.share_index.clone().or(glm_5_2);
        let (mut config, _) = Overrides { share_index, ..Overrides::default() }.apply(config)?;
        config.overrides.clear();
        let weights = Random::stored_as(self.seed, self.stored);
        let shards = shards::shards(&weights, &config, SHARD_BYTES)?;
        Ok(Checked { config, stored: self.stored, weights, shards })
    }

    /// The model made small. Few keys are selected, so that a text of a hundred tokens is sparse.
    fn small(&self, config: Config) -> Config {
        let glm = self.like != Like::DeepseekV32;
        let (specials, vocab_size) = (tokenizer::SMALL_SPECIALS, 320);
        let mut small = Config {
            vocab_size,
            hidden_size: 256,
            intermediate_size: 512,
            moe_intermediate_size: 128,
            num_hidden_layers: if self.like == Like::Glm52 { 8 } else { 4 },
            first_k_dense_replace: 1,
            num_attention_heads: 8,
            q_lora_rank: 128,
            kv_lora_rank: 128,
            qk_nope_head_dim: if glm { 48 } else { 32 },
            qk_rope_head_dim: 16,
            v_head_dim: if glm { 64 } else { 32 },
            n_routed_experts: 16,
            num_experts_per_tok: 4,
            n_group: if glm { 1 } else { 4 },
            topk_group: if glm { 1 } else { 2 },
            index_n_heads: 8,
            index_head_dim: 64,
            index_topk: 16,
            max_position_embeddings: 4096,
            indexer_types: None,
            ..config
        };
        if let Some(yarn) = &mut small.rope_scaling {
            yarn.original_max_position_embeddings = 256;
        }
        if glm {
            small.eos_token_id = [0, 7, 9].map(|nth| specials + nth).to_vec();
        }
        small
    }
}

/// A checkpoint that can be made.
#[derive(Clone, Debug)]
pub struct Checked {
    config: Config,
    stored: Stored,
    weights: Random,
    shards: Vec<shards::Shard>,
}

impl Checked {
    /// The model's configuration, as it will be in the folder.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of the weights' files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes()).sum()
    }

    /// The files of the weights.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Writes the checkpoint: the folder appears whole or not at all. The numbers are made on `device`, a part of a
    /// tensor at a time.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if `folder` is there and not empty, if the disk has no room, both before
    /// anything is written, and if it cannot be written; [`Error::Kernel`](crate::Error::Kernel) if the device fails.
    pub fn write(&self, device: &Device, folder: &Path) -> Result<()> {
        let texts = self.texts()?;
        let of_texts: usize = texts.iter().map(|(_, text)| text.len()).sum();
        new_folder(folder, self.bytes() + of_texts as u64, |to| {
            for shard in &self.shards {
                shard.write(device, &self.weights, to)?;
            }
            texts.iter().try_for_each(|(name, text)| {
                let path = to.join(name);
                fs::write(&path, text).map_err(crate::Error::io(&path))
            })
        })
    }

    /// The files beside the weights, and what is in them.
    fn texts(&self) -> Result<Vec<(&'static str, String)>> {
        let json = |detail: serde_json::Error| crate::Error::Json {
            what: "config.json".into(),
            detail: detail.to_string(),
        };
        let mut config: Value = serde_json::from_str(&self.config.to_json()).map_err(json)?;
        if self.stored == Stored::F32 {
            config["torch_dtype"] = json!("float32");
        }
        let text = |value: Value| format!("{value:#}\n");
        Ok(vec![
            ("model.safetensors.index.json", text(shards::index(&self.shards))),
            ("tokenizer.json", text(tokenizer::tokenizer(&self.config))),
            ("tokenizer_config.json", text(tokenizer::settings(&self.config))),
            ("chat_template.jinja", tokenizer::template(&self.config).to_string()),
            ("config.json", text(config)),
        ])
    }
}
