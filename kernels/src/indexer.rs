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
//! Budget (sm_90a): at most 128 registers a unit, 49 KB of shared memory, no spills; wgmma bf16, wgmma e4m3, wgmma f16.
//! Budget (gfx950): at most 120 registers a unit, 51 KB of shared memory, no spills; vector arithmetic.

use crate::device::Device;
use crate::quant::expect_page_size;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

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

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    /// Query rows in a tile.
    queries: usize,
    /// Heads a query, padded with weightless ones to whole cells.
    heads: usize,
    /// Keys in a tile.
    keys: usize,
    /// Elements of a head.
    dim: usize,
    /// The same, padded to what the matrix unit multiplies.
    tile_dim: usize,
    /// Whether keys live in the paged cache (decode) or in rows (prefill).
    paged: bool,
    score_fn: ScoreFn,
}

/// One program scores `tiling.queries` rows of one request against `span` keys, tile by tile.
///
/// | | prefill (`paged` = false) | decode (`paged` = true) |
/// |---|---|---|
/// | `q` | `[s, H, D]`, one request of `rows` = s | `[b, next_n, H, D]`, `rows` = next_n |
/// | `k` | `[s_kv, D]` | the cache's fp8 bytes |
/// | `k_scale` | `[s_kv]` f32, as bytes | the cache again, as bytes |
/// | `starts`, `ends` | `[s]` ks and ke | `[b]` context lengths (both) |
/// | `block_table` | unused | `[b, max_pages]` |
/// | `page_size`, `page_stride` | s_kv, unused | tokens and bytes of a page |
#[cube(launch_unchecked)]
fn indexer_kernel<E: Numeric, S: Numeric, N: Size, W: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    k_scale: &[u8],
    weights: &[f32],
    starts: &[i32],
    ends: &[i32],
    block_table: &[i32],
    logits: &mut [f32],
    requests: u32,
    rows: u32,
    heads: u32,
    s_kv: u32,
    span: u32,
    q_row: u32,
    q_head: u32,
    k_row: u32,
    w_row: u32,
    logits_row: u32,
    n_pages: u32,
    max_pages: u32,
    page_size: u32,
    page_stride: u32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, S)] _types: [ElemType; 2],
) {
    let s_kv = s_kv as usize;
    let row_tiles = (rows as usize).div_ceil(tiling.queries);
    let spans = s_kv.div_ceil(span as usize);
    let program = program_id(machine);
    if program >= requests as usize * row_tiles * spans {
        terminate!();
    }
    let request = program / (row_tiles * spans);
    let first = program / spans % row_tiles * tiling.queries;
    let t0 = request * rows as usize + first;
    let queries = min(rows as usize - first, comptime![tiling.queries]);

    // The heads of all queries of the tile stand side by side: row t · heads + h of the q tile, and
    // column t · heads + h of the products.
    let share = comptime![Share::new(machine, tiling.keys, tiling.queries * tiling.heads)];
    let mut q_tile =
        Tile::<S>::new(comptime![TileShape::new(machine, share.cols, tiling.tile_dim)]);
    let mut k_tile =
        Tile::<S>::new(comptime![TileShape::new(machine, tiling.keys, tiling.tile_dim)]);
    let mut w_tile = team_memory::<Vector<f32, W>>(comptime![share.cols], 64usize, machine);
    let mut slots = team_memory::<i32>(comptime![tiling.keys], 16usize, machine);

    let mut lowest = s_kv;
    let mut highest = 0usize.runtime();
    #[unroll]
    for t in 0..comptime![tiling.queries] {
        let at = (t0 + t) * q_row as usize;
        let of_query = select(t < queries, heads as usize, 0usize);
        load_heads::<E, N, S>(&mut q_tile, q, at, q_head as usize, of_query, tiling, t);
        load_weights::<W>(
            &mut w_tile,
            weights,
            (t0 + t) * w_row as usize,
            of_query,
            tiling,
            machine,
            t,
        );
        let range =
            key_range(starts, ends, request, t0 + t, first + t, rows as usize, s_kv, tiling);
        if t < queries && range.start < range.end {
            lowest = min(lowest, range.start);
            highest = max(highest, range.end);
        }
    }

    let span_start = program % spans * span as usize;
    let span_end = min(span_start + span as usize, s_kv);
    let tiles = (span_end - span_start).div_ceil(tiling.keys);
    for tile in 0..tiles {
        let s0 = span_start + tile * tiling.keys;
        let mut scores = Fragment::<W>::zeroed(share);
        // A tile that no query of this program may see is not even read.
        if s0 < highest && s0 + tiling.keys > lowest {
            sync_team(machine);
            locate_keys(
                &mut slots,
                block_table,
                request * max_pages as usize,
                s0,
                highest,
                n_pages,
                page_size,
                tiling,
                machine,
            );
            sync_team(machine);
            gather_rows::<E, N, S>(
                &mut k_tile,
                k,
                &slots,
                k_row as usize,
                page_size as usize,
                page_stride as usize,
                comptime![tiling.dim],
            );
            sync_team(machine);
            multiply_nt::<S, W>(&mut scores, &k_tile, &q_tile, share);
        }

        #[unroll(share.unrolled())]
        for slot in 0..comptime![share.slots()] {
            let row = row_of(slot, share);
            let key = s0 + row;
            let mut scale = 0.0f32.runtime();
            if key >= lowest && key < highest {
                scale = read_scale(
                    k_scale,
                    slots[row],
                    page_size as usize,
                    page_stride as usize,
                    tiling,
                );
            }
            #[unroll]
            for t in 0..comptime![tiling.queries] {
                let mut sum = Vector::<f32, W>::new(0.0f32);
                #[unroll(share.unrolled())]
                for cell in 0..comptime![share.run() / tiling.queries] {
                    let cell = cell + comptime![t * share.run() / tiling.queries];
                    let weight = w_tile[col_of(cell, share) / W::value()];
                    sum += score::<W>(scores.get(slot, cell), weight, comptime![tiling.score_fn]);
                }
                let sum = sum_lanes(sum_cell(sum), share);
                if t < queries && key < span_end && lane_of(share) == 0 {
                    let range = key_range(
                        starts,
                        ends,
                        request,
                        t0 + t,
                        first + t,
                        rows as usize,
                        s_kv,
                        tiling,
                    );
                    let mut logit = f32::NEG_INFINITY.runtime();
                    if key >= range.start && key < range.end && slots[row] >= 0 {
                        logit = sum * scale;
                    }
                    logits[(t0 + t) * logits_row as usize + key] = logit;
                }
            }
        }
    }
}

