//! The indexer's scores of keys in the paged fp8 cache.

use super::indexer_logits::{SEEN, beside, one_in_four, room_of_queries, seen, with_seen};
use super::*;
use dsa_kernels::indexer::{self, IndexKeys, ScoreFn, logits};
use dsa_kernels::seen::Seen;
use dsa_kernels::tile::load_width;
use dsa_reference::cache_write::index_cache_pages;
use dsa_reference::indexer as expected;
use dsa_reference::quant::{ScaleFmt, act_quant};
use ndarray::{Array2, Array4};

pub(super) const KERNEL: Kernel = Kernel {
    name: indexer::LOGITS_PAGED.name,
    contract: indexer::LOGITS_PAGED,
    file: "indexer.rs",
    beside,
    made: &[],
    scratch: "0",
    work: "b * next_n * max_context * H * D",
    tolerance: tolerance::scores,
    machine: |d| indexer::machine(d, DType::E4m3),
    launch: run,
    compute: reference,
    reference: ("indexer_logits_paged", "reference/src/indexer.rs"),
    forms,
    paths: Paths {
        all: |_| {
            let scores = paths::words(ScoreFn::ALL);
            paths::joined(&[paths::LOADS, &scores, TOKENS, SCALES, SEEN])
        },
        of: runs,
        first: "q",
    },
    production,
    sample,
    bench: &[Bench { stage: Stage::Decode, room: Some(room), spec }],
};

const TOKENS: &[&str] = &["one token", "two tokens"];
const SCALES: &[&str] = &["scales in words", "scales in bytes"];

