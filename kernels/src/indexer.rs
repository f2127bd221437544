//! Lightning indexer: how relevant each key is to each query.
//!
//! ```text
//! logits[t, n] = k_scale[n] · Σ_h w[t, h] · relu(q[t, h] · k[n])      for ks[t] <= n < ke[t]
//! logits[t, n] = -inf                                                 elsewhere
//! ```
//!
//! DeepSeek-V3.2-Exp paper, eq. 1. The query's own fp8 scale is folded into `w` ([`fold_scales`]), as in
//! DeepGEMM's `fp8_mqa_logits`.
//!
//! Cost: `2 · s · s_kv · H · D` FLOP; reads `D + 4` bytes a key for each tile of queries, writes 4 bytes
//! a logit. Prefill is bound by the products, decode by reading the keys.
//!
//! Budget (sm_90a): at most 144 registers a unit, 64 KB of shared memory, no spills; wgmma bf16, wgmma e4m3, wgmma f16.
//! Budget (gfx950): at most 128 registers a unit, 48 KB of shared memory, no spills; vector arithmetic.

mod keys;
mod logits;
mod tiling;

use crate::device::Device;
use crate::pages::expect_page_size;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use keys::*;
use logits::{LaneLogits, fill_unseen};
use tiling::Tiling;

/// How a query head's dot product with a key becomes its share of the score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScoreFn {
    /// `w · relu(q · k)`: as published.
    #[default]
    ReluWeighted,
    /// `w · sigmoid(q · k)`: an example of another.
    SigmoidWeighted,
}

/// One head's share of the score. **This is the function to change to try another indexer.**
///
/// `dot`: q · k of some heads; `weight`: their weights. NaN stays NaN, so that top-k can leave it out.
#[cube]
fn score<W: Size>(
    dot: Vector<f32, W>,
    weight: Vector<f32, W>,
    #[comptime] score_fn: ScoreFn,
) -> Vector<f32, W> {
    match comptime![score_fn] {
        ScoreFn::ReluWeighted => max_nan(dot, Vector::new(0.0f32)) * weight,
        ScoreFn::SigmoidWeighted => {
            weight / (Vector::new(1.0f32) + (Vector::new(0.0f32) - dot).exp())
        }
    }
}

/// One program scores `tiling.queries` rows of one request against `span` keys, tile by tile.
#[cube(launch_unchecked, address_type = "dynamic")]
fn indexer_kernel<E: Numeric, S: Numeric, N: Size, B: Size, W: Size>(
    q: &View<Vector<E, N>>, // [requests, rows, H, D]
    keys: &Keys<E, N, B>,   // [s_kv, D] with a scale each, in rows or in pages
    weights: &View<f32>,    // [requests · rows, H]
    ranges: &Ranges,        // ks .. ke of each row, or the context of each request
    logits: &mut View<f32>, // [requests · rows, s_kv]
    span: usize,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, S)] _types: [ElemType; 2],
) {
    let (rows, s_kv) = (q.shape(1), logits.shape(1));
    let (row_tiles, spans) = (rows.div_ceil(tiling.queries), parts_of(s_kv, span));
    let program = program_id(machine);
    if program >= q.shape(0) * row_tiles * spans {
        terminate!();
    }
    let (request, tile, nth) = unravel(program, row_tiles, spans);
    let queries = Queries::new(q, request, tile * tiling.queries, tiling);
    let seen = KeyRanges::new(ranges, request, rows, select(keys.pages.count == 0, 0usize, s_kv));
    let (lowest, highest) = seen.of_all(queries.first, queries.count);
    let span = Span::new(nth * span, min(nth * span + span, s_kv), lowest, highest, tiling.keys);
    for t in 0..queries.count {
        let row = queries.row(t) * logits.stride(0);
        fill_unseen(&mut logits.data, row + span.start, row + span.first, machine);
        fill_unseen(&mut logits.data, row + span.last, row + span.end, machine);
    }

    // Row t · heads + h of the q tile, and column t · heads + h of the products, is head h of query t.
    let layout = comptime![Layout::new(machine, tiling.keys, tiling.queries * tiling.heads)];
    let q_shape = comptime![TileShape::new(machine, layout.cols, tiling.tile_dim)];
    let k_shape = comptime![TileShape::new(machine, tiling.keys, tiling.tile_dim)];
    let mut q_tile = Tile::<S>::new(q_shape);
    let k_ring = Ring::<S>::new(k_shape, tiling.stages);
    let end = min(highest, span.last);
    let k_tiles = IndexTiles::new(keys, request, span.first, end, k_ring, tiling.dim);

    queries.load(&mut q_tile);
    let weights = head_weights(weights, &queries, layout);
    let lanes = LaneLogits::new(&seen, &queries, logits.stride(0), tiling.queries, layout);
    k_tiles.start(span.tiles);
    for n in 0..span.tiles {
        k_tiles.await_tile(n);
        k_tiles.load_next(n);
        let mut dots = Fragment::<W>::zeroed(layout);
        start_nt(&mut dots, &k_tiles.source.ring.tile(n), &q_tile);
        // Looked up while the product runs.
        let own = lanes.of_tile(&k_tiles.source, k_tiles.source.first_of(n), tiling.dim);
        finish_product(&mut dots, 0usize);
        let sums = sum_heads(&dots, &weights, queries.heads, tiling);
        #[unroll(layout.unrolled())]
        for i in 0..own.scale.len() {
            let sum = lanes.sum(&sums, i);
            if lanes.exists[i] && own.key[i] < span.last {
                let logit = select(own.seen[i], sum * own.scale[i], f32::NEG_INFINITY);
                logits.data[lanes.at[i] + own.key[i]] = logit;
            }
        }
    }
}

