//! Sparse MLA attention: the heads of one query token over the keys chosen for it.
//!
//! ```text
//! S[h, j] = softmax_scale · q[t, h] · kv[J_t[j]]          (d_qk = kv_lora_rank + rope, e.g. 576)
//! P[h, :] = softmax(S[h, :]) over the valid entries of J_t
//! out[t, h] = Σ_j P[h, j] · kv[J_t[j]][0 .. d_v]          (d_v = kv_lora_rank, e.g. 512)
//! lse[t, h] = ln Σ_j exp S[h, j],   max_logits[t, h] = max_j S[h, j]
//! ```
//!
//! The absorbed (MQA) form of DeepSeek-V2 section 2.1 over the set of DeepSeek-V3.2-Exp eq. 2: all heads
//! share one key, whose first part is also the value. Online softmax as in flash attention.
//!
//! An index that is negative or >= the number of rows is no key: nothing of its row is read. A row
//! without a key gives out 0, lse +inf, max_logits -inf (FlashMLA's convention); lse is natural.
//!
//! Cost: `2 · s · h · topk · (d_qk + d_v)` FLOP; gathers `topk` rows a token once for each tile of heads.
//!
//! Budget (sm_90a): at most 256 registers a unit, 225 KB of shared memory, no spills; wgmma bf16.
//! Budget (gfx950): at most 344 registers a unit, 111 KB of shared memory, no spills; vector arithmetic.

use crate::attention::{Attention, AttentionArgs, check_args, sink_factor};
use crate::device::Device;
use crate::keys::{KeyLists, KeyRows, KeySet, KeyTiles, Keys, Pages, PagesLaunch, RowFormat};
use crate::merge_splits::merge_splits;
use crate::quant::KvRecord;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    /// Heads of a token that share the gathered rows.
    heads: usize,
    /// Keys in a tile.
    keys: usize,
    /// Tiles of keys in memory: the next is loaded while one is worked on.
    stages: usize,
    d_qk: usize,
    d_v: usize,
    /// Columns of the output tile: d_v in whole cells for every unit.
    out_cols: usize,
    key_set: KeySet,
    format: RowFormat,
    /// Whether each token says where its entries begin and where they end.
    has_bounds: (bool, bool),
    has_sink: bool,
}

/// The sizes of a launch.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    tokens: u32,
    heads: u32,
    splits: u32,
    /// Entries of a list, or rows.
    limit: u32,
    /// Elements from a token to the next, of q and of the index lists; from a head of q to the next.
    q_row: u32,
    q_head: u32,
    indices_row: u32,
}

