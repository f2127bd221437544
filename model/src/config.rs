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

use std::fmt::Display;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;

use dsa_reference::attention_layer::{AttentionConfig, Options};
use dsa_reference::rope;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Weights and activations share one scale for each block of this many values.
pub const QUANT_BLOCK: usize = 128;

/// A configuration file larger than this is refused unread.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Kernels index the elements of one tensor with 32 bits.
const MAX_ELEMENTS: usize = u32::MAX as usize;
/// Positions are turned into f32 for the rotary angle, which is exact up to here.
const MAX_POSITIONS: usize = 1 << 24;

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
    /// Indexer's rotary pairs: (2i, 2i+1) if true, (i, i+d/2) if false, the default. GLM-5 sets
    /// true. Hugging Face spells it without the final d; both are read.
    #[serde(rename = "indexer_rope_interleave")]
    pub indexer_rope_interleaved: bool,
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

/// Weights in fp8 (e4m3) with one f32 scale for each block of 128 × 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Whether the scales of activations are powers of two (`scale_fmt` is `ue8m0`) or any f32.
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
    pub const OFFICIAL: Self = Self {
        hadamard: true,
        index_fp8: true,
        kv_fp8: true,
    };
    /// Exact arithmetic: none.
    pub const EXACT: Self = Self {
        hadamard: false,
        index_fp8: false,
        kv_fp8: false,
    };
}

