//! Selection: ties, values that must not be chosen, policies.
use crate::random::Random;
use dsa_reference::top_k::{Policy, top_k};
use ndarray::{Array2, array};
use std::cmp::Ordering;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// One row over all its columns.
fn one(logits: &[f32], topk: usize, policy: Policy) -> Vec<i32> {
    within(logits, 0, logits.len() as i32, topk, policy)
}

/// One row over the columns [ks, ke).
fn within(logits: &[f32], ks: i32, ke: i32, topk: usize, policy: Policy) -> Vec<i32> {
    let logits = Array2::from_shape_vec((1, logits.len()), logits.to_vec()).unwrap();
    top_k(logits.view(), &[ks], &[ke], topk, policy).row(0).to_vec()
}

#[test]
fn ascending_and_padded() {
    assert_eq!(one(&[1.0, 5.0, 3.0, 4.0], 2, Policy::Fixed), [1, 3]);
    assert_eq!(one(&[1.0, 5.0], 4, Policy::Fixed), [0, 1, -1, -1]);
    assert_eq!(one(&[1.0, 5.0], 0, Policy::Fixed), [0i32; 0]);
    assert_eq!(one(&[], 2, Policy::Fixed), [-1, -1]);
}

#[test]
fn the_lower_index_wins_a_tie() {
    assert_eq!(one(&[2.0; 6], 3, Policy::Fixed), [0, 1, 2]);
    assert_eq!(one(&[0.0, 1.0, 0.0, -1.0, 0.0], 3, Policy::Fixed), [0, 1, 2]);
    assert_eq!(one(&[-0.0, 0.0, -0.0, 0.0], 2, Policy::Fixed), [0, 1]);
    assert_eq!(one(&[0.0, -0.0, 0.0], 2, Policy::Fixed), [0, 1]);
    let plateau = vec![0.0; 10000]; // more than any buffer of candidates
    assert_eq!(one(&plateau, 2048, Policy::Fixed), (0..2048).collect::<Vec<_>>());
}

#[test]
fn nan_and_minus_infinity_are_never_selected() {
    let row = [NAN, -INF, 1.0, -NAN, INF, f32::MIN];
    assert_eq!(one(&row, 4, Policy::Fixed), [2, 4, 5, -1]);
    assert_eq!(one(&row, 1, Policy::Fixed), [4]);
    assert_eq!(one(&[NAN, -INF], 2, Policy::Fixed), [-1, -1]);
}

#[test]
fn ranges_are_absolute_and_clamped() {
    let row = [9.0, 1.0, 2.0, 3.0, 9.0];
    assert_eq!(within(&row, 1, 4, 2, Policy::Fixed), [2, 3]);
    assert_eq!(within(&row, i32::MIN, i32::MAX, 2, Policy::Fixed), [0, 4]);
    for (ks, ke) in [(0, 0), (3, 1), (7, 9), (-4, -2), (i32::MAX, i32::MIN)] {
        assert_eq!(within(&row, ks, ke, 2, Policy::Fixed), [-1, -1], "[{ks}, {ke})");
    }
    let rows = array![[1.0, 2.0], [3.0, 4.0]];
    let short = top_k(rows.view(), &[0], &[2, 2], 1, Policy::Fixed);
    assert_eq!(short, array![[1], [-1]], "a row without a range is empty");
}

#[test]
fn a_fraction_of_the_keys() {
    let row: Vec<f32> = (0..1001).map(|i| i as f32).collect();
    let count = |per_mille, min, topk| {
        let chosen = one(&row, topk, Policy::Fraction { per_mille, min });
        chosen.iter().filter(|&&n| n >= 0).count()
    };
    assert_eq!(count(100, 0, 500), 101); // ceil(100.1)
    assert_eq!(count(1000, 0, 500), 500);
    assert_eq!(count(0, 7, 500), 7);
    assert_eq!(count(0, 0, 500), 0);
    assert_eq!(count(u32::MAX, u32::MAX, 500), 500);
    assert_eq!(within(&row, 5, 8, 9, Policy::Fraction { per_mille: 1, min: 2 })[..3], [6, 7, -1]);
}

#[test]
fn window_and_sinks_come_first() {
    let row = [0.0, 0.0, 9.0, 8.0, 7.0, 0.0, 0.0];
    let keep = |window, sinks| Policy::Window { window, sinks };
    assert_eq!(one(&row, 4, keep(2, 1)), [0, 2, 5, 6]);
    assert_eq!(one(&row, 4, keep(0, 0)), [0, 2, 3, 4]);
    assert_eq!(one(&row, 3, keep(4, 2)), [0, 1, 6], "sinks, then the newest");
    assert_eq!(one(&row, 2, keep(4, 3)), [0, 1]);
    assert_eq!(one(&row, 9, keep(u32::MAX, u32::MAX))[..8], [0, 1, 2, 3, 4, 5, 6, -1]);
    assert_eq!(within(&row, 1, 5, 2, keep(1, 1)), [1, 4], "of the range, not of the row");
    let holes = [NAN, 1.0, 5.0, 2.0, -INF];
    assert_eq!(one(&holes, 2, keep(2, 1)), [2, 3], "a position that is no key is not replaced");
}

#[test]
fn equal_to_a_stable_sort() {
    let mut random = Random::new(1);
    for _ in 0..200 {
        let n = 1 + random.below(60);
        let row: Vec<f32> = (0..n).map(|_| random.below(7) as f32 - 3.0).collect();
        let topk = 1 + random.below(40);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal));
        order.truncate(topk);
        order.sort();
        let mut expected: Vec<i32> = order.iter().map(|&n| n as i32).collect();
        expected.resize(topk, -1);
        assert_eq!(one(&row, topk, Policy::Fixed), expected);
    }
}
