//! The official arithmetic, stage by stage: each is fed with what the demo fed it with, in prefill and
//! in the first decoded token, and judged by what came out there.
//!
//! End to end, one unit in the last place of an f32 may turn the logits of such a model upside down.
//! The reference has the demo's roundings and sums that are exact for it, so it gives the demo's.
use crate::checkpoint::{Golden, seen};
use dsa_reference::add_norm::add_rms_norm;
use dsa_reference::arithmetic::Arithmetic;
use dsa_reference::attention::*;
use dsa_reference::attention_layer::{Mode, Options};
use dsa_reference::embedding::embedding;
use dsa_reference::experts::{ExpertsWeights, experts, routed_experts};
use dsa_reference::feed_forward::feed_forward;
use dsa_reference::linear::linear;
use dsa_reference::model::{LayerWeights, Mlp, forward};
use dsa_reference::quant::{bf16_round, e4m3_encode};
use dsa_reference::router::{Routing, router};
use dsa_reference::watch::Watch;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, concatenate};

/// The prompt is as long; the first decoded token stands behind it.
const PROMPT: usize = 160;

fn golden() -> Golden {
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    Golden::read("demo", &files)
}

/// One layer of the prompt's pass or of the first decoded token's.
struct Stage<'a> {
    golden: &'a Golden,
    layer: usize,
    decode: bool,
}

impl Stage<'_> {
    /// The six passes through a layer.
    fn each(golden: &Golden, mut check: impl FnMut(&Stage)) {
        for layer in 0..3 {
            for decode in [false, true] {
                check(&Stage { golden, layer, decode });
            }
        }
    }

    fn name(&self, part: &str) -> String {
        let pass = if self.decode { "decode." } else { "" };
        format!("{pass}layer{}.{part}", self.layer)
    }

    fn start(&self) -> usize {
        if self.decode { PROMPT } else { 0 }
    }

    /// The stored tensor, all axes but the last as rows.
    fn matrix(&self, part: &str) -> Array2<f32> {
        self.golden.expected.matrix(&self.name(part))
    }

    fn cube(&self, part: &str) -> Array3<f32> {
        self.golden.expected.cube(&self.name(part))
    }

    /// What the cache holds: the prompt's rows, and the decoded token's behind them.
    fn cached(&self, part: &str) -> Array2<f32> {
        let prompt = Stage { golden: self.golden, layer: self.layer, decode: false };
        if !self.decode {
            return self.matrix(part);
        }
        concatenate(Axis(0), &[prompt.matrix(part).view(), self.matrix(part).view()]).unwrap()
    }

    /// The keys that were attended to, −1 for those that the causal mask hides.
    fn keys(&self) -> Array2<i32> {
        let topk = self.golden.config.attention.index_topk;
        let stored = self.golden.expected.integers(&self.name("index.topk"));
        let stored = Array2::from_shape_vec((stored.len() / topk, topk), stored).unwrap();
        let visible = |((t, _), &n): ((usize, usize), &i32)| n <= (self.start() + t) as i32;
        Array2::from_shape_fn(stored.dim(), |at| {
            if visible((at, &stored[at])) { stored[at] } else { -1 }
        })
    }

    fn weights(&self) -> &LayerWeights {
        &self.golden.weights.layers[self.layer]
    }

    fn indexer(&self) -> &IndexerWeights {
        self.weights().self_attn.indexer.as_ref().unwrap()
    }

    /// The experts, unless the layer is dense.
    fn experts(&self) -> Option<&ExpertsWeights> {
        match &self.weights().mlp {
            Mlp::Experts(weights) => Some(weights),
            Mlp::Dense(_) => None,
        }
    }

    /// At most 2 % of bf16 values are unequal, and the relative rms is at most 2e-3.
    fn bf16<'a>(&self, part: &str, found: impl IntoIterator<Item = &'a f32>) {
        let (unequal, rms) = self.compare(part, found);
        assert!(
            unequal <= 0.02 && rms <= 2e-3,
            "{}: {unequal} unequal, rms {rms}",
            self.name(part)
        );
    }

    /// The relative rms of f32 values is at most 1e-5.
    fn f32<'a>(&self, part: &str, found: impl IntoIterator<Item = &'a f32>) {
        let (_, rms) = self.compare(part, found);
        assert!(rms <= 1e-5, "{}: rms {rms}", self.name(part));
    }

    fn equal<'a>(&self, part: &str, found: impl IntoIterator<Item = &'a f32>) {
        let (unequal, _) = self.compare(part, found);
        assert_eq!(unequal, 0.0, "{}", self.name(part));
    }

    /// The share of unequal values, and the relative rms of the difference.
    fn compare<'a>(&self, part: &str, found: impl IntoIterator<Item = &'a f32>) -> (f64, f64) {
        let found: Vec<f32> = found.into_iter().copied().collect();
        let stored = self.golden.expected.vector(&self.name(part));
        assert_eq!(found.len(), stored.len(), "{}", self.name(part));
        let unequal = found.iter().zip(&stored).filter(|(a, b)| a != b).count();
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = found.iter().zip(&stored).map(|(a, b)| square(a - b)).sum();
        let size: f64 = stored.iter().map(|&x| square(x)).sum();
        (unequal as f64 / found.len() as f64, (error / size).sqrt())
    }
}

