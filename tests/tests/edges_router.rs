//! The gate: sigmoid, ties, bias, groups, NaN and infinities; sizes that contradict each other.

use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::random::Rng;

const INF: f32 = f32::INFINITY;

/// Logits of `n` tokens and a bias, of which a gate of [groups, groups taken, experts taken] chooses.
pub fn router(logits: HostTensor, bias: &[f32], [n_group, topk_group, top_k]: [usize; 3]) -> Case {
    Case::new("router")
        .with("logits", logits)
        .with("bias", f32s(&[bias.len()], bias))
        .set("n_group", n_group)
        .set("topk_group", topk_group)
        .set("num_experts_per_tok", top_k)
        .set("routed_scaling_factor", 1)
}

/// The experts of one token, which kernel and reference agree on.
#[track_caller]
fn chosen(logits: &[f32], bias: &[f32], sizes: [usize; 3]) -> Vec<i32> {
    holds(&router(f32s(&[1, logits.len()], logits), bias, sizes))["indices"].to_i32()
}

#[test]
fn a_gate_is_the_sigmoid_to_the_last_bit() {
    let mut rng = Rng::new(1);
    for spread in [1.0, 10.0, 40.0, 110.0, 1e4] {
        let logits: Vec<f32> = (0..20 * 512).map(|_| rng.normal() * spread).collect();
        let case = router(f32s(&[20, 512], &logits), &[0.0; 512], [1, 1, 512]);
        let case = case.set("norm_topk_prob", false);
        assert_eq!(run(&case)["weights"].bytes, expected(&case)["weights"].bytes, "{spread}");
    }
}

#[test]
fn equal_scores_and_equal_groups_go_to_the_lowest() {
    assert_eq!(chosen(&[0.5; 16], &[0.0; 16], [1, 1, 3]), [0, 1, 2]);
    assert_eq!(chosen(&[0.5; 16], &[0.0; 16], [4, 2, 8]), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(chosen(&[0.0, -0.0, 1.0, -0.0], &[-0.5; 4], [1, 1, 4]), [2, 0, 1, 3]);
    // -0 and +0 are one score.
    assert_eq!(chosen(&[-INF; 4], &[0.0, -0.0, 0.0, -0.0], [2, 1, 2]), [0, 1]);
}

#[test]
fn what_is_masked_is_worse_than_a_negative_score_and_better_than_nan() {
    let bias = [-1.5, -1.5, -1.6, -1.6];
    assert_eq!(chosen(&[0.2, 0.3, 0.1, 0.1], &bias, [2, 1, 2]), [1, 0]);
    // The first group is the better one and has one number alone: of the masked, which are -inf, the lowest is next.
    let with_nan = [f32::NAN, 3.0, 2.9, -1.0, -1.0, -1.0];
    assert_eq!(chosen(&with_nan, &[0.0; 6], [2, 1, 3]), [1, 2, 3]);
}

#[test]
fn only_the_choice_sees_the_bias() {
    let case = router(f32s(&[1, 3], &[0.0, 1.0, -1.0]), &[0.0, -9.0, 9.0], [1, 1, 2]);
    let got = holds(&case.set("norm_topk_prob", false));
    assert_eq!(got["indices"].to_i32(), [2, 0]);
    has("router", &got, "weights", &[0.268_941_43, 0.5]);
}

#[test]
fn nan_and_infinities_are_ranked_and_shown() {
    // Of groups that are all NaN the first two are open, and the masked one is better.
    assert_eq!(chosen(&[f32::NAN; 6], &[0.0; 6], [3, 2, 4]), [4, 5, 0, 1]);
    assert_eq!(chosen(&[f32::NAN; 6], &[0.0; 6], [1, 1, 4]), [0, 1, 2, 3]);
    assert_eq!(chosen(&[-INF; 6], &[0.0; 6], [3, 2, 4]), [0, 1, 2, 3]);
    assert_eq!(chosen(&[0.0; 4], &[-INF; 4], [2, 1, 2]), [0, 1]);
    assert_eq!(chosen(&[0.0; 4], &[f32::NAN, INF, -INF, 0.0], [1, 1, 4]), [1, 3, 2, 0]);
    let got = holds(&router(f32s(&[1, 3], &[f32::NAN, 1.0, f32::NAN]), &[0.0; 3], [1, 1, 2]));
    assert_eq!(got["indices"].to_i32(), [1, 0]);
    assert!(got["weights"].to_f32().iter().all(|weight| weight.is_nan()));
    // Gates that are all 0 weigh 0: the denominator is not 0.
    let got = holds(&router(f32s(&[1, 3], &[-INF, -500.0, -200.0]), &[0.0; 3], [1, 1, 2]));
    has("router", &got, "weights", &[0.0, 0.0]);
}

#[test]
fn a_gate_of_any_size_agrees_with_the_reference() {
    for (experts, sizes) in [
        (2, [1, 1, 1]),
        (2, [1, 1, 2]),
        (512, [1, 1, 512]),
        (512, [256, 256, 512]),
        (512, [2, 1, 256]),
        (512, [8, 4, 8]),
        (510, [3, 2, 7]),
    ] {
        for n in [0, 1, 5] {
            let bias = floats(3, &[experts]).to_f32();
            let case = router(floats(2, &[n, experts]), &bias, sizes);
            holds(&case);
            holds(&case.set("strided", true));
        }
    }
    holds(&router(floats(4, &[8192, 256]), &floats(5, &[256]).to_f32(), [8, 4, 8]));
}

#[test]
fn sizes_of_a_gate_that_contradict_each_other_are_refused() {
    let refusal = |case: Case| {
        let (by_kernel, by_reference) =
            (kernel_of(&case).run(&device(), &case), kernel_of(&case).reference(&case));
        let message = by_kernel.unwrap_err().to_string();
        assert_eq!(message, by_reference.unwrap_err().to_string());
        message
    };
    let gate = |sizes| router(floats(1, &[3, 12]), &[0.0; 12], sizes);
    for (sizes, name) in [
        ([0, 1, 1], "n_group"),
        ([5, 1, 1], "n_group"),
        ([12, 1, 1], "n_group"),
        ([4, 0, 1], "topk_group"),
        ([4, 5, 1], "topk_group"),
        ([4, 2, 0], "num_experts_per_tok"),
        ([4, 2, 7], "num_experts_per_tok"),
    ] {
        let message = refusal(gate(sizes));
        assert!(message.starts_with(&format!("{name} is ")), "{message}");
    }
    for experts in [1, 513] {
        let case = router(floats(1, &[3, experts]), &vec![0.0; experts], [1, 1, 1]);
        let message = refusal(case);
        assert!(message.contains(&format!("{experts}")), "{message}");
    }
    let short = router(floats(1, &[3, 12]), &[0.0; 11], [4, 2, 5]);
    assert!(refusal(short).contains("bias"));
}
