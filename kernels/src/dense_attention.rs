//! Dense attention: the baseline of DeepSeek-V3.1 that the cost curve compares with.
//!
//! ```text
//! S[h, t, n] = softmax_scale · q[t, h] · k[n, h]           for ks[t] <= n < ke[t]
//! out[t, h] = Σ_n softmax(S[h, t, :])[n] · v[n, h]
//! lse[t, h] = ln Σ_n exp S[h, t, n]
//! ```
//!
//! [`dense_mha`] is the expanded form of prefill (192/128 a head). The absorbed form of decode (576/512, one key for
//! all heads) is [`mla`](crate::sparse_attention::mla) over a range. Conventions for rows without a key, and for scores and values that are no
//! numbers, as in [`sparse_attention`](crate::sparse_attention): what a query does not see does not reach it, not
//! even a NaN in a tile that other queries see.
//!
//! Cost: MHA `2 · h · (d_qk + d_v)` FLOP a (query, key) pair, 81,920 in V3.1; MLA 278,528.
//!
//! Budget (sm_90a): at most 232 registers a unit, 211 KB of shared memory, no spills; wgmma bf16.
//! Budget (gfx950): at most 192 registers a unit, 55 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
pub use crate::attention::machine;
use crate::attention::{AttentionOut, OUTPUTS};
use crate::contract::Contract;
use crate::device::Device;
use crate::seen::KeyRange;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program attends with one head of `tiling.queries` tokens over the union of their ranges.
#[cube(launch_unchecked, address_type = "dynamic")]
fn mha_kernel<E: Numeric, S: Numeric, N: Size, P: Size, W: Size>(
    q: &View<Vector<E, N>>,       // [s, h, d_qk]
    k: &View<Vector<E, N>>,       // [s_kv, h, d_qk]
    v: &View<Vector<E, N>>,       // [s_kv, h, d_v]
    ks: &[i32],                   // [s]
    ke: &[i32],                   // [s]
    out: &mut View<Vector<E, P>>, // [s, h, d_v]
    lse: &mut [f32],              // [s, h]
    max_logits: &mut [f32],       // [s, h]
    softmax_scale: f32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, S)] _types: [ElemType; 2],
) {
    let (s, heads) = (q.shape(0), q.shape(1));
    let query_tiles = s.div_ceil(tiling.queries);
    let program = program_id(machine);
    if program >= heads * query_tiles {
        terminate!();
    }
    let (head, nth) = divided(program, query_tiles);
    // The last queries have the most keys: they start first.
    let t0 = (query_tiles - 1 - nth) * tiling.queries;
    let seen = union_of(ks, ke, t0, min(s - t0, tiling.queries), k.shape(0) as i32);

    let score_layout = comptime![Layout::new(machine, tiling.queries, tiling.keys)];
    let out_layout = comptime![Layout::new(machine, tiling.queries, tiling.out_cols)];
    let (keys, d_qk, d_v) = comptime![(tiling.keys, tiling.d_qk, tiling.d_v)];
    let mut q_tile = Tile::<S>::new(comptime![TileShape::new(machine, tiling.queries, d_qk)]);
    let mut p_tile = Tile::<S>::new(comptime![TileShape::via(score_layout)]);
    let count = seen.end as usize;

    q.rows(0, t0, head * q.stride(1), d_qk).load(&mut q_tile);
    let mut softmax = OnlineSoftmax::new(softmax_scale, score_layout);
    let mut acc = Fragment::<W>::zeroed(out_layout);
    let mut scores = Fragment::<W>::zeroed(score_layout);
    let tiles = ((seen.end - seen.start) as usize).div_ceil(keys);
    let mut passes = Passes::new(machine);
    let mut pass = 0u32.runtime();
    while pass < PASSES {
        let head = asked_anew(head, machine);
        let kv_tiles = HeadTiles::new(
            k.rows(0, 0usize, head * k.stride(1), d_qk).up_to(count),
            v.rows(0, 0usize, head * v.stride(1), d_v).up_to(count),
            asked_anew(seen.start as usize, machine),
            Ring::<S>::new(comptime![TileShape::new(machine, keys, d_qk)], tiling.stages),
            Ring::new(comptime![TileShape::new(machine, keys, tiling.out_cols)], tiling.stages),
        );
        softmax.clear();
        acc.clear();
        kv_tiles.start(tiles);
        for n in 0..tiles {
            kv_tiles.await_tile(n);
            scores.clear();
            let k_tile = kv_tiles.source.k_ring.tile(n);
            kv_tiles.start_nt(n, &mut scores, &q_tile, &k_tile);
            finish_product(&mut scores, 0usize);
            // Most tiles are seen by all of the queries.
            let n0 = seen.start + (n * keys) as i32;
            if n0 < seen.last_start || n0 + (keys as i32) > seen.first_end {
                scores.mask(&mask_of(ks, ke, t0, s, n0, seen.end, score_layout));
            }
            softmax.step(&mut scores, &mut acc);
            let mut v_tile = kv_tiles.source.v_ring.tile(n);
            if pass > 0 {
                replace_values(&mut v_tile, pass);
            }
            multiply_fragment_nn(&mut acc, &scores, &mut p_tile, &v_tile);
        }
        softmax.finish();

        #[unroll(out_layout.unrolled())]
        for own in 0..comptime![out_layout.own_rows()] {
            let t = asked_anew(t0, machine) + row_of(own, out_layout);
            if t < s {
                let row = t * heads + head;
                let (scale, known) = (softmax.normaliser(own), softmax.is_known(own));
                passes.store_row(pass, &acc, own, scale, known, &mut out.data, row * d_v, d_v);
            }
        }
        pass = passes.after(pass);
    }

    #[unroll(out_layout.unrolled())]
    for own in 0..comptime![out_layout.own_rows()] {
        let t = t0 + row_of(own, out_layout);
        if t < s && lane_of(out_layout) == 0 {
            let row = t * heads + head;
            lse[row] = softmax.lse(own);
            max_logits[row] = softmax.max_logit(own);
        }
    }
}