/// What stands before a layer: the last layer's output and its residual, or the embedding and nothing.
fn before(stage: &Stage) -> (Array2<f32>, Array2<f32>) {
    if let Some(layer) = stage.layer.checked_sub(1) {
        let last = Stage { layer, ..*stage };
        return (last.matrix("block.ffn_out"), last.matrix("block.residual"));
    }
    let greedy = stage.golden.expected.integers("greedy_ids");
    let ids = if stage.decode { vec![greedy[0]] } else { stage.golden.ids() };
    let x = embedding(&ids, stage.golden.weights.embed_tokens.view()).unwrap();
    let none = Array2::zeros(x.dim());
    (x, none)
}

#[test]
fn norms_and_residuals() {
    let (golden, a) = (golden(), Arithmetic::official());
    let eps = golden.config.rms_norm_eps;
    Stage::each(&golden, |stage| {
        let ((x, residual), w) = (before(stage), stage.weights());
        let norm = w.input_layernorm.view();
        let (x, residual) = add_rms_norm(x.view(), residual.view(), norm, eps, &a).unwrap();
        stage.bf16("mla.x", &x);
        let before = residual.clone();
        let (out, norm) = (stage.matrix("mla.out"), w.post_attention_layernorm.view());
        let (x, residual) = add_rms_norm(out.view(), residual.view(), norm, eps, &a).unwrap();
        stage.bf16("block.ffn_in", &x);
        stage.equal("block.residual", &residual);
        let (unequal, _) = stage.compare("block.residual", &(&out + &before));
        assert!(unequal > 0.3, "the residual is rounded: {unequal}");
    });
}

#[test]
fn queries_and_latents() {
    let (golden, a) = (golden(), Arithmetic::official());
    let c = &golden.config.attention;
    Stage::each(&golden, |stage| {
        let (start, w) = (stage.start(), &stage.weights().self_attn);
        let (x, qr) = (stage.matrix("mla.x"), stage.matrix("mla.qr"));
        stage.bf16("mla.qr", &query_latent(x.view(), c, w, &a).unwrap());
        let q = queries(qr.view(), start, c, w, &a).unwrap();
        let (q_nope, q_pe) = q.view().split_at(Axis(2), c.qk_nope_head_dim);
        stage.bf16("mla.q_nope", q_nope);
        stage.bf16("mla.q_pe", q_pe);
        let (c_before, k_pe) = latents(x.view(), start, c, w, &a).unwrap();
        stage.bf16("mla.c_before", &c_before);
        stage.bf16("mla.k_pe", &k_pe);
        let stored = store_latent(stage.matrix("mla.c_before").view(), &a).unwrap();
        stage.equal("mla.c", &stored);
        let dsa = Options { kv_fp8: false, ..a.dsa };
        let plain = store_latent(stage.matrix("mla.c_before").view(), &Arithmetic { dsa, ..a });
        let (unequal, _) = stage.compare("mla.c", &plain.unwrap());
        assert!(unequal > 0.5, "the latent has been through 8 bits: {unequal}");
    });
}

