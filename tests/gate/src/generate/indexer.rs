//! Forms and inputs of the indexer.

use super::form::{Exactly, Forms, INDEX_DIM, Model, PAGE};
use super::{Fill, Rng, extreme, gap, ranges, tensor};
use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_reference::cache_write::index_cache_pages;
use dsa_reference::quant::{ScaleFmt, act_quant};
use ndarray::Array2;
use proptest::prelude::*;

fn score_fn() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&["relu", "sigmoid"][..])
}

#[derive(Clone, Debug)]
struct Rows {
    s: usize,
    s_kv: usize,
    heads: usize,
    dim: usize,
    dtype: DType,
    score_fn: &'static str,
    strided: &'static str,
}

pub(super) fn rows() -> Forms {
    const TYPES: [DType; 4] = [DType::E4m3, DType::Bf16, DType::F16, DType::F32];
    let form = |(s, s_kv, heads, dim, dtype, score_fn, strided)| Rows {
        s,
        s_kv,
        heads,
        dim,
        dtype,
        score_fn,
        strided,
    };
    let dtype = || proptest::sample::select(&TYPES[..]);
    let sizes = (0usize..7, 0usize..90, 1usize..=128, 1usize..=160);
    let random = (sizes.0, sizes.1, sizes.2, sizes.3, dtype(), score_fn(), gap()).prop_map(form);
    let production = move |model: Model| {
        let (heads, dim) = (Exactly(model.index_heads()), Exactly(INDEX_DIM));
        (1usize..5, 1usize..200, heads, dim, dtype(), score_fn(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Rows, rng| {
        const FILLS: [Fill; 4] = [Fill::Normal, Fill::Ties, Fill::Zeros, Fill::Outliers];
        let (s, s_kv, heads, dim, dtype) = (form.s, form.s_kv, form.heads, form.dim, form.dtype);
        let fill = rng.choose(&FILLS);
        let (ks, ke) = ranges(rng, s, s_kv);
        let mut k_scale = tensor(rng, DType::F32, &[s_kv], Fill::Normal).to_f32();
        let mut k = tensor(rng, dtype, &[s_kv, dim], fill);
        // Keys beyond the union of the ranges must not be read, nor may their NaN show.
        let (starts, ends) = (ks.to_i32(), ke.to_i32());
        let inside =
            |n: usize| starts.iter().zip(&ends).any(|(a, b)| *a <= n as i32 && (n as i32) < *b);
        for (n, scale) in k_scale.iter_mut().enumerate() {
            if !inside(n) {
                let bytes = dim * dtype.size();
                k.bytes[n * bytes..(n + 1) * bytes].fill(0xff);
                *scale = f32::NAN;
            } else if rng.one_in(60) {
                *scale = f32::NAN;
            }
        }
        let mut q = tensor(rng, dtype, &[s, heads, dim], fill);
        let mut weights = tensor(rng, DType::F32, &[s, heads], Fill::Normal);
        if rng.one_in(4) {
            // A sigmoid of a product far below 0 is 0 in f32 where it is not in f64: no infinity times that.
            weights = extreme::even(rng, DType::F16, &[s, heads]).cast(DType::F32);
            if form.score_fn == "relu" {
                weights = extreme::rows_within(rng, DType::F32, &[s, heads], 20);
                // Products of up to 2^40, and sums of their weighted heads of up to 2^70: in range in any order,
                // before the scale as after it.
                q = extreme::rows_within(rng, dtype, &[s, heads, dim], 20);
                let keys = extreme::rows_within(rng, dtype, &[s_kv, dim], 20);
                let bytes = dim * dtype.size();
                for n in (0..s_kv).filter(|n| inside(*n)) {
                    let row = n * bytes..(n + 1) * bytes;
                    k.bytes[row.clone()].copy_from_slice(&keys.bytes[row]);
                }
            }
        }
        Case::new("indexer_logits")
            .with("q", q)
            .with("k", k)
            .with("k_scale", HostTensor::new(DType::F32, &[s_kv], &k_scale))
            .with("weights", weights)
            .with("ks", ks)
            .with("ke", ke)
            .set("score_fn", form.score_fn)
            .set("strided", form.strided)
    })
}

#[derive(Clone, Debug)]
struct Paged {
    requests: usize,
    next_n: usize,
    heads: usize,
    dim: usize,
    page_size: usize,
    max_pages: usize,
    score_fn: &'static str,
    strided: &'static str,
}

pub(super) fn paged() -> Forms {
    let form = |((requests, next_n), heads, dim, page_size, max_pages, score_fn, strided)| Paged {
        requests,
        next_n,
        heads,
        dim,
        page_size,
        max_pages,
        score_fn,
        strided,
    };
    let pages = proptest::sample::select(&[1usize, 2, 5, 53, 61, 64, 69][..]);
    let tokens = || (0usize..4, 1usize..3);
    let random =
        (tokens(), 1usize..=64, 1usize..=130, pages, 1usize..4, score_fn(), gap()).prop_map(form);
    let production = move |model: Model| {
        let (heads, dim) = (Exactly(model.index_heads()), Exactly(INDEX_DIM));
        ((1usize..4, 1usize..3), heads, dim, Exactly(PAGE), 1usize..4, score_fn(), gap())
            .prop_map(form)
    };
    Forms::new(random, production, paged_case)
}

fn paged_case(form: &Paged, rng: &mut Rng) -> Case {
    let (b, next_n, heads, dim) = (form.requests, form.next_n, form.heads, form.dim);
    let (page_size, max_pages) = (form.page_size, form.max_pages);
    let n_pages = b * max_pages + 1;
    let n = n_pages * page_size;
    let fill = rng.choose(&[Fill::Normal, Fill::Normal, Fill::Extreme]);
    let keys = tensor(rng, DType::F32, &[n, dim], fill).to_f32();
    let keys = Array2::from_shape_vec((n, dim), keys).unwrap_or_default();
    let Ok(q8) = act_quant(keys.view(), dim, ScaleFmt::Ue8m0) else {
        return Case::new("indexer_logits_paged");
    };
    let cache = index_cache_pages(q8.codes.view(), q8.scale.column(0), page_size);
    let mut cache: Vec<u8> = cache.iter().copied().collect();
    // The last page belongs to nobody: poison.
    let page_bytes = page_size * (dim + 4);
    cache[(n_pages - 1) * page_bytes..].fill(0xff);
    let mut order: Vec<i32> = (0..n_pages as i32 - 1).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    for page in order.iter_mut() {
        if rng.one_in(12) {
            *page = rng.choose(&[-1, i32::MIN, n_pages as i32, i32::MAX]);
        }
    }
    let longest = max_pages * page_size;
    let max_context = 1 + rng.below(longest);
    let lens: Vec<i32> =
        (0..b).map(|_| [0, 1, rng.below(longest + 1), longest][rng.below(4)] as i32).collect();
    // Codes of keys are hundreds. A sigmoid of products of thousands is a step, whose place the matrix unit's fp8
    // products, which keep some 13 bits of the largest term, cannot tell: its queries are that much smaller.
    let size = if form.score_fn == "sigmoid" { 1.0 / 512.0 } else { 1.0 };
    let q = tensor(rng, DType::F32, &[b, next_n, heads, dim], Fill::Normal).to_f32();
    let q: Vec<f32> = q.into_iter().map(|q| q * size).collect();
    Case::new("indexer_logits_paged")
        .with("q", HostTensor::new(DType::E4m3, &[b, next_n, heads, dim], &q))
        .with("cache", HostTensor::u8(&[n_pages, page_bytes], cache))
        .with("weights", tensor(rng, DType::F32, &[b * next_n, heads], Fill::Normal))
        .with("context_lens", HostTensor::i32(&[b], &lens))
        .with("block_table", HostTensor::i32(&[b, max_pages], &order))
        .set("page_size", page_size)
        .set("max_context", max_context)
        .set("score_fn", form.score_fn)
        .set("strided", form.strided)
}