fn runs(case: &Case, device: &Device) -> Vec<&'static str> {
    let (q, cache) = (paths::shape(case, "q"), paths::shape(case, "cache"));
    let page: usize = case.scalar("page_size").unwrap_or(1);
    let width = load_width(indexer::machine(device, DType::E4m3), 1);
    let whole = [q[3], cache[1] + paths::gap(case, DType::U8)];
    let words = paths::in_vectors(case, "cache", 4) && (page * q[3]).is_multiple_of(4);
    vec![
        paths::either(whole.iter().all(|n| n % width == 0), "vectors", "elements"),
        paths::chosen(case, "score_fn", ScoreFn::ALL),
        paths::either(q[1] == 1, TOKENS[0], TOKENS[1]),
        paths::either(words, SCALES[0], SCALES[1]),
        paths::either(case.tensors.contains_key("ks"), SEEN[0], SEEN[1]),
    ]
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, weights) = (case.upload(device, "q")?, case.upload_rows(device, "weights")?);
    let keys = IndexKeys::Paged {
        cache: &case.upload_rows(device, "cache")?,
        page_size: case.scalar("page_size")?,
        block_table: &case.upload(device, "block_table")?,
        max_context: case.scalar("max_context")?,
    };
    let score_fn = choice(case, "score_fn", ScoreFn::ALL)?;
    let by_range = ["ks", "ke"].iter().any(|name| case.tensors.contains_key(*name));
    with_seen(device, case, !by_range, |seen| logits(&q, &weights, &keys, seen, score_fn))
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let q: Array4<f32> = case.array("q")?;
    let (b, next_n, ..) = q.dim();
    let weights: Matrix = case.array("weights")?;
    let max_context: usize = case.scalar("max_context")?;
    let by_context = case.tensors.get("context_lens").map(HostTensor::to_i32);
    // Of ranges: those of a context that every query sees all of.
    let whole = vec![i32::try_from(max_context + next_n).unwrap_or(i32::MAX); b];
    let mut logits = expected::indexer_logits_paged(
        q.view(),
        case.array_u8("cache")?.view(),
        case.scalar("page_size")?,
        weights.view(),
        by_context.as_deref().unwrap_or(&whole),
        case.array_i32("block_table")?.view(),
        max_context,
        choice(case, "score_fn", expected::ScoreFn::ALL)?,
    )?; // [b · next_n, max_context]
    if by_context.is_none() {
        let (ks, ke) = seen(case, next_n)?;
        for ((t, n), logit) in logits.indexed_iter_mut() {
            if !(i64::from(ks[t])..i64::from(ke[t])).contains(&(n as i64)) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    Ok(outputs([("logits", HostTensor::of(&logits))]))
}

#[derive(Clone, Debug)]
struct Paged {
    /// Whether each token has a range of its own, or each request a context.
    by_range: bool,
    requests: usize,
    next_n: usize,
    heads: usize,
    dim: usize,
    page_size: usize,
    max_pages: usize,
    score_fn: &'static str,
    strided: &'static str,
}

fn forms() -> Forms {
    let form =
        |((requests, next_n, by_range), heads, dim, page_size, max_pages, score_fn, strided)| {
            Paged {
                by_range,
                requests,
                next_n,
                heads,
                dim,
                page_size,
                max_pages,
                score_fn,
                strided,
            }
        };
    let pages = proptest::sample::select(&[1usize, 2, 5, 53, 61, 64, 69][..]);
    let tokens = || (0usize..4, 1usize..3, one_in_four());
    let random =
        (tokens(), 1usize..=64, 1usize..=130, pages, 1usize..4, word_of(ScoreFn::ALL), gap())
            .prop_map(form);
    let production = move |model: Model| {
        let (heads, dim) = (Exactly(model.index_heads()), Exactly(v32::INDEX_DIM));
        (
            (1usize..4, 1usize..3, one_in_four()),
            heads,
            dim,
            Exactly(v32::PAGE),
            1usize..4,
            word_of(ScoreFn::ALL),
            gap(),
        )
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
    let mut keys = tensor(rng, DType::F32, &[n, dim], fill);
    // Of few keys all scores may cancel.
    let longest = max_pages * page_size;
    let max_context = 1 + rng.below(longest);
    let few = max_context < FEW_COLUMNS;
    if few {
        make_positive(&mut keys, dim);
    }
    let keys = Array2::from_shape_vec((n, dim), keys.to_f32()).unwrap_or_default();
    let Ok(q8) = act_quant(keys.view(), dim, ScaleFmt::Ue8m0) else {
        return Case::new(KERNEL.name);
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
    let lens: Vec<i32> =
        (0..b).map(|_| [0, 1, rng.below(longest + 1), longest][rng.below(4)] as i32).collect();
    // Codes of keys are hundreds. A sigmoid of products of thousands is a step, whose place the matrix unit's fp8
    // products, which keep some 13 bits of the largest term, cannot tell: its queries are that much smaller.
    let size = if form.score_fn == "sigmoid" { 1.0 / 512.0 } else { 1.0 };
    let mut q = tensor(rng, DType::F32, &[b, next_n, heads, dim], Fill::Normal);
    if few {
        make_positive(&mut q, dim);
    }
    let q: Vec<f32> = q.to_f32().into_iter().map(|q| q * size).collect();
    let mut weights = tensor(rng, DType::F32, &[b * next_n, heads], Fill::Normal);
    if few {
        make_positive(&mut weights, heads);
    }
    let case = match form.by_range {
        false => Case::new(KERNEL.name).with("context_lens", HostTensor::i32(&[b], &lens)),
        true => {
            let (ks, ke) = ranges(rng, b * next_n, max_context);
            Case::new(KERNEL.name).with("ks", ks).with("ke", ke)
        }
    };
    case.with("q", HostTensor::new(DType::E4m3, &[b, next_n, heads, dim], &q))
        .with("cache", HostTensor::u8(&[n_pages, page_bytes], cache))
        .with("weights", weights)
        .with("block_table", HostTensor::i32(&[b, max_pages], &order))
        .set("page_size", page_size)
        .set("max_context", max_context)
        .set("score_fn", form.score_fn)
        .set("strided", form.strided)
}

/// One token a request, and two: a drafted one is checked along.
fn production() -> Vec<Case> {
    [1, 2]
        .map(|next_n| {
            Case::new(KERNEL.name)
                .with("q", zeros(DType::E4m3, &[2, next_n, v32::INDEX_HEADS, v32::INDEX_DIM]))
                .with("cache", pages(4, v32::INDEX_DIM + 4))
                .with("weights", zeros(DType::F32, &[2 * next_n, v32::INDEX_HEADS]))
                .with("context_lens", ints(&[2]))
                .with("block_table", ints(&[2, 2]))
                .set("page_size", v32::PAGE)
                .set("max_context", 2 * v32::PAGE)
        })
        .into()
}

fn sample() -> Case {
    let rng = &mut Rng::new(1);
    let keys = Array2::from_shape_fn((12, 32), |_| rng.normal());
    let cache = act_quant(keys.view(), 32, ScaleFmt::Plain)
        .map(|q8| index_cache_pages(q8.codes.view(), q8.scale.column(0), 3))
        .unwrap_or_default();
    Case::new(KERNEL.name)
        .with("q", tensor(rng, DType::E4m3, &[2, 1, 4, 32], Fill::Normal))
        .with("cache", HostTensor::u8(cache.shape(), cache.iter().copied().collect()))
        .with("weights", tensor(rng, DType::F32, &[2, 4], Fill::Normal))
        .with("context_lens", vector(&[5, 6]))
        .with("block_table", HostTensor::i32(&[2, 2], &[3, 2, 1, 0]))
        .set("page_size", 3)
        .set("max_context", 6)
        .set("score_fn", "relu")
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let keys = bytes_of(&[axes.batch, context, v32::INDEX_DIM + 4]);
    (room_of_queries(axes, axes.batch) + keys, bytes_of(&[4, axes.batch, context]))
}

/// The scores of the next token of each request.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (b, heads, dtype) = (axes.batch, axes.index_heads, DType::E4m3);
    let max_pages = context.div_ceil(v32::PAGE);
    let page = v32::PAGE * (v32::INDEX_DIM + 4);
    let q = random(device, dtype, &[b, 1, heads, v32::INDEX_DIM], seed)?;
    let pages = index_pages(b * max_pages, seed + 1);
    let cache = device.upload(&pages, &[b * max_pages, page], DType::U8)?;
    let weights = random(device, DType::F32, &[b, heads], seed + 3)?;
    let lens = vec_i32(device, &vec![context as i32; b])?;
    let table: Vec<i32> = (0..(b * max_pages) as i32).rev().collect();
    let table = device.upload_i32(&table, &[b, max_pages])?;
    let mut rng = Rng::new(seed);
    let gate = Case::new(KERNEL.name)
        .with("q", tensor(&mut rng, dtype, &[2, 1, heads, v32::INDEX_DIM], Fill::Normal))
        .with("cache", HostTensor::u8(&[3, page], index_pages(3, seed)))
        .with("weights", tensor(&mut rng, DType::F32, &[2, heads], Fill::Normal))
        .with("context_lens", HostTensor::i32(&[2], &[100, 3]))
        .with("block_table", HostTensor::i32(&[2, 2], &[2, 0, 1, -1]))
        .set("page_size", v32::PAGE)
        .set("max_context", 120);
    let inputs = [&q, &cache, &weights, &lens, &table].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Decode,
        case: String::new(),
        shape: sizes([("batch", b), ("context", context), ("index_heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * b * context * heads * v32::INDEX_DIM) as u64,
        bytes: (b * context * (v32::INDEX_DIM + 8)) as u64,
        gate,
        work: Box::new(move || {
            let keys = IndexKeys::Paged {
                cache: &cache,
                page_size: v32::PAGE,
                block_table: &table,
                max_context: context,
            };
            let seen = Seen::Context(&lens);
            Ok(one("logits", logits(&q, &weights, &keys, &seen, ScoreFn::default())?))
        }),
        timed: Timed {
            rows: b,
            heads: 1,
            cost: context * heads * v32::INDEX_DIM,
            cut: Box::new(move |at, out| {
                let [q, cache, weights, lens, table] = &inputs;
                let (cache, table) = listed_pages(at, cache, &at.rows(table)?)?;
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows(q)?)
                    .with("cache", cache)
                    .with("weights", at.rows(weights)?)
                    .with("context_lens", at.rows(lens)?)
                    .with("block_table", table)
                    .set("page_size", v32::PAGE)
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
) -> Result<(HostTensor, HostTensor), CaseError> {
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
