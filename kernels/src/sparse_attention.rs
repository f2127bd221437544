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
//! Budget (sm_90a): at most 256 registers a unit, 112 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 312 registers a unit, 112 KB of shared memory, no spills; vector arithmetic.

use crate::attention::{Attention, AttentionArgs, check_args, sink_factor};
use crate::device::Device;
use crate::merge_splits::merge_splits;
use crate::quant::{KvRecord, expect_page_size};
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl_common::e4m3;

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum KeySet {
    /// Those of its index list.
    Listed,
    /// Those of its range `starts .. ends`: dense attention, the same body.
    Range,
}

/// How a key's row is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RowFormat {
    /// As elements.
    Elements,
    /// As an fp8 record of the paged cache.
    Record { kv_lora_rank: usize },
}

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    heads: usize,
    keys: usize,
    d_qk: usize,
    d_v: usize,
    key_set: KeySet,
    rows: RowFormat,
    has_sink: bool,
}

/// One program attends with `tiling.heads` heads of one token over one split of its keys.
///
/// `q`: `[s, heads, d_qk]`; `kv`: rows or pages of rows; `records`: the same as bytes; `indices`:
/// `[s, topk]`; `starts`, `ends`: `[s]`, the part of the list (or of the rows) that counts; `sink`:
/// `[heads]`; `out`: `[splits, s, heads, d_v]`; `lse`, `max_logits`: `[splits, s, heads]`.
#[cube(launch_unchecked)]
fn attend_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, W: Size>(
    q: &[Vector<E, N>],
    kv: &[Vector<E, N>],
    records: &[u8],
    indices: &[i32],
    starts: &[i32],
    ends: &[i32],
    sink: &[f32],
    out: &mut [O],
    lse: &mut [f32],
    max_logits: &mut [f32],
    s: u32,
    heads: u32,
    splits: u32,
    topk: u32,
    n_rows: u32,
    q_row: u32,
    q_head: u32,
    kv_row: u32,
    page_size: u32,
    page_stride: u32,
    indices_row: u32,
    softmax_scale: f32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let head_tiles = (heads as usize).div_ceil(tiling.heads);
    let program = program_id(machine);
    if program >= s as usize * head_tiles * splits as usize {
        terminate!();
    }
    let t = program / (head_tiles * splits as usize);
    let h0 = program / splits as usize % head_tiles * tiling.heads;
    let split = program % splits as usize;

    let score_share = comptime![Share::new(machine, tiling.heads, tiling.keys)];
    let out_share = comptime![Share::new(
        machine,
        tiling.heads,
        padded_cols(tiling.d_v, machine, tiling.heads)
    )];
    let mut q_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.heads, tiling.d_qk)]);
    let kv_cols = comptime![max_of(tiling.d_qk, out_share.cols)];
    let mut kv_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.keys, kv_cols)]);
    let mut p_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.heads, tiling.keys)]);
    let mut slots = team_memory::<i32>(comptime![tiling.keys], 16usize, machine);
    let mut bias = team_memory::<Vector<f32, W>>(comptime![tiling.keys], 64usize, machine);

    let q_at = t * q_row as usize + h0 * q_head as usize;
    load_rows::<E, N, S>(
        &mut q_tile,
        q,
        q_at,
        q_head as usize,
        heads as usize - h0,
        comptime![tiling.d_qk],
    );

    let limit = select(comptime![tiling.key_set == KeySet::Listed], topk, n_rows) as i32;
    let start = clamp(starts[t], 0i32, limit) as usize;
    let end = max(clamp(ends[t], 0i32, limit) as usize, start);
    // Splits get whole tiles, the first ones a tile more.
    let tiles = (end - start).div_ceil(tiling.keys);
    let first_tile = tiles * split / splits as usize;
    let last_tile = tiles * (split + 1) / splits as usize;

    let mut softmax = OnlineSoftmax::new(score_share);
    let mut acc = Fragment::<W>::zeroed(out_share);
    let mut scores = Fragment::<W>::zeroed(score_share);
    for tile in first_tile..last_tile {
        let j0 = start + tile * tiling.keys;
        list_keys::<W>(
            &mut slots,
            &mut bias,
            indices,
            t * indices_row as usize,
            j0,
            end,
            n_rows,
            tiling,
            machine,
        );
        sync_team(machine);
        match comptime![tiling.rows] {
            RowFormat::Elements => gather_rows::<E, N, S>(
                &mut kv_tile,
                kv,
                &slots,
                kv_row as usize,
                page_size as usize,
                page_stride as usize,
                comptime![tiling.d_qk],
            ),
            RowFormat::Record { kv_lora_rank } => gather_records::<S>(
                &mut kv_tile,
                records,
                &slots,
                page_size as usize,
                page_stride as usize,
                kv_lora_rank,
                comptime![tiling.d_qk],
            ),
        }
        sync_team(machine);

        scores.clear();
        multiply_nt::<S, W>(&mut scores, &q_tile, &kv_tile, score_share);
        #[unroll(score_share.unrolled())]
        for slot in 0..comptime![score_share.slots()] {
            #[unroll(score_share.unrolled())]
            for cell in 0..comptime![score_share.run()] {
                let mask = bias[col_of(cell, score_share) / W::value()];
                scores.set(slot, cell, scores.get(slot, cell) * Vector::new(softmax_scale) + mask);
            }
        }
        softmax.step::<W>(&mut scores, &mut acc);
        store_fragment::<S, W>(&mut p_tile, &scores, score_share);
        sync_team(machine);
        multiply_nn::<S, W>(&mut acc, &p_tile, &kv_tile, out_share);
        sync_team(machine);
    }

    #[unroll(out_share.unrolled())]
    for slot in 0..comptime![out_share.slots()] {
        let head = h0 + row_of(slot, out_share);
        if head < heads as usize {
            let row = (split * s as usize + t) * heads as usize + head;
            let mut scale = 1.0f32 / softmax.denominator(slot);
            if comptime![tiling.has_sink] {
                scale *= sink_factor(softmax.lse(slot), sink[head]);
            }
            store_row::<O, W>(
                &acc,
                slot,
                scale,
                out,
                row * tiling.d_v,
                comptime![tiling.d_v],
                out_share,
            );
            if lane_of(out_share) == 0 {
                lse[row] = softmax.lse(slot);
                max_logits[row] = softmax.max_logit(slot);
            }
        }
    }
}