/// The keys a query may see.
#[derive(CubeType)]
struct KeyRange {
    start: usize,
    end: usize,
}

/// The range of query row `t`, the `i`-th of its request, clamped to `0..s_kv`.
#[cube]
fn key_range(
    starts: &[i32],
    ends: &[i32],
    request: usize,
    t: usize,
    i: usize,
    rows: usize,
    s_kv: usize,
    #[comptime] tiling: Tiling,
) -> KeyRange {
    let mut start = 0i32.runtime();
    let mut end = 0i32.runtime();
    if i < rows {
        if comptime![tiling.paged] {
            // Of next_n new tokens the last sees the whole context, each one before it a key less.
            // A negative length is 0 before anything is subtracted: INT_MIN must not wrap.
            end = max(ends[request], 0i32) - rows as i32 + i as i32 + 1;
        } else {
            start = starts[t];
            end = ends[t];
        }
    }
    KeyRange {
        start: clamp(start, 0i32, s_kv as i32) as usize,
        end: clamp(end, 0i32, s_kv as i32) as usize,
    }
}

/// Fills in where each key of the tile is kept: its row (prefill), or its slot of the cache through
/// the block table; -1 for a key that does not exist or whose page is out of range.
#[cube]
fn locate_keys(
    slots: &mut [i32],
    block_table: &[i32],
    table_row: usize,
    s0: usize,
    end: usize,
    n_pages: u32,
    page_size: u32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
) {
    for step in 0..comptime![tiling.keys.div_ceil(machine.team)] {
        let row = step * comptime![machine.team] + unit_id(machine);
        if row < tiling.keys {
            let key = s0 + row;
            let mut slot = -1i32.runtime();
            if key < end {
                if comptime![tiling.paged] {
                    let page = block_table[table_row + key / page_size as usize];
                    if page >= 0 && page < n_pages as i32 {
                        slot = page * page_size as i32 + (key % page_size as usize) as i32;
                    }
                } else {
                    slot = key as i32;
                }
            }
            slots[row] = slot;
        }
    }
}

