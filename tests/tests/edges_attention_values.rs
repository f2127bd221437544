//! Edge cases of attention that lie in the values: extreme scores, infinities, NaN in a key that is used,
//! scales of the cache.

use crate::support::*;
use dsa_gate::HostTensor;
use dsa_kernels::random::Rng;

const INF: f32 = f32::INFINITY;

#[test]
fn scores_far_apart_or_very_low_neither_overflow_nor_vanish() {
    let mut rng = Rng::new(16);
    for top in [-1e30f32, -300.0, 300.0, 1e30] {
        let mut case = sparse(16, 40, &[some_of(16, 40, 40)]).set("softmax_scale", 1.0);
        let mut kv: Vec<f32> = (0..40 * D_QK).map(|_| rng.unit()).collect();
        let mut q = vec![0.0; 4 * D_QK];
        for head in 0..4 {
            q[head * D_QK + D_QK - 1] = 1.0;
        }
        for row in 0..40 {
            kv[row * D_QK + D_QK - 1] = top * (1.0 + row as f32);
        }
        case = case.with("q", f32s(&[1, 4, D_QK], &q)).with("kv", f32s(&[40, D_QK], &kv));
        for splits in [1, 3] {
            let got = holds(&case.clone().set("splits", splits));
            assert!(got.values().all(|t| t.to_f32().iter().all(|v| v.is_finite())), "{top}");
        }
    }
}

#[test]
fn a_key_of_score_minus_infinity_is_no_key() {
    let case = sparse(17, 3, &[vec![0, 1, 2]]);
    let mut kv = case.tensors["kv"].to_f32();
    let mut q = case.tensors["q"].to_f32();
    for head in 0..4 {
        q[head * D_QK + D_QK - 1] = 1.0;
    }
    kv[D_QK + D_QK - 1] = -INF;
    let with_q = case.with("q", f32s(&[1, 4, D_QK], &q));
    let got = holds(&with_q.clone().with("kv", f32s(&[3, D_QK], &kv)));
    let without = with_q.with("indices", HostTensor::i32(&[1, 3], &[0, -1, 2]));
    same("sparse_mla", &got, &run(&without));
}

#[test]
fn a_scale_of_the_cache_that_is_no_power_of_two_is_multiplied_as_it_is() {
    // One key, one token: the output is code times scale.
    let mut case = sparse_paged(18, 1, 1, &[vec![0]]);
    let codes = HostTensor::new(dsa_kernels::DType::E4m3, &[D_V], &[3.5; D_V]);
    for scale in [0.3f32, 1.999_999_9, 448.0 / 511.0, 1e-7, 3e5] {
        let mut cache = case.tensors["cache"].clone();
        cache.bytes[..D_V].copy_from_slice(&codes.bytes);
        cache.bytes[D_V..D_V + 4].copy_from_slice(&scale.to_le_bytes());
        case = case.with("cache", cache);
        has("sparse_mla_paged", &holds(&case), "out", &[3.5 * scale; 4 * D_V]);
    }
}

#[test]
fn a_nan_in_a_row_that_is_used_comes_out_and_spoils_no_other_token() {
    let lists = [vec![0, 1, 2, -1], vec![0, 2, 3, 4], vec![4, 3, 0, 1]];
    let clean = sparse(19, 5, &lists);
    let mut kv = clean.tensors["kv"].clone();
    poison(&mut kv, [2]);
    for splits in [1, 2] {
        let got = run(&clean.clone().with("kv", kv.clone()).set("splits", splits));
        let (out, lse) = (got["out"].to_f32(), got["lse"].to_f32());
        assert!(out[..2 * 4 * D_V].iter().all(|v| v.is_nan()), "the first two tokens use row 2");
        assert!(lse[..2 * 4].iter().all(|v| v.is_nan()), "and their lse says so: {lse:?}");
        let last = rows(&got["out"], 2..3);
        let clean = run(&clean.clone().set("splits", splits));
        assert_eq!(last, rows(&clean["out"], 2..3), "the third does not");
    }
}
