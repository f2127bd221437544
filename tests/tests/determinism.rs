//! Twenty runs of a kernel give the same bits.

use crate::support::*;
use dsa_gate::Case;
use dsa_kernels::random::Rng;

#[track_caller]
fn repeats(case: &Case) {
    let first = holds(case);
    for again in 1..20 {
        let next = run(case);
        for (name, tensor) in &first {
            assert!(tensor.bytes == next[name].bytes, "{name} of run {again} differs");
        }
    }
}

#[test]
fn indexer_logits_repeats_bit_for_bit() {
    let ranges: Vec<(i32, i32)> = (0..33).map(|t| (t / 3, 2 * t + 30)).collect();
    repeats(&indexer(1, 64, 96, &ranges));
}

#[test]
fn indexer_logits_paged_repeats_bit_for_bit() {
    repeats(&indexer_paged(1, 64, 4, &[250, 3, 0, 129]));
}

#[test]
fn top_k_repeats_bit_for_bit_among_thousands_of_ties() {
    let mut rng = Rng::new(2);
    let row = |rng: &mut Rng| (0..8_000).map(|_| rng.below(3) as f32).collect();
    let rows: Vec<Vec<f32>> = (0..4).map(|_| row(&mut rng)).collect();
    repeats(&top_k(&rows, 2_048));
}

#[test]
fn sparse_attention_repeats_bit_for_bit_in_one_and_in_three_splits() {
    let lists: Vec<Vec<i32>> = (0..5).map(|t| some_of(t, 400, 300)).collect();
    for splits in [1, 3] {
        repeats(&sparse(3, 400, &lists).set("splits", splits));
    }
    repeats(&sparse(3, 400, &lists));
}

#[test]
fn sparse_attention_from_the_fp8_cache_repeats_bit_for_bit() {
    let lists: Vec<Vec<i32>> = (0..5).map(|t| some_of(t, 400, 300)).collect();
    repeats(&sparse_paged(4, 8, 50, &lists).set("splits", 3));
}

#[test]
fn dense_attention_repeats_bit_for_bit() {
    let causal: Vec<(i32, i32)> = (0..60).map(|t| (0, t + 1)).collect();
    repeats(&dense_mha(5, 60, &causal));
    repeats(&dense_mla(5, 60, &causal));
}

#[test]
fn act_quant_repeats_bit_for_bit() {
    repeats(&Case::new("act_quant").with("x", floats(6, &[50, 300])).set("fmt", "ue8m0"));
}

#[test]
fn gemm_repeats_bit_for_bit() {
    let case =
        Case::new("gemm").with("x", floats(7, &[2, 33, 200])).with("w", floats(8, &[2, 70, 200]));
    repeats(&case);
}

#[test]
fn norms_repeat_bit_for_bit() {
    let case =
        Case::new("rms_norm").with("x", floats(9, &[20, 300])).with("weight", floats(10, &[300]));
    repeats(&case.set("eps", 1e-6));
}