/// One program attends with `tiling.heads` heads of one token over one split of its keys.
///
/// `q`: `[s, heads, d_qk]`; `kv`: rows or pages of rows; `records`: the same as bytes; `indices`:
/// `[s, topk]`; `starts`, `ends`: `[s]`, the part of the list (or of the rows) that counts; `sink`:
/// `[heads]`; `out`: `[splits, s, heads, d_v]`; `lse`, `max_logits`: `[splits, s, heads]`.
#[cube(launch_unchecked)]
fn attend_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, B: Size, P: Size, W: Size>(
    q: &[Vector<E, N>],
    kv: &[Vector<E, N>],
    records: &[Vector<u8, B>],
    indices: &[i32],
    starts: &[i32],
    ends: &[i32],
    sink: &[f32],
    out: &mut [Vector<O, P>],
    lse: &mut [f32],
    max_logits: &mut [f32],
    sizes: Sizes,
    pages: Pages,
    softmax_scale: f32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let tokens = sizes.tokens as usize;
    let heads = sizes.heads as usize;
    let splits = sizes.splits as usize;
    let head_tiles = heads.div_ceil(tiling.heads);
    let program = program_id(machine);
    if program >= tokens * head_tiles * splits {
        terminate!();
    }
    let t = program / (head_tiles * splits);
    let h0 = program / splits % head_tiles * tiling.heads;
    let split = program % splits;

    let limit = sizes.limit as i32;
    let mut start = 0usize.runtime();
    let mut end = limit as usize;
    if comptime![tiling.has_bounds.0] {
        start = clamp(starts[t], 0i32, limit) as usize;
    }
    if comptime![tiling.has_bounds.1] {
        end = max(clamp(ends[t], 0i32, limit) as usize, start);
    }
    // Splits get whole tiles, the first ones a tile more.
    let all_tiles = (end - start).div_ceil(tiling.keys);
    let first_tile = all_tiles * split / splits;
    let tiles = all_tiles * (split + 1) / splits - first_tile;
    let j0 = start + first_tile * tiling.keys;
    let end = min(j0 + tiles * tiling.keys, end);
    let keys = Keys::new(indices, t * sizes.indices_row as usize, end, pages, tiling.key_set);

    let score_share = comptime![Share::new(machine, tiling.heads, tiling.keys)];
    let out_share = comptime![Share::new(machine, tiling.heads, tiling.out_cols)];
    let schedule = comptime![Schedule::new(machine, tiling.stages)];
    let kv_shape = comptime![TileShape::new(machine, tiling.keys, tiling.kv_cols())];
    let ring = Ring::<S>::new(kv_shape, tiling.stages);
    let (format, d_qk) = comptime![(tiling.format, tiling.d_qk)];
    let kv_tiles = KeyTiles::<E, N, B, S>::new(kv, records, keys, j0, ring, format, d_qk);
    let kv_tiles = Pipeline::<KeyTiles<'_, E, N, B, S>>::new(kv_tiles, schedule);
    let mut q_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.heads, tiling.d_qk)]);
    let mut p_tile = Tile::<S>::new(comptime![TileShape::via(score_share)]);

    let (q_row, q_head) = (sizes.q_row as usize, sizes.q_head as usize);
    let q_rows = Strided { start: t * q_row + h0 * q_head, stride: q_head, count: heads - h0 };
    load_rows::<E, N, S, Strided>(&mut q_tile, q, &q_rows, 0usize, tiling.d_qk);
    let mut softmax = OnlineSoftmax::new(softmax_scale, score_share);
    let mut acc = Fragment::<W>::zeroed(out_share);
    let mut scores = Fragment::<W>::zeroed(score_share);
    kv_tiles.start(tiles);
    for n in 0..tiles {
        kv_tiles.await_tile(n);
        let kv_tile = kv_tiles.source.ring.tile(n);
        scores.clear();
        kv_tiles.start_nt::<S, W>(n, &mut scores, &q_tile, &kv_tile, score_share);
        let mask = kv_tiles.source.keys.mask::<W>(kv_tiles.source.first_of(n), score_share);
        finish_product::<W>(&mut scores, 0usize);
        scores.add_to_rows(&mask);
        softmax.step::<W>(&mut scores, &mut acc);
        multiply_fragment_nn::<S, W>(
            &mut acc,
            &scores,
            &mut p_tile,
            &kv_tile,
            score_share,
            out_share,
        );
    }
    softmax.finish();

    #[unroll(out_share.unrolled())]
    for slot in 0..comptime![out_share.slots()] {
        let head = h0 + row_of(slot, out_share);
        if head < heads {
            let row = (split * tokens + t) * heads + head;
            let mut scale = softmax.normaliser(slot);
            if comptime![tiling.has_sink] {
                scale *= sink_factor(softmax.lse(slot), sink[head], machine);
            }
            let d_v = comptime![tiling.d_v];
            store_row::<O, P, W>(&acc, slot, scale, out, row * d_v, d_v, out_share);
            if lane_of(out_share) == 0 {
                lse[row] = softmax.lse(slot);
                max_logits[row] = softmax.max_logit(slot);
            }
        }
    }
}

impl Tiling {
    /// Columns of a tile of rows: those of the scores, and those of the output.
    fn kv_cols(&self) -> usize {
        self.d_qk.max(self.out_cols)
    }

