//! The gate: choice, groups, ties, weights.
use crate::random::Random;
use dsa_reference::linear::linear;
use dsa_reference::router::{RouterConfig, Routing, router};
use ndarray::{Array1, Array2, array};

const ONE_GROUP: RouterConfig = RouterConfig {
    num_experts_per_tok: 2,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: true,
    routed_scaling_factor: 1.0,
};

/// The routing of one token whose gates are `g`.
fn route(g: &[f32], bias: &[f32], config: &RouterConfig) -> Routing {
    let logit = |&g: &f32| (f64::from(g) / (1.0 - f64::from(g))).ln() as f32;
    let logits = Array1::from_iter(g.iter().map(logit)).insert_axis(ndarray::Axis(0));
    let bias = Array1::from(bias.to_vec());
    router(logits.view(), bias.view(), config).unwrap()
}

fn close(a: &Array2<f32>, b: Array2<f32>) -> bool {
    a.dim() == b.dim() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[test]
fn the_best_come_first_and_the_weights_are_their_shares() {
    let r = route(&[0.1, 0.6, 0.3, 0.2], &[0.0; 4], &ONE_GROUP);
    assert_eq!(r.indices, array![[1, 2]]);
    assert!(close(&r.weights, array![[2.0 / 3.0, 1.0 / 3.0]]));
    let scaled = RouterConfig { routed_scaling_factor: 2.5, ..ONE_GROUP };
    let r = route(&[0.1, 0.6, 0.3, 0.2], &[0.0; 4], &scaled);
    assert!(close(&r.weights, array![[2.5 * 2.0 / 3.0, 2.5 / 3.0]]));
    let plain = RouterConfig { norm_topk_prob: false, ..scaled };
    let r = route(&[0.1, 0.6, 0.3, 0.2], &[0.0; 4], &plain);
    assert!(close(&r.weights, array![[1.5, 0.75]]));
}

#[test]
fn the_bias_chooses_and_does_not_weigh() {
    let r = route(&[0.1, 0.6, 0.3, 0.2], &[0.9, 0.0, 0.0, 0.0], &ONE_GROUP);
    assert_eq!(r.indices, array![[0, 1]]);
    assert!(close(&r.weights, array![[0.1 / 0.7, 0.6 / 0.7]]));
}

#[test]
fn a_groups_score_is_the_sum_of_its_two_best() {
    let groups = RouterConfig { n_group: 2, ..ONE_GROUP };
    // The best expert is in the first group, the best two are worth more in the second.
    let r = route(&[0.7, 0.1, 0.1, 0.5, 0.1, 0.4], &[0.0; 6], &groups);
    assert_eq!(r.indices, array![[3, 5]]);
    // By the sum of all three the first group would win.
    let r = route(&[0.35, 0.35, 0.35, 0.45, 0.4, 0.05], &[0.0; 6], &groups);
    assert_eq!(r.indices, array![[3, 4]]);
    let both = RouterConfig { topk_group: 2, ..groups };
    assert_eq!(route(&[0.7, 0.1, 0.1, 0.5, 0.1, 0.4], &[0.0; 6], &both).indices, array![[0, 3]]);
}

#[test]
fn a_masked_expert_is_not_better_than_a_negative_score() {
    let groups = RouterConfig { n_group: 2, ..ONE_GROUP };
    let r = route(&[0.2, 0.3, 0.1, 0.1], &[-0.5, -0.5, -0.6, -0.6], &groups);
    assert_eq!(r.indices, array![[1, 0]]);
}

#[test]
fn the_lower_index_wins_a_tie_of_experts_and_of_groups() {
    let four = RouterConfig { num_experts_per_tok: 3, ..ONE_GROUP };
    assert_eq!(route(&[0.5; 8], &[0.0; 8], &four).indices, array![[0, 1, 2]]);
    let r = route(&[0.5, 0.5, 0.75, 0.5], &[0.0; 4], &four);
    assert_eq!(r.indices, array![[2, 0, 1]]);
    let groups = RouterConfig { n_group: 4, topk_group: 2, ..ONE_GROUP };
    assert_eq!(route(&[0.5; 8], &[0.0; 8], &groups).indices, array![[0, 1]]);
}

#[test]
fn gates_that_are_all_0_weigh_0_and_nan_shows() {
    let run = |logits: [f32; 3]| {
        router(array![logits].view(), array![0.0, 0.0, 0.0].view(), &ONE_GROUP).unwrap()
    };
    let r = run([-500.0, -500.0, -1000.0]);
    assert_eq!((r.indices, r.weights), (array![[0, 1]], array![[0.0, 0.0]]));
    let r = run([f32::NAN; 3]);
    assert_eq!(r.indices, array![[0, 1]]);
    assert!(r.weights.iter().all(|w| w.is_nan()));
    // An expert whose gate is NaN is not chosen while there are others.
    let r = run([f32::NAN, -1.0, -2.0]);
    assert_eq!(r.indices, array![[1, 2]]);
    assert!(r.weights.iter().all(|w| w.is_finite()));
}

#[test]
fn a_tokens_choice_does_not_depend_on_its_company() {
    let mut random = Random::new(8);
    let (x, weight) = (random.array2(40, 24), random.array2(32, 24));
    let bias = random.array1(32) * 0.1;
    let c = RouterConfig { num_experts_per_tok: 6, n_group: 8, topk_group: 4, ..ONE_GROUP };
    let logits = linear(x.view(), weight.view());
    let all = router(logits.view(), bias.view(), &c).unwrap();
    for t in 0..40 {
        let alone = logits.slice_axis(ndarray::Axis(0), (t..t + 1).into());
        let alone = router(alone, bias.view(), &c).unwrap();
        assert_eq!(alone.indices.row(0), all.indices.row(t));
        assert_eq!(alone.weights.row(0), all.weights.row(t));
        assert!((all.weights.row(t).sum() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let error = |config: RouterConfig, experts: usize, bias: usize| {
        let (logits, bias) = (Array2::zeros((3, experts)), Array1::zeros(bias));
        router(logits.view(), bias.view(), &config).unwrap_err().to_string()
    };
    let groups = |n_group| RouterConfig { n_group, ..ONE_GROUP };
    assert_eq!(error(ONE_GROUP, 8, 7), "e_score_correction_bias has shape [7], expected [8]");
    for n_group in [0, 3] {
        let message = format!("n_group is {n_group}, expected a divisor of the number of experts");
        assert_eq!(error(groups(n_group), 8, 8), message);
    }
    let message = "n_group is 8, expected at most half the number of experts";
    assert_eq!(error(groups(8), 8, 8), message);
    for topk_group in [0, 3] {
        let message = format!("topk_group is {topk_group}, expected 1 to n_group");
        assert_eq!(error(RouterConfig { topk_group, ..groups(2) }, 8, 8), message);
    }
    for num_experts_per_tok in [0, 5] {
        let config = RouterConfig { num_experts_per_tok, ..groups(2) };
        let message = format!(
            "num_experts_per_tok is {num_experts_per_tok}, expected 1 to the number of experts in \
             topk_group groups"
        );
        assert_eq!(error(config, 8, 8), message);
    }
}