/// The scale of the key at `slot`. A page of the cache holds the codes of all its tokens, then their
/// scales (DeepGEMM's fused layout).
#[cube]
fn read_scale(
    k_scale: &[u8],
    slot: i32,
    page_size: usize,
    page_stride: usize,
    #[comptime] tiling: Tiling,
) -> f32 {
    let mut scale = 0.0f32.runtime();
    if slot >= 0 {
        let slot = slot as usize;
        if comptime![tiling.paged] {
            let page = slot / page_size * page_stride;
            scale = read_f32(k_scale, page + page_size * tiling.dim + slot % page_size * 4);
        } else {
            scale = read_f32(k_scale, slot * 4);
        }
    }
    scale
}

/// Fills rows `t · heads ..` of the q tile with one query's heads.
#[cube]
fn load_heads<E: Numeric, N: Size, S: Numeric>(
    q_tile: &mut Tile<S>,
    q: &[Vector<E, N>],
    at: usize,
    q_head: usize,
    heads: usize,
    #[comptime] tiling: Tiling,
    #[comptime] t: usize,
) {
    let machine = comptime![q_tile.shape.machine];
    let vectors = comptime![q_tile.shape.vectors()];
    let total = comptime![tiling.heads * vectors];
    for step in 0..comptime![total.div_ceil(machine.team)] {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < total {
            let head = i / vectors;
            let v = i % vectors;
            let valid = select(head < heads, left_of(comptime![tiling.dim], v), 0usize);
            let row = comptime![t * tiling.heads] + head;
            q_tile.put(row, v, read_vector::<E, N, S>(q, at + head * q_head + v * LANES, valid));
        }
    }
}

/// Fills cells `t · heads ..` of the weights; a padded head weighs nothing.
#[cube]
fn load_weights<W: Size>(
    w_tile: &mut [Vector<f32, W>],
    weights: &[f32],
    at: usize,
    heads: usize,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[comptime] t: usize,
) {
    let w_tile = w_tile.with_vector_size_mut::<Const<1>>();
    for step in 0..comptime![tiling.heads.div_ceil(machine.team)] {
        let head = step * comptime![machine.team] + unit_id(machine);
        if head < tiling.heads {
            let mut weight = 0.0f32.runtime();
            if head < heads {
                weight = weights[at + head];
            }
            w_tile[comptime![t * tiling.heads] + head] = Vector::new(weight);
        }
    }
}

/// Multiplies the head weights by the fp8 scales of their queries and a constant:
/// `w[t, h] · q_scale[t, h] · factor`, `factor = H^-1/2 · D^-1/2`.
#[cube(launch_unchecked)]
fn fold_scales_kernel(
    weights: &[f32],
    q_scale: &[f32],
    out: &mut [f32],
    n: u32,
    factor: f32,
    #[comptime] machine: Machine,
) {
    let i = program_id(machine) * comptime![machine.team] + unit_id(machine);
    if i < n as usize {
        out[i] = weights[i] * q_scale[i] * factor;
    }
}

