//! Reading a configuration from either spelling of JSON, field by field, and writing it back.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::check::check;
use super::{AttentionOptions, Config, QUANT_BLOCK, Quantization, Yarn};
use crate::error::{Error, Result};

/// A configuration file larger than this is refused unread.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads and validates `path`, a configuration file or a folder with a `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Config`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        Self::from_json(&read_text(&file, MAX_CONFIG_BYTES)?).map_err(|error| match error {
            Error::Json { detail, .. } => Error::Json { what: file.display().to_string(), detail },
            other => other,
        })
    }

    /// Reads and validates a configuration. Unknown fields are ignored, except those known to
    /// change the result in ways that are not supported.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Config`].
    pub fn from_json(text: &str) -> Result<Self> {
        let json = |detail| Error::Json { what: "configuration".into(), detail };
        let value: Value = serde_json::from_str(text).map_err(|e| json(e.to_string()))?;
        let Value::Object(map) = value else {
            return Err(json("expected an object { … } with hidden_size, …".into()));
        };
        let demo = map.contains_key("dim") && !map.contains_key("hidden_size");
        let map = if demo { from_demo(map)? } else { map };
        let fields = Fields { map: &map, prefix: "" };
        let config = Self::from_fields(&fields)?;
        config.validate()?;
        check_supported(&fields, &config)?;
        Ok(config)
    }

    /// Takes every field from a map in the Hugging Face spelling.
    fn from_fields(f: &Fields) -> Result<Self> {
        let quantization = f.object("quantization_config")?.map(Quantization::from_fields);
        let quantization = quantization.transpose()?;
        let rope = f.object("rope_parameters")?.or(f.object("rope_scaling")?);
        let rope_theta = match rope.as_ref().map(|r| r.optional("rope_theta")).transpose()? {
            Some(Some(theta)) => theta,
            _ => f.or("rope_theta", 10_000.0)?,
        };
        let interleaved = f.optional("indexer_rope_interleaved")?;
        Ok(Self {
            vocab_size: f.required("vocab_size")?,
            hidden_size: f.required("hidden_size")?,
            intermediate_size: f.required("intermediate_size")?,
            moe_intermediate_size: f.required("moe_intermediate_size")?,
            num_hidden_layers: f.required("num_hidden_layers")?,
            first_k_dense_replace: f.required("first_k_dense_replace")?,
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
            indexer_rope_interleaved: match interleaved {
                Some(interleaved) => interleaved,
                None => f.or("indexer_rope_interleave", false)?,
            },
            max_position_embeddings: f.required("max_position_embeddings")?,
            rope_theta,
            rope_scaling: rope.map(|r| Yarn::from_fields(&r)).transpose()?.flatten(),
            rms_norm_eps: f.or("rms_norm_eps", 1e-6)?,
            bos_token_id: f.or("bos_token_id", 0)?,
            eos_token_id: match f.map.get("eos_token_id") {
                Some(Value::Array(_)) => f.required("eos_token_id")?,
                _ => vec![f.or("eos_token_id", 1)?],
            },
            attention_options: AttentionOptions::from_fields(f, quantization.is_some())?,
            quantization,
        })
    }

    /// The configuration as a Hugging Face `config.json`, which [`Config::from_json`] reads back.
    pub fn to_json(&self) -> String {
        let mut value = json!(self);
        for (name, fixed) in fixed_fields() {
            value[name] = fixed;
        }
        value["architectures"] = json!(["DeepseekV32ForCausalLM"]);
        value["model_type"] = json!("deepseek_v32");
        value["num_key_value_heads"] = json!(self.num_attention_heads);
        value["torch_dtype"] = json!("bfloat16");
        if self.rope_scaling.is_some() {
            value["rope_scaling"]["type"] = json!("yarn");
        }
        if let Some(Quantization { ue8m0 }) = self.quantization {
            let fixed = Quantization::fixed_fields();
            value["quantization_config"] = fixed.into_iter().collect();
            value["quantization_config"]["scale_fmt"] = json!(ue8m0.then_some("ue8m0"));
        }
        format!("{value:#}\n")
    }
}

