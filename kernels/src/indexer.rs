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
mod source;
mod tiling;

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::seen::{KeyRange, Seen};
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use keys::*;
use logits::{LaneLogits, fill_unseen};
use source::KeySource;
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

impl ScoreFn {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("relu", Self::ReluWeighted), ("sigmoid", Self::SigmoidWeighted)];
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
    fill_unseen(logits, &queries, &span, machine);

    // Row t · heads + h of the q tile, and column t · heads + h of the products, is head h of query t.
    let layout = comptime![Layout::new(machine, tiling.keys, tiling.queries * tiling.heads)];
    let q_shape = comptime![TileShape::new(machine, layout.cols, tiling.tile_dim)];
    let k_shape = comptime![TileShape::new(machine, tiling.keys, tiling.tile_dim)];
    let mut q_tile = Tile::<S>::new(q_shape);
    let k_ring = Ring::<S>::new(k_shape, tiling.stages);
    let end = min(highest, span.last);
    let k_tiles = IndexTiles::new(keys, request, span.first, end, k_ring, tiling);

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
        let own = lanes.of_tile(&k_tiles.source, n);
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
///
/// Several keys at a time, so that each weight is fetched once for all of them, and with [`CHAINS`] running sums a key,
/// so that an addition seldom waits for the one before it.
#[cube]
fn sum_heads<W: Size>(
    dots: &Fragment<W>,
    weights: &Array<Vector<f32, W>>,
    heads: usize,
    #[comptime] tiling: Tiling,
) -> Array<f32> {
    let layout = comptime![dots.layout];
    let cells = comptime![layout.run() / tiling.queries];
    let keys = comptime![keys_together(layout)];
    let chains = comptime![if cells.is_multiple_of(CHAINS) { CHAINS } else { 1 }];
    let mut sums = Array::<f32>::new(comptime![layout.own_rows() * tiling.queries]);
    #[unroll(layout.unrolled())]
    for block in 0..comptime![layout.own_rows() / keys] {
        #[unroll]
        for t in 0..comptime![tiling.queries] {
            let mut running = Array::<Vector<f32, W>>::new(comptime![keys * chains]);
            #[unroll]
            for i in 0..comptime![keys * chains] {
                running[i] = Vector::new(0.0f32);
            }
            #[unroll(layout.unrolled())]
            for step in 0..comptime![cells / chains] {
                #[unroll]
                for chain in 0..chains {
                    let h = col_of(step * chains + chain, layout);
                    let cell = comptime![t * cells] + step * chains + chain;
                    #[unroll]
                    for i in 0..keys {
                        let dot = dots.get(block * keys + i, cell);
                        let mut share = score(dot, weights[cell], tiling.score_fn);
                        if comptime![tiling.padded] {
                            share = of_heads(share, h, heads);
                        }
                        running[i * chains + chain] += share;
                    }
                }
            }
            #[unroll]
            for i in 0..keys {
                let mut sum = running[i * chains];
                #[unroll]
                for chain in 1..chains {
                    sum += running[i * chains + chain];
                }
                sums[(block * keys + i) * tiling.queries + t] = sum_cell(sum);
            }
        }
    }
    sums
}

/// The shares of the heads `h ..`, 0 for those that are not among the first `heads`: chosen, not multiplied by 0, since
/// a key's infinity times the padding is NaN.
#[cube]
fn of_heads<W: Size>(shares: Vector<f32, W>, h: usize, heads: usize) -> Vector<f32, W> {
    let mut shares = shares;
    #[unroll]
    for i in 0..W::value() {
        shares.insert(i, select(h + i < heads, shares.extract(i), 0.0f32));
    }
    shares
}

/// Running sums of a key and a query, where a unit has so many cells.
const CHAINS: usize = 2;

