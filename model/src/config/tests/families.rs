//! What a family decides, what the published and the golden files say, and which models are refused.

use super::{DEMO, GLM_5, changed, changed_file, refused, refused_with};
use crate::config::*;
use serde_json::{Value, json};
use std::path::Path;

const V32_EXP: &str = include_str!("../../../../tests/data/configs/deepseek_v3_2_exp.json");
const GLM_5_2: &str = include_str!("../../../../tests/data/configs/glm_5_2.json");

/// The configuration beside a golden.
fn golden(name: &str) -> Config {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data");
    let config = Config::read(&data.join(name)).unwrap();
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config, "{name}");
    config
}

#[test]
fn the_published_files_are_read() {
    assert_eq!(Config::from_json(V32_EXP).unwrap(), Config::v32());
    assert_eq!(Config::from_json(GLM_5).unwrap(), Config::glm_5());
    assert_eq!(Config::from_json(GLM_5_2).unwrap(), Config::glm_5_2());
    for config in [Config::v32(), Config::glm_5(), Config::glm_5_2()] {
        config.validate().unwrap();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }
}

#[test]
fn golden_tiny_is_read() {
    let tiny = golden("tiny");
    assert_eq!((tiny.family, tiny.num_hidden_layers), (Family::DeepseekV32, 3));
    assert_eq!((tiny.first_k_dense_replace, tiny.num_nextn_predict_layers), (1, 0));
    assert_eq!((tiny.rms_norm_eps, tiny.latent_norm_eps, tiny.vocab_size), (1e-6, 1e-6, 320));
    assert_eq!((tiny.n_routed_experts, tiny.num_experts_per_tok), (8, 2));
    assert_eq!((tiny.n_group, tiny.topk_group, tiny.routed_scaling_factor), (4, 2, 2.5));
    assert_eq!((tiny.indexers(), tiny.indexer_rope_interleaved), (3, false));
}

#[test]
fn golden_glm_and_glm5_differ_in_what_their_layers_share() {
    let (shared, full) = (golden("glm"), golden("glm5"));
    assert_eq!((shared.index_pattern(), full.index_pattern()), ("FFSSF".into(), "FFFFF".into()));
    assert_eq!(Config { indexer_types: None, ..shared.clone() }, full);
    assert_eq!((shared.indexer_of(1), shared.indexer_of(4)), (Indexer::Full, Indexer::Full));
    assert_eq!([2, 3].map(|layer| shared.indexer_of(layer)), [Indexer::SharedWith(1); 2]);
    assert_eq!((full.family, full.indexer_rope_interleaved), (Family::GlmMoeDsa, true));
    // The norms of the latents have an eps of their own.
    assert_eq!((full.rms_norm_eps, full.latent_norm_eps), (1e-5, 1e-6));
    assert_eq!((full.qk_head_dim(), full.v_head_dim, full.rope_theta), (40, 32, 8e6));
    assert_eq!((full.eos_token_id.clone(), full.bos_token_id), (vec![1, 2, 3], Some(0)));
}

#[test]
fn golden_demo_is_the_same_model_in_both_spellings() {
    let demo = golden("demo");
    assert_eq!((demo.quantization, demo.n_shared_experts), (Some(Quantization { ue8m0: true }), 2));
    assert_eq!((demo.skipped_layers(), demo.max_position_embeddings), (3..4, 512));
    assert_eq!(demo.attention_options, AttentionOptions::OFFICIAL);
    let other = golden("demo/demo_config.json");
    assert_eq!(Config { num_nextn_predict_layers: 0, ..demo }, other);
}

#[test]
fn extra_layers_are_skipped_by_number() {
    assert_eq!(Config::v32().skipped_layers(), 61..62);
    assert_eq!(Config::glm_5_2().skipped_layers(), 78..79);
    assert!(
        changed(&[("num_nextn_predict_layers", Value::Null)]).unwrap().skipped_layers().is_empty()
    );
    // They are behind the layers, so neither list of types counts them.
    assert_eq!(Config::glm_5_2().indexer_types.unwrap().len(), 78);
}

#[test]
fn a_family_decides_what_an_absent_field_means() {
    let absent = |file: &str, name: &str| changed_file(file, &[(name, Value::Null)]);
    let of = |name: &str| (absent(V32_EXP, name).unwrap(), absent(GLM_5, name).unwrap());
    let (v32, glm) = of("indexer_rope_interleave");
    assert_eq!((v32.indexer_rope_interleaved, glm.indexer_rope_interleaved), (false, true));
    let (v32, glm) = of("rms_norm_eps");
    assert_eq!((v32.rms_norm_eps, glm.rms_norm_eps), (1e-6, 1e-5));
    let (v32, glm) = of("bos_token_id");
    assert_eq!((v32.bos_token_id, glm.bos_token_id), (Some(0), None));
    assert_eq!(absent(V32_EXP, "eos_token_id").unwrap().eos_token_id, [1]);
    refused_with(absent(GLM_5, "eos_token_id"), "eos_token_id", &["is missing"]);
    assert_eq!(absent(V32_EXP, "rope_theta").unwrap().rope_theta, 10_000.0);
    let plain = json!({ "rope_type": "default" });
    let said = ["is missing", "8e6"];
    refused_with(changed_file(GLM_5, &[("rope_parameters", plain)]), "rope_theta", &said);
    // What is said is not replaced.
    let split = changed_file(GLM_5, &[("indexer_rope_interleave", json!(false))]).unwrap();
    assert!(!split.indexer_rope_interleaved);
}