    /// Whether a matrix machine's team has memory and registers for the tiles.
    fn fits(&self, machine: Machine, device: &Device) -> bool {
        let cols = self.d_qk.next_multiple_of(64) * self.heads
            + self.kv_cols().next_multiple_of(64) * self.keys * self.stages;
        // Two bytes an element; the probabilities, and what the softmax exchanges.
        let bytes = 2 * (cols + self.heads * self.keys) + 8 * self.heads + 1024;
        bytes <= device.shared_memory() && self.out_cols <= 256 * machine.warpgroups()
    }

    /// The tiles that suit `machine`.
    fn new(
        machine: Machine,
        heads: usize,
        d_qk: usize,
        args: &AttentionArgs,
        lists: &KeyLists,
        format: RowFormat,
    ) -> Self {
        let (d_v, key_set, has_sink) = (args.d_v, lists.key_set, args.attn_sink.is_some());
        let has_bounds = (lists.starts.is_some(), lists.ends.is_some());
        if machine.is_wgmma() {
            // Each warpgroup holds the output of 64 heads in its part of the columns, up to 256.
            let out_cols = d_v.next_multiple_of(64 * machine.warpgroups());
            let (heads, keys, stages) = (WARPGROUP_ROWS, 64, 2);
            return Self {
                heads,
                keys,
                stages,
                d_qk,
                d_v,
                out_cols,
                key_set,
                format,
                has_bounds,
                has_sink,
            };
        }
        // The more heads share a gathered tile the better. A GPU's team takes 16, fewer padded: with fewer
        // rows its units stand along them, and the keys they need do not fit shared memory.
        let (least, most) = if machine.team == 1 { (4, 32) } else { (16, 16) };
        let heads = heads.next_power_of_two().clamp(least, most);
        let cells = LANES * Share::new(machine, heads, LANES).lanes();
        let (keys, stages) = (cells.max(32), 1);
        let out_cols = d_v.next_multiple_of(cells);
        Self { heads, keys, stages, d_qk, d_v, out_cols, key_set, format, has_bounds, has_sink }
    }
}

/// Attention of each query token over the rows its index list names.
///
/// - `q`: `[s, h, d_qk]` f32, bf16 or f16, last stride 1, h from 1 to 128, d_qk up to 1024;
/// - `kv`: `[s_kv, d_qk]`, or pages `[n_pages, page_size, d_qk]` that indices number through
///   (`page · page_size + offset`), of the type of q, last stride 1;
/// - `indices`: `[s, topk]` i32, last stride 1, any order, any topk from 1; duplicates count twice.
///
/// Contract: FlashMLA `flash_mla_sparse_fwd`, without its demands on h and topk.
pub fn sparse_mla(
    device: &Device,
    q: &Tensor,
    kv: &Tensor,
    indices: &Tensor,
    args: &AttentionArgs,
) -> Result<Attention> {
    let rows = KeyRows::elements(kv, q)?;
    let list = KeyLists::indices(indices, q, args)?;
    attend(device, q, rows, list, args)
}

/// [`sparse_mla`] from the paged fp8 cache ([`store_kv`](crate::quant::store_kv)), of any page size.
///
/// - `cache`: `[n_pages, page_size · record.bytes()]` u8, last stride 1;
/// - `indices`: `[s, topk]` i32 of slots, `page · page_size + offset`.
///
/// Contract: FlashMLA `flash_mla_with_kvcache` with `indices`: codes times their scale, any f32, are rounded
/// to the type of q.
pub fn sparse_mla_paged(
    device: &Device,
    q: &Tensor,
    cache: &Tensor,
    page_size: usize,
    record: KvRecord,
    indices: &Tensor,
    args: &AttentionArgs,
) -> Result<Attention> {
    let rows = KeyRows::records(cache, page_size, record, q)?;
    let list = KeyLists::indices(indices, q, args)?;
    attend(device, q, rows, list, args)
}

/// Dense attention in the absorbed form: each token's heads over a contiguous range of rows, by the same
/// body as [`sparse_mla`], so that neither side is tuned better than the other.
///
/// - `q`, `kv`: as [`sparse_mla`];
/// - `ks`, `ke`: `[s]` i32, half-open ranges of rows, clamped to the rows there are.
pub(crate) fn range_mla(
    device: &Device,
    q: &Tensor,
    kv: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    args: &AttentionArgs,
) -> Result<Attention> {
    if args.topk_length.is_some() {
        let (got, expected) = ("given".to_string(), "none: a range has no list".to_string());
        return Err(KernelError::Value { name: "topk_length", got, expected });
    }
    let rows = KeyRows::elements(kv, q)?;
    let list = KeyLists::range(ks, ke, q, rows.count)?;
    attend(device, q, rows, list, args)
}

