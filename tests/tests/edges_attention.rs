//! Edge cases of sparse and dense attention.

use crate::support::*;
use dsa_gate::Case;

const INF: f32 = f32::INFINITY;

/// One head whose query is zero, so that every score is 0, over given rows of values.
fn flat(values: &[[f32; D_V]], lists: &[Vec<i32>]) -> Case {
    let mut kv = Vec::new();
    for row in values {
        kv.extend_from_slice(row);
        kv.extend([0.0; D_QK - D_V]);
    }
    sparse_heads(1, 1, values.len(), lists)
        .with("q", f32s(&[lists.len(), 1, D_QK], &vec![0.0; lists.len() * D_QK]))
        .with("kv", f32s(&[values.len(), D_QK], &kv))
}

/// Every output of a row without a key.
fn is_without_a_key(case: &Case) {
    let got = holds(case);
    assert!(got["out"].to_f32().iter().all(|v| *v == 0.0), "out is 0");
    assert!(got["lse"].to_f32().iter().all(|v| *v == INF), "lse is +inf");
    assert!(got["max_logits"].to_f32().iter().all(|v| *v == -INF), "max_logits is -inf");
}

#[test]
fn a_row_without_a_key_gives_zeros_and_an_lse_of_plus_infinity() {
    for splits in [1, 3] {
        is_without_a_key(
            &sparse(1, 9, &[vec![-1; 40], BAD_INDICES.repeat(5)]).set("splits", splits),
        );
        is_without_a_key(&dense_mla(2, 9, &[(3, 3), (5, 2), (9, 20)]).set("splits", splits));
    }
    is_without_a_key(&sparse_paged(3, 3, 3, &[vec![-1; 40], BAD_INDICES.repeat(5)]));
    is_without_a_key(&dense_mha(4, 9, &[(3, 3), (5, 2), (9, 20), (-7, 0), (0, i32::MIN)]));
}

#[test]
fn a_cache_without_rows_or_a_list_without_entries_gives_rows_without_a_key() {
    is_without_a_key(&sparse(1, 9, &[vec![]]));
    is_without_a_key(&sparse(1, 0, &[vec![0, 1, -1, 5]]));
    is_without_a_key(&sparse_paged(1, 0, 3, &[vec![0, 1, -1, 5]]));
    is_without_a_key(&dense_mla(1, 0, &[(0, 4)]));
    is_without_a_key(&dense_mha(1, 0, &[(0, 4)]));
}

#[test]
fn invalid_indices_count_for_nothing() {
    let good = some_of(5, 37, 20);
    let clean = holds(&sparse(5, 37, std::slice::from_ref(&good)));
    let mut mixed = Vec::new();
    for (i, index) in good.into_iter().enumerate() {
        mixed.extend([index, BAD_INDICES[i % BAD_INDICES.len()], 37]);
    }
    same("sparse_mla", &holds(&sparse(5, 37, &[mixed])), &clean);
}

#[test]
fn invalid_slots_of_the_paged_cache_count_for_nothing() {
    let good = some_of(6, 39, 20);
    let clean = holds(&sparse_paged(6, 3, 13, std::slice::from_ref(&good)));
    let mut mixed = Vec::new();
    for (i, index) in good.into_iter().enumerate() {
        mixed.extend([index, BAD_INDICES[i % BAD_INDICES.len()], 39]);
    }
    same("sparse_mla_paged", &holds(&sparse_paged(6, 3, 13, &[mixed])), &clean);
}

#[test]
fn nan_in_rows_that_no_index_names_does_not_leak() {
    let listed = some_of(7, 60, 25);
    let unused = || (0..60).filter(|row| !listed.contains(&(*row as i32)));
    let mut list = listed.clone();
    list.extend([-1, 60, i32::MAX, i32::MIN]);
    let clean = sparse(7, 60, &[list.clone()]);
    let mut kv = clean.tensors["kv"].clone();
    poison(&mut kv, unused());
    let got = holds(&clean.clone().with("kv", kv));
    same("sparse_mla", &got, &run(&clean));

    let clean = sparse_paged(7, 6, 10, &[list]);
    let mut cache = clean.tensors["cache"].clone();
    for slot in unused() {
        cache.bytes[slot * RECORD.bytes()..(slot + 1) * RECORD.bytes()].fill(0xff);
    }
    let got = holds(&clean.clone().with("cache", cache));
    same("sparse_mla_paged", &got, &run(&clean));
}