#[test]
fn a_family_is_known_by_its_type_or_by_its_classes() {
    let by_class = changed_file(GLM_5, &[("model_type", Value::Null)]).unwrap();
    assert_eq!(by_class, Config::glm_5());
    let neither = [("model_type", Value::Null), ("architectures", Value::Null)];
    let said = ["is missing", "deepseek_v32 or glm_moe_dsa"];
    refused(&neither, "model_type", &said);
    assert!(changed(&[("architectures", Value::Null)]).is_ok());
    // A class of the other family would mean other defaults.
    let glm = json!(["GlmMoeDsaForCausalLM"]);
    let said = ["GlmMoeDsa", "DeepseekV32ForCausalLM or DeepseekV32Model"];
    refused(&[("architectures", glm)], "architectures", &said);
    refused(&[("model_type", json!(32))], "model_type", &["is 32"]);
}

#[test]
fn a_relative_is_refused_with_the_part_that_is_missing() {
    for (model_type, part) in [
        ("deepseek_v4", "compressed keys"),
        ("deepseek_v41", "two-level indexing"),
        ("glm5_next", "pooled indexer"),
        ("glm5_next_text", "pooled indexer"),
        ("axk2", "gated attention"),
        ("hy_v4", "clamped feed-forward"),
        ("dots3_note", "layers without sparse attention"),
        ("mistral_large4", "no q_lora"),
        ("minimax_m3", "blocks of grouped heads"),
        ("deepseek_v3", "no indexer"),
        ("kimi_k2", "no indexer"),
    ] {
        // Also where everything else of the file is another model's.
        let file = json!({ "model_type": model_type, "text_config": {} }).to_string();
        for result in [changed(&[("model_type", json!(model_type))]), Config::from_json(&file)] {
            let said = [model_type, "deepseek_v32 or glm_moe_dsa; this relative", part];
            refused_with(result, "model_type", &said);
        }
    }
    for other in ["deepseek_v", "axk", "llama", "Deepseek_v32", "deepseek_v32_text", "hy_v42"] {
        let error = changed(&[("model_type", json!(other))]).unwrap_err().to_string();
        assert!(error.contains(other) && !error.contains("relative"), "{error}");
    }
}

#[test]
fn the_latents_eps_is_an_option_of_its_own() {
    let with = |options: Value| {
        let changes = [("rms_norm_eps", json!(1e-5)), ("attention_options", options)];
        changed(&changes).unwrap()
    };
    let other = with(json!({ "latent_norm_eps": 1e-5 }));
    assert_eq!((other.rms_norm_eps, other.latent_norm_eps), (1e-5, 1e-5));
    assert_eq!(other.attention_options, AttentionOptions::OFFICIAL);
    assert_eq!(Config::from_json(&other.to_json()).unwrap(), other);
    for options in [json!({}), json!({ "hadamard": true }), Value::Null] {
        assert_eq!(with(options).latent_norm_eps, 1e-6);
    }
    let demo = changed_file(DEMO, &[("attention_options", json!({ "latent_norm_eps": 1e-7 }))]);
    assert_eq!(demo.unwrap().latent_norm_eps, 1e-7);
}

#[test]
fn dense_layers_are_said_by_a_number_a_list_or_both() {
    let types = |dense: usize, layers: usize| -> Value {
        (0..layers).map(|i| if i < dense { "dense" } else { "sparse" }).collect()
    };
    let with =
        |number: Value, list: Value| [("first_k_dense_replace", number), ("mlp_layer_types", list)];
    for dense in [0, 3, 61] {
        for (number, list) in [
            (json!(dense), Value::Null),
            (Value::Null, types(dense, 61)),
            (json!(dense), types(dense, 61)),
        ] {
            let config = changed(&with(number, list)).unwrap();
            assert_eq!(config.first_k_dense_replace, dense);
            assert_eq!((0..61).filter(|layer| config.is_moe_layer(*layer)).count(), 61 - dense);
        }
    }
    let number = "first_k_dense_replace (the demo's n_dense_layers)";
    refused(&with(Value::Null, Value::Null), number, &["missing", "or mlp_layer_types"]);
    refused(
        &with(json!(4), types(3, 61)),
        number,
        &["is 4", "expected 3, as mlp_layer_types says"],
    );
    refused(&with(json!(62), Value::Null), "first_k_dense_replace", &["is 62", "0 to 61"]);
    let list = "mlp_layer_types";
    refused(&with(json!(3), types(3, 62)), list, &["a list of 62", "one for each of 61 layers"]);
    let mut between = types(3, 61);
    between[7] = json!("dense");
    refused(&with(json!(3), between), list, &["dense in layer 7", "sparse, as in layer 3"]);
    let mut other = types(3, 61);
    other[9] = json!("moe");
    refused(&with(json!(3), other), list, &["\"moe\"", "\"dense\" or \"sparse\""]);
    refused(&with(json!(3), json!("dense")), list, &["\"dense\"", "a list"]);
}