#[test]
fn the_indexer() {
    let (golden, a) = (golden(), Arithmetic::official());
    let c = &golden.config.attention;
    let codes = |x: ArrayView2<f32>| x.mapv(e4m3_encode);
    let close = |stage: &Stage, part: &str, found: Array2<u8>| {
        let stored = stage.golden.expected.codes(&stage.name(part));
        let steps = |(&a, &b): (&u8, &u8)| (i32::from(a) - i32::from(b)).abs();
        let off = found.iter().zip(&stored).filter(|&pair| steps(pair) > 0).count();
        assert!(found.iter().zip(&stored).all(|pair| steps(pair) <= 1), "{}", stage.name(part));
        assert!(off * 500 <= found.len(), "{}: {off} of {} off", stage.name(part), found.len());
    };
    Stage::each(&golden, |stage| {
        let (start, w) = (stage.start(), stage.indexer());
        let (x, qr) = (stage.matrix("mla.x"), stage.matrix("mla.qr"));
        stage.bf16("index.q", &index_queries(qr.view(), start, c, w, &a).unwrap());
        stage.bf16("index.k", &index_keys(x.view(), start, c, w, &a).unwrap());
        // Codes and scales of the stored vectors.
        let (q, q_scale) = index_quantise(stage.matrix("index.q").view(), &a).unwrap();
        let (k, k_scale) = index_quantise(stage.matrix("index.k").view(), &a).unwrap();
        close(stage, "index.q_codes", codes(q.view()));
        close(stage, "index.k_codes", codes(k.view()));
        stage.equal("index.q_scale", &q_scale);
        stage.equal("index.k_scale", &k_scale);
        let heads = c.index_n_heads;
        let q_scale = q_scale.into_shape_with_order((x.nrows(), heads)).unwrap();
        let weights = index_weights(x.view(), q_scale.view(), c, w).unwrap();
        stage.f32("index.weights", &weights);
        // Scores of the stored codes, the keys being those of the cache.
        let keys = stage.cached("index.k");
        let (k, k_scale) = index_quantise(keys.view(), &a).unwrap();
        let q = q.into_shape_with_order((x.nrows(), heads, c.index_head_dim)).unwrap();
        let w = stage.matrix("index.weights").into_shape_with_order((x.nrows(), heads)).unwrap();
        let scores = index_scores(q.view(), k.view(), k_scale.view(), w.view(), start).unwrap();
        let stored = stage.matrix("index.scores");
        let hidden = |at: (usize, usize)| at.1 > start + at.0; // they are without the mask
        let found =
            Array2::from_shape_fn(
                stored.dim(),
                |at| {
                    if hidden(at) { stored[at] } else { scores[at] }
                },
            );
        assert!(scores.indexed_iter().all(|(at, &x)| hidden(at) == (x == f32::NEG_INFINITY)));
        stage.f32("index.scores", &found);
        let indices = index_topk(stored.view(), start, c.index_topk);
        let stored = stage.golden.keys(&stage.name("index.topk"), start);
        for (t, (found, stored)) in indices.rows().into_iter().zip(&stored).enumerate() {
            assert_eq!(&seen(found, start + t), stored, "{} row {t}", stage.name("index.topk"));
        }
    });
}

#[test]
fn the_attention_with_the_demos_roundings() {
    let (golden, official) = (golden(), Arithmetic::official());
    let exact = Arithmetic { bf16: false, ..official };
    let c = &golden.config.attention;
    Stage::each(&golden, |stage| {
        let w = &stage.weights().self_attn;
        let q =
            concatenate(Axis(2), &[stage.cube("mla.q_nope").view(), stage.cube("mla.q_pe").view()]);
        let (q, keys) = (q.unwrap(), stage.keys());
        let (latents, k_pe) = (stage.cached("mla.c"), stage.cached("mla.k_pe"));
        let run = |form, a: &Arithmetic| {
            let (c_kv, k_pe) = (latents.view(), k_pe.view());
            attend(q.view(), c_kv, k_pe, keys.view(), form, c, w, a).unwrap()
        };
        let form = if stage.decode { Form::Decode } else { Form::Prefill };
        stage.bf16("mla.o", &run(form, &official));
        // Without the roundings the result is another one: the bounds tell the two apart.
        let plain = run(form, &exact).mapv(bf16_round);
        let (unequal, rms) = stage.compare("mla.o", &plain);
        assert!(unequal > 0.3 && rms > 4e-3, "{}: {unequal} {rms}", stage.name("mla.o"));
        let o = stage.cube("mla.o");
        stage.bf16("mla.out", &output(o.view(), c, w, &official).unwrap());
    });
}