/// Folds the queries' scales into the head weights: `out[t, h] = weights[t, h] · q_scale[t, h] · factor`.
///
/// `weights`, `q_scale`: `[s, H]` f32, contiguous. Returns `[s, H]` f32.
pub fn fold_scales(
    device: &Device,
    weights: &Tensor,
    q_scale: &Tensor,
    factor: f32,
) -> Result<Tensor> {
    weights.expect_rank("weights", &["s", "H"])?;
    let (s, h) = (weights.shape()[0], weights.shape()[1]);
    q_scale.expect_shape("q_scale", &[("s", s), ("H", h)])?;
    for (name, tensor) in [("weights", weights), ("q_scale", q_scale)] {
        tensor.expect_dtype(name, &[DType::F32])?;
        tensor.expect_contiguous(name)?;
    }
    let out = device.empty(&[s, h], DType::F32);
    let machine = device.machine(256);
    // SAFETY: the three buffers hold s · h elements each, and the kernel stops at that number.
    unsafe {
        fold_scales_kernel::launch_unchecked(
            device.client(),
            machine.cube_count((s * h).div_ceil(machine.team)),
            machine.cube_dim(),
            weights.arg(1),
            q_scale.arg(1),
            out.arg(1),
            (s * h) as u32,
            factor,
            machine,
        );
    }
    Ok(out)
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
    device: &Device,
    q: &Tensor,
    k: &Tensor,
    k_scale: &Tensor,
    weights: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    score_fn: ScoreFn,
) -> Result<Tensor> {
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
    let logits = device.empty(&[s, s_kv], DType::F32);
    let keys = Keys {
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
    launch(device, q, 1, s, s_kv, weights, keys, &logits, score_fn)?;
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
    device: &Device,
    q: &Tensor,
    cache: &Tensor,
    page_size: usize,
    weights: &Tensor,
    context_lens: &Tensor,
    block_table: &Tensor,
    max_context: usize,
    score_fn: ScoreFn,
) -> Result<Tensor> {
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
    let logits = device.empty(&[b * next_n, max_context], DType::F32);
    let codes = cache.reinterpret(DType::E4m3);
    let keys = Keys {
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
    launch(device, &q, b, next_n, max_context, weights, keys, &logits, score_fn)?;
    Ok(logits)
}

/// The types of queries and keys.
const TYPES: [DType; 4] = [DType::E4m3, DType::Bf16, DType::F16, DType::F32];

/// Where the keys of a launch are.
struct Keys<'a> {
    k: &'a Tensor,
    scale: &'a Tensor,
    starts: &'a Tensor,
    ends: &'a Tensor,
    block_table: &'a Tensor,
    row: usize,
    pages: usize,
    page_size: usize,
    page_stride: usize,
    paged: bool,
}

fn launch(
    device: &Device,
    q: &Tensor,
    requests: usize,
    rows: usize,
    s_kv: usize,
    weights: &Tensor,
    keys: Keys,
    logits: &Tensor,
    score_fn: ScoreFn,
) -> Result<()> {
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
    let tiling = tiling(machine, heads, dim, q.dtype().size(), keys.paged, score_fn);
    // Enough programs to fill the device, few enough that a tile of queries is loaded seldom.
    let row_tiles = requests * rows.div_ceil(tiling.queries);
    let wanted = (4 * device.cores()).div_ceil(row_tiles).max(1);
    let span = s_kv.div_ceil(wanted).next_multiple_of(tiling.keys);
    let programs = row_tiles * s_kv.div_ceil(span);
    let vectors = q.in_vectors() && keys.k.in_vectors() && keys.row.is_multiple_of(8);
    let width = if vectors { LANES } else { 1 };
    let kept = if machine.matrix == MatrixUnit::Plain { DType::F32 } else { q.dtype() };
    // SAFETY: shapes and strides are checked by the caller and above; the kernel compares rows, heads,
    // keys and pages with their counts before it reads or writes.
    unsafe {
        indexer_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs),
            machine.cube_dim(),
            width,
            machine.cell_width(),
            q.arg(width),
            keys.k.arg(width),
            keys.scale.reinterpret(DType::U8).arg(1),
            weights.arg(1),
            keys.starts.arg(1),
            keys.ends.arg(1),
            keys.block_table.arg(1),
            logits.arg(1),
            requests as u32,
            rows as u32,
            heads as u32,
            s_kv as u32,
            span as u32,
            q.strides()[0] as u32,
            q.strides()[1] as u32,
            keys.row as u32,
            weights.strides()[0] as u32,
            logits.strides()[0] as u32,
            keys.pages as u32,
            keys.block_table.shape().last().copied().unwrap_or(0) as u32,
            keys.page_size as u32,
            keys.page_stride as u32,
            tiling,
            machine,
            [q.dtype().elem(), kept.elem()],
        );
    }
    Ok(())
}

/// How the indexer of keys of type `dtype` runs on `device`.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    device.matrix_machine(dtype.elem())
}

/// The tile sizes that suit `machine`.
fn tiling(
    machine: Machine,
    heads: usize,
    dim: usize,
    elem_size: usize,
    paged: bool,
    score_fn: ScoreFn,
) -> Tiling {
    let (keys, queries, heads) = match machine.matrix {
        MatrixUnit::Plain => {
            let keys = 32;
            let lanes = Share::new(machine, keys, LANES).lanes();
            (keys, 1, heads.next_multiple_of(LANES * lanes))
        }
        // A 64 x 128 product: 64 keys against two queries of 64 heads, or as many as fit.
        MatrixUnit::Wgmma => {
            let heads = heads.next_multiple_of(8);
            (64, (128 / heads).max(1), heads)
        }
    };
    // The swizzled layout cuts rows into panels of 128 bytes.
    let tile_dim = match machine.matrix {
        MatrixUnit::Plain => dim,
        MatrixUnit::Wgmma => dim.next_multiple_of(128 / elem_size),
    };
    Tiling { queries, heads, keys, dim, tile_dim, paged, score_fn }
}
