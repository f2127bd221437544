//! Attention with scores and values that are no numbers, or hardly.

use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::random::Rng;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// Four kinds of attention with four heads over five keys, of which key 2 is replaced: `last` is the last element of
/// its row and of its value, and every query's is 1, so that it is the sign of its score.
fn with_last(last: f32) -> Vec<Case> {
    let ones = |case: Case| {
        let mut q = case.tensors["q"].to_f32();
        q.chunks_mut(D_QK).for_each(|row| row[D_QK - 1] = 1.0);
        case.with("q", f32s(&[1, 4, D_QK], &q))
    };
    let mut cases = Vec::new();
    for splits in [1, 2] {
        let replaced = |case: Case| {
            let mut kv = case.tensors["kv"].to_f32();
            // In the value too, where it stands in the first columns.
            kv[2 * D_QK + D_QK - 1] = last;
            kv[2 * D_QK + 3] = if last == INF { 1.0 } else { -last };
            // By every query's element there the score's sign is the same.
            let mut q = case.tensors["q"].to_f32();
            q.chunks_mut(D_QK).for_each(|row| row[3] = -1.0);
            case.with("kv", f32s(&[5, D_QK], &kv)).with("q", f32s(&[1, 4, D_QK], &q))
        };
        let case = sparse(30, 5, &[vec![0, 4, 2, -1, 1, 3]]).set("splits", splits);
        cases.push(replaced(ones(case)));
        cases.push(replaced(ones(dense_mla(31, 5, &[(0, 5)]).set("splits", splits))));
    }
    let case = ones(dense_mha(32, 5, &[(0, 5)]));
    let (mut k, mut v) = (case.tensors["k"].to_f32(), case.tensors["v"].to_f32());
    for head in 0..4 {
        k[(2 * 4 + head) * D_QK + D_QK - 1] = last;
        v[(2 * 4 + head) * D_V + 3] = last;
    }
    cases.push(case.with("k", f32s(&[5, 4, D_QK], &k)).with("v", f32s(&[5, 4, D_V], &v)));
    let case = ones(sparse_paged(33, 1, 5, &[vec![0, 4, 2, -1, 1, 3]]));
    let mut cache = case.tensors["cache"].clone();
    let at = 3 * RECORD.bytes() - 2;
    let bits = half::bf16::from_f32(last).to_bits().to_le_bytes();
    cache.bytes[at..at + 2].copy_from_slice(&bits);
    cases.push(case.with("cache", cache));
    cases
}

#[test]
fn a_nan_in_a_used_key_is_the_largest_logit() {
    for case in with_last(NAN) {
        let got = holds(&case);
        for output in ["out", "lse", "max_logits"] {
            let values = got[output].to_f32();
            assert!(values.iter().all(|v| v.is_nan()), "{} of {case:?}: {values:?}", output);
        }
    }
}

#[test]
fn a_score_of_plus_infinity_makes_the_row_nan_and_is_its_largest_logit() {
    for case in with_last(INF) {
        let got = holds(&case);
        assert!(got["out"].to_f32().iter().all(|v| v.is_nan()), "{case:?}");
        assert!(got["lse"].to_f32().iter().all(|v| v.is_nan()), "{case:?}");
        assert!(got["max_logits"].to_f32().iter().all(|v| *v == INF), "{case:?}");
    }
}

#[test]
fn a_key_of_score_minus_infinity_takes_no_part_whatever_its_value() {
    for case in with_last(-INF) {
        let got = holds(&case);
        assert!(
            got.values().all(|t| t.to_f32().iter().all(|v| v.is_finite())),
            "{case:?}: {got:?}"
        );
    }
}

