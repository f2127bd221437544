//! Dense attention: the baseline of DeepSeek-V3.1 that the cost curve compares with.
//!
//! ```text
//! S[h, t, n] = softmax_scale · q[t, h] · k[n, h]           for ks[t] <= n < ke[t]
//! out[t, h] = Σ_n softmax(S[h, t, :])[n] · v[n, h]
//! lse[t, h] = ln Σ_n exp S[h, t, n]
//! ```
//!
//! [`dense_mha`] is the expanded form of prefill (192/128 a head), [`dense_mla`] the absorbed form of decode
//! (576/512, one key for all heads). Conventions for rows without a key as in
//! [`sparse_attention`](crate::sparse_attention).
//!
//! Cost: MHA `2 · h · (d_qk + d_v)` FLOP a (query, key) pair, 81,920 in V3.1; MLA 278,528.
//!
//! Budget (sm_90a): at most 152 registers a unit, 54 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 512 registers a unit, 54 KB of shared memory, 5400 bytes of spills; vector arithmetic.

use crate::Result;
use crate::attention::{Attention, AttentionArgs, check_args};
use crate::device::Device;
use crate::sparse_attention::range_mla;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    queries: usize,
    keys: usize,
    d_qk: usize,
    d_v: usize,
    /// Columns of the output tile: d_v in whole cells for every lane.
    out_cols: usize,
}

