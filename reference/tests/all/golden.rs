//! Layer 0 of a tiny random model, against what transformers computed of it in f32.
//!
//! transformers has neither the Hadamard transform nor fp8, so both are off.
use crate::random::worst;
use dsa_reference::attention_layer::*;
use dsa_reference::linear::linear;
use dsa_reference::norm::rms_norm;
use dsa_reference::quant::ScaleFmt;
use dsa_reference::rope::{Pairing, Yarn};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeSet;
use std::path::Path;

const OPTIONS: Options = Options {
    pairing: Pairing::Interleaved,
    indexer_pairing: Pairing::HalfSplit,
    hadamard: false,
    index_fp8: false,
    kv_fp8: false,
    scale_fmt: ScaleFmt::Ue8m0,
};

fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny");
    std::fs::read(folder.join(name)).unwrap()
}

/// A tensor's numbers, bf16 or f32, as rows.
fn matrix(file: &SafeTensors, name: &str) -> Array2<f32> {
    let tensor = file.tensor(name).unwrap();
    let bytes = tensor.data();
    let values: Vec<f32> = match tensor.dtype() {
        // bf16 is the upper half of an f32.
        Dtype::BF16 => bytes.chunks(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        other => panic!("{name} is {other:?}"),
    };
    let cols = *tensor.shape().last().unwrap();
    Array2::from_shape_vec((values.len() / cols, cols), values).unwrap()
}

fn vector(file: &SafeTensors, name: &str) -> Array1<f32> {
    matrix(file, name).row(0).to_owned()
}

fn integers(file: &SafeTensors, name: &str) -> Vec<i32> {
    let tensor = file.tensor(name).unwrap();
    tensor.data().chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn config() -> AttentionConfig {
    let json: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    let n = |name: &str| json[name].as_u64().unwrap() as usize;
    let rope = &json["rope_parameters"];
    let r = |name: &str| rope[name].as_f64().unwrap();
    AttentionConfig {
        hidden_size: n("hidden_size"),
        num_attention_heads: n("num_attention_heads"),
        q_lora_rank: n("q_lora_rank"),
        kv_lora_rank: n("kv_lora_rank"),
        qk_nope_head_dim: n("qk_nope_head_dim"),
        qk_rope_head_dim: n("qk_rope_head_dim"),
        v_head_dim: n("v_head_dim"),
        index_n_heads: n("index_n_heads"),
        index_head_dim: n("index_head_dim"),
        index_topk: n("index_topk"),
        rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: r("rope_theta"),
        yarn: Some(Yarn {
            factor: r("factor"),
            original_max_position_embeddings: r("original_max_position_embeddings") as usize,
            beta_fast: r("beta_fast"),
            beta_slow: r("beta_slow"),
            mscale: r("mscale"),
            mscale_all_dim: r("mscale_all_dim"),
        }),
    }
}

fn weights(file: &SafeTensors, layer: usize) -> AttentionWeights {
    let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
    let m = |part: &str| matrix(file, &name(part));
    let v = |part: &str| vector(file, &name(part));
    AttentionWeights {
        q_a_proj: m("q_a_proj.weight"),
        q_a_layernorm: v("q_a_layernorm.weight"),
        q_b_proj: m("q_b_proj.weight"),
        kv_a_proj_with_mqa: m("kv_a_proj_with_mqa.weight"),
        kv_a_layernorm: v("kv_a_layernorm.weight"),
        kv_b_proj: m("kv_b_proj.weight"),
        o_proj: m("o_proj.weight"),
        indexer: IndexerWeights {
            wq_b: m("indexer.wq_b.weight"),
            wk: m("indexer.wk.weight"),
            k_norm_weight: v("indexer.k_norm.weight"),
            k_norm_bias: v("indexer.k_norm.bias"),
            weights_proj: m("indexer.weights_proj.weight"),
        },
    }
}

/// What layer `layer` receives: the embeddings, or the output of the layer before.
fn input(model: &SafeTensors, expected: &SafeTensors, layer: usize) -> Array2<f32> {
    if let Some(before) = layer.checked_sub(1) {
        return matrix(expected, &format!("layer{before}.hidden")); // [s, hidden_size]
    }
    let ids: Vec<usize> =
        integers(expected, "input_ids").into_iter().map(|id| id as usize).collect();
    matrix(model, "model.embed_tokens.weight").select(Axis(0), &ids) // [s, hidden_size]
}

/// `RMSNorm(h)` with one of a layer's norms.
fn norm(model: &SafeTensors, layer: usize, name: &str, h: ArrayView2<f32>) -> Array2<f32> {
    let weight = vector(model, &format!("model.layers.{layer}.{name}.weight"));
    rms_norm(h, weight.view(), config().rms_norm_eps).unwrap()
}

#[test]
fn the_indexer_selects_the_same_keys() {
    let (model, expected) = (read("model.safetensors"), read("expected.safetensors"));
    let model = SafeTensors::deserialize(&model).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let c = config();
    for layer in 0..3 {
        let h = input(&model, &expected, layer);
        let x = norm(&model, layer, "input_layernorm", h.view());
        let indices = indexer_topk(x.view(), &c, &weights(&model, layer), &OPTIONS).unwrap();
        let stored = integers(&expected, &format!("layer{layer}.topk"));
        let mut different = vec![];
        for (t, stored) in stored.chunks(c.index_topk).enumerate() {
            let seen = |&n: &i32| n >= 0 && n <= t as i32; // they list what the causal mask hides
            let stored: BTreeSet<i32> = stored.iter().copied().filter(seen).collect();
            let ours: BTreeSet<i32> = indices.row(t).iter().copied().filter(seen).collect();
            if ours != stored {
                different.push(t);
            }
        }
        assert!(different.is_empty(), "layer {layer} differs in rows {different:?}");
    }
}

#[test]
fn layer_0_gives_the_same_hidden_state() {
    let (model, expected) = (read("model.safetensors"), read("expected.safetensors"));
    let model = SafeTensors::deserialize(&model).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let h = input(&model, &expected, 0); // [s, hidden_size]
    let x = norm(&model, 0, "input_layernorm", h.view());
    let w = weights(&model, 0);
    let h = h + attention(x.view(), &config(), &w, &OPTIONS, Mode::Sparse).unwrap();
    let x = norm(&model, 0, "post_attention_layernorm", h.view());
    let mlp = |part: &str| matrix(&model, &format!("model.layers.0.mlp.{part}.weight"));
    let gate = linear(x.view(), mlp("gate_proj").view()); // [s, intermediate_size]
    let up = linear(x.view(), mlp("up_proj").view()); // [s, intermediate_size]
    let inner = gate.mapv(|g| g / (1.0 + (-g).exp())) * up; // silu(gate) · up
    let h = h + linear(inner.view(), mlp("down_proj").view());
    let difference = worst(&h, &matrix(&expected, "layer0.hidden"));
    assert!(difference < 1e-5, "{difference}");
}
