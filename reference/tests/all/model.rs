//! Whole models in exact arithmetic, against what transformers computed of them in f32: DeepSeek-V3.2
//! (tiny), GLM-5 (glm5) and GLM-5.2, whose layers 2 and 3 share the keys of layer 1 (glm).
use crate::checkpoint::{Golden, seen};
use crate::random::{Random, worst};
use dsa_reference::arithmetic::Arithmetic;
use dsa_reference::attention::*;
use dsa_reference::attention_layer::{self, Mode, Options};
use dsa_reference::model::{Forward, forward, greedy};
use dsa_reference::rope::Pairing;
use dsa_reference::watch::Watch;
use dsa_reference::weight::Weight;
use ndarray::{Array1, Array2, ArrayView1, Axis};

/// How far a value may be off, in units of the largest value of its row. Both implementations that
/// made the goldens sum in f32, and are themselves up to 2e-5 apart where rows reach to 4.
const BOUND: f32 = 1e-5;

/// The largest `|a − b|` of a row over the largest `|b|` of it; NaN if there is one.
fn off(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    let row = |a, b: ArrayView1<f32>| worst(a, b) / worst(b, &Array1::zeros(b.len()));
    let rows: Vec<f32> = a.rows().into_iter().zip(b.rows()).map(|(a, b)| row(a, b)).collect();
    worst(&rows, &vec![0.0; rows.len()])
}

fn golden(name: &str) -> (Golden, Arithmetic) {
    let pairing = if name == "tiny" { Pairing::HalfSplit } else { Pairing::Interleaved };
    (Golden::read(name, &["model.safetensors"]), Arithmetic::exact(pairing))
}

fn prefill(golden: &Golden, arithmetic: &Arithmetic, mode: Mode) -> Forward {
    let ids = golden.ids();
    forward(&ids, ids.len(), &golden.config, &golden.weights, arithmetic, mode).unwrap()
}

/// How far the logits of a changed model are from the stored ones.
fn logits_off(golden: &Golden, arithmetic: &Arithmetic, mode: Mode) -> f32 {
    off(&prefill(golden, arithmetic, mode).logits, &golden.expected.matrix("logits"))
}

fn check(name: &str) {
    let (golden, exact) = golden(name);
    let pass = prefill(&golden, &exact, Mode::Sparse);
    for (layer, keys) in pass.keys.iter().enumerate() {
        let stored = golden.keys(&format!("layer{layer}.topk"), 0);
        for (t, (keys, stored)) in keys.rows().into_iter().zip(&stored).enumerate() {
            assert_eq!(&seen(keys, t), stored, "{name}: keys of layer {layer}, row {t}");
        }
        assert_eq!(keys.nrows(), stored.len());
    }
    for (layer, hidden) in pass.hidden.iter().enumerate() {
        let off = off(hidden, &golden.expected.matrix(&format!("layer{layer}.hidden")));
        assert!(off < BOUND, "{name}: hidden state of layer {layer} is off by {off}");
    }
    assert_eq!(pass.hidden.len(), golden.weights.layers.len());
    let off = self::off(&pass.logits, &golden.expected.matrix("logits"));
    assert!(off < BOUND, "{name}: logits are off by {off}");
    let ids = golden.expected.integers("greedy_ids");
    let (chosen, logits) =
        greedy(&golden.ids(), ids.len(), &golden.config, &golden.weights, &exact).unwrap();
    assert_eq!(chosen, ids, "{name}");
    let off = self::off(&logits, &golden.expected.matrix("greedy_logits"));
    assert!(off < BOUND, "{name}: logits of decoding are off by {off}");
}

#[test]
fn deepseek_v3_2_is_what_transformers_computes() {
    check("tiny");
}

#[test]
fn glm_5_is_what_transformers_computes() {
    check("glm5");
}

#[test]
fn glm_5_2_with_shared_keys_is_what_transformers_computes() {
    check("glm");
}

#[test]
fn the_goldens_tell_the_indexers_pairings_apart() {
    for (name, wrong) in [("tiny", Pairing::Interleaved), ("glm5", Pairing::HalfSplit)] {
        let (golden, _) = golden(name);
        let off = logits_off(&golden, &Arithmetic::exact(wrong), Mode::Sparse);
        assert!(off > 1.0, "{name}: {off}");
    }
}

#[test]
fn the_goldens_tell_the_latents_eps_from_the_others() {
    let (mut golden, exact) = golden("glm5");
    golden.config.attention.rms_norm_eps = golden.config.rms_norm_eps;
    let off = logits_off(&golden, &exact, Mode::Sparse);
    assert!(off > 3.0 * BOUND, "{off}");
    let (mut golden, exact) = self::golden("glm5");
    golden.config.rms_norm_eps = 1e-6;
    let off = logits_off(&golden, &exact, Mode::Sparse);
    assert!(off > 3.0 * BOUND, "{off}");
}

#[test]
fn the_goldens_tell_a_scale_without_mscale_apart() {
    let (mut golden, exact) = golden("tiny");
    let yarn = golden.config.attention.yarn.as_mut().unwrap();
    (yarn.mscale, yarn.mscale_all_dim) = (0.0, 0.0);
    let off = logits_off(&golden, &exact, Mode::Sparse);
    assert!(off > 0.1, "{off}");
}