/// `Σ_h w[t, h] · relu(q[t, h] · k)` over this unit's columns of the first `heads` of each query, for each of its
/// keys and each query of the tile: entry `own · queries + t`.
#[cube]
fn sum_heads<W: Size>(
    dots: &Fragment<W>,
    weights: &Array<Vector<f32, W>>,
    heads: usize,
    #[comptime] tiling: Tiling,
) -> Array<f32> {
    let layout = comptime![dots.layout];
    let cells = comptime![layout.run() / tiling.queries];
    let mut sums = Array::<f32>::new(comptime![layout.own_rows() * tiling.queries]);
    #[unroll(layout.unrolled())]
    for own in 0..comptime![layout.own_rows()] {
        #[unroll]
        for t in 0..comptime![tiling.queries] {
            let mut sum = Vector::<f32, W>::new(0.0f32);
            #[unroll(layout.unrolled())]
            for cell in 0..cells {
                let h = col_of(cell, layout);
                let cell = comptime![t * cells] + cell;
                let mut share_of_head = score(dots.get(own, cell), weights[cell], tiling.score_fn);
                if comptime![tiling.padded] {
                    // Chosen, not multiplied by 0: a key's infinity times the padding is NaN.
                    #[unroll]
                    for i in 0..W::value() {
                        let counts = h + i < heads;
                        share_of_head.insert(i, select(counts, share_of_head.extract(i), 0.0f32));
                    }
                }
                sum += share_of_head;
            }
            sums[own * tiling.queries + t] = sum_cell(sum);
        }
    }
    sums
}

/// The weights of this unit's columns of the products.
#[cube]
fn head_weights<E: Numeric, N: Size, W: Size>(
    weights: &View<f32>,
    queries: &Queries<'_, E, N>,
    #[comptime] layout: Layout,
) -> Array<Vector<f32, W>> {
    let mut values = Array::<Vector<f32, W>>::new(comptime![layout.run()]);
    #[unroll(layout.unrolled())]
    for cell in 0..comptime![layout.run()] {
        let mut value = Vector::<f32, W>::new(0.0f32);
        #[unroll]
        for i in 0..W::value() {
            let col = col_of(cell, layout) + i;
            let (t, h) = (col / comptime![queries.tile_heads], col % comptime![queries.tile_heads]);
            if t < queries.count && h < queries.heads {
                value.insert(i, weights.data[queries.row(t) * weights.stride(0) + h]);
            }
        }
        values[cell] = value;
    }
    values
}