/// The tiles of keys and values of one head that a program attends to, one after the other.
#[derive(CubeType)]
struct HeadTiles<'a, E: Numeric, N: Size, S: Numeric> {
    k_rows: Strided<'a, E, N>,
    v_rows: Strided<'a, E, N>,
    /// The first key of the first tile.
    first: usize,
    k_ring: Ring<S>,
    v_ring: Ring<S>,
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> HeadTiles<'a, E, N, S> {
    fn new(
        k_rows: Strided<'a, E, N>,
        v_rows: Strided<'a, E, N>,
        first: usize,
        k_ring: Ring<S>,
        v_ring: Ring<S>,
    ) -> Pipeline<HeadTiles<'a, E, N, S>> {
        let schedule = comptime![Schedule::new(k_ring.shape.machine, k_ring.stages)];
        let tiles = HeadTiles::<'a, E, N, S> { k_rows, v_rows, first, k_ring, v_ring };
        Pipeline::<HeadTiles<'a, E, N, S>>::new(tiles, schedule)
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Source for HeadTiles<'a, E, N, S> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        let n0 = self.first + n * comptime![self.k_ring.shape.rows];
        let (mut k_tile, mut v_tile) = (self.k_ring.tile(n), self.v_ring.tile(n));
        self.k_rows.load_part(&mut k_tile, n0, part);
        self.v_rows.load_part(&mut v_tile, n0, part);
    }
}

/// The keys that a tile of queries sees: `start .. end` by any of them, `last_start .. first_end` by all.
#[derive(CubeType)]
struct Seen {
    start: i32,
    end: i32,
    last_start: i32,
    first_end: i32,
}

/// What `count` queries from `t0` on see, within `0 .. s_kv`.
#[cube]
fn union_of(ks: &[i32], ke: &[i32], t0: usize, count: usize, s_kv: i32) -> Seen {
    let mut start = s_kv;
    let mut end = 0i32.runtime();
    let mut last_start = 0i32.runtime();
    let mut first_end = s_kv;
    for t in 0..count {
        let (from, to) = (max(ks[t0 + t], 0i32), min(ke[t0 + t], s_kv));
        if from < to {
            start = min(start, from);
            end = max(end, to);
        }
        last_start = max(last_start, from);
        first_end = min(first_end, to);
    }
    Seen { start: min(start, end), end, last_start, first_end }
}

/// Which keys of the tile from key `n0` on the rows of scores see, those of the `s` queries from `t0` on, of ranges
/// that end at `last`.
#[cube]
fn mask_of<W: Size>(
    ks: &[i32],
    ke: &[i32],
    t0: usize,
    s: usize,
    n0: i32,
    last: i32,
    #[comptime] layout: Layout,
) -> Mask<W> {
    let mut ranges = RowRanges::new(comptime![layout.own_rows()]);
    #[unroll(layout.unrolled())]
    for own in 0..comptime![layout.own_rows()] {
        let t = t0 + row_of(own, layout);
        let mut start = 0i32.runtime();
        let mut end = 0i32.runtime();
        if t < s {
            start = ks[t];
            end = min(ke[t], last);
        }
        ranges.start[own] = start;
        ranges.end[own] = end;
    }
    Mask::of_ranges(ranges, n0)
}

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    queries: usize,
    keys: usize,
    /// Tiles of keys and values in memory.
    stages: usize,
    d_qk: usize,
    d_v: usize,
    /// Columns of the output tile: d_v in whole cells for every unit.
    out_cols: usize,
}