#[test]
fn the_goldens_tell_sparse_from_dense() {
    for name in ["tiny", "glm", "glm5"] {
        let (golden, exact) = golden(name);
        let off = logits_off(&golden, &exact, Mode::Dense);
        assert!(off > 0.1, "{name}: {off}");
    }
}

#[test]
fn a_layer_with_an_indexer_of_its_own_is_not_a_shared_one() {
    let (mut golden, exact) = golden("glm5");
    golden.weights.layers[2].self_attn.indexer = None;
    let pass = prefill(&golden, &exact, Mode::Sparse);
    assert_eq!(pass.keys[2], pass.keys[1]);
    let off = off(&pass.logits, &golden.expected.matrix("logits"));
    assert!(off > 0.1, "{off}");
}

#[test]
fn a_later_token_changes_nothing_before_it() {
    let (golden, exact) = golden("tiny");
    let whole = prefill(&golden, &exact, Mode::Sparse).logits;
    let ids = &golden.ids()[..60];
    let short = forward(ids, 60, &golden.config, &golden.weights, &exact, Mode::Sparse).unwrap();
    assert_eq!(short.logits, whole.slice_axis(Axis(0), (..60).into()));
}

#[test]
fn in_exact_arithmetic_decoding_is_the_same_function_as_prefill() {
    for name in ["tiny", "glm"] {
        let (golden, exact) = golden(name);
        let whole = prefill(&golden, &exact, Mode::Sparse);
        for from in [0, 31] {
            let (config, weights) = (&golden.config, &golden.weights);
            let pass = forward(&golden.ids(), from, config, weights, &exact, Mode::Sparse).unwrap();
            assert!(off(&pass.logits, &whole.logits) < BOUND);
            assert_eq!(pass.keys, whole.keys);
        }
    }
}

#[test]
fn the_models_attention_is_that_of_attention_layer() {
    let (golden, exact) = golden("tiny");
    let c = &golden.config.attention;
    let w = &golden.weights.layers[1].self_attn;
    let i = w.indexer.as_ref().unwrap();
    let m = |w: &Weight| w.dequantise().unwrap();
    let plain = attention_layer::AttentionWeights {
        q_a_proj: m(&w.q_a_proj),
        q_a_layernorm: w.q_a_layernorm.clone(),
        q_b_proj: m(&w.q_b_proj),
        kv_a_proj_with_mqa: m(&w.kv_a_proj_with_mqa),
        kv_a_layernorm: w.kv_a_layernorm.clone(),
        kv_b_proj: m(&w.kv_b_proj),
        o_proj: m(&w.o_proj),
        indexer: attention_layer::IndexerWeights {
            wq_b: m(&i.wq_b),
            wk: m(&i.wk),
            k_norm_weight: i.k_norm_weight.clone(),
            k_norm_bias: i.k_norm_bias.clone(),
            weights_proj: i.weights_proj.clone(),
        },
    };
    let mut random = Random::new(9);
    let x = random.array2(70, c.hidden_size);
    for dsa in [exact.dsa, Options::default()] {
        let a = Arithmetic { dsa, ..exact };
        let qr = query_latent(x.view(), c, w, &a).unwrap();
        let q = queries(qr.view(), 0, c, w, &a).unwrap();
        let (latent, k_pe) = latents(x.view(), 0, c, w, &a).unwrap();
        let latent = store_latent(latent.view(), &a).unwrap();
        let keys = index(x.view(), qr.view(), c, i, &a, &mut Watch::none()).unwrap();
        assert_eq!(keys, attention_layer::indexer_topk(x.view(), c, &plain, &dsa).unwrap());
        let whole = attention_layer::attention(x.view(), c, &plain, &dsa, Mode::Sparse).unwrap();
        for form in [Form::Prefill, Form::Decode] {
            let (q, latent, k_pe) = (q.view(), latent.view(), k_pe.view());
            let o = attend(q, latent, k_pe, keys.view(), form, c, w, &a).unwrap();
            let out = output(o.view(), c, w, &a).unwrap();
            assert!(off(&out, &whole) < BOUND, "{dsa:?} {form:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, exact) = golden("glm");
    let error = |golden: &Golden, ids: &[i32]| {
        let run = forward(ids, 0, &golden.config, &golden.weights, &exact, Mode::Sparse);
        run.unwrap_err().to_string()
    };
    for id in [-1, 320] {
        let message = format!("token id is {id}, expected at least 0 and below vocab_size");
        assert_eq!(error(&golden, &[5, id]), message);
    }
    let (mut other, _) = self::golden("glm");
    other.weights.layers[0].self_attn.indexer = None;
    assert_eq!(error(&other, &[5]), "indexer of layer 0 is none, expected its weights");
    let (mut other, _) = self::golden("glm");
    other.weights.lm_head = Array2::zeros((320, 63));
    assert_eq!(error(&other, &[5]), "lm_head has shape [320, 63], expected [320, 64]");
    let (mut other, _) = self::golden("glm");
    other.config.attention.num_attention_heads = 5;
    assert_eq!(error(&other, &[5]), "q_b_proj has shape [160, 48], expected [200, 48]");
    let (config, weights) = (&golden.config, &golden.weights);
    let empty = greedy(&[], 1, config, weights, &exact).unwrap_err().to_string();
    assert_eq!(empty, "prompt length is 0, expected at least 1 token");
    let none = forward(&[], 0, config, weights, &exact, Mode::Sparse).unwrap();
    assert_eq!(none.logits.dim(), (0, 320));
}
