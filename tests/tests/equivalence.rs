//! The same attention by different ways: sparse and dense, in any order, in splits, absorbed and expanded.

use crate::support::*;
use dsa_gate::{Case, HostTensor, Outputs};
use dsa_kernels::random::Rng;
use dsa_reference as reference;
use ndarray::{Array2, Array3, Axis, s};

fn attention_outputs(a: &reference::sparse_attention::AttentionOut) -> Outputs {
    Outputs::from([
        ("out", HostTensor::of(&a.out)),
        ("lse", HostTensor::of(&a.lse)),
        ("max_logits", HostTensor::of(&a.max_logits)),
    ])
}

#[test]
fn sparse_attention_over_the_whole_context_equals_dense_attention() {
    let n = 70;
    let dense = run(&dense_mla(1, n, &[(0, n as i32); 3]));
    let lists: Vec<Vec<i32>> =
        (0..3).map(|t| some_of(t, n, n).into_iter().chain([-1; 13]).collect()).collect();
    same("sparse_mla", &run(&sparse(1, n, &lists)), &dense);
}

#[test]
fn sparse_attention_over_the_causal_past_equals_causal_dense_attention() {
    let n = 40;
    let ranges: Vec<(i32, i32)> = (0..n).map(|t| (0, t + 1)).collect();
    let lists: Vec<Vec<i32>> =
        (0..n).map(|t| (0..n).map(|j| if j <= t { j } else { -1 }).collect()).collect();
    let dense = run(&dense_mla(2, n as usize, &ranges));
    same("sparse_mla", &run(&sparse(2, n as usize, &lists)), &dense);
}

#[test]
fn indexer_selection_and_sparse_attention_equal_dense_attention_if_k_covers_the_context() {
    let n = 40;
    let ranges: Vec<(i32, i32)> = (0..n).map(|t| (0, t + 1)).collect();
    let logits = run(&indexer(3, 4, n as usize, &ranges)).remove("logits").unwrap();
    let case = indexer(3, 4, n as usize, &ranges);
    let choice = Case::new("top_k")
        .with("logits", logits)
        .with("ks", case.tensors["ks"].clone())
        .with("ke", case.tensors["ke"].clone())
        .set("topk", 64);
    let indices = run(&choice).remove("indices").unwrap();
    let got = run(&sparse(3, n as usize, &[vec![-1]])
        .with("indices", indices)
        .with("q", floats(3, &[n as usize, 4, D_QK])));
    same("sparse_mla", &got, &run(&dense_mla(3, n as usize, &ranges)));
}

#[test]
fn sparse_attention_over_any_set_equals_dense_attention_masked_to_it() {
    for seed in 0..8 {
        let n = 70;
        let mut rng = Rng::new(seed);
        let lists: Vec<Vec<i32>> = (0..3)
            .map(|t| {
                let kept = 1 + rng.below(45);
                let list = some_of(seed * 10 + t, n, kept);
                list.into_iter().chain(std::iter::repeat(-1)).take(45).collect()
            })
            .collect();
        let case = sparse(seed, n, &lists);
        let (q, kv): (Array3<f32>, Array2<f32>) =
            (case.array("q").unwrap(), case.array("kv").unwrap());
        let mask = reference::mask::index_mask(case.array_i32("indices").unwrap().view(), n);
        let masked = reference::dense_attention::dense_masked(
            q.view(),
            kv.view(),
            mask.view(),
            case.scalar("softmax_scale").unwrap(),
            D_V,
        );
        same("sparse_mla", &run(&case), &attention_outputs(&masked.unwrap()));
    }
}

#[test]
fn the_order_of_indices_does_not_matter() {
    let list = some_of(4, 90, 70);
    let whole = run(&sparse(4, 90, std::slice::from_ref(&list)));
    let mut ascending = list.clone();
    ascending.sort();
    let descending: Vec<i32> = ascending.iter().rev().copied().collect();
    let turned: Vec<i32> = list[33..].iter().chain(&list[..33]).copied().collect();
    for other in [ascending, descending, turned] {
        same("sparse_mla", &run(&sparse(4, 90, &[other])), &whole);
    }
}

