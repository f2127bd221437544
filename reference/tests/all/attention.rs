//! Sparse against dense, and every convention at the edges.
use crate::random::{Random, worst};
use dsa_reference::dense_attention::{dense_masked, dense_mha, dense_mla};
use dsa_reference::mask::{causal_mask, compose, index_mask};
use dsa_reference::sparse_attention::*;
use dsa_reference::top_k::{Policy, top_k};
use ndarray::{Array2, Array3, Axis, Slice, array};

pub const TAU: f32 = 0.2;
pub const INF: f32 = f32::INFINITY;

/// Without `topk_length` and sink.
pub fn sparse(
    q: &Array3<f32>,
    kv: &Array2<f32>,
    indices: &Array2<i32>,
    d_v: usize,
) -> AttentionOut {
    sparse_mla(q.view(), kv.view(), indices.view(), TAU, d_v, None, None).unwrap()
}

pub fn assert_close(a: &AttentionOut, b: &AttentionOut) {
    assert!(worst(&a.out, &b.out) < 2e-6);
    assert!(worst(&a.lse, &b.lse) < 2e-6);
    assert!(worst(&a.max_logits, &b.max_logits) < 2e-6);
}

pub fn assert_no_key(a: &AttentionOut, t: usize) {
    assert!(a.out.index_axis(Axis(0), t).iter().all(|&x| x == 0.0));
    assert!(a.lse.row(t).iter().all(|&x| x == INF));
    assert!(a.max_logits.row(t).iter().all(|&x| x == -INF));
}

#[test]
fn one_row_by_hand() {
    let q = Array3::from_elem((1, 1, 2), 1.0);
    let kv = array![[1.0, 0.0], [5.0, 5.0], [2.0, 1.0]];
    let a = sparse_mla(q.view(), kv.view(), array![[0, 2]].view(), 1.0, 1, None, None).unwrap();
    let (e1, e3) = (1f64.exp(), 3f64.exp());
    assert_eq!(a.out[(0, 0, 0)], ((e1 + 2.0 * e3) / (e1 + e3)) as f32);
    assert_eq!(a.lse[(0, 0)], (e1 + e3).ln() as f32);
    assert_eq!(a.max_logits[(0, 0)], 3.0);
}

#[test]
fn sparse_is_dense_with_a_mask() {
    let mut random = Random::new(1);
    let (s, h, d_qk, d_v, s_kv, start) = (7, 3, 12, 8, 40, 20);
    let (q, kv) = (random.array3(s, h, d_qk), random.array2(s_kv, d_qk));
    let ke: Vec<i32> = (0..s).map(|t| (start + t + 1) as i32).collect();
    let scores = random.array2(s, s_kv);
    for topk in [1, 5, 24, 64] {
        let indices = top_k(scores.view(), &vec![0; s], &ke, topk, Policy::Fixed);
        let mask = index_mask(indices.view(), s_kv);
        let masked = dense_masked(q.view(), kv.view(), mask.view(), TAU, d_v).unwrap();
        assert_eq!(sparse(&q, &kv, &indices, d_v), masked);
    }
    // All keys selected, out of every order, is dense attention.
    let all = Array2::from_shape_fn((s, 48), |(_, j)| (j as i32 * 7) % 48);
    let mask = compose(index_mask(all.view(), s_kv).view(), causal_mask(s, start, s_kv).view());
    let masked = dense_masked(q.view(), kv.view(), mask.unwrap().view(), TAU, d_v).unwrap();
    let dense = dense_mla(q.view(), kv.view(), &vec![0; s], &ke, TAU, d_v).unwrap();
    assert_close(&masked, &dense);
    let whole = dense_mla(q.view(), kv.view(), &vec![0; s], &vec![i32::MAX; s], TAU, d_v).unwrap();
    assert_close(&sparse(&q, &kv, &all, d_v), &whole);
}