impl Config {
    /// Reads and validates `path`, a configuration file or a folder with a `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Config`].
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_path_buf()
        };
        Self::from_json(&read_text(&file, MAX_CONFIG_BYTES)?).map_err(|error| match error {
            Error::Json { detail, .. } => Error::Json {
                what: file.display().to_string(),
                detail,
            },
            other => other,
        })
    }

    /// Reads and validates a configuration. Unknown fields are ignored, except those known to
    /// change the result in ways that are not supported.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Config`].
    pub fn from_json(text: &str) -> Result<Self> {
        let json = |detail| Error::Json {
            what: "configuration".into(),
            detail,
        };
        let value: Value = serde_json::from_str(text).map_err(|e| json(e.to_string()))?;
        let Value::Object(map) = value else {
            return Err(json("expected an object { … } with hidden_size, …".into()));
        };
        let demo = map.contains_key("dim") && !map.contains_key("hidden_size");
        let map = if demo { from_demo(map)? } else { map };
        let fields = Fields {
            map: &map,
            prefix: "",
        };
        let config = Self::from_fields(&fields)?;
        config.validate()?;
        check_supported(&fields, &config)?;
        Ok(config)
    }

    /// Takes every field from a map in the Hugging Face spelling.
    fn from_fields(f: &Fields) -> Result<Self> {
        let quantization = f
            .object("quantization_config")?
            .map(Quantization::from_fields);
        let quantization = quantization.transpose()?;
        let rope = f.object("rope_parameters")?.or(f.object("rope_scaling")?);
        let rope_theta = match rope
            .as_ref()
            .map(|r| r.optional("rope_theta"))
            .transpose()?
        {
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
            return Err(Error::config(
                "divisor",
                divisor,
                "a power of two from 1 to 64",
            ));
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

    /// Whether activation scales are rounded up to powers of two.
    pub fn ue8m0(&self) -> bool {
        self.quantization
            .is_none_or(|quantization| quantization.ue8m0)
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
        let AttentionOptions {
            hadamard,
            index_fp8,
            kv_fp8,
        } = self.attention_options;
        let indexer_pairing = match self.indexer_rope_interleaved {
            true => rope::Pairing::Interleaved,
            false => rope::Pairing::HalfSplit,
        };
        Options {
            indexer_pairing,
            hadamard,
            index_fp8,
            kv_fp8,
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

    /// Checks every bound; whoever builds a configuration by hand calls it.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that is out of bounds.
    pub fn validate(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_rotary()?;
        self.check_experts()?;
        self.check_options()?;
        self.check_products()
    }

    /// The bounds of single fields.
    fn check_sizes(&self) -> Result<()> {
        within(
            1..=1 << 20,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("moe_intermediate_size", self.moe_intermediate_size),
                ("q_lora_rank", self.q_lora_rank),
                ("kv_lora_rank", self.kv_lora_rank),
            ],
        )?;
        within(
            1..=4096,
            &[
                ("num_attention_heads", self.num_attention_heads),
                ("qk_nope_head_dim", self.qk_nope_head_dim),
                ("qk_rope_head_dim", self.qk_rope_head_dim),
                ("v_head_dim", self.v_head_dim),
                ("index_n_heads", self.index_n_heads),
            ],
        )?;
        within(
            1..=MAX_POSITIONS,
            &[
                ("index_topk", self.index_topk),
                ("max_position_embeddings", self.max_position_embeddings),
                ("vocab_size", self.vocab_size),
            ],
        )?;
        let (layers, dense) = (self.num_hidden_layers, self.first_k_dense_replace);
        within(1..=1024, &[("num_hidden_layers", layers)])?;
        within(0..=layers, &[("first_k_dense_replace", dense)])?;
        let extra = self.num_nextn_predict_layers;
        within(0..=16, &[("num_nextn_predict_layers", extra)])?;
        within(1e-12..=0.1, &[("rms_norm_eps", self.rms_norm_eps)])?;
        let last = self.vocab_size as u32 - 1;
        within(0..=last, &[("bos_token_id", self.bos_token_id)])?;
        let ends = self.eos_token_id.iter();
        ends.copied()
            .try_for_each(|id| within(0..=last, &[("eos_token_id", id)]))
    }

    /// The bounds of the rotary embedding.
    fn check_rotary(&self) -> Result<()> {
        let (rope, index) = (self.qk_rope_head_dim, self.index_head_dim);
        let expected = "an even number (values rotate in pairs)";
        check(rope.is_multiple_of(2), "qk_rope_head_dim", rope, expected)?;
        within(rope..=4096, &[("index_head_dim", index)])?;
        within(2.0..=1e12, &[("rope_theta", self.rope_theta)])?;
        let Some(yarn) = &self.rope_scaling else {
            return Ok(());
        };
        within(1.0..=1e6, &[("rope_scaling.factor", yarn.factor)])?;
        let (slow, fast) = (yarn.beta_slow, yarn.beta_fast);
        within(1e-6..=1e6, &[("rope_scaling.beta_slow", slow)])?;
        within(slow..=1e6, &[("rope_scaling.beta_fast", fast)])?;
        let m = yarn.mscale_all_dim;
        within(0.0..=100.0, &[("rope_scaling.mscale_all_dim", m)])?;
        let expected = format!("mscale_all_dim = {m} (cos and sin stay unscaled)");
        check(
            yarn.mscale == m,
            "rope_scaling.mscale",
            yarn.mscale,
            expected,
        )?;
        let original = yarn.original_max_position_embeddings;
        let field = "rope_scaling.original_max_position_embeddings";
        within(1..=MAX_POSITIONS, &[(field, original)])
    }

    /// The bounds of the experts and their groups.
    fn check_experts(&self) -> Result<()> {
        let (experts, groups) = (self.n_routed_experts, self.n_group);
        within(1..=1 << 14, &[("n_routed_experts", experts)])?;
        within(1..=64, &[("n_shared_experts", self.n_shared_experts)])?;
        within(1..=experts, &[("n_group", groups)])?;
        let expected = format!("a divisor of n_routed_experts = {experts}");
        check(experts.is_multiple_of(groups), "n_group", groups, expected)?;
        let group = experts / groups;
        let expected = format!("at least 2 of n_routed_experts = {experts} in a group");
        check(groups == 1 || group >= 2, "n_group", groups, expected)?;
        within(1..=groups, &[("topk_group", self.topk_group)])?;
        let most = self.topk_group * group;
        within(
            1..=most,
            &[("num_experts_per_tok", self.num_experts_per_tok)],
        )?;
        let factor = self.routed_scaling_factor;
        within(1e-6..=1e6, &[("routed_scaling_factor", factor)])
    }

    /// What the lossy steps of the attention ask of the widths.
    fn check_options(&self) -> Result<()> {
        let AttentionOptions {
            hadamard,
            index_fp8,
            kv_fp8,
        } = self.attention_options;
        let (index, latent) = (self.index_head_dim, self.kv_lora_rank);
        let right = !hadamard || index.is_power_of_two();
        let expected = "a power of two (attention_options.hadamard is on)";
        check(right, "index_head_dim", index, expected)?;
        let right = !index_fp8 || index <= QUANT_BLOCK;
        let expected = "at most 128: one scale a vector (attention_options.index_fp8 is on)";
        check(right, "index_head_dim", index, expected)?;
        let blocks = latent < QUANT_BLOCK || latent.is_multiple_of(QUANT_BLOCK);
        let expected = "a multiple of 128, or less (attention_options.kv_fp8 is on)";
        check(!kv_fp8 || blocks, "kv_lora_rank", latent, expected)
    }

    /// No weight has more elements than 32 bits can index. The factors are bounded by now.
    fn check_products(&self) -> Result<()> {
        let (hidden, heads, query) = (self.hidden_size, self.num_attention_heads, self.q_lora_rank);
        let shared = self.moe_intermediate_size * self.n_shared_experts;
        let expanded = self.qk_nope_head_dim + self.v_head_dim;
        let weights = [
            ("embed_tokens", [self.vocab_size, hidden, 1]),
            ("gate_proj", [self.intermediate_size, hidden, 1]),
            ("shared_experts.gate_proj", [shared, hidden, 1]),
            ("gate", [self.n_routed_experts, hidden, 1]),
            ("q_a_proj", [query, hidden, 1]),
            ("q_b_proj", [heads, self.qk_head_dim(), query]),
            ("kv_a_proj_with_mqa", [self.latent_dim(), hidden, 1]),
            ("kv_b_proj", [heads, expanded, self.kv_lora_rank]),
            ("o_proj", [heads, self.v_head_dim, hidden]),
            (
                "indexer.wq_b",
                [self.index_n_heads, self.index_head_dim, query],
            ),
            ("indexer.wk", [self.index_head_dim, hidden, 1]),
            ("indexer.weights_proj", [self.index_n_heads, hidden, 1]),
        ];
        for (name, [a, b, c]) in weights {
            let elements = a.checked_mul(b).and_then(|ab| ab.checked_mul(c));
            let right = elements.is_some_and(|n| n <= MAX_ELEMENTS);
            let expected = format!("a product of at most {MAX_ELEMENTS} (elements of one weight)");
            let field = format!("the size of {name}.weight");
            check(right, &field, format!("{a} × {b} × {c}"), expected)?;
        }
        Ok(())
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
        Ok(Self {
            ue8m0: f.present("scale_fmt").is_some(),
        })
    }
}

impl AttentionOptions {
    /// Takes the fields of `attention_options`; those absent are as `quantised` says.
    fn from_fields(f: &Fields, quantised: bool) -> Result<Self> {
        let default = if quantised {
            Self::OFFICIAL
        } else {
            Self::EXACT
        };
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
        if config.is_moe_layer(layer) {
            "sparse"
        } else {
            "dense"
        }
    };
    let layers = config.num_hidden_layers;
    let same = types.len() == layers && types.iter().enumerate().all(|(i, t)| t == kind(i));
    let dense = config.first_k_dense_replace;
    let expected = format!("{dense} dense, then sparse, {layers} in all");
    check(same, "mlp_layer_types", format!("{types:?}"), expected)
}

/// The demo's names, and ours.
const DEMO_NAMES: [(&str, &str); 12] = [
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
    let f = Fields {
        map: &demo,
        prefix: "",
    };
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

/// Fails with the first of `fields` that is not in `range`.
fn within<T>(range: RangeInclusive<T>, fields: &[(&str, T)]) -> Result<()>
where
    T: PartialOrd + Display,
{
    fields.iter().try_for_each(|(field, value)| {
        let expected = format!("{} to {}", range.start(), range.end());
        check(range.contains(value), field, value, expected)
    })
}

/// Fails with `field`, `value` and what was expected, unless `right`.
fn check(
    right: bool,
    field: &str,
    value: impl ToString,
    expected: impl Into<String>,
) -> Result<()> {
    if right {
        Ok(())
    } else {
        Err(Error::config(field, value, expected))
    }
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
        let demo = DEMO_NAMES
            .iter()
            .find(|(_, ours)| self.prefix.is_empty() && *ours == name);
        let demo = demo.map_or(String::new(), |(theirs, _)| {
            format!(" (the demo's {theirs})")
        });
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
        match self.present(name) {
            Some(value) if *value != only => Err(self.error(name, value, &only.to_string())),
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
    file.take(limit + 1)
        .read_to_string(&mut text)
        .map_err(Error::io(path))?;
    if text.len() as u64 > limit {
        return Err(refuse(format!(
            "{} bytes, expected at most {limit}",
            size.len()
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny");

    /// V3.2's configuration with some fields replaced, as the reader sees it.
    fn changed(changes: &[(&str, Value)]) -> Result<Config> {
        let mut value: Value = serde_json::from_str(&Config::v32().to_json()).unwrap();
        for (name, change) in changes {
            value[name] = change.clone();
        }
        Config::from_json(&value.to_string())
    }

    #[test]
    fn v32_has_the_published_scales() {
        let config = Config::v32();
        config.validate().unwrap();
        assert!((config.softmax_scale() - 0.1352337789).abs() < 1e-10);
        assert!((config.index_scale() - 0.0110485435).abs() < 1e-10);
        assert_eq!(
            (config.qk_head_dim(), config.latent_dim(), config.ue8m0()),
            (192, 576, true)
        );
        assert!(!config.is_moe_layer(2) && config.is_moe_layer(3));
        assert_eq!(config.reference_options(), Options::default());
    }

    #[test]
    fn every_scaled_configuration_is_valid_and_survives_a_round_trip() {
        for divisor in [1, 2, 4, 8, 16, 32, 64] {
            let config = Config::scaled(divisor).unwrap();
            assert_eq!(config.num_attention_heads * divisor, 128);
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        }
        for divisor in [0, 3, 128, usize::MAX] {
            assert!(Config::scaled(divisor).is_err(), "{divisor}");
        }
        assert_eq!(changed(&[]).unwrap(), Config::v32());
    }

    #[test]
    fn golden_tiny_is_read_with_the_newer_rope_spelling() {
        let config = Config::read(Path::new(TINY)).unwrap();
        let yarn = config.rope_scaling.as_ref().unwrap();
        assert_eq!(
            (yarn.factor, yarn.original_max_position_embeddings),
            (40.0, 64)
        );
        assert_eq!(
            (
                config.index_n_heads,
                config.index_head_dim,
                config.index_topk
            ),
            (16, 32, 24)
        );
        assert_eq!(config.attention_options, AttentionOptions::EXACT);
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn the_demo_file_is_the_same_model() {
        let demo = r#"{"vocab_size": 129280, "dim": 7168, "inter_dim": 18432,
            "moe_inter_dim": 2048, "n_layers": 61, "n_dense_layers": 3, "n_heads": 128,
            "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 8,
            "n_expert_groups": 8, "n_limited_groups": 4, "route_scale": 2.5,
            "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
            "scale_fmt": "ue8m0", "index_n_heads": 64, "index_head_dim": 128,
            "index_topk": 2048}"#;
        let expected = Config {
            num_nextn_predict_layers: 0,
            max_position_embeddings: 16_384,
            ..Config::v32()
        };
        assert_eq!(Config::from_json(demo).unwrap(), expected);
        let error = Config::from_json(r#"{"dim": 64, "vocab_size": 9}"#)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("inter_dim") && error.contains("missing"),
            "{error}"
        );
    }

    #[test]
    fn glm_5_has_plain_rope_and_an_interleaved_indexer() {
        let config = changed(&[
            ("rope_scaling", Value::Null),
            (
                "rope_parameters",
                json!({ "rope_type": "default", "rope_theta": 8e6 }),
            ),
            ("indexer_rope_interleave", json!(true)),
            ("eos_token_id", json!([5, 6])),
        ]);
        let config = config.unwrap();
        assert_eq!(
            (config.rope_theta, config.rope_scaling.is_none()),
            (8e6, true)
        );
        assert_eq!(
            (config.indexer_rope_interleaved, config.eos_token_id.len()),
            (true, 2)
        );
        assert!((config.softmax_scale() - 192f64.powf(-0.5)).abs() < 1e-15);
    }

    #[test]
    fn options_can_be_set_one_by_one() {
        let options = changed(&[("attention_options", json!({ "hadamard": false }))]);
        let expected = AttentionOptions {
            hadamard: false,
            ..AttentionOptions::OFFICIAL
        };
        assert_eq!(options.unwrap().attention_options, expected);
    }

    #[test]
    fn a_wrong_field_is_named_with_its_value() {
        let yarn = |name: &str, value: Value| {
            let mut rope = json!({ "type": "yarn", "factor": 40,
                "original_max_position_embeddings": 4096, "mscale": 1, "mscale_all_dim": 1 });
            rope[name] = value;
            rope
        };
        let huge = json!(u64::MAX);
        for (name, value, said) in [
            ("hidden_size", json!(-1), "-1"),
            ("hidden_size", json!("7168"), "\"7168\""),
            ("hidden_size", json!(7168.5), "7168.5"),
            ("hidden_size", Value::Null, "missing"),
            ("hidden_size", json!(1e300), "1e+300"),
            ("vocab_size", huge.clone(), "18446744073709551615"),
            ("num_hidden_layers", huge, "18446744073709551615"),
            ("index_topk", json!(0), "is 0"),
            ("qk_rope_head_dim", json!(63), "63"),
            ("index_head_dim", json!(32), "64 to 4096"),
            ("index_head_dim", json!(96), "power of two"),
            ("index_head_dim", json!(256), "at most 128"),
            ("kv_lora_rank", json!(200), "multiple of 128"),
            ("n_group", json!(7), "divisor of n_routed_experts = 256"),
            ("n_group", json!(256), "at least 2"),
            ("topk_group", json!(9), "1 to 8"),
            ("num_experts_per_tok", json!(129), "1 to 128"),
            ("first_k_dense_replace", json!(62), "0 to 61"),
            ("num_key_value_heads", json!(8), "128"),
            ("eos_token_id", json!([1, 129_280]), "129280"),
            ("rms_norm_eps", json!(0), "is 0"),
            ("scoring_func", json!("softmax"), "sigmoid"),
            ("tie_word_embeddings", json!(true), "false"),
            ("index_topk_freq", json!(4), "4"),
            ("indexer_types", json!(["full", "shared"]), "shared"),
            ("mlp_layer_types", json!(["dense"]), "61 in all"),
            ("rope_scaling", json!([1]), "object"),
            (
                "rope_scaling",
                yarn("factor", json!(0.5)),
                "rope_scaling.factor is 0.5",
            ),
            ("rope_scaling", yarn("type", json!("linear")), "linear"),
            (
                "rope_scaling",
                yarn("mscale", json!(0.7)),
                "rope_scaling.mscale is 0.7",
            ),
            (
                "quantization_config",
                json!({ "quant_method": "awq" }),
                "awq",
            ),
            (
                "attention_options",
                json!({ "hadamard": 1 }),
                "true or false",
            ),
        ] {
            let error = changed(&[(name, value.clone())]).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "{error}");
            let error = error.to_string();
            assert!(
                error.contains(name) && error.contains(said),
                "{name} {value}: {error}"
            );
        }
    }

    #[test]
    fn products_beyond_32_bits_are_refused() {
        let wide = json!(1 << 20);
        let changes = [("intermediate_size", wide.clone()), ("hidden_size", wide)];
        let error = changed(&changes).unwrap_err().to_string();
        assert!(
            error.contains("embed_tokens") && error.contains("4294967295"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in [
            "",
            "[]",
            "3",
            "{",
            "{}",
            "{\"dim\": {}}",
            &"[".repeat(100_000),
        ] {
            assert!(Config::from_json(text).is_err());
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Config::read(folder.path()), Err(Error::Io { .. })));
        let file = folder.path().join("config.json");
        std::fs::write(&file, "{").unwrap();
        let error = Config::read(&file).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && error.contains("line 1"),
            "{error}"
        );
        std::fs::write(&file, " ".repeat(MAX_CONFIG_BYTES as usize + 1)).unwrap();
        assert!(matches!(Config::read(&file), Err(Error::Io { .. })));
        if cfg!(unix) {
            assert!(matches!(
                Config::read(Path::new("/dev/zero")),
                Err(Error::Io { .. })
            ));
        }
    }

    /// JSON values of every kind, with the numbers that break arithmetic.
    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0u32..64).prop_map(|bits| json!(u64::MAX >> bits)),
            (0u64..300).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9]{0,8}".prop_map(Value::from),
            prop::collection::vec(0u32..9, 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,9}", 0u32..9), 0..3)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k, json!(v))).collect()),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_not_a_panic(text in "\\PC{0,200}") {
            prop_assert!(Config::from_json(&text).is_err());
        }

        #[test]
        fn any_changed_field_is_an_error_or_a_valid_configuration(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
            demo in any::<bool>(),
        ) {
            let mut map: Map<String, Value> =
                serde_json::from_str(&Config::v32().to_json()).unwrap();
            if demo {
                for (theirs, ours) in DEMO_NAMES {
                    let value = map.remove(ours).unwrap();
                    map.insert(theirs.into(), value);
                }
            }
            for (index, value) in changes {
                let name = index.get(&map.keys().cloned().collect::<Vec<_>>()).clone();
                map.insert(name, value);
            }
            if let Ok(config) = Config::from_json(&Value::Object(map).to_string()) {
                config.validate().unwrap();
                prop_assert!(config.softmax_scale().is_finite());
                let again = Config::from_json(&config.to_json());
                prop_assert!(again.is_ok(), "{:?}", again);
            }
        }
    }
}