#[test]
fn nan_outside_the_ranges_of_dense_attention_does_not_leak() {
    let clean = dense_mla(8, 50, &[(10, 40), (20, 33), (10, 11)]);
    let mut kv = clean.tensors["kv"].clone();
    poison(&mut kv, (0..10).chain(40..50));
    same("dense_mla", &holds(&clean.clone().with("kv", kv)), &run(&clean));

    let clean = dense_mha(8, 50, &[(10, 40), (20, 33), (10, 11)]);
    let (mut k, mut v) = (clean.tensors["k"].clone(), clean.tensors["v"].clone());
    poison(&mut k, (0..10).chain(40..50));
    poison(&mut v, (0..10).chain(40..50));
    same("dense_mha", &holds(&clean.clone().with("k", k).with("v", v)), &run(&clean));
}

#[test]
fn a_row_listed_twice_weighs_twice() {
    let got = holds(&flat(&[[1.0; D_V], [4.0; D_V]], &[vec![0, 1, 0]]));
    has("sparse_mla", &got, "out", &[2.0; D_V]);
    has("sparse_mla", &got, "lse", &[3.0f32.ln()]);
}

#[test]
fn the_lse_is_a_natural_logarithm() {
    // Scores of exactly 1, 2 and 3: ln(e + e^2 + e^3) = 3.40760596444438.
    let mut kv = vec![0.0; 3 * D_QK];
    let mut q = vec![0.0; D_QK];
    q[D_QK - 1] = 2.0;
    for row in 0..3 {
        kv[row * D_QK + D_QK - 1] = (row + 1) as f32;
    }
    let case = sparse_heads(1, 1, 3, &[vec![2, 0, 1]])
        .with("q", f32s(&[1, 1, D_QK], &q))
        .with("kv", f32s(&[3, D_QK], &kv))
        .set("softmax_scale", 0.5);
    for splits in [1, 3] {
        let got = holds(&case.clone().set("splits", splits));
        has("sparse_mla", &got, "lse", &[3.407_606]);
        has("sparse_mla", &got, "max_logits", &[3.0]);
    }
}

#[test]
fn a_sink_takes_its_share_and_leaves_the_lse() {
    // One key of score 0 and a sink of 0 share the weight evenly; ln 3 leaves the key a quarter.
    for (sink, out) in [(0.0, 3.0), (3.0f32.ln(), 1.5), (-INF, 6.0), (INF, 0.0)] {
        for splits in [1, 3] {
            let case = flat(&[[6.0; D_V]], &[vec![0]]).with("attn_sink", f32s(&[1], &[sink]));
            let got = holds(&case.set("splits", splits));
            has("sparse_mla", &got, "out", &[out; D_V]);
            has("sparse_mla", &got, "lse", &[0.0]);
        }
    }
}

#[test]
fn a_row_without_a_key_is_zero_whatever_its_sink() {
    let sinks = f32s(&[4], &[INF, -INF, 0.0, 1e30]);
    for splits in [1, 3] {
        let case = sparse(9, 5, &[vec![-1, 7, -3]]).with("attn_sink", sinks.clone());
        is_without_a_key(&case.set("splits", splits));
    }
    let paged = sparse_paged(9, 1, 5, &[vec![-1, 7, -3]]);
    is_without_a_key(&paged.with("attn_sink", sinks));
}

#[test]
fn lists_of_any_length_are_taken() {
    for topk in [1, 31, 33, 63, 65, 127, 129, 200] {
        let got = holds(&sparse(
            10,
            150,
            &[some_of(10, 150, topk.min(150))
                .into_iter()
                .chain(std::iter::repeat(-1))
                .take(topk)
                .collect()],
        ));
        assert!(got["lse"].to_f32().iter().all(|v| v.is_finite()), "topk {topk}");
    }
}

