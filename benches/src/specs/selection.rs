//! Index scores, and what is selected by them.

use super::records::index_pages;
use super::{INDEX_DIM, PAGE, one, shape, vec_i32};
use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use crate::timed::{Drawn, Timed};
use dsa_figures::Stage;
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::{Case, CaseError, HostTensor};
use dsa_kernels::indexer::{IndexKeys, ScoreFn, logits};
use dsa_kernels::random::Rng;
use dsa_kernels::seen::{KeyRange, Seen};
use dsa_kernels::top_k::{Policy, shift_indices, top_k};
use dsa_kernels::{DType, Device, Result, Tensor};

/// The scores of a chunk.
pub fn indexer_prefill(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (s, heads, dtype) = (axes.s_q, axes.index_heads, DType::E4m3);
    let q = random(device, dtype, &[s, heads, INDEX_DIM], seed)?;
    let k = random(device, dtype, &[context, INDEX_DIM], seed + 1)?;
    let k_scale = random(device, DType::F32, &[context], seed + 2)?;
    let weights = random(device, DType::F32, &[s, heads], seed + 3)?;
    let (ks, ke) = (vec_i32(device, &vec![0; s])?, vec_i32(device, &vec![context as i32; s])?);
    let mut rng = Rng::new(seed);
    let gate = Case::new("indexer_logits")
        .with("q", tensor(&mut rng, dtype, &[3, heads, INDEX_DIM], Fill::Normal))
        .with("k", tensor(&mut rng, dtype, &[150, INDEX_DIM], Fill::Normal))
        .with("k_scale", tensor(&mut rng, DType::F32, &[150], Fill::Normal))
        .with("weights", tensor(&mut rng, DType::F32, &[3, heads], Fill::Normal))
        .with("ks", HostTensor::i32(&[3], &[0, 3, 100]))
        .with("ke", HostTensor::i32(&[3], &[150, 140, 100]));
    let inputs = [&q, &k, &k_scale, &weights, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: "indexer_logits",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", s), ("s_kv", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * s * context * heads * INDEX_DIM) as u64,
        bytes: (context * (INDEX_DIM + 4) + s * heads * (INDEX_DIM + 4) + 4 * s * context) as u64,
        gate,
        work: Box::new(move || {
            let keys = IndexKeys::Rows { k: &k, k_scale: &k_scale };
            let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
            Ok(one("logits", logits(&q, &weights, &keys, &seen, ScoreFn::default())?))
        }),
        timed: Timed {
            rows: s,
            heads: 1,
            cost: context * heads * INDEX_DIM,
            cut: Box::new(move |at, out| {
                let [q, k, k_scale, weights, ks, ke] = &inputs;
                let case = Case::new("indexer_logits")
                    .with("q", at.rows(q)?)
                    .with("k", at.whole(k)?)
                    .with("k_scale", at.whole(k_scale)?)
                    .with("weights", at.rows(weights)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

/// The scores of the next token of each request.
pub fn indexer_decode(device: &Device, axes: &Axes, context: usize, seed: u64) -> Result<Spec> {
    let (b, heads, dtype) = (axes.batch, axes.index_heads, DType::E4m3);
    let max_pages = context.div_ceil(PAGE);
    let page = PAGE * (INDEX_DIM + 4);
    let q = random(device, dtype, &[b, 1, heads, INDEX_DIM], seed)?;
    let pages = index_pages(b * max_pages, seed + 1);
    let cache = device.upload(&pages, &[b * max_pages, page], DType::U8)?;
    let weights = random(device, DType::F32, &[b, heads], seed + 3)?;
    let lens = vec_i32(device, &vec![context as i32; b])?;
    let table: Vec<i32> = (0..(b * max_pages) as i32).rev().collect();
    let table = device.upload_i32(&table, &[b, max_pages])?;
    let mut rng = Rng::new(seed);
    let gate = Case::new("indexer_logits_paged")
        .with("q", tensor(&mut rng, dtype, &[2, 1, heads, INDEX_DIM], Fill::Normal))
        .with("cache", HostTensor::u8(&[3, page], index_pages(3, seed)))
        .with("weights", tensor(&mut rng, DType::F32, &[2, heads], Fill::Normal))
        .with("context_lens", HostTensor::i32(&[2], &[100, 3]))
        .with("block_table", HostTensor::i32(&[2, 2], &[2, 0, 1, -1]))
        .set("page_size", PAGE)
        .set("max_context", 120);
    let inputs = [&q, &cache, &weights, &lens, &table].map(Tensor::clone);
    Ok(Spec {
        kernel: "indexer_logits_paged",
        stage: Stage::Decode,
        case: String::new(),
        shape: shape([("batch", b), ("context", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * b * context * heads * INDEX_DIM) as u64,
        bytes: (b * context * (INDEX_DIM + 8)) as u64,
        gate,
        work: Box::new(move || {
            let keys = IndexKeys::Paged {
                cache: &cache,
                page_size: PAGE,
                block_table: &table,
                max_context: context,
            };
            let seen = Seen::Context(&lens);
            Ok(one("logits", logits(&q, &weights, &keys, &seen, ScoreFn::default())?))
        }),
        timed: Timed {
            rows: b,
            heads: 1,
            cost: context * heads * INDEX_DIM,
            cut: Box::new(move |at, out| {
                let [q, cache, weights, lens, table] = &inputs;
                let (cache, table) = listed_pages(at, cache, &at.rows(table)?)?;
                let case = Case::new("indexer_logits_paged")
                    .with("q", at.rows(q)?)
                    .with("cache", cache)
                    .with("weights", at.rows(weights)?)
                    .with("context_lens", at.rows(lens)?)
                    .with("block_table", table)
                    .set("page_size", PAGE)
                    .set("max_context", context);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

/// The pages of `cache` that `table` lists, request by request, and the table of where they are now. What lies
/// between a request's pages comes along.
fn listed_pages(
    at: &Drawn,
    cache: &Tensor,
    table: &HostTensor,
) -> std::result::Result<(HostTensor, HostTensor), CaseError> {
    let (mut bytes, mut pages, mut entries) = (Vec::new(), 0, Vec::new());
    let width = table.shape.last().copied().unwrap_or(1).max(1);
    for row in table.to_i32().chunks(width) {
        let listed = || row.iter().filter_map(|entry| usize::try_from(*entry).ok());
        let (low, high) = (listed().min().unwrap_or(0), listed().max().map_or(0, |last| last + 1));
        bytes.extend(at.whole(&cache.narrow(0, low, high - low)?)?.bytes);
        let moved = |entry: &i32| if *entry < 0 { -1 } else { entry - low as i32 + pages as i32 };
        entries.extend(row.iter().map(moved));
        pages += high - low;
    }
    let shape = [pages, cache.shape()[1]];
    Ok((HostTensor::u8(&shape, bytes), HostTensor::i32(&table.shape, &entries)))
}

/// The selection of `rows` tokens.
pub fn select(
    device: &Device,
    axes: &Axes,
    context: usize,
    stage: Stage,
    rows: usize,
    seed: u64,
) -> Result<Spec> {
    let topk = axes.topk;
    let logits = random(device, DType::F32, &[rows, context], seed)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let mut rng = Rng::new(seed);
    let length = 2 * topk + 77;
    let gate = Case::new("top_k")
        .with("logits", tensor(&mut rng, DType::F32, &[2, length], Fill::Zeros))
        .with("ks", HostTensor::i32(&[2], &[0, 5]))
        .with("ke", HostTensor::i32(&[2], &[length as i32, 70]))
        .set("topk", topk);
    let inputs = [&logits, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: "top_k",
        stage,
        case: String::new(),
        shape: shape([("rows", rows), ("context", context), ("topk", topk)]),
        dtype: DType::F32.to_string(),
        flop: 0,
        bytes: (4 * rows * (context + topk)) as u64,
        gate,
        work: Box::new(move || {
            Ok(one("indices", top_k(&logits, &KeyRange { ks: &ks, ke: &ke }, topk, Policy::Fixed)?))
        }),
        timed: Timed {
            rows,
            heads: 1,
            // A row is sorted: some twenty comparisons a column.
            cost: 20 * context,
            cut: Box::new(move |at, out| {
                let [logits, ks, ke] = &inputs;
                let case = Case::new("top_k")
                    .with("logits", at.rows(logits)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("topk", topk);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

/// The shift of a chunk's index lists to the rows of its request.
pub fn shift(device: &Device, axes: &Axes, seed: u64) -> Result<Spec> {
    let (n, topk) = (axes.s_q, axes.topk);
    let mut rng = Rng::new(seed);
    // One entry in four is none.
    let listed: Vec<i32> = (0..n * topk).map(|_| rng.below(1 << 18) as i32).collect();
    let listed: Vec<i32> = listed.iter().map(|i| if i % 4 == 0 { -1 } else { *i }).collect();
    let first: Vec<i32> = (0..n).map(|_| rng.below(1 << 24) as i32).collect();
    let (indices, first) = (device.upload_i32(&listed, &[n, topk])?, vec_i32(device, &first)?);
    let gate = Case::new("shift_indices")
        .with("indices", HostTensor::i32(&[2, topk.min(7)], &listed[..2 * topk.min(7)]))
        .with("first", HostTensor::i32(&[2], &[3, 100]));
    let inputs = [indices.clone(), first.clone()];
    Ok(Spec {
        kernel: "shift_indices",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n), ("topk", topk)]),
        dtype: DType::I32.to_string(),
        flop: 0,
        bytes: (8 * n * topk) as u64,
        gate,
        work: Box::new(move || Ok(one("out", shift_indices(&indices, &first)?))),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: topk,
            cut: Box::new(move |at, out| {
                let [indices, first] = &inputs;
                let case = Case::new("shift_indices").with("indices", at.rows(indices)?);
                Ok((case.with("first", at.rows(first)?), at.outputs(out)?))
            }),
        },
    })
}