#[test]
fn the_feed_forward_networks_and_the_gate() {
    let (golden, a) = (golden(), Arithmetic::official());
    Stage::each(&golden, |stage| {
        let x = stage.matrix("block.ffn_in");
        let Some(w) = stage.experts() else {
            let Mlp::Dense(w) = &stage.weights().mlp else { panic!("layer 0 is dense") };
            stage.bf16("block.ffn_out", &feed_forward(x.view(), w, &a).unwrap());
            return;
        };
        let one = |part: &str| {
            let m = stage.golden.expected.vector(&stage.name(part));
            let cols = m.len() / x.nrows();
            m.into_shape_with_order((x.nrows(), cols)).unwrap()
        };
        assert_eq!(one("gate.x"), x);
        let routing =
            router(linear(x.view(), w.gate.view()).view(), w.bias.view(), &golden.config.router)
                .unwrap();
        let indices = golden.expected.integers(&stage.name("gate.indices"));
        assert_eq!(routing.indices.flatten().to_vec(), indices, "{}", stage.name("gate.indices"));
        stage.f32("gate.weights", &routing.weights);
        let routing = Routing { weights: one("gate.weights"), indices: routing.indices };
        // f32 sums of bf16 values.
        stage.bf16("moe.routed", &routed_experts(x.view(), &routing, &w.experts, &a).unwrap());
        stage.bf16("moe.shared", &feed_forward(x.view(), &w.shared, &a).unwrap());
        let whole = experts(x.view(), w, &golden.config.router, &a, &mut Watch::none()).unwrap();
        stage.bf16("block.ffn_out", &whole);
        stage.equal("block.ffn_out", &a.rounded(one("moe.routed") + one("moe.shared")));
    });
}

/// What softmax makes of logits.
fn shares(logits: ArrayView1<f32>) -> Vec<f64> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The mean Kullback–Leibler divergence of rows of logits.
fn divergence(a: ArrayView2<f32>, b: ArrayView2<f32>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let row = |(a, b)| -> f64 {
        let terms = shares(a).into_iter().zip(shares(b));
        terms.map(|(a, b)| a * (a / b).ln()).sum()
    };
    a.rows().into_iter().zip(b.rows()).map(row).sum::<f64>() / a.nrows() as f64
}

#[test]
fn the_whole_model_end_to_end() {
    let (golden, a) = (golden(), Arithmetic::official());
    // The decoded tokens are given, so one pass shows what each of them was chosen from.
    let chosen = golden.expected.integers("greedy_ids");
    let ids = [golden.ids(), chosen[..chosen.len() - 1].to_vec()].concat();
    let pass = forward(&ids, PROMPT, &golden.config, &golden.weights, &a, Mode::Sparse).unwrap();
    for (layer, keys) in pass.keys.iter().enumerate() {
        let stored = golden.keys(&format!("layer{layer}.index.topk"), 0);
        for (t, (keys, stored)) in keys.rows().into_iter().zip(&stored).enumerate() {
            assert_eq!(&seen(keys, t), stored, "keys of layer {layer}, row {t}");
        }
    }
    let (prompt, _) = pass.logits.view().split_at(Axis(0), PROMPT);
    let off = divergence(golden.expected.matrix("logits").view(), prompt);
    assert!(off < 1e-6, "prefill: {off}");
    let (_, decoded) = pass.logits.view().split_at(Axis(0), PROMPT - 1);
    let off = divergence(golden.expected.matrix("greedy_logits").view(), decoded);
    assert!(off < 1e-6, "decoding: {off}");
    for (logits, &id) in decoded.rows().into_iter().zip(&chosen) {
        assert!(logits.iter().all(|&logit| logit <= logits[id as usize]), "{id} is the best");
    }
}