#[test]
fn if_every_score_is_minus_infinity_there_is_no_key() {
    for last in [-INF, -3e38] {
        let mut rng = Rng::new(34);
        let mut kv: Vec<f32> = (0..5 * D_QK).map(|_| rng.unit()).collect();
        kv.chunks_mut(D_QK).for_each(|row| row[D_QK - 1] = last);
        let mut q = vec![0.0; 4 * D_QK];
        q.chunks_mut(D_QK).for_each(|row| row[D_QK - 1] = 1.0);
        // A scaled score of -6e38 is beyond f32.
        for splits in [1, 2] {
            let case = sparse(34, 5, &[vec![0, 1, 2, 3, 4]])
                .with("kv", f32s(&[5, D_QK], &kv))
                .with("q", f32s(&[1, 4, D_QK], &q))
                .set("softmax_scale", 2.0)
                .set("splits", splits);
            let got = holds(&case);
            assert!(got["out"].to_f32().iter().all(|v| *v == 0.0));
            assert!(got["lse"].to_f32().iter().all(|v| *v == INF));
            assert!(got["max_logits"].to_f32().iter().all(|v| *v == -INF));
        }
    }
}

#[test]
fn a_query_without_a_key_is_without_one_even_if_it_is_nan() {
    for q in [NAN, INF] {
        for case in [
            sparse(35, 5, &[vec![-1, 9, -3]]),
            dense_mla(35, 5, &[(3, 3)]),
            dense_mha(35, 5, &[(3, 3)]),
            sparse_paged(35, 1, 5, &[vec![-1, 9, -3]]),
        ] {
            let got = holds(&case.with("q", f32s(&[1, 4, D_QK], &[q; 4 * D_QK])));
            assert!(got["out"].to_f32().iter().all(|v| *v == 0.0));
            assert!(got["lse"].to_f32().iter().all(|v| *v == INF));
        }
    }
    // An infinite query against keys of the other sign has no key, beside entries that are none.
    let mut q = vec![0.0; 4 * D_QK];
    q.chunks_mut(D_QK).for_each(|row| row[0] = INF);
    let case = sparse(36, 3, &[vec![0, -1, 1, 2]])
        .with("q", f32s(&[1, 4, D_QK], &q))
        .with("kv", f32s(&[3, D_QK], &[-1.0; 3 * D_QK]));
    let got = holds(&case);
    assert!(got["lse"].to_f32().iter().all(|v| *v == INF || v.is_nan()), "{got:?}");
}

#[test]
fn a_value_that_a_query_does_not_see_does_not_reach_it_from_its_tile() {
    // Causal: query t sees the keys up to t. Each value beyond is one of those that spoil a sum.
    let n = 12;
    let ranges: Vec<(i32, i32)> = (0..n).map(|t| (0, t + 1)).collect();
    let clean = dense_mha(37, n as usize, &ranges);
    for bad in [NAN, INF, -INF] {
        for at in [3usize, 7] {
            let mut v = clean.tensors["v"].to_f32();
            v[at * 4 * D_V..][..4 * D_V].fill(bad);
            let got = holds(&clean.clone().with("v", f32s(&[n as usize, 4, D_V], &v)));
            assert_eq!(rows(&got["out"], 0..at), rows(&run(&clean)["out"], 0..at), "{bad} at {at}");
            let seen = rows(&got["out"], at..n as usize).to_f32();
            assert!(seen.iter().all(|v| v.is_nan() && bad.is_nan() || *v == bad), "{seen:?}");
        }
    }
    // Both infinities: NaN from the second on.
    let mut v = clean.tensors["v"].to_f32();
    v[2 * 4 * D_V] = INF;
    v[5 * 4 * D_V] = -INF;
    let got = holds(&clean.clone().with("v", f32s(&[n as usize, 4, D_V], &v)))["out"].to_f32();
    let column: Vec<f32> = got.iter().copied().step_by(4 * D_V).collect();
    assert!(column[..2].iter().all(|v| v.is_finite()), "{column:?}");
    assert_eq!(column[2..5], [INF; 3]);
    assert!(column[5..].iter().all(|v| v.is_nan()), "{column:?}");
}