impl Yarn {
    /// Takes the fields of a `rope_scaling`; `None` for the plain rotary embedding.
    fn from_fields(f: &Fields) -> Result<Option<Self>> {
        let kind: String = match f.optional("rope_type")? {
            Some(kind) => kind,
            None => f.or("type", "default".to_string())?,
        };
        match kind.as_str() {
            "default" => return Ok(None),
            "yarn" => {}
            other => return Err(f.error("rope_type", other, "\"yarn\" or \"default\"")),
        }
        f.must_be("attention_factor", json!(1.0))?;
        f.must_be("truncate", json!(true))?;
        Ok(Some(Self {
            factor: f.required("factor")?,
            original_max_position_embeddings: f.required("original_max_position_embeddings")?,
            beta_fast: f.or("beta_fast", 32.0)?,
            beta_slow: f.or("beta_slow", 1.0)?,
            mscale: f.required("mscale")?,
            mscale_all_dim: f.required("mscale_all_dim")?,
        }))
    }
}

impl Quantization {
    /// The fields of a `quantization_config` that have one supported value.
    fn fixed_fields() -> [(&'static str, Value); 4] {
        [
            ("activation_scheme", json!("dynamic")),
            ("fmt", json!("e4m3")),
            ("quant_method", json!("fp8")),
            ("weight_block_size", json!([QUANT_BLOCK, QUANT_BLOCK])),
        ]
    }

    /// Takes the fields of a `quantization_config`.
    fn from_fields(f: Fields) -> Result<Self> {
        for (name, value) in Self::fixed_fields() {
            f.must_be(name, value)?;
        }
        f.must_be("scale_fmt", json!("ue8m0"))?;
        Ok(Self { ue8m0: f.present("scale_fmt").is_some() })
    }
}

impl AttentionOptions {
    /// Takes the fields of `attention_options`; those absent are as `quantised` says.
    fn from_fields(f: &Fields, quantised: bool) -> Result<Self> {
        let default = if quantised { Self::OFFICIAL } else { Self::EXACT };
        let Some(f) = f.object("attention_options")? else {
            return Ok(default);
        };
        Ok(Self {
            hadamard: f.or("hadamard", default.hadamard)?,
            index_fp8: f.or("index_fp8", default.index_fp8)?,
            kv_fp8: f.or("kv_fp8", default.kv_fp8)?,
        })
    }
}

/// Fields of a Hugging Face file that have one supported value, which is also their default.
fn fixed_fields() -> [(&'static str, Value); 7] {
    [
        ("attention_bias", json!(false)),
        ("hidden_act", json!("silu")),
        ("mlp_bias", json!(false)),
        ("moe_layer_freq", json!(1)),
        ("scoring_func", json!("sigmoid")),
        ("tie_word_embeddings", json!(false)),
        ("topk_method", json!("noaux_tc")),
    ]
}

/// Refuses what would make the same weights compute something else than this crate does.
fn check_supported(f: &Fields, config: &Config) -> Result<()> {
    for (name, value) in fixed_fields() {
        f.must_be(name, value)?;
    }
    f.must_be("num_key_value_heads", json!(config.num_attention_heads))?;
    f.must_be("qk_head_dim", json!(config.qk_head_dim()))?;
    // GLM-5.2 and later share one layer's top-k with the next layers, or score groups of keys.
    f.must_be("index_topk_freq", json!(1))?;
    f.must_be("index_topk_pattern", Value::Null)?;
    f.must_be("index_kpool", json!(1))?;
    f.must_be("mla_use_nope", json!(false))?;
    let types: Vec<String> = f.or("indexer_types", Vec::new())?;
    if let Some(other) = types.iter().find(|t| *t != "full") {
        return Err(f.error("indexer_types", other, "\"full\" in every layer"));
    }
    let types: Vec<String> = f.or("mlp_layer_types", Vec::new())?;
    if types.is_empty() {
        return Ok(());
    }
    let kind = |layer| {
        if config.is_moe_layer(layer) { "sparse" } else { "dense" }
    };
    let layers = config.num_hidden_layers;
    let same = types.len() == layers && types.iter().enumerate().all(|(i, t)| t == kind(i));
    let dense = config.first_k_dense_replace;
    let expected = format!("{dense} dense, then sparse, {layers} in all");
    check(same, "mlp_layer_types", format!("{types:?}"), expected)
}

/// The demo's names, and ours.
pub(super) const DEMO_NAMES: [(&str, &str); 12] = [
    ("dim", "hidden_size"),
    ("inter_dim", "intermediate_size"),
    ("moe_inter_dim", "moe_intermediate_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_dense_layers", "first_k_dense_replace"),
    ("n_heads", "num_attention_heads"),
    ("n_activated_experts", "num_experts_per_tok"),
    ("n_expert_groups", "n_group"),
    ("n_limited_groups", "topk_group"),
    ("score_func", "scoring_func"),
    ("route_scale", "routed_scaling_factor"),
    ("max_seq_len", "max_position_embeddings"),
];

/// Rewrites the demo's configuration in the Hugging Face spelling, with the defaults that the demo
/// keeps in its code. YaRN is always on: the demo turns it off for `max_seq_len` ≤ 4096, which is
/// not what the weights were trained for.
fn from_demo(demo: Map<String, Value>) -> Result<Map<String, Value>> {
    let f = Fields { map: &demo, prefix: "" };
    let mscale: f64 = f.or("mscale", 1.0)?;
    let rope = json!({
        "type": "yarn",
        "factor": f.or("rope_factor", 40.0)?,
        "original_max_position_embeddings": f.or("original_seq_len", 4096usize)?,
        "beta_fast": f.or("beta_fast", 32.0)?,
        "beta_slow": f.or("beta_slow", 1.0)?,
        "mscale": mscale,
        "mscale_all_dim": mscale,
    });
    let mut map = Map::new();
    match f.or("dtype", "bf16".to_string())?.as_str() {
        "bf16" => {}
        "fp8" => {
            let scale: Option<String> = f.optional("scale_fmt")?;
            let quantization = json!({ "quant_method": "fp8", "scale_fmt": scale });
            map.insert("quantization_config".into(), quantization);
        }
        other => return Err(f.error("dtype", other, "\"fp8\" or \"bf16\"")),
    }
    map.insert("rope_scaling".into(), rope);
    map.insert("max_position_embeddings".into(), json!(16_384));
    for (name, value) in demo {
        let ours = DEMO_NAMES.iter().find(|(theirs, _)| *theirs == name);
        map.insert(ours.map_or(name, |(_, ours)| ours.to_string()), value);
    }
    Ok(map)
}

/// One JSON object, read field by field so that every error names its field. `null` is absent.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    fn present(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An error about field `name`, with the demo's name for it where it has another.
    fn error(&self, name: &str, value: impl ToString, expected: &str) -> Error {
        let demo = DEMO_NAMES.iter().find(|(_, ours)| self.prefix.is_empty() && *ours == name);
        let demo = demo.map_or(String::new(), |(theirs, _)| format!(" (the demo's {theirs})"));
        Error::config(format!("{}{name}{demo}", self.prefix), value, expected)
    }

    fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let read = |value: &Value| {
            T::deserialize(value).map_err(|e| self.error(name, value, &wanted(&e.to_string())))
        };
        self.present(name).map(read).transpose()
    }

    fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let missing = || self.error(name, "missing", "a value (it has no default)");
        self.optional(name)?.ok_or_else(missing)
    }

    fn or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    fn object(&self, name: &'static str) -> Result<Option<Fields<'a>>> {
        let prefix = match name {
            "quantization_config" => "quantization_config.",
            "attention_options" => "attention_options.",
            "rope_parameters" => "rope_parameters.",
            _ => "rope_scaling.",
        };
        match self.present(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix })),
            Some(other) => Err(self.error(name, other, "an object { … }")),
        }
    }

    /// A field that is absent or has the one value supported.
    fn must_be(&self, name: &str, only: Value) -> Result<()> {
        let same = |value: &Value| match (value.as_f64(), only.as_f64()) {
            (Some(value), Some(only)) => value == only,
            _ => *value == only,
        };
        match self.present(name) {
            Some(value) if !same(value) => Err(self.error(name, value, &only.to_string())),
            _ => Ok(()),
        }
    }
}

/// What serde's message says it expected, in plain words.
fn wanted(message: &str) -> String {
    match message.rsplit("expected ").next() {
        Some("usize" | "u32") => "a whole number, 0 or more".into(),
        Some("f64") => "a number".into(),
        Some("a boolean") => "true or false".into(),
        other => other.unwrap_or("another type").into(),
    }
}

/// Reads a text file of at most `limit` bytes; a device or a pipe is refused.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let refuse = |why: String| Error::io(path)(std::io::Error::other(why));
    let size = std::fs::metadata(path).map_err(Error::io(path))?;
    if !size.is_file() {
        return Err(refuse("not a file".into()));
    }
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > limit {
        return Err(refuse(format!("{} bytes, expected at most {limit}", size.len())));
    }
    Ok(text)
}