impl Tiling {
    /// The tiles for `s` queries that suit `machine`.
    fn new(machine: Machine, s: usize, d_qk: usize, d_v: usize) -> Self {
        if let Some(group) = machine.can().group {
            let out_cols = d_v.next_multiple_of(machine.can().tile_cols);
            let queries = group.rows * machine.groups();
            return Self { queries, keys: 128, stages: 2, d_qk, d_v, out_cols };
        }
        // The more queries share a tile of keys the better. A GPU's team takes 16, as in sparse attention.
        let (least, most) = if machine.team == 1 { (4, 64) } else { (16, 16) };
        let queries = s.next_power_of_two().clamp(least, most);
        let cells = LANES * Layout::new(machine, queries, LANES).lanes();
        let out_cols = d_v.next_multiple_of(cells);
        Self { queries, keys: cells.max(32), stages: 1, d_qk, d_v, out_cols }
    }

    /// Bytes of team memory that the kernel takes, its tiles' elements of `size` bytes.
    fn bytes(&self, machine: Machine, size: usize) -> usize {
        let scores = Layout::new(machine, self.queries, self.keys);
        bytes_of(&[
            TileShape::new(machine, self.queries, self.d_qk).piece(1, size),
            TileShape::via(scores).piece(1, size),
            OnlineSoftmax::piece(scores),
            Passes::PIECE,
            TileShape::new(machine, self.keys, self.d_qk).piece(self.stages, size),
            TileShape::new(machine, self.keys, self.out_cols).piece(self.stages, size),
        ])
    }

    /// Whether a team of `machine` has memory and registers for the tiles of elements of type `elem`.
    fn fits(&self, machine: Machine, device: &Device, elem: ElemType) -> bool {
        self.bytes(machine, machine.kept(elem).size()) <= device.shared_memory()
            && Layout::new(machine, self.queries, self.out_cols).has_room()
    }
}

/// What [`dense_mha`] takes and returns.
pub const DENSE_MHA: Contract = Contract {
    name: "dense_mha",
    tensors: &[
        "q: [s, h, d_qk] f32|bf16|f16, rows",
        "k: [s_kv, h, d_qk] as q, rows",
        "v: [s_kv, h, d_v] as q, rows",
        "ks: [s] i32",
        "ke: [s] i32",
    ],
    scalars: &["softmax_scale: number above 0"],
    sizes: &["h: 1 to 128", "d_qk: 1 to 1024", "d_v: 1 to 1024"],
    outputs: OUTPUTS,
};

/// Attention of each head over the keys that each token sees ([`DENSE_MHA`]).
///
/// - `q`: `[s, h, d_qk]`, `k`: `[s_kv, h, d_qk]`, `v`: `[s_kv, h, d_v]` of one type, f32, bf16 or f16;
/// - `softmax_scale`: factor of the scores, finite and positive;
/// - returns `[s, h, d_v]` of the type of q, and what [`AttentionOut`] says.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn dense_mha(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seen: &KeyRange,
    softmax_scale: f32,
) -> Result<AttentionOut> {
    let (device, KeyRange { ks, ke }) = (q.device(), *seen);
    let bound = DENSE_MHA.check([q, k, v, ks, ke].map(Some), &[softmax_scale.into()])?;
    let [s, heads, d_qk, d_v] = bound.sizes(["s", "h", "d_qk", "d_v"])?;
    let whole = AttentionOut::of(&bound)?;
    if s == 0 {
        return Ok(whole);
    }

    let mut machine = machine(device, q.dtype());
    let mut tiling = Tiling::new(machine, s, d_qk, d_v);
    if !tiling.fits(machine, device, q.dtype().elem()) {
        machine = device.machine(64);
        tiling = Tiling::new(machine, s, d_qk, d_v);
    }
    let vectors = load_width(machine, q.dtype().size());
    let width = if [q, k, v].iter().all(|t| t.in_vectors(vectors)) { vectors } else { 1 };
    let pair = store_width(machine);
    let out_width = if whole.out.in_vectors(pair) { pair } else { 1 };
    // SAFETY: shapes and strides are checked above; the kernel clamps the ranges to s_kv and compares
    // tokens and columns with their counts.
    unsafe {
        mha_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(heads * s.div_ceil(tiling.queries))?,
            machine.cube_dim(),
            device.addresses([q, k, v, &whole.out]),
            width,
            out_width,
            machine.cell_width(),
            q.view(width),
            k.view(width),
            v.view(width),
            ks.arg(1),
            ke.arg(1),
            whole.out.view(out_width),
            whole.lse.arg(1),
            whole.max_logits.arg(1),
            softmax_scale,
            tiling,
            machine,
            [q.dtype().elem(), machine.kept(q.dtype().elem())],
        );
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ptxas reports of the kernel; the header's budget is this in whole KB, and is held to what it takes.
    #[test]
    fn the_tiles_of_production_take_the_memory_that_ptxas_reports() {
        let machine = Machine::of_warpgroups(2);
        let tiling = Tiling::new(machine, 4096, 192, 128);
        assert_eq!(tiling.bytes(machine, 2), 216_064);
        let header = include_str!("dense_attention.rs");
        assert!(header.contains(&format!(", {} KB of shared memory", 216_064usize.div_ceil(1024))));
    }
}