#[test]
fn the_heads_of_mha_may_share_one_row() {
    let mut random = Random::new(2);
    let (q, kv) = (random.array3(4, 3, 6), random.array2(9, 6));
    let k = Array3::from_shape_fn((9, 3, 6), |(n, _, i)| kv[(n, i)]);
    let v = k.slice_axis(Axis(2), Slice::from(..4));
    let (ks, ke) = ([0, 3, 2, 8], [9, 5, 2, 100]);
    let mha = dense_mha(q.view(), k.view(), v, &ks, &ke, TAU).unwrap();
    assert_eq!(mha, dense_mla(q.view(), kv.view(), &ks, &ke, TAU, 4).unwrap());
    assert_no_key(&mha, 2);
}

#[test]
fn what_is_no_key_is_not_read() {
    let mut random = Random::new(3);
    let (q, mut kv) = (random.array3(3, 2, 4), random.array2(5, 4));
    let indices = array![
        [-1, 1, i32::MIN, 3, i32::MAX, 5],
        [-7, -1, 5, 6, i32::MAX, i32::MIN],
        [1, 3, -1, -1, -1, -1]
    ];
    let clean = sparse(&q, &kv, &indices, 4);
    for n in [0, 2, 4] {
        kv.row_mut(n).fill(f32::NAN);
    }
    let a = sparse(&q, &kv, &indices, 4);
    assert_eq!(a, clean);
    assert_no_key(&a, 1);
    let only = sparse(&q, &kv, &array![[1, 3], [-1, -1], [3, 1]], 4);
    assert_close(&a, &only);
    let mask = index_mask(indices.view(), 5);
    assert_eq!(dense_masked(q.view(), kv.view(), mask.view(), TAU, 4).unwrap(), a);
    let dense = dense_mla(q.view(), kv.view(), &[1, 3, 0], &[2, 4, 0], TAU, 4).unwrap();
    assert!(dense.out.iter().all(|x| x.is_finite()));
}

#[test]
fn nan_in_a_used_row_comes_out() {
    let q = Array3::ones((1, 1, 2));
    for at in 0..2 {
        let mut kv = Array2::ones((3, 2));
        kv[(1, at)] = f32::NAN;
        let a = sparse(&q, &kv, &array![[0, 1, 2]], 1);
        assert!(a.out[(0, 0, 0)].is_nan() && a.lse[(0, 0)].is_nan());
        assert!(a.max_logits[(0, 0)].is_nan());
    }
}

#[test]
fn a_score_of_minus_infinity_is_no_key() {
    let q = Array3::ones((1, 1, 1));
    let kv = array![[-INF], [1.0]];
    let a = sparse(&q, &kv, &array![[0, 1]], 1);
    assert_eq!((a.out[(0, 0, 0)], a.lse[(0, 0)]), (1.0, TAU));
    assert_no_key(&sparse(&q, &kv, &array![[0]], 1), 0);
}

#[test]
fn large_scores_do_not_overflow() {
    let q = Array3::from_elem((1, 1, 1), 1e4);
    let a = sparse(&q, &array![[1e4], [1e4], [-1e4]], &array![[0, 1, 2]], 1);
    assert_eq!((a.out[(0, 0, 0)], a.max_logits[(0, 0)]), (1e4, 1e8 * TAU));
}

#[test]
fn a_duplicate_counts_twice() {
    let mut random = Random::new(4);
    let (q, kv) = (random.array3(1, 1, 4), random.array2(3, 4));
    let twice = sparse(&q, &kv, &array![[0, 1, 1]], 4);
    let mut three = kv.clone();
    three.row_mut(2).assign(&kv.row(1));
    assert_eq!(twice, sparse(&q, &three, &array![[0, 1, 2]], 4));
    let indices = array![[3, -1, 3, -1, 3], [0, 1, 2, 3, 4], [7, 2, 2, 7, -1]];
    assert_eq!(find_duplicates(indices.view()), [(0, 3), (2, 2), (2, 7)]);
}

#[test]
fn entries_after_topk_length_are_no_key() {
    let mut random = Random::new(5);
    let (q, kv) = (random.array3(5, 2, 4), random.array2(6, 4));
    let indices = Array2::from_shape_fn((5, 4), |(t, j)| ((t + j) % 6) as i32);
    let length = [0, 2, 4, 99, -3];
    let tail = sparse_mla(q.view(), kv.view(), indices.view(), TAU, 4, Some(&length), None);
    let cut =
        Array2::from_shape_fn(
            (5, 4),
            |(t, j)| {
                if (j as i32) < length[t] { indices[(t, j)] } else { -1 }
            },
        );
    let a = tail.unwrap();
    assert_eq!(a, sparse(&q, &kv, &cut, 4));
    assert_no_key(&a, 0);
    assert_no_key(&a, 4);
}