#[test]
fn any_number_of_heads_from_1_to_16_and_127_and_128_is_taken() {
    for heads in (1..=16).chain([127, 128]) {
        let got = holds(&sparse_heads(11, heads, 40, &[some_of(11, 40, 33)]));
        assert_eq!(got["out"].shape, [1, heads, D_V]);
        assert_eq!(got["lse"].to_f32().iter().filter(|v| v.is_finite()).count(), heads);
    }
}

#[test]
fn each_head_of_many_gets_what_it_gets_alone() {
    let whole = sparse_heads(12, 20, 40, &[some_of(12, 40, 33)]);
    let got = holds(&whole);
    for head in [0, 15, 16, 19] {
        let pick = |name: &str, width: usize| {
            let all = if name == "q" { whole.tensors[name].to_f32() } else { got["out"].to_f32() };
            all[head * width..(head + 1) * width].to_vec()
        };
        let alone = whole.clone().with("q", f32s(&[1, 1, D_QK], &pick("q", D_QK)));
        has("sparse_mla", &run(&alone), "out", &pick("out", D_V));
    }
}

#[test]
fn more_than_65535_queries_fit_the_grid() {
    let n = 70_000;
    let lists: Vec<Vec<i32>> = (0..n).map(|t| vec![t % 3]).collect();
    let values = [[0.0; D_V], [1.0; D_V], [2.0; D_V]];
    let out: Vec<f32> = (0..n).flat_map(|t| [(t % 3) as f32; D_V]).collect();
    let got = run(&flat(&values, &lists));
    has("sparse_mla", &got, "out", &out);
    has("sparse_mla", &got, "lse", &vec![0.0; n as usize]);
}

#[test]
fn topk_length_cuts_the_list_and_may_be_anything() {
    let lists = vec![some_of(13, 50, 40); 7];
    let lengths = [0, -1, i32::MIN, 1, 39, 41, i32::MAX];
    let case = sparse(13, 50, &lists).with("topk_length", ints(&lengths));
    for splits in [1, 3] {
        let got = holds(&case.clone().set("splits", splits));
        let lse = got["lse"].to_f32();
        assert!(lse[..12].iter().all(|v| *v == INF), "no key for lengths of at most 0");
        assert!(lse[12..].iter().all(|v| v.is_finite()));
    }
    let whole = holds(&sparse(13, 50, &lists));
    let got = run(&case);
    assert_eq!(rows(&got["out"], 5..7), rows(&whole["out"], 5..7), "longer than the list");
}

#[test]
fn entries_beyond_topk_length_are_not_followed() {
    let mut list = some_of(14, 30, 12);
    let mut kv = sparse(14, 30, &[list.clone()]).tensors["kv"].clone();
    let hidden: Vec<usize> = list[5..].iter().map(|i| *i as usize).collect();
    poison(&mut kv, hidden);
    list.extend([i32::MAX, i32::MIN]);
    let case = sparse(14, 30, &[list]).with("kv", kv).with("topk_length", ints(&[5]));
    assert!(holds(&case)["out"].to_f32().iter().all(|v| v.is_finite()));
}

#[test]
fn pages_of_any_size_hold_the_same_rows() {
    for page_size in [1, 2, 53, 61, 64, 69, 576] {
        let n_pages = 138usize.div_ceil(page_size);
        let list = some_of(15, n_pages * page_size, 100);
        let case = sparse_paged(15, n_pages, page_size, &[list]);
        let paged = holds(&case);
        // The rows follow each other over the pages: one page of all of them is the same cache.
        let flat = n_pages * page_size;
        let mut cache = case.tensors["cache"].clone();
        cache.shape = vec![1, flat * RECORD.bytes()];
        let one = run(&case.with("cache", cache).set("page_size", flat));
        same("sparse_mla_paged", &paged, &one);
    }
}
