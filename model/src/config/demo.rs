//! The spelling of the official demo (`dim`, `n_heads`, …), rewritten as Hugging Face's.

use serde_json::{Map, Value, json};

use super::Family;
use super::fields::Fields;
use crate::error::Result;

/// The demo's names, and ours.
pub(super) const NAMES: [(&str, &str); 12] = [
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

/// Fields that are called the same in both spellings; the last is our own.
const SAME: [&str; 13] = [
    "vocab_size",
    "n_routed_experts",
    "n_shared_experts",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "rope_theta",
    "attention_options",
];

/// Fields that are read here and become others.
const READ: [&str; 7] =
    ["dtype", "scale_fmt", "original_seq_len", "rope_factor", "beta_fast", "beta_slow", "mscale"];

/// Fields that decide nothing here: how many prompts the demo has room for.
const FREE: [&str; 1] = ["max_batch_size"];

/// Rewrites the demo's configuration in the Hugging Face spelling, with the defaults that the demo
/// keeps in its code. All of its fields are in one of the lists above; any other is refused.
///
/// The demo turns YaRN off where `max_seq_len` is no more than `original_seq_len`, which is not what the
/// weights were trained for: such a file is refused.
pub(super) fn to_hugging_face(demo: Map<String, Value>) -> Result<Map<String, Value>> {
    let f = Fields { map: &demo, prefix: "" };
    let theirs = NAMES.iter().map(|(theirs, _)| *theirs);
    f.only(theirs.chain(SAME).chain(READ).chain(FREE))?;
    let mscale: f64 = f.or("mscale", 1.0)?;
    let original: usize = f.or("original_seq_len", 4096)?;
    let positions: usize = f.or("max_seq_len", 16_384)?;
    let expected =
        format!("more than original_seq_len = {original} (the demo has no YaRN otherwise)");
    f.check(positions > original, "max_seq_len", positions, &expected)?;
    let rope = json!({
        "type": "yarn",
        "factor": f.or("rope_factor", 40.0)?,
        "original_max_position_embeddings": original,
        "beta_fast": f.or("beta_fast", 32.0)?,
        "beta_slow": f.or("beta_slow", 1.0)?,
        "mscale": mscale,
        "mscale_all_dim": mscale,
    });
    let mut map = Map::new();
    match f.or("dtype", "bf16".to_string())?.as_str() {
        "bf16" => f.must_be("scale_fmt", &json!("ue8m0"))?,
        "fp8" => {
            let scale: Option<String> = f.optional("scale_fmt")?;
            let quantization = json!({ "quant_method": "fp8", "scale_fmt": scale });
            map.insert("quantization_config".into(), quantization);
        }
        other => return Err(f.error("dtype", other, "\"fp8\" or \"bf16\"")),
    }
    map.insert("model_type".into(), json!(Family::DeepseekV32.model_type()));
    map.insert("rope_scaling".into(), rope);
    map.insert("max_position_embeddings".into(), json!(positions));
    for (name, value) in demo.into_iter().filter(|(_, value)| !value.is_null()) {
        if let Some((_, ours)) = NAMES.iter().find(|(theirs, _)| *theirs == name) {
            map.insert(ours.to_string(), value);
        } else if SAME.contains(&name.as_str()) {
            map.insert(name, value);
        }
    }
    Ok(map)
}