/// Index logits of a prefill chunk: every query row against the keys of its own range.
///
/// - `q`: `[s, H, D]` e4m3, bf16, f16 or f32, last stride 1, H from 1 to 128;
/// - `k`: `[s_kv, D]` of the same type, last stride 1;
/// - `k_scale`: `[s_kv]` f32, contiguous;
/// - `weights`: `[s, H]` f32 with the query scales folded in, last stride 1;
/// - `ks`, `ke`: `[s]` i32, half-open key ranges, clamped to `0..s_kv`; may be empty;
/// - returns `[s, s_kv]` f32, -inf outside the ranges.
///
/// Contract: DeepGEMM `fp8_mqa_logits` with `clean_logits`.
pub fn indexer_logits(
    q: &Tensor,
    k: &Tensor,
    k_scale: &Tensor,
    weights: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    score_fn: ScoreFn,
) -> Result<Tensor> {
    let device = q.device();
    q.expect_rank("q", &["s", "H", "D"])?;
    q.expect_dtype("q", &TYPES)?;
    k.expect_rank("k", &["s_kv", "D"])?;
    let (s, dim, s_kv) = (q.shape()[0], q.shape()[2], k.shape()[0]);
    k.expect_shape("k", &[("s_kv", s_kv), ("D", dim)])?;
    k_scale.expect_shape("k_scale", &[("s_kv", s_kv)])?;
    k_scale.expect_dtype("k_scale", &[DType::F32])?;
    k_scale.expect_contiguous("k_scale")?;
    for (name, range) in [("ks", ks), ("ke", ke)] {
        range.expect_shape(name, &[("s", s)])?;
        range.expect_dtype(name, &[DType::I32])?;
        range.expect_contiguous(name)?;
    }
    k.expect_dtype("k", &[q.dtype()])?;
    k.expect_rows("k")?;
    let logits = device.output("logits", &[s, s_kv], DType::F32)?;
    let keys = KeySource {
        k,
        scale: k_scale,
        starts: ks,
        ends: ke,
        block_table: ke,
        row: k.strides()[0],
        pages: 1,
        page_size: s_kv.max(1),
        page_stride: 0,
        paged: false,
    };
    launch(q, 1, s, s_kv, weights, keys, &logits, score_fn)?;
    Ok(logits)
}

/// Index logits of decode: the new tokens of each request against its paged fp8 cache.
///
/// - `q`: `[b, next_n, H, D]` e4m3, contiguous;
/// - `cache`: `[n_pages, page_size · (D + 4)]` u8, last stride 1: in each page the codes of all its tokens,
///   then their f32 scales; any page size;
/// - `weights`: `[b · next_n, H]` f32 with the query scales folded in;
/// - `context_lens`: `[b]` i32: token i of next_n sees keys `n < context_len - next_n + i + 1`;
/// - `block_table`: `[b, max_pages]` i32; a page out of range scores -inf;
/// - returns `[b · next_n, max_context]` f32, -inf beyond each context.
///
/// Contract: DeepGEMM `fp8_paged_mqa_logits` with 1-D context lengths, without its scheduling metadata.
pub fn indexer_logits_paged(
    q: &Tensor,
    cache: &Tensor,
    page_size: usize,
    weights: &Tensor,
    context_lens: &Tensor,
    block_table: &Tensor,
    max_context: usize,
    score_fn: ScoreFn,
) -> Result<Tensor> {
    let device = q.device();
    q.expect_rank("q", &["b", "next_n", "H", "D"])?;
    q.expect_dtype("q", &[DType::E4m3])?;
    q.expect_contiguous("q")?;
    expect_page_size(page_size)?;
    let (b, next_n, heads, dim) = (q.shape()[0], q.shape()[1], q.shape()[2], q.shape()[3]);
    let q = q.reshape(&[b * next_n, heads, dim])?;
    cache.expect_rank("cache", &["n_pages", "page_size * (D + 4)"])?;
    let n_pages = cache.shape()[0];
    let page_bytes = page_size * (dim + 4);
    cache.expect_shape("cache", &[("n_pages", n_pages), ("page_size * (D + 4)", page_bytes)])?;
    cache.expect_dtype("cache", &[DType::U8])?;
    cache.expect_rows("cache")?;
    context_lens.expect_shape("context_lens", &[("b", b)])?;
    block_table.expect_rank("block_table", &["b", "max_pages"])?;
    let max_pages = block_table.shape()[1];
    block_table.expect_shape("block_table", &[("b", b), ("max_pages", max_pages)])?;
    for (name, tensor) in [("context_lens", context_lens), ("block_table", block_table)] {
        tensor.expect_dtype(name, &[DType::I32])?;
        tensor.expect_contiguous(name)?;
    }
    if max_context > max_pages * page_size {
        return Err(KernelError::Value {
            name: "max_context",
            got: format!("{max_context} with pages of {page_size}"),
            expected: format!("at most the {max_pages} pages of the block table"),
        });
    }
    let logits = device.output("logits", &[b * next_n, max_context], DType::F32)?;
    let codes = cache.reinterpret(DType::E4m3);
    let keys = KeySource {
        k: &codes,
        scale: cache,
        starts: context_lens,
        ends: context_lens,
        block_table,
        row: dim,
        pages: n_pages,
        page_size,
        page_stride: cache.strides()[0],
        paged: true,
    };
    launch(&q, b, next_n, max_context, weights, keys, &logits, score_fn)?;
    Ok(logits)
}