/// Columns of an output tile: whole cells for every lane.
fn padded_cols(d_v: usize, machine: Machine, rows: usize) -> usize {
    let lanes = Share::new(machine, rows, LANES).lanes();
    d_v.next_multiple_of(LANES * lanes)
}

fn max_of(a: usize, b: usize) -> usize {
    a.max(b)
}

/// Fills in the row of each of the tile's keys and its mask: -1 and -inf for what is no key.
#[cube]
fn list_keys<W: Size>(
    slots: &mut [i32],
    bias: &mut [Vector<f32, W>],
    indices: &[i32],
    list: usize,
    j0: usize,
    end: usize,
    n_rows: u32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
) {
    let bias = bias.with_vector_size_mut::<Const<1>>();
    for step in 0..comptime![tiling.keys.div_ceil(machine.team)] {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < tiling.keys {
            let j = j0 + i;
            let mut slot = -1i32.runtime();
            if j < end {
                slot = match comptime![tiling.key_set] {
                    KeySet::Listed => indices[list + j],
                    KeySet::Range => j as i32,
                };
            }
            // Compared before it is multiplied by any stride: INT_MIN and INT_MAX are harmless.
            let valid = slot >= 0 && slot < n_rows as i32;
            slots[i] = select(valid, slot, -1i32);
            bias[i] = Vector::new(select(valid, 0.0f32, f32::NEG_INFINITY));
        }
    }
}

