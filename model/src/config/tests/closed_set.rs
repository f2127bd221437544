//! What decides the result is understood or refused by name; what the published files hold is read.

use super::super::known::{FREE, READ, fixed};
use super::{GLM_5, changed, refused, v32_with};
use crate::config::*;
use dsa_kernels::quant::ScaleFmt;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const V32_EXP: &str = include_str!("../../../../tests/data/configs/deepseek_v3_2_exp.json");
const DEMO: &str = include_str!("../../../../tests/data/configs/demo_671b.json");

/// A rotary embedding with YaRN, as DeepSeek-V3.2 has it.
fn yarn(change: &[(&str, Value)]) -> Value {
    let mut rope = json!({ "rope_type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 4096, "mscale": 1, "mscale_all_dim": 1 });
    for (name, value) in change {
        rope[*name] = value.clone();
    }
    rope
}

#[test]
fn rope_parameters_nested_by_layer_type_are_refused() {
    let nested = json!({ "deepseek_sparse_attention": yarn(&[]) });
    let changes = [("rope_scaling", Value::Null), ("rope_parameters", nested)];
    let said = ["\"factor\":40", "one set of parameters for all layers"];
    refused(&changes, "rope_parameters.deepseek_sparse_attention", &said);
}

#[test]
fn two_rotary_embeddings_must_say_the_same() {
    let plain = json!({ "rope_type": "default", "rope_theta": 10000 });
    for first in [plain, yarn(&[("factor", json!(20))]), json!({ "rope_theta": 10000 })] {
        refused(&[("rope_parameters", first)], "rope_parameters", &["the same as rope_scaling"]);
    }
    let same = changed(&[("rope_parameters", yarn(&[("rope_theta", json!(10000))]))]).unwrap();
    assert_eq!(same, Config::v32());
    // Empty is absent: YaRN stays on.
    for empty in [json!({}), json!({ "rope_type": null })] {
        assert_eq!(changed(&[("rope_parameters", empty)]).unwrap(), Config::v32());
    }
    let twice = yarn(&[("rope_theta", json!(1e6))]);
    refused(&[("rope_scaling", twice)], "rope_theta", &["10000", "1000000"]);
    let twice = yarn(&[("type", json!("default"))]);
    refused(&[("rope_scaling", twice)], "rope_scaling.rope_type", &["\"default\", as type says"]);
}

#[test]
fn what_scales_cos_and_sin_or_the_ramp_must_be_one() {
    for name in ["attention_factor", "attn_factor", "extrapolation_factor", "partial_rotary_factor"]
    {
        let rope = |value: f64| [("rope_scaling", yarn(&[(name, json!(value))]))];
        assert_eq!(changed(&rope(1.0)).unwrap(), Config::v32());
        refused(&rope(0.5), &format!("rope_scaling.{name}"), &["is 0.5", "expected 1"]);
    }
    let rope = yarn(&[("truncate", json!(false))]);
    refused(&[("rope_scaling", rope)], "rope_scaling.truncate", &["expected true"]);
    let rope = yarn(&[("mscale", json!(0.7))]);
    refused(&[("rope_scaling", rope)], "rope_scaling.mscale", &["is 0.7"]);
    let rope = yarn(&[("facter", json!(40))]);
    refused(&[("rope_scaling", rope)], "rope_scaling.facter", &["is factor meant?"]);
    let rope = json!({ "rope_type": "default", "factor": 40 });
    refused(&[("rope_scaling", rope)], "rope_scaling.factor", &["does not read it"]);
    refused(
        &[("rope_scaling", yarn(&[("rope_type", json!("llama3"))]))],
        "rope_scaling.rope_type",
        &["llama3"],
    );
}

#[test]
fn both_pairings_are_read_and_decide() {
    let pairing = |name, value: bool| changed(&[(name, json!(value))]).unwrap();
    for value in [false, true] {
        assert_eq!(pairing("rope_interleave", value).rope_interleaved, value);
        assert_eq!(pairing("indexer_rope_interleave", value).indexer_rope_interleaved, value);
    }
    let long =
        [("indexer_rope_interleave", Value::Null), ("indexer_rope_interleaved", json!(true))];
    assert!(changed(&long).unwrap().indexer_rope_interleaved);
    let mut both = v32_with(&[("indexer_rope_interleave", json!(false))]);
    both["indexer_rope_interleaved"] = json!(true);
    let error = Config::from_json(&both.to_string()).unwrap_err().to_string();
    assert!(error.contains("indexer_rope_interleaved is true, expected false"), "{error}");
}

#[test]
fn layers_without_sparse_attention_are_refused() {
    let all = |kind: &str| json!(vec![kind; 61]);
    for kind in ["deepseek_sparse_attention", "indexed_attention"] {
        assert_eq!(changed(&[("layer_types", all(kind))]).unwrap(), Config::v32());
    }
    for kind in ["full_attention", "sliding_attention", "linear_attention"] {
        let mut types = all("deepseek_sparse_attention");
        types[60] = json!(kind);
        refused(&[("layer_types", types)], "layer_types", &[kind, "deepseek_sparse_attention"]);
    }
    refused(&[("layer_types", json!(["indexed_attention"]))], "layer_types", &["a list of 1"]);
    refused(&[("architectures", json!(["DeepseekV4ForCausalLM"]))], "architectures", &["V4"]);
}

#[test]
fn another_value_of_what_decides_is_refused_by_name() {
    let mut other = Map::new();
    for (name, value, _) in fixed() {
        let value = match value {
            Value::Bool(value) => json!(!value),
            Value::Number(_) => json!(0.25),
            _ => json!("other"),
        };
        other.insert(name.into(), value);
    }
    for (name, value) in &other {
        let said = [value.to_string()];
        refused(&[(name, value.clone())], &field_of(name), &said.each_ref().map(|s| &s[..]));
    }
    for (name, value, said) in [
        ("num_experts", json!(128), "256"),
        ("num_local_experts", json!(128), "256"),
        ("qk_head_dim", json!(64), "192"),
        ("num_key_value_heads", json!(1), "128"),
        ("model_type", json!("llama"), "deepseek_v32 or glm_moe_dsa"),
    ] {
        refused(&[(name, value)], name, &[said]);
    }
}

/// The name in an error: with the demo's where that is another.
fn field_of(name: &str) -> String {
    match name {
        "scoring_func" => "scoring_func (the demo's score_func)".into(),
        other => other.into(),
    }
}

#[test]
fn a_name_that_nobody_knows_is_refused_with_the_nearest() {
    refused(&[("indx_topk", json!(64))], "indx_topk", &["is 64", "is index_topk meant?"]);
    refused(&[("mscale", json!(0.7))], "mscale", &["is 0.7", "which nobody here reads"]);
    refused(&[("compression_ratio", json!(4))], "compression_ratio", &["is 4"]);
    let options = json!({ "hadamrd": false });
    refused(&[("attention_options", options)], "attention_options.hadamrd", &["hadamard"]);
    assert_eq!(changed(&[("no_such_field", Value::Null)]).unwrap(), Config::v32());
    let long = "x".repeat(5000);
    let error = changed(&[(&long, json!("\u{1b}[2J"))]).unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn fields_that_decide_nothing_may_have_any_value() {
    for (name, _) in FREE {
        for value in [json!(3), json!("text"), json!([1]), json!({ "a": 1 })] {
            assert_eq!(changed(&[(name, value)]).unwrap(), Config::v32(), "{name}");
        }
    }
}

#[test]
fn every_field_that_is_called_read_is_read() {
    for (name, _) in READ {
        let error = changed(&[(name, json!({ "wrong": "type" }))]);
        assert!(error.is_err(), "{name}");
    }
    let fixed = fixed();
    let names = READ.iter().chain(FREE).map(|(name, _)| *name);
    let names: Vec<&str> = names.chain(fixed.iter().map(|(name, ..)| *name)).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a field is in two lists");
    // What is written is what is read.
    let written: Value = serde_json::from_str(&Config::v32().to_json()).unwrap();
    for name in written.as_object().unwrap().keys() {
        assert!(names.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn formats_of_scales_are_read_and_decide() {
    let with = |change: Value| {
        let mut q = json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128] });
        q.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        changed(&[("quantization_config", q)])
    };
    for (value, ue8m0) in [(json!("ue8m0"), true), (json!("float"), false), (Value::Null, false)] {
        let config = with(json!({ "scale_fmt": value })).unwrap();
        assert_eq!((config.quantization, config.ue8m0()), (Some(Quantization { ue8m0 }), ue8m0));
        let fmt = if ue8m0 { ScaleFmt::Ue8m0 } else { ScaleFmt::Plain };
        assert_eq!(config.scale_fmt(), fmt);
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }
    let lists = json!({ "modules_to_not_convert": ["lm_head"], "ignored_layers": [] });
    assert!(with(lists).is_ok());
    for (change, said) in [
        (json!({ "scale_fmt": "e5m2" }), "scale_fmt is e5m2, expected \"ue8m0\" or \"float\""),
        (json!({ "fmt": "e5m2" }), "fmt is \"e5m2\", expected \"e4m3\""),
        (json!({ "activation_scheme": "static" }), "activation_scheme is \"static\""),
        (json!({ "weight_block_size": [64, 64] }), "weight_block_size is [64,64]"),
        (json!({ "quant_method": "compressed-tensors" }), "quant_method"),
        (json!({ "modules_to_not_convert": 3 }), "modules_to_not_convert is 3"),
        (json!({ "kv_cache_scheme": {} }), "quantization_config.kv_cache_scheme is {}"),
        (json!({ "dequantize": true }), "dequantize is true"),
    ] {
        let error = with(change).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn the_demo_has_a_closed_set_of_its_own() {
    let with = |name: &str, value: Value| {
        let mut demo: Value = serde_json::from_str(DEMO).unwrap();
        demo[name] = value;
        Config::from_json(&demo.to_string()).map_err(|error| error.to_string())
    };
    for (name, value, said) in [
        ("rope_scaling", json!({ "type": "default" }), "rope_scaling"),
        ("rope_parameters", json!({}), "rope_parameters"),
        ("num_attention_heads", json!(1), "num_attention_heads"),
        ("rope_facter", json!(1), "is rope_factor meant?"),
        ("max_seq_len", json!(4096), "more than original_seq_len = 4096"),
        ("dtype", json!("fp4"), "\"fp8\" or \"bf16\""),
        ("scale_fmt", json!("e5m2"), "scale_fmt"),
        ("score_func", json!("softmax"), "the demo's score_func"),
        ("hidden_size", json!(7168), "dim"),
    ] {
        let error = with(name, value).unwrap_err();
        assert!(error.contains(said), "{name}: {error}");
    }
    let long = with("max_seq_len", json!(131_072)).unwrap();
    assert_eq!(
        (long.max_position_embeddings, with("max_batch_size", json!(1)).is_ok()),
        (131_072, true)
    );
    let softer = with("mscale", json!(0.5)).unwrap();
    assert!(softer.softmax_scale() < long.softmax_scale());
}

#[test]
fn a_field_given_twice_is_refused() {
    let twice = V32_EXP.replacen("\"ep_size\"", "\"index_topk\": 64, \"ep_size\"", 1);
    let error = Config::from_json(&twice).unwrap_err().to_string();
    assert!(error.contains("\"index_topk\" is there twice"), "{error}");
    let twice = V32_EXP.replacen("\"factor\": 40,", "\"factor\": 40, \"factor\": 1,", 1);
    assert!(Config::from_json(&twice).unwrap_err().to_string().contains("\"factor\""));
    for (text, said) in [
        (format!("\u{feff}{V32_EXP}"), "byte order mark"),
        (V32_EXP.replace("7168", "1e999"), "number out of range"),
        (V32_EXP.replace("7168", "99999999999999999999999999"), "whole number"),
        (V32_EXP.replace("7168", &"[".repeat(200)), "recursion limit"),
    ] {
        let error = Config::from_json(&text).unwrap_err().to_string();
        assert!(error.contains(said) && error.len() < 500, "{error}");
    }
}

#[test]
fn what_decides_is_said() {
    let said = |config: &Config| {
        config
            .deciding()
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect::<String>()
    };
    let v32 = said(&Config::v32());
    for line in [
        "YaRN: factor 40, original length 4096, beta 32 to 1, mscale 1, mscale_all_dim 1",
        "softmax scale: 0.1352337789",
        "rotary pairs, attention: interleaved",
        "rotary pairs, indexer: half split",
        "family: deepseek_v32",
        "index sharing: an indexer in each of 61 layers",
        "eps of the norms: 1e-6; of the latents' 1e-6",
        "experts: 8 of 256 in 4 of 8 groups, gates sigmoid, divided by their sum, times 2.5; 1 for \
         every token; none in the first 3 layers",
        "weights: fp8 (e4m3)",
        "lossy step: Hadamard: on",
        "lossy step: latent in the cache: through fp8 and back, scales powers of two (ue8m0)",
    ] {
        assert!(v32.contains(line), "{line:?} is missing in\n{v32}");
    }
    let glm = said(&Config::from_json(GLM_5).unwrap());
    for line in [
        "family: glm_moe_dsa",
        "YaRN: none",
        "rotary pairs, indexer: interleaved",
        "fp8, scales f32 (float)",
        "eps of the norms: 1e-5; of the latents' 1e-6",
        "experts: 8 of 256, gates",
    ] {
        assert!(glm.contains(line), "{line:?} is missing in\n{glm}");
    }
    let shared = said(&Config::glm_5_2());
    let line = "an indexer in 21 of 78 layers, 57 take the keys of one before: FFFSSSFSSSF";
    assert!(shared.contains(line), "{shared}");
}