#[test]
fn a_sink_takes_weight_and_leaves_lse() {
    let mut random = Random::new(6);
    let (q, kv) = (random.array3(2, 4, 4), random.array2(6, 4));
    let indices = array![[0, 1, 2], [-1, -1, -1]];
    let plain = sparse(&q, &kv, &indices, 4);
    let sink = [0.3, INF, -INF, -2.0];
    let a = sparse_mla(q.view(), kv.view(), indices.view(), TAU, 4, None, Some(&sink)).unwrap();
    assert_eq!((&a.lse, &a.max_logits), (&plain.lse, &plain.max_logits));
    for (head, sink) in sink.into_iter().enumerate() {
        let e = f64::from(plain.lse[(0, head)]).exp();
        let kept = if sink == INF { 0.0 } else { e / (e + f64::from(sink).exp()) };
        for i in 0..4 {
            let expected = (f64::from(plain.out[(0, head, i)]) * kept) as f32;
            assert!((a.out[(0, head, i)] - expected).abs() < 1e-6);
        }
    }
    assert_no_key(&a, 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (q, kv) = (Array3::ones((2, 1, 4)), Array2::ones((3, 4)));
    let indices = Array2::<i32>::zeros((2, 2));
    let run = |tau, d_v, length: Option<&[i32]>, sink: Option<&[f32]>| {
        sparse_mla(q.view(), kv.view(), indices.view(), tau, d_v, length, sink)
    };
    assert!(run(0.5, 4, Some(&[1, 1]), Some(&[0.0])).is_ok());
    for tau in [0.0, -1.0, f32::NAN, INF, -INF] {
        let error = run(tau, 4, None, None).unwrap_err().to_string();
        let expected = "expected a finite positive number";
        assert_eq!(error, format!("softmax_scale is {tau}, {expected}"));
        assert!(dense_mla(q.view(), kv.view(), &[0, 0], &[1, 1], tau, 4).is_err());
        assert!(dense_masked(q.view(), kv.view(), Array2::zeros((2, 3)).view(), tau, 4).is_err());
    }
    assert!(run(1.0, 5, None, None).is_err());
    assert!(run(1.0, 4, Some(&[1]), None).is_err());
    assert!(run(1.0, 4, None, Some(&[0.0, 0.0])).is_err());
    assert!(dense_mla(q.view(), kv.view(), &[0], &[1, 1], 1.0, 4).is_err());
    assert!(dense_mla(q.view(), kv.view(), &[0, 0], &[1, 1], 1.0, 5).is_err());
    assert!(dense_masked(q.view(), kv.view(), kv.view(), 1.0, 4).is_err());
    let v = Array3::ones((3, 2, 4));
    assert!(dense_mha(q.view(), v.view(), v.view(), &[0, 0], &[1, 1], 1.0).is_err());
}

#[test]
fn nothing_at_all_is_fine() {
    let a = sparse(&Array3::zeros((0, 0, 0)), &Array2::zeros((0, 0)), &Array2::zeros((0, 0)), 0);
    assert_eq!(a.out.dim(), (0, 0, 0));
    let a = sparse(&Array3::zeros((1, 2, 3)), &Array2::zeros((0, 3)), &Array2::zeros((1, 0)), 3);
    assert_no_key(&a, 0);
}

#[test]
fn strides_change_nothing() {
    let mut random = Random::new(9);
    let (q, kv) = (random.array3(3, 2, 20), random.array2(9, 20));
    let indices = array![[0, 1, 2], [3, 4, 5], [8, 7, 6]];
    let q_t = q.clone().reversed_axes().as_standard_layout().into_owned();
    let kv_t = kv.t().as_standard_layout().into_owned();
    let (q_v, kv_v) = (q_t.view().reversed_axes(), kv_t.t());
    let strided = sparse_mla(q_v, kv_v, indices.view(), TAU, 16, None, None).unwrap();
    assert_eq!(strided, sparse(&q, &kv, &indices, 16));
}