/// The types of queries and keys.
const TYPES: [DType; 4] = [DType::E4m3, DType::Bf16, DType::F16, DType::F32];

fn launch(
    q: &Tensor,
    requests: usize,
    rows: usize,
    s_kv: usize,
    weights: &Tensor,
    keys: KeySource,
    logits: &Tensor,
    score_fn: ScoreFn,
) -> Result<()> {
    let device = q.device();
    let (s, heads, dim) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    q.expect_dtype("q", &TYPES)?;
    q.expect_rows("q")?;
    if !(1..=128).contains(&heads) || dim == 0 || dim > 256 {
        return Err(KernelError::Shape {
            tensor: "q",
            got: q.shape().to_vec(),
            expected: "H from 1 to 128 and D from 1 to 256".to_string(),
        });
    }
    weights.expect_shape("weights", &[("s", s), ("H", heads)])?;
    weights.expect_dtype("weights", &[DType::F32])?;
    weights.expect_rows("weights")?;
    if s * s_kv == 0 {
        return Ok(());
    }

    let machine = machine(device, q.dtype());
    let tiling = Tiling::new(
        machine,
        rows,
        heads,
        dim,
        q.dtype().size(),
        (keys.row == dim).then_some(dim),
        keys.paged,
        score_fn,
    );
    // Enough programs to fill the device, few enough that a tile of queries is loaded seldom.
    let row_tiles = requests * rows.div_ceil(tiling.queries);
    let wanted = (4 * device.cores()).div_ceil(row_tiles).max(1);
    let span = s_kv.div_ceil(wanted).next_multiple_of(tiling.keys);
    let programs = row_tiles * s_kv.div_ceil(span);
    let vectors = load_width(machine, q.dtype().size());
    let in_vectors = q.in_vectors(vectors) && keys.in_vectors(vectors, dim);
    let width = if in_vectors { vectors } else { 1 };
    let scale_width = if keys.scales_in_words(dim) { 4 } else { 1 };
    // SAFETY: shapes and strides are checked by the caller and above; the kernel compares rows, heads,
    // keys and pages with their counts before it reads or writes.
    unsafe {
        indexer_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([q, keys.k, &keys.scale.reinterpret(DType::U8), weights, logits]),
            width,
            scale_width,
            machine.cell_width(),
            q.split(0, requests).view(width),
            keys.launch(width, scale_width, dim),
            weights.view(1),
            RangesLaunch::new(keys.starts.arg(1), keys.ends.arg(1), keys.paged),
            logits.view(1),
            span,
            tiling,
            machine,
            [q.dtype().elem(), machine.kept(q.dtype().elem())],
        );
    }
    Ok(())
}

/// How the indexer of keys of type `dtype` runs on `device`.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    device.matrix_machine(dtype.elem(), 1).unwrap_or_else(|| device.machine(256))
}