#[test]
fn any_number_of_splits_gives_the_same_attention() {
    let list: Vec<Vec<i32>> = (0..3).map(|t| some_of(t, 200, 170)).collect();
    let cases = [
        sparse(7, 200, &list).with("attn_sink", floats(7, &[4])),
        sparse_paged(7, 4, 50, &list),
        dense_mla(7, 200, &[(0, 200), (3, 9), (150, 200)]),
    ];
    for case in cases {
        let whole = holds(&case.clone().set("splits", 1));
        for splits in [2, 3, 4, 5, 64] {
            same(&case.kernel, &run(&case.clone().set("splits", splits)), &whole);
        }
    }
}

#[test]
fn attention_over_parts_of_a_list_merges_by_its_lse_into_the_whole() {
    let list = some_of(8, 90, 80);
    let whole = run(&sparse(8, 90, std::slice::from_ref(&list)));
    let parts = [&list[..33], &list[33..34], &list[34..]].map(|part| {
        let got = run(&sparse(8, 90, &[part.to_vec()]));
        let part = got.into_iter().fold(Case::new(""), |case, (name, t)| case.with(name, t));
        reference::sparse_attention::AttentionOut {
            out: part.array("out").unwrap(),
            lse: part.array("lse").unwrap(),
            max_logits: part.array("max_logits").unwrap(),
        }
    });
    let merged = reference::sparse_attention::merge_splits(&parts);
    same("sparse_mla", &attention_outputs(&merged), &whole);
}

/// `x[t, h] · w[h]ᵀ` for `w` `[h, n, k]`, as the reference's linear.
fn of_heads(x: &Array3<f32>, w: &Array3<f32>) -> Array3<f32> {
    let (n, heads, _) = x.dim();
    let mut out = Array3::zeros((n, heads, w.dim().1));
    for head in 0..heads {
        let y = reference::linear::linear(x.index_axis(Axis(1), head), w.index_axis(Axis(0), head));
        out.index_axis_mut(Axis(1), head).assign(&y);
    }
    out
}

/// The heads of all rows of `latent` `[n, rank]`: the same row for each.
fn to_heads(rows: &Array2<f32>, heads: usize) -> Array3<f32> {
    let (n, cols) = rows.dim();
    Array3::from_shape_fn((n, heads, cols), |(t, _, i)| rows[(t, i)])
}

#[test]
fn absorbed_attention_equals_expanded_attention_on_the_expanded_weights() {
    const NOPE: usize = 16;
    let (n, heads, rope) = (30, 4, D_QK - D_V);
    let absorbed = dense_mla(9, n, &(0..n as i32).map(|t| (0, t + 1)).collect::<Vec<_>>());
    let array3 = |seed, shape: [usize; 3]| -> Array3<f32> {
        Case::new("").with("x", floats(seed, &shape)).array("x").unwrap()
    };
    let q = array3(10, [n, heads, NOPE + rope]);
    let (w_uk, w_uv) = (array3(11, [heads, NOPE, D_V]), array3(12, [heads, D_V, D_V]));
    let kv: Array2<f32> = absorbed.array("kv").unwrap();
    let (c, k_pe) = (kv.slice(s![.., ..D_V]).to_owned(), kv.slice(s![.., D_V..]).to_owned());

    // Expanded: k = [W_UK c, k_pe], v = W_UV c for each head.
    let join = |a: &Array3<f32>, b: &Array3<f32>| {
        HostTensor::of(&ndarray::concatenate(Axis(2), &[a.view(), b.view()]).unwrap())
    };
    let k = join(&of_heads(&to_heads(&c, heads), &w_uk), &to_heads(&k_pe, heads));
    let v = HostTensor::of(&of_heads(&to_heads(&c, heads), &w_uv));
    let expanded = dense_mha(9, n, &[(0, 0)])
        .with("q", HostTensor::of(&q))
        .with("k", k)
        .with("v", v)
        .with("ks", absorbed.tensors["ks"].clone())
        .with("ke", absorbed.tensors["ke"].clone());

    // Absorbed: the query takes W_UK, the output W_UV.
    let (q_nope, q_pe) =
        (q.slice(s![.., .., ..NOPE]).to_owned(), q.slice(s![.., .., NOPE..]).to_owned());
    let w_uk_t = w_uk.permuted_axes([0, 2, 1]).as_standard_layout().to_owned();
    let mut got = run(&absorbed.with("q", join(&of_heads(&q_nope, &w_uk_t), &q_pe)));
    let latent: Array3<f32> = Case::new("").with("out", got["out"].clone()).array("out").unwrap();
    got.insert("out", HostTensor::of(&of_heads(&latent, &w_uv)));
    same("dense_mha", &got, &holds(&expanded));
}