/// Keys whose sums a unit has under way together: with [`CHAINS`] sums each they fit the sixteen registers of AVX2.
fn keys_together(layout: Layout) -> usize {
    [4, 2, 1].into_iter().find(|keys| layout.own_rows().is_multiple_of(*keys)).unwrap_or(1)
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

/// What [`logits`] takes and returns where keys are rows. Contract: DeepGEMM `fp8_mqa_logits` with `clean_logits`.
pub const LOGITS: Contract = Contract {
    name: "indexer_logits",
    tensors: &[
        "q: [s, H, D] e4m3|bf16|f16|f32, rows",
        "weights: [s, H] f32, rows",
        "k: [s_kv, D] as q, rows",
        "k_scale: [s_kv] f32",
        "ks: [s] i32 (or context_lens)",
        "ke: [s] i32 (or context_lens)",
        "context_lens: [1] i32 (or ks)",
    ],
    scalars: &[],
    sizes: &["H: 1 to 128", "D: 1 to 256"],
    outputs: &["logits: [s, s_kv] f32"],
};

/// What [`logits`] takes and returns where keys are in the paged fp8 cache: in each page the codes of all its tokens,
/// then their f32 scales. Contract: DeepGEMM `fp8_paged_mqa_logits`, without its scheduling metadata.
pub const LOGITS_PAGED: Contract = Contract {
    name: "indexer_logits_paged",
    tensors: &[
        "q: [b, next_n, H, D] e4m3",
        "weights: [b * next_n, H] f32, rows",
        "cache: [n_pages, page_size * (D + 4)] u8, rows",
        "block_table: [b, max_pages] i32",
        "ks: [b * next_n] i32 (or context_lens)",
        "ke: [b * next_n] i32 (or context_lens)",
        "context_lens: [b] i32 (or ks)",
    ],
    scalars: &[
        "page_size: integer 1 to 1048576",
        "max_context: integer 0 to max_pages * page_size",
    ],
    sizes: &["H: 1 to 128", "D: 1 to 256"],
    outputs: &["logits: [b * next_n, max_context] f32"],
};

/// Where the index keys are.
#[derive(Clone, Copy, Debug)]
pub enum IndexKeys<'a> {
    /// Rows, all of which every query of a prefill chunk might see.
    Rows {
        /// `[s_kv, D]` of the type of q.
        k: &'a Tensor,
        /// `[s_kv]` f32: what a key's elements are to be multiplied by.
        k_scale: &'a Tensor,
    },
    /// The paged fp8 cache of several requests ([`store_index_keys`](crate::cache_write::store_index_keys)).
    Paged {
        /// `[n_pages, page_size · (D + 4)]` u8.
        cache: &'a Tensor,
        /// Tokens of a page.
        page_size: usize,
        /// `[b, max_pages]` i32: the pages of each request. The keys of a page out of range score -inf.
        block_table: &'a Tensor,
        /// Columns of the logits.
        max_context: usize,
    },
}

/// Index logits of query tokens against the keys that they see; -inf where they see none ([`LOGITS`],
/// [`LOGITS_PAGED`]).
///
/// - `q`: `[s, H, D]`, of keys in pages `[b, next_n, H, D]`;
/// - `weights`: `[s, H]` f32 of the heads, with the query scales folded in;
/// - returns `[s, s_kv]` f32, of keys in pages `[b · next_n, max_context]`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the logits.
pub fn logits(
    q: &Tensor,
    weights: &Tensor,
    keys: &IndexKeys,
    seen: &Seen,
    score_fn: ScoreFn,
) -> Result<Tensor> {
    let (ks, ke, lens) = match *seen {
        Seen::Range(KeyRange { ks, ke }) => (Some(ks), Some(ke), None),
        Seen::Context(lens) => (None, None, Some(lens)),
    };
    let bound = match *keys {
        IndexKeys::Rows { k, k_scale } => {
            let tensors = [Some(q), Some(weights), Some(k), Some(k_scale), ks, ke, lens];
            LOGITS.check(tensors, &[])?
        }
        IndexKeys::Paged { cache, page_size, block_table, max_context } => {
            let tensors = [Some(q), Some(weights), Some(cache), Some(block_table), ks, ke, lens];
            LOGITS_PAGED.check(tensors, &[page_size.into(), max_context.into()])?
        }
    };
    let [heads, dim] = bound.sizes(["H", "D"])?;
    let logits = bound.output("logits")?;
    let (rows, s_kv) = (logits.shape()[0], logits.shape()[1]);
    if rows * s_kv == 0 {
        return Ok(logits);
    }

    let device = q.device();
    let keys = KeySource::new(keys, seen, dim);
    let requests = if keys.paged { q.shape()[0] } else { 1 };
    let next_n = rows / requests;
    let machine = machine(device, q.dtype());
    let size = q.dtype().size();
    let tiling = Tiling::new(machine, next_n, heads, dim, size, score_fn)
        .of_pages(machine, |tile| keys.in_one_page(tile, dim));
    let row_tiles = requests * next_n.div_ceil(tiling.queries);
    let spans = tiling.spans(device, machine, size, row_tiles, s_kv);
    let span = s_kv.div_ceil(spans).next_multiple_of(tiling.keys);
    let programs = row_tiles * s_kv.div_ceil(span);
    let q = if keys.paged { q.clone() } else { q.split(0, 1) }; // [b, next_n, H, D]
    let vectors = load_width(machine, size);
    let in_vectors = q.in_vectors(vectors) && keys.in_vectors(vectors, dim);
    let width = if in_vectors { vectors } else { 1 };
    let scale_width = keys.scale_width(&tiling);
    // SAFETY: shapes and strides are as the contract says; the kernel compares rows, heads, keys and pages
    // with their counts before it reads or writes.
    unsafe {
        indexer_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([&q, &keys.k, &keys.scale, weights, &logits]),
            width,
            scale_width,
            machine.cell_width(),
            q.view(width),
            keys.launch(width, scale_width, dim),
            weights.view(1),
            RangesLaunch::new(keys.starts.arg(1), keys.ends.arg(1), keys.by_context),
            logits.view(1),
            span,
            tiling,
            machine,
            [q.dtype().elem(), machine.kept(q.dtype().elem())],
        );
    }
    Ok(logits)
}

/// How the indexer of keys of type `dtype` runs on `device`.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    device.matrix_machine(dtype.elem(), 1).unwrap_or_else(|| device.machine(256))
}
