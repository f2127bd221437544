//! Published values, every spelling, and hostile configurations.

use super::read::MAX_CONFIG_BYTES;
use super::*;
use crate::error::{Error, Result};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::path::Path;

const DEMO: &str = include_str!("../../../tests/data/configs/demo_671b.json");
const GLM_5: &str = include_str!("../../../tests/data/configs/glm_5.json");
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny");

mod closed_set;
mod families;
mod overrides;
mod sharing;

/// V3.2's configuration with some fields replaced, as JSON.
fn v32_with(changes: &[(&str, Value)]) -> Value {
    let mut value: Value = serde_json::from_str(&Config::v32().to_json()).unwrap();
    for (name, change) in changes {
        value[*name] = change.clone();
    }
    value
}

/// V3.2's configuration with some fields replaced, as the reader sees it.
fn changed(changes: &[(&str, Value)]) -> Result<Config> {
    Config::from_json(&v32_with(changes).to_string())
}

/// A file with some fields replaced, as the reader sees it.
fn changed_file(file: &str, changes: &[(&str, Value)]) -> Result<Config> {
    let mut value: Value = serde_json::from_str(file).unwrap();
    for (name, change) in changes {
        value[*name] = change.clone();
    }
    Config::from_json(&value.to_string())
}

/// The error must name the field, and say these.
#[track_caller]
fn refused_with(result: Result<Config>, field: &str, said: &[&str]) {
    let error = result.unwrap_err();
    let Error::Config { field: named, .. } = &error else { panic!("{error}") };
    assert_eq!(named, field, "{error}");
    for text in said {
        assert!(error.to_string().contains(text), "{text:?} is missing in: {error}");
    }
}

/// The error about V3.2's configuration with these changes.
#[track_caller]
fn refused(changes: &[(&str, Value)], field: &str, said: &[&str]) {
    refused_with(changed(changes), field, said);
}

#[test]
fn v32_has_the_published_scales() {
    let config = Config::v32();
    config.validate().unwrap();
    assert!((config.softmax_scale() - 0.1352337789).abs() < 1e-10);
    assert!((config.index_scale() - 0.0110485435).abs() < 1e-10);
    assert_eq!((config.qk_head_dim(), config.latent_dim(), config.ue8m0()), (192, 576, true));
    assert!(!config.is_moe_layer(2) && config.is_moe_layer(3));
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
    assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (40.0, 64));
    assert_eq!((config.index_n_heads, config.index_head_dim, config.index_topk), (16, 32, 24));
    assert_eq!(config.attention_options, AttentionOptions::EXACT);
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
}

#[test]
fn the_demo_file_is_the_same_model() {
    let expected =
        Config { num_nextn_predict_layers: 0, max_position_embeddings: 16_384, ..Config::v32() };
    assert_eq!(Config::from_json(DEMO).unwrap(), expected);
    let error = Config::from_json(r#"{"dim": 64, "vocab_size": 9}"#).unwrap_err().to_string();
    assert!(error.contains("the demo's n_layers) is missing"), "{error}");
}

#[test]
fn glm_5_has_plain_rope_and_an_interleaved_indexer() {
    let config = Config::from_json(GLM_5).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling.is_none()), (1e6, true));
    assert!(config.indexer_rope_interleaved && config.rope_interleaved);
    assert!((config.softmax_scale() - 1.0 / 16.0).abs() < 1e-15);
}

#[test]
fn options_can_be_set_one_by_one() {
    let options = changed(&[("attention_options", json!({ "hadamard": false }))]);
    let expected = AttentionOptions { hadamard: false, ..AttentionOptions::OFFICIAL };
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
        ("hidden_act", json!("gelu"), "silu"),
        ("n_shared_experts", json!(0), "1 to 64"),
        ("n_routed_experts", json!(1 << 15), "1 to 16384"),
        ("routed_scaling_factor", json!(-1), "is -1"),
        ("norm_topk_prob", json!("yes"), "true or false"),
        ("num_nextn_predict_layers", json!(17), "0 to 16"),
        ("max_position_embeddings", json!((1 << 24) + 1), "1 to 16777216"),
        ("bos_token_id", json!(129_280), "0 to 129279"),
        ("attention_options", json!({ "latent_norm_eps": 0.5 }), "latent_norm_eps is 0.5"),
        ("attention_options", json!({ "latent_norm_eps": "1e-6" }), "a number"),
        ("rope_scaling", json!([1]), "object"),
        ("rope_scaling", yarn("factor", json!(0.5)), "rope_scaling.factor is 0.5"),
        ("rope_scaling", yarn("type", json!("linear")), "linear"),
        ("rope_scaling", yarn("mscale", json!(0.7)), "rope_scaling.mscale is 0.7"),
        ("quantization_config", json!({ "quant_method": "awq" }), "awq"),
        ("attention_options", json!({ "hadamard": 1 }), "true or false"),
    ] {
        let error = changed(&[(name, value.clone())]).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(name) && error.contains(said), "{name} {value}: {error}");
    }
}

#[test]
fn products_beyond_32_bits_are_refused() {
    let wide = json!(1 << 20);
    let changes = [("intermediate_size", wide.clone()), ("hidden_size", wide)];
    let error = changed(&changes).unwrap_err().to_string();
    assert!(error.contains("embed_tokens") && error.contains("4294967295"), "{error}");
}

#[test]
fn what_is_no_configuration_is_refused() {
    for text in ["", "[]", "3", "{", "{}", "{\"dim\": {}}", &"[".repeat(100_000)] {
        assert!(Config::from_json(text).is_err());
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Config::read(folder.path()), Err(Error::File(_))));
    let file = folder.path().join("config.json");
    std::fs::write(&file, "{").unwrap();
    let error = Config::read(&file).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("line 1"), "{error}");
    std::fs::write(&file, " ".repeat(MAX_CONFIG_BYTES as usize + 1)).unwrap();
    assert!(matches!(Config::read(&file), Err(Error::File(_))));
    if cfg!(unix) {
        assert!(matches!(Config::read(Path::new("/dev/zero")), Err(Error::File(_))));
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
        which in 0..3,
    ) {
        let file = match which {
            0 => Config::v32().to_json(),
            1 => Config::glm_5_2().to_json(),
            _ => DEMO.to_string(),
        };
        let mut map: Map<String, Value> = serde_json::from_str(&file).unwrap();
        for (index, value) in changes {
            let name = index.get(&map.keys().cloned().collect::<Vec<_>>()).clone();
            map.insert(name, value);
        }
        if let Ok(config) = Config::from_json(&Value::Object(map).to_string()) {
            config.validate().unwrap();
            prop_assert!(config.softmax_scale().is_finite());
            let again = Config::from_json(&config.to_json());
            prop_assert_eq!(again.unwrap(), config);
        }
    }
}