#[test]
fn scores_at_the_end_of_the_range_neither_overflow_nor_lose_their_order() {
    let kinds = |q: &HostTensor, kv: &HostTensor| {
        let sparse = sparse(38, 4, &[vec![0, 1, 2, 3]]);
        let dense = dense_mla(38, 4, &[(0, 4)]);
        [sparse, dense].map(|case| case.with("q", q.clone()).with("kv", kv.clone()))
    };
    let mut q = vec![0.0; 4 * D_QK];
    q.chunks_mut(D_QK).for_each(|row| row[D_QK - 1] = 1.0);
    for top in [3.3e38f32, 1e30, 2.5e9, -2.5e9, -3.3e38] {
        // Keys 0 and 2 tie, and win if the scores are positive; keys 1 and 3 tie otherwise.
        let mut kv = vec![0.0; 4 * D_QK];
        for (row, value) in [top, top / 2.0, top, top / 2.0].into_iter().enumerate() {
            kv[row * D_QK] = row as f32;
            kv[row * D_QK + D_QK - 1] = value;
        }
        let (q, kv) = (f32s(&[1, 4, D_QK], &q), f32s(&[4, D_QK], &kv));
        for case in kinds(&q, &kv) {
            for splits in [1, 2, 4] {
                let got = holds(&case.clone().set("softmax_scale", 1.0).set("splits", splits));
                let first = got["out"].to_f32()[0];
                assert_eq!(first, if top > 0.0 { 1.0 } else { 2.0 }, "{top}, splits {splits}");
            }
        }
    }
}

#[test]
fn parts_of_large_scores_are_weighed_by_their_keys() {
    // 100 keys of one large score, whose logarithm f32 loses beside it: each counts alike in whatever part it is.
    let n = 100;
    let mut kv = vec![0.0; n * D_QK];
    for row in 0..n {
        kv[row * D_QK] = row as f32;
        kv[row * D_QK + D_QK - 1] = 1e12;
    }
    let mut q = vec![0.0; 4 * D_QK];
    q.chunks_mut(D_QK).for_each(|row| row[D_QK - 1] = 1.0);
    let case = dense_mla(39, n, &[(0, n as i32)])
        .with("q", f32s(&[1, 4, D_QK], &q))
        .with("kv", f32s(&[n, D_QK], &kv))
        .set("softmax_scale", 1.0);
    for splits in [1, 2, 3, 4] {
        let got = holds(&case.clone().set("splits", splits));
        assert!((got["out"].to_f32()[0] - 49.5).abs() < 1e-3, "splits {splits}: {got:?}");
    }
}

#[test]
fn a_sink_of_plus_infinity_leaves_nothing_of_any_value() {
    let mut kv = vec![0.0; 3 * D_QK];
    kv[D_QK] = NAN;
    for splits in [1, 2] {
        let case = sparse(40, 3, &[vec![0, 2]])
            .with("kv", f32s(&[3, D_QK], &kv))
            .with("attn_sink", f32s(&[4], &[INF, 0.0, INF, -INF]))
            .set("splits", splits);
        let out = holds(&case)["out"].to_f32();
        assert!(out[..D_V].iter().all(|v| *v == 0.0), "{out:?}");
    }
}

#[test]
fn a_softmax_scale_that_is_not_positive_is_refused_by_kernel_and_reference() {
    for scale in ["0", "-1", "nan", "inf"] {
        for case in [
            sparse(41, 5, &[vec![0, 1]]),
            sparse_paged(41, 1, 5, &[vec![0, 1]]),
            dense_mla(41, 5, &[(0, 5)]),
            dense_mha(41, 5, &[(0, 5)]),
        ] {
            let case = case.set("softmax_scale", scale);
            let kernel = kernel_of(&case);
            let of_kernel = kernel.run(&device(), &case).unwrap_err().to_string();
            let of_reference = kernel.reference(&case).unwrap_err().to_string();
            for error in [of_kernel, of_reference] {
                assert!(error.contains("softmax_scale"), "{error}");
            }
        }
    }
}