/// One program attends with one head of `tiling.queries` tokens over the union of their ranges.
#[cube(launch_unchecked)]
fn mha_kernel<E: Numeric, S: Numeric, N: Size, W: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    ks: &[i32],
    ke: &[i32],
    out: &mut [E],
    lse: &mut [f32],
    max_logits: &mut [f32],
    s: u32,
    s_kv: u32,
    heads: u32,
    q_row: u32,
    q_head: u32,
    k_row: u32,
    k_head: u32,
    v_row: u32,
    v_head: u32,
    softmax_scale: f32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, S)] _types: [ElemType; 2],
) {
    let query_tiles = (s as usize).div_ceil(tiling.queries);
    let program = program_id(machine);
    if program >= heads as usize * query_tiles {
        terminate!();
    }
    let head = program / query_tiles;
    // The last queries have the most keys: they start first.
    let t0 = (query_tiles - 1 - program % query_tiles) * tiling.queries;
    let queries = s as usize - t0;

    let score_share = comptime![Share::new(machine, tiling.queries, tiling.keys)];
    let out_share = comptime![Share::new(machine, tiling.queries, tiling.out_cols)];
    let mut q_tile =
        Tile::<S>::new(comptime![TileShape::new(machine, tiling.queries, tiling.d_qk)]);
    let mut k_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.keys, tiling.d_qk)]);
    let mut v_tile =
        Tile::<S>::new(comptime![TileShape::new(machine, tiling.keys, tiling.out_cols)]);
    let mut p_tile =
        Tile::<S>::new(comptime![TileShape::new(machine, tiling.queries, tiling.keys)]);

    let q_at = t0 * q_row as usize + head * q_head as usize;
    load_rows::<E, N, S>(&mut q_tile, q, q_at, q_row as usize, queries, comptime![tiling.d_qk]);

    let mut lowest = s_kv as i32;
    let mut highest = 0i32.runtime();
    for t in 0..min(queries, comptime![tiling.queries]) {
        if ks[t0 + t] < ke[t0 + t] {
            lowest = min(lowest, ks[t0 + t]);
            highest = max(highest, ke[t0 + t]);
        }
    }
    let lowest = max(lowest, 0i32) as usize;
    let highest = max(min(highest, s_kv as i32), lowest as i32) as usize;

    let mut softmax = OnlineSoftmax::new(score_share);
    let mut acc = Fragment::<W>::zeroed(out_share);
    let mut scores = Fragment::<W>::zeroed(score_share);
    for tile in 0..(highest - lowest).div_ceil(tiling.keys) {
        let n0 = lowest + tile * tiling.keys;
        let k_at = n0 * k_row as usize + head * k_head as usize;
        let v_at = n0 * v_row as usize + head * v_head as usize;
        load_rows::<E, N, S>(
            &mut k_tile,
            k,
            k_at,
            k_row as usize,
            highest - n0,
            comptime![tiling.d_qk],
        );
        load_rows::<E, N, S>(
            &mut v_tile,
            v,
            v_at,
            v_row as usize,
            highest - n0,
            comptime![tiling.d_v],
        );
        sync_team(machine);

        scores.clear();
        multiply_nt::<S, W>(&mut scores, &q_tile, &k_tile, score_share);
        #[unroll(score_share.unrolled())]
        for slot in 0..comptime![score_share.slots()] {
            let t = t0 + row_of(slot, score_share);
            let mut start = 0i32.runtime();
            let mut end = 0i32.runtime();
            if t < s as usize {
                start = max(ks[t], 0i32);
                end = min(ke[t], highest as i32);
            }
            #[unroll(score_share.unrolled())]
            for cell in 0..comptime![score_share.run()] {
                let n = (n0 + col_of(cell, score_share)) as i32;
                let mut score = scores.get(slot, cell) * Vector::new(softmax_scale);
                #[unroll]
                for i in 0..W::value() {
                    let seen = n + i as i32 >= start && n + (i as i32) < end;
                    score.insert(i, select(seen, score.extract(i), f32::NEG_INFINITY));
                }
                scores.set(slot, cell, score);
            }
        }
        softmax.step::<W>(&mut scores, &mut acc);
        store_fragment::<S, W>(&mut p_tile, &scores, score_share);
        sync_team(machine);
        multiply_nn::<S, W>(&mut acc, &p_tile, &v_tile, out_share);
        sync_team(machine);
    }

    #[unroll(out_share.unrolled())]
    for slot in 0..comptime![out_share.slots()] {
        let t = t0 + row_of(slot, out_share);
        if t < s as usize {
            let row = t * heads as usize + head;
            let scale = 1.0f32 / softmax.denominator(slot);
            store_row::<E, W>(
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

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    // A wave of 64, or two warps: more would need wider tiles than shared memory holds.
    device.machine(64)
}

/// Attention of each head over the keys of each token's range.
///
/// - `q`: `[s, h, d_qk]` f32, bf16 or f16, last stride 1, h from 1 to 128;
/// - `k`: `[s_kv, h, d_qk]`, `v`: `[s_kv, h, d_v]` of the type of q, last stride 1;
/// - `ks`, `ke`: `[s]` i32, half-open ranges of keys, clamped to `0..s_kv`; causal attention from position p
///   on is `ks = 0`, `ke[t] = p + t + 1`;
/// - `softmax_scale`: finite and positive.
pub fn dense_mha(
    device: &Device,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    softmax_scale: f32,
) -> Result<Attention> {
    q.expect_rank("q", &["s", "h", "d_qk"])?;
    let (s, heads, d_qk) = (q.shape()[0], q.shape()[1], q.shape()[2]);
    k.expect_rank("k", &["s_kv", "h", "d_qk"])?;
    let s_kv = k.shape()[0];
    k.expect_shape("k", &[("s_kv", s_kv), ("h", heads), ("d_qk", d_qk)])?;
    v.expect_rank("v", &["s_kv", "h", "d_v"])?;
    let d_v = v.shape()[2];
    v.expect_shape("v", &[("s_kv", s_kv), ("h", heads), ("d_v", d_v)])?;
    check_args(q, heads, d_qk, &AttentionArgs { softmax_scale, d_v, ..Default::default() })?;
    for (name, tensor) in [("k", k), ("v", v)] {
        tensor.expect_dtype(name, &[q.dtype()])?;
        tensor.expect_rows(name)?;
    }
    for (name, range) in [("ks", ks), ("ke", ke)] {
        range.expect_shape(name, &[("s", s)])?;
        range.expect_dtype(name, &[DType::I32])?;
        range.expect_contiguous(name)?;
    }
    let out = device.empty(&[s, heads, d_v], q.dtype());
    let lse = device.empty(&[s, heads], DType::F32);
    let max_logits = device.empty(&[s, heads], DType::F32);
    if s == 0 {
        return Ok(Attention { out, lse, max_logits });
    }

    let machine = machine(device);
    // The more queries share a tile of keys the better. A GPU's team takes 16, as in sparse attention.
    let (least, most) = if machine.team == 1 { (4, 64) } else { (16, 16) };
    let queries = s.next_power_of_two().clamp(least, most);
    let lanes = Share::new(machine, queries, LANES).lanes();
    let tiling = Tiling {
        queries,
        keys: (LANES * lanes).max(32),
        d_qk,
        d_v,
        out_cols: d_v.next_multiple_of(LANES * lanes),
    };
    let width = if q.in_vectors() && k.in_vectors() && v.in_vectors() { LANES } else { 1 };
    // SAFETY: shapes and strides are checked above; the kernel clamps the ranges to s_kv and compares
    // tokens and columns with their counts.
    unsafe {
        mha_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(heads * s.div_ceil(tiling.queries)),
            machine.cube_dim(),
            width,
            machine.cell_width(),
            q.arg(width),
            k.arg(width),
            v.arg(width),
            ks.arg(1),
            ke.arg(1),
            out.arg(1),
            lse.arg(1),
            max_logits.arg(1),
            s as u32,
            s_kv as u32,
            heads as u32,
            q.strides()[0] as u32,
            q.strides()[1] as u32,
            k.strides()[0] as u32,
            k.strides()[1] as u32,
            v.strides()[0] as u32,
            v.strides()[1] as u32,
            softmax_scale,
            tiling,
            machine,
            [q.dtype().elem(), f32::elem_type_native()],
        );
    }
    Ok(Attention { out, lse, max_logits })
}

/// Attention in the absorbed form: each token's heads over a range of shared rows.
///
/// - `q`: `[s, h, d_qk]`; `kv`: `[s_kv, d_qk]` (values: the first d_v columns), as in
///   [`sparse_mla`](crate::sparse_attention::sparse_mla);
/// - `ks`, `ke`: `[s]` i32, half-open ranges, clamped to `0..s_kv`.
///
/// It is the body of sparse attention over the whole range, so the baseline is tuned exactly as well.
pub fn dense_mla(
    device: &Device,
    q: &Tensor,
    kv: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    args: &AttentionArgs,
) -> Result<Attention> {
    range_mla(device, q, kv, ks, ke, args)
}
