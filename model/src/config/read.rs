//! Reading a configuration from either spelling of JSON, and writing it back.

use std::path::Path;

use dsa_files::read_text;
use serde_json::{Value, json};

use super::check::check_layers;
use super::fields::Fields;
use super::known::{check_supported, fixed};
use super::{AttentionOptions, Config, Family, Quantization};
use super::{demo, feed_forward, rotary, sharing, storage};
use crate::error::{Error, Result};
use crate::json;

/// A configuration file larger than this is refused unread.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads and validates `path`, a configuration file or a folder with a `config.json`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Json`], [`Error::Config`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        Self::from_json(&read_text(&file, MAX_CONFIG_BYTES)?).map_err(|mut error| {
            if let Error::Json { what, .. } | Error::Config { what, .. } = &mut error {
                *what = file.display().to_string();
            }
            error
        })
    }

    /// Reads and validates a configuration. What decides the result is a closed set: a field that is
    /// neither read nor known to decide nothing is refused by name.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Config`].
    pub fn from_json(text: &str) -> Result<Self> {
        let json = |detail| Error::Json { what: "configuration".into(), detail };
        let Value::Object(map) = json::parse(text).map_err(json)? else {
            return Err(json("expected an object { … } with hidden_size, …".into()));
        };
        let demo = map.contains_key("dim") && !map.contains_key("model_type");
        let map = if demo { demo::to_hugging_face(map)? } else { map };
        let fields = Fields { map: &map, prefix: "" };
        let config = Self::from_fields(&fields)?;
        config.validate()?;
        check_supported(&fields, &config)?;
        Ok(config)
    }

    /// Takes every field from a map in the Hugging Face spelling.
    fn from_fields(f: &Fields) -> Result<Self> {
        // First, since another family lacks fields that would be called missing.
        let family = Family::read(f)?;
        let defaults = family.defaults();
        // Before anything is made for each layer.
        let num_hidden_layers = f.required("num_hidden_layers")?;
        check_layers(num_hidden_layers)?;
        let quantization = f.object("quantization_config", "quantization_config.")?;
        let quantization = quantization.as_ref().map(Quantization::from_fields).transpose()?;
        let (rope_theta, rope_scaling) = rotary::read(f, defaults.rope_theta)?;
        Ok(Self {
            family,
            vocab_size: f.required("vocab_size")?,
            hidden_size: f.required("hidden_size")?,
            intermediate_size: f.required("intermediate_size")?,
            moe_intermediate_size: f.required("moe_intermediate_size")?,
            num_hidden_layers,
            first_k_dense_replace: feed_forward::dense_layers(f, num_hidden_layers)?,
            num_nextn_predict_layers: f.or("num_nextn_predict_layers", 0)?,
            num_attention_heads: f.required("num_attention_heads")?,
            q_lora_rank: f.required("q_lora_rank")?,
            kv_lora_rank: f.required("kv_lora_rank")?,
            qk_nope_head_dim: f.required("qk_nope_head_dim")?,
            qk_rope_head_dim: f.required("qk_rope_head_dim")?,
            v_head_dim: f.required("v_head_dim")?,
            n_routed_experts: f.required("n_routed_experts")?,
            n_shared_experts: f.required("n_shared_experts")?,
            num_experts_per_tok: f.required("num_experts_per_tok")?,
            n_group: f.required("n_group")?,
            topk_group: f.required("topk_group")?,
            norm_topk_prob: f.or("norm_topk_prob", true)?,
            routed_scaling_factor: f.required("routed_scaling_factor")?,
            index_n_heads: f.required("index_n_heads")?,
            index_head_dim: f.required("index_head_dim")?,
            index_topk: f.required("index_topk")?,
            indexer_types: sharing::read(f, num_hidden_layers)?,
            indexer_rope_interleaved: indexer_pairing(f)?
                .unwrap_or(defaults.indexer_rope_interleaved),
            rope_interleaved: f.or("rope_interleave", true)?,
            max_position_embeddings: f.required("max_position_embeddings")?,
            rope_theta,
            rope_scaling,
            rms_norm_eps: f.or("rms_norm_eps", defaults.rms_norm_eps)?,
            latent_norm_eps: storage::latent_norm_eps(f)?,
            bos_token_id: f.optional("bos_token_id")?.or(defaults.bos_token_id),
            eos_token_id: match (f.present("eos_token_id"), defaults.eos_token_id) {
                (Some(Value::Array(_)), _) => f.required("eos_token_id")?,
                (None, Some(id)) => vec![id],
                _ => vec![f.required("eos_token_id")?],
            },
            attention_options: AttentionOptions::from_fields(f, quantization.is_some())?,
            quantization,
            overrides: Vec::new(),
        })
    }

    /// The configuration as a Hugging Face `config.json`, which [`Config::from_json`] reads back.
    pub fn to_json(&self) -> String {
        let mut value = json!(self);
        for (name, fixed, _) in fixed() {
            value[name] = fixed;
        }
        value["architectures"] = json!([self.family.classes()[0]]);
        value["model_type"] = json!(self.family.model_type());
        value["attention_options"]["latent_norm_eps"] = json!(self.latent_norm_eps);
        value["num_key_value_heads"] = json!(self.num_attention_heads);
        value["torch_dtype"] = json!("bfloat16");
        if self.rope_scaling.is_some() {
            value["rope_scaling"]["type"] = json!("yarn");
        }
        if let Some(Quantization { ue8m0 }) = self.quantization {
            let fixed = Quantization::fixed_fields();
            value["quantization_config"] = fixed.into_iter().collect();
            let format = if ue8m0 { "ue8m0" } else { "float" };
            value["quantization_config"]["scale_fmt"] = json!(format);
        }
        format!("{value:#}\n")
    }
}

/// Whether the indexer's rotary pairs are interleaved, by either spelling.
fn indexer_pairing(f: &Fields) -> Result<Option<bool>> {
    let short: Option<bool> = f.optional("indexer_rope_interleave")?;
    let long: Option<bool> = f.optional("indexer_rope_interleaved")?;
    if let (Some(short), Some(long)) = (short, long) {
        let expected = format!("{short}, as indexer_rope_interleave says");
        f.check(short == long, "indexer_rope_interleaved", long, &expected)?;
    }
    Ok(short.or(long))
}