fn attend(
    device: &Device,
    q: &Tensor,
    rows: KeyRows,
    lists: KeyLists,
    args: &AttentionArgs,
) -> Result<Attention> {
    let (s, heads, d_qk) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    check_args(q, heads, d_qk, args)?;
    if args.d_v > d_qk {
        let expected = format!("at most d_qk={d_qk}");
        return Err(KernelError::Value { name: "d_v", got: args.d_v.to_string(), expected });
    }
    let whole = Attention::empty(device, &[s, heads], args.d_v, q.dtype());
    if s == 0 {
        return Ok(whole);
    }

    // Without rows there is no key, whatever the lists say.
    let limit = if rows.count == 0 { 0 } else { lists.limit };
    let mut machine = machine(device, q.dtype());
    let tiling = |machine| Tiling::new(machine, heads, d_qk, args, &lists, rows.format);
    if machine.is_wgmma() && !tiling(machine).fits(machine, device) {
        machine = device.machine(64);
    }
    let mut tiling = tiling(machine);
    let programs = s * heads.div_ceil(tiling.heads);
    let splits = args.splits.unwrap_or_else(|| {
        // As many programs as run at once, but no split of so few tiles that merging them costs more.
        let least = if machine.is_wgmma() { 2 } else { 8 };
        let most = limit.div_ceil(least * tiling.keys).max(1);
        device.splits_of(machine, programs).clamp(1, most)
    });
    tiling.has_sink &= splits == 1;
    let part = match splits {
        1 => whole.clone(),
        _ => Attention::empty(device, &[splits, s, heads], args.d_v, DType::F32),
    };
    let sink = args.attn_sink.as_ref().unwrap_or(&whole.lse);
    let elements = match rows.format {
        RowFormat::Elements => &rows.buffer,
        RowFormat::Record { .. } => q,
    };
    let vectors = load_width(machine, q.dtype().size());
    let width = if q.in_vectors(vectors) && elements.in_vectors(vectors) { vectors } else { 1 };
    let record_width = rows.record_width();
    let pair = store_width(machine);
    let out_width = if part.out.in_vectors(pair) { pair } else { 1 };
    // SAFETY: shapes and strides are checked by the callers; the kernel compares heads, list entries and
    // rows with their counts before it reads, and writes `splits · s · heads` rows of d_v.
    unsafe {
        attend_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs * splits),
            machine.cube_dim(),
            width,
            record_width,
            out_width,
            machine.cell_width(),
            q.arg(width),
            elements.arg(width),
            rows.buffer.reinterpret(DType::U8).arg(record_width),
            lists.indices.arg(1),
            lists.starts.as_ref().unwrap_or(&lists.indices).arg(1),
            lists.ends.as_ref().unwrap_or(&lists.indices).arg(1),
            sink.arg(1),
            part.out.arg(out_width),
            part.lse.arg(1),
            part.max_logits.arg(1),
            SizesLaunch::new(
                s as u32,
                heads as u32,
                splits as u32,
                limit as u32,
                q.strides()[0] as u32,
                q.strides()[1] as u32,
                lists.indices.strides()[0] as u32,
            ),
            PagesLaunch::new(
                rows.count as u32,
                rows.stride as u32,
                rows.page_size as u32,
                rows.page_stride as u32,
            ),
            args.softmax_scale,
            tiling,
            machine,
            [q.dtype().elem(), part.out.dtype().elem(), machine.kept(q.dtype().elem())],
        );
    }
    if splits > 1 {
        merge_splits(device, &part, &whole, args)?;
    }
    Ok(whole)
}

/// How attention of `dtype` runs on `device`, sizes permitting.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    crate::dense_attention::machine(device, dtype)
}