/// [`gather_rows`] from fp8 records: codes times their block's scale, then the rope part.
#[cube]
fn gather_records<S: Numeric>(
    tile: &mut Tile<S>,
    records: &[u8],
    slots: &[i32],
    page_size: usize,
    page_stride: usize,
    #[comptime] kv_lora_rank: usize,
    #[comptime] d_qk: usize,
) {
    let machine = comptime![tile.shape.machine];
    let len = comptime![tile.shape.len()];
    let vectors = comptime![tile.shape.vectors()];
    let blocks = comptime![kv_lora_rank.div_ceil(crate::quant::BLOCK)];
    let bytes = comptime![KvRecord { kv_lora_rank, rope_dim: d_qk - kv_lora_rank }.bytes()];
    for step in 0..comptime![len.div_ceil(machine.team)] {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < len {
            let row = i / vectors;
            let v = i % vectors;
            let slot = slots[row];
            let mut out = Vector::<f32, Lanes>::new(0.0f32);
            if slot >= 0 {
                let slot = slot as usize;
                let at = slot / page_size * page_stride + slot % page_size * bytes;
                #[unroll]
                for e in 0..LANES {
                    let col = v * LANES + e;
                    if col < kv_lora_rank {
                        let code = e4m3::reinterpret(records[at + col]);
                        let scale = read_f32(
                            records,
                            at + kv_lora_rank + col / comptime![crate::quant::BLOCK] * 4,
                        );
                        out.insert(e, f32::cast_from(code) * scale);
                    } else if col < d_qk {
                        let from = at + kv_lora_rank + 4 * blocks + 2 * (col - kv_lora_rank);
                        let high = u32::cast_from(records[from + 1]);
                        let low = u32::cast_from(records[from]);
                        // A bf16 is the upper half of an f32.
                        out.insert(e, f32::reinterpret((high << 24) | (low << 16)));
                    }
                }
            }
            tile.put(row, v, Vector::cast_from(out));
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    // A wave of 64, or two warps: more would need wider tiles than shared memory holds.
    device.machine(64)
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
    let rows = Rows::elements(kv, q)?;
    let list = List::indices(device, indices, q, args)?;
    attend(device, q, rows, list, args)
}

/// [`sparse_mla`] from the paged fp8 cache ([`store_kv`](crate::quant::store_kv)), of any page size.
///
/// - `cache`: `[n_pages, page_size · record.bytes()]` u8, last stride 1;
/// - `indices`: `[s, topk]` i32 of slots, `page · page_size + offset`.
///
/// Contract: FlashMLA `flash_mla_with_kvcache` with `indices`; scales are multiplied in f32, so they need
/// not be powers of two.
pub fn sparse_mla_paged(
    device: &Device,
    q: &Tensor,
    cache: &Tensor,
    page_size: usize,
    record: KvRecord,
    indices: &Tensor,
    args: &AttentionArgs,
) -> Result<Attention> {
    let rows = Rows::records(cache, page_size, record, q)?;
    let list = List::indices(device, indices, q, args)?;
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
    let rows = Rows::elements(kv, q)?;
    let list = List::range(ks, ke, q, rows.n_rows)?;
    attend(device, q, rows, list, args)
}

/// Where a launch finds the rows of keys.
struct Rows {
    elements: Tensor,
    format: RowFormat,
    n_rows: usize,
    row: usize,
    page_size: usize,
    page_stride: usize,
}

impl Rows {
    fn elements(kv: &Tensor, q: &Tensor) -> Result<Self> {
        q.expect_rank("q", &["s", "h", "d_qk"])?;
        q.expect_dtype("q", &DType::FLOATS)?;
        kv.expect_dtype("kv", &[q.dtype()])?;
        let d_qk = q.shape()[2];
        let (pages, page_size, row, page_stride) = match *kv.shape() {
            [s_kv, _] => (1, s_kv, kv.strides()[0], 0),
            [pages, page_size, _] => (pages, page_size, kv.strides()[1], kv.strides()[0]),
            _ => {
                kv.expect_rank("kv", &["s_kv (or n_pages, page_size)", "d_qk"])?;
                (0, 0, 0, 0)
            }
        };
        if kv.shape().last() != Some(&d_qk) {
            return Err(KernelError::Shape {
                tensor: "kv",
                got: kv.shape().to_vec(),
                expected: format!("rows of d_qk={d_qk} as q has"),
            });
        }
        kv.expect_rows("kv")?;
        Ok(Self {
            elements: kv.clone(),
            format: RowFormat::Elements,
            n_rows: pages * page_size,
            row,
            page_size: page_size.max(1),
            page_stride,
        })
    }

    fn records(cache: &Tensor, page_size: usize, record: KvRecord, q: &Tensor) -> Result<Self> {
        q.expect_rank("q", &["s", "h", "d_qk"])?;
        expect_page_size(page_size)?;
        if record.kv_lora_rank.saturating_add(record.rope_dim) != q.shape()[2] {
            return Err(KernelError::Value {
                name: "record",
                got: format!("{record:?}"),
                expected: format!("d_qk={} elements as q has", q.shape()[2]),
            });
        }
        cache.expect_rank("cache", &["n_pages", "page_size * record"])?;
        let n_pages = cache.shape()[0];
        let bytes = page_size * record.bytes();
        cache.expect_shape("cache", &[("n_pages", n_pages), ("page_size * record", bytes)])?;
        cache.expect_dtype("cache", &[DType::U8])?;
        cache.expect_rows("cache")?;
        Ok(Self {
            elements: cache.clone(),
            format: RowFormat::Record { kv_lora_rank: record.kv_lora_rank },
            n_rows: n_pages * page_size,
            row: 0,
            page_size,
            page_stride: cache.strides()[0],
        })
    }
}

/// Which rows each token of a launch attends to.
struct List {
    key_set: KeySet,
    indices: Tensor,
    starts: Tensor,
    ends: Tensor,
    topk: usize,
    /// The longest list, as far as the host knows.
    longest: usize,
}

impl List {
    fn indices(
        device: &Device,
        indices: &Tensor,
        q: &Tensor,
        args: &AttentionArgs,
    ) -> Result<Self> {
        let s = q.shape()[0];
        indices.expect_rank("indices", &["s", "topk"])?;
        let topk = indices.shape()[1];
        indices.expect_shape("indices", &[("s", s), ("topk", topk)])?;
        indices.expect_dtype("indices", &[DType::I32])?;
        indices.expect_rows("indices")?;
        let ends = match &args.topk_length {
            Some(length) => {
                length.expect_shape("topk_length", &[("s", s)])?;
                length.expect_dtype("topk_length", &[DType::I32])?;
                length.expect_contiguous("topk_length")?;
                length.clone()
            }
            None => device.upload_i32(&vec![topk as i32; s], &[s])?,
        };
        let starts = device.upload_i32(&vec![0; s], &[s])?;
        let key_set = KeySet::Listed;
        Ok(Self { key_set, indices: indices.clone(), starts, ends, topk, longest: topk })
    }

    fn range(ks: &Tensor, ke: &Tensor, q: &Tensor, n_rows: usize) -> Result<Self> {
        for (name, range) in [("ks", ks), ("ke", ke)] {
            range.expect_shape(name, &[("s", q.shape()[0])])?;
            range.expect_dtype(name, &[DType::I32])?;
            range.expect_contiguous(name)?;
        }
        Ok(Self {
            key_set: KeySet::Range,
            indices: ks.clone(),
            starts: ks.clone(),
            ends: ke.clone(),
            topk: 0,
            longest: n_rows,
        })
    }
}

fn attend(
    device: &Device,
    q: &Tensor,
    rows: Rows,
    list: List,
    args: &AttentionArgs,
) -> Result<Attention> {
    let (s, heads, d_qk) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    check_args(q, heads, d_qk, args)?;
    if args.d_v > d_qk {
        let expected = format!("at most d_qk={d_qk}");
        return Err(KernelError::Value { name: "d_v", got: args.d_v.to_string(), expected });
    }
    let out = device.empty(&[s, heads, args.d_v], q.dtype());
    let lse = device.empty(&[s, heads], DType::F32);
    let max_logits = device.empty(&[s, heads], DType::F32);
    if s == 0 {
        return Ok(Attention { out, lse, max_logits });
    }

    let machine = machine(device);
    // The more heads share a gathered tile the better. A GPU's team takes 16, fewer padded: with fewer
    // rows its units stand along them, and the keys they need do not fit shared memory.
    let (least, most) = if machine.team == 1 { (4, 32) } else { (16, 16) };
    let tile_heads = heads.next_power_of_two().clamp(least, most);
    let lanes = Share::new(machine, tile_heads, LANES).lanes();
    let tile_keys = (LANES * lanes).max(32);
    let programs = s * heads.div_ceil(tile_heads);
    let splits = match args.splits {
        Some(splits) => splits,
        // Enough programs for every core, but no split with less than eight tiles of keys.
        None => {
            let most = list.longest.div_ceil(8 * tile_keys).max(1);
            (4 * device.cores()).div_ceil(programs).clamp(1, most)
        }
    };
    let sink = args.attn_sink.as_ref().unwrap_or(&lse);
    let tiling = Tiling {
        heads: tile_heads,
        keys: tile_keys,
        d_qk,
        d_v: args.d_v,
        key_set: list.key_set,
        rows: rows.format,
        has_sink: args.attn_sink.is_some() && splits == 1,
    };
    let (to_out, to_lse, to_max) = if splits == 1 {
        (out.clone(), lse.clone(), max_logits.clone())
    } else {
        (
            device.empty(&[splits, s, heads, args.d_v], DType::F32),
            device.empty(&[splits, s, heads], DType::F32),
            device.empty(&[splits, s, heads], DType::F32),
        )
    };
    let elements = match rows.format {
        RowFormat::Elements => &rows.elements,
        RowFormat::Record { .. } => q,
    };
    let width = if q.in_vectors() && elements.in_vectors() { LANES } else { 1 };
    // SAFETY: shapes and strides are checked by the callers; the kernel compares heads, list entries and
    // rows with their counts before it reads, and writes `splits · s · heads` rows of d_v.
    unsafe {
        attend_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs * splits),
            machine.cube_dim(),
            width,
            machine.cell_width(),
            q.arg(width),
            elements.arg(width),
            rows.elements.reinterpret(DType::U8).arg(1),
            list.indices.arg(1),
            list.starts.arg(1),
            list.ends.arg(1),
            sink.arg(1),
            to_out.arg(1),
            to_lse.arg(1),
            to_max.arg(1),
            s as u32,
            heads as u32,
            splits as u32,
            list.topk as u32,
            rows.n_rows as u32,
            q.strides()[0] as u32,
            q.strides()[1] as u32,
            rows.row as u32,
            rows.page_size as u32,
            rows.page_stride as u32,
            list.indices.strides()[0] as u32,
            args.softmax_scale,
            tiling,
            machine,
            [q.dtype().elem(), to_out.dtype().elem(), f32::elem_type_native()],
        );
    }
    if splits > 1 {
        merge_splits(device, &[&to_out, &to_lse, &to_max], &[&out, &lse, &max_logits], args)?;
    }
    Ok(Attention { out, lse, max_logits })
}
