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
//! A score is an f32: one of -inf is no key, whatever its value; one of NaN or +inf makes its whole row NaN, and
//! max_logits what it is. `q · kv` is summed before it is scaled, so the sum of its terms' magnitudes must be in
//! range, too. A program whose outputs hold a NaN that no score explains reads its keys three times more
//! ([`Passes`]).
//!
//! Cost: `2 · s · h · topk · (d_qk + d_v)` FLOP; gathers `topk` rows a token once for each tile of heads.
//!
//! Budget (sm_90a): at most 168 registers a unit, 219 KB of shared memory, 24 bytes of spills; wgmma bf16.
//! Budget (gfx950): at most 344 registers a unit, 111 KB of shared memory, 52 bytes of spills; vector arithmetic.

mod tiling;

use crate::Result;
use crate::attention::{AttentionArgs, AttentionOut, OUTPUTS, sink_factor};
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::keys::{KeyCache, KeyLists, KeyRows, KeyTiles, Keys, Kv, Lists, RowFormat};
use crate::merge_splits::merge_splits;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use tiling::Tiling;

/// One program attends with `tiling.heads` heads of one token over one split of its keys.
#[cube(launch_unchecked, address_type = "dynamic")]
fn attend_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, B: Size, P: Size, W: Size>(
    q: &View<Vector<E, N>>,       // [s, h, d_qk]
    rows: &KeyCache<E, N, B>, // what a key's row is: [s_kv, d_qk], pages of them, or fp8 records
    lists: &Lists,            // which rows each token attends to
    sink: &[f32],             // [h]
    out: &mut View<Vector<O, P>>, // [splits, s, h, d_v]
    lse: &mut [f32],          // [splits, s, h]
    max_logits: &mut [f32],   // [splits, s, h]
    softmax_scale: f32,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let (splits, tokens, heads) = (out.shape(0), q.shape(0), q.shape(1));
    let head_tiles = heads.div_ceil(tiling.heads);
    let program = program_id(machine);
    if program >= tokens * head_tiles * splits {
        terminate!();
    }
    let (t, head_tile, split) = unravel(program, head_tiles, splits);
    let h0 = head_tile * tiling.heads;
    let (first, end, tiles) = lists.split(t, split, splits, tiling.keys);

    let roles = comptime![Roles::of(machine)];
    let score_layout = comptime![Layout::new(roles.scores, tiling.heads, tiling.keys)];
    let out_layout = comptime![Layout::new(roles.outputs, tiling.heads, tiling.out_cols)];
    let kv_shape = comptime![TileShape::new(roles.outputs, tiling.keys, tiling.kv_cols())];
    let kv_ring = Ring::<S>::new(kv_shape, tiling.stages);
    let kv_tiles = KeyTiles::new(rows, lists, t, first, end, kv_ring, tiling.d_qk);
    let mut turns = KeyTurns::<'_, E, N, B, S>::new(kv_tiles, score_layout, roles);
    let q_shape = comptime![TileShape::new(roles.scores, tiling.heads, tiling.d_qk)];
    let mut q_tile = Tile::<S>::new(q_shape);
    if takes(roles.scores) {
        q.rows(1, h0, t * q.stride(0), tiling.d_qk).load(&mut q_tile);
    }
    let softmax = OnlineSoftmax::new(softmax_scale, score_layout);
    let mut scores = Scores::<S, W> { q_tile, cells: Fragment::zeroed(score_layout), softmax };
    let mut outputs = Outputs::<W> { cells: Fragment::zeroed(out_layout), pass: 0u32.runtime() };
    let mut passes = Passes::new(machine);
    while outputs.pass < PASSES {
        scores.softmax.clear();
        outputs.cells.clear();
        turns.start(tiles);
        run::<KeyTurns<'_, E, N, B, S>, Scores<S, W>, Outputs<W>>(
            &mut scores,
            &mut outputs,
            &mut turns,
            tiles,
            roles,
        );
        if takes(roles.scores) {
            scores.softmax.finish();
            let mut scales = Array::<f32>::new(comptime![score_layout.own_rows()]);
            #[unroll(score_layout.unrolled())]
            for own in 0..comptime![score_layout.own_rows()] {
                scales[own] = scores.softmax.normaliser(own);
                let head = asked_anew(h0, machine) + row_of(own, score_layout);
                if comptime![tiling.has_sink] && head < heads {
                    scales[own] *= sink_factor(scores.softmax.lse(own), sink[head], machine);
                }
            }
            turns.put_scales(&scales);
        }
        if takes(roles.outputs) {
            turns.await_scales();
            let mut stage = turns.free_tile();
            passes.store_rows(
                outputs.pass,
                &outputs.cells,
                &turns.factors,
                turns.first_scale(),
                &mut stage,
                &mut out.data,
                ((split * tokens + t) * heads + asked_anew(h0, machine)) * tiling.d_v,
                heads - asked_anew(h0, machine),
                tiling.d_v,
            );
        }
        turns.finish();
        outputs.pass = passes.after(outputs.pass);
    }

    if takes(roles.scores) {
        #[unroll(score_layout.unrolled())]
        for own in 0..comptime![score_layout.own_rows()] {
            let head = h0 + row_of(own, score_layout);
            if head < heads && lane_of(score_layout) == 0 {
                let row = (split * tokens + t) * heads + head;
                let max_logit = scores.softmax.max_logit(own);
                // Parts are merged by what they add to their largest score.
                lse[row] = scores.softmax.lse_beyond(own, select(splits == 1, max_logit, 0.0f32));
                max_logits[row] = max_logit;
            }
        }
    }
}

/// What the stages hand over.
type KeyTurns<'a, E, N, B, S> = Turns<KeyTiles<'a, E, N, B, S>, S>;

/// The stage from a tile of keys to probabilities.
#[derive(CubeType)]
struct Scores<S: Numeric, W: Size> {
    q_tile: Tile<S>,
    cells: Fragment<W>,
    softmax: OnlineSoftmax,
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric, W: Size> Stage<KeyTurns<'a, E, N, B, S>>
    for Scores<S, W>
{
    fn turn(&mut self, n: usize, turns: &mut KeyTurns<'a, E, N, B, S>) {
        turns.await_tile(n);
        self.cells.clear();
        turns.start_nt(n, &mut self.cells, &self.q_tile);
        let lacks_keys = turns.tiles.source.lacks_keys(n);
        finish_product(&mut self.cells, 0usize);
        if lacks_keys {
            self.cells.mask(&turns.tiles.source.mask(n, self.cells.layout));
        }
        let factors = self.softmax.raise(&self.cells);
        turns.put_factors(n, &factors);
        turns.put(n, &mut self.cells, &mut self.softmax);
    }
}

/// The stage from probabilities to outputs.
#[derive(CubeType)]
struct Outputs<W: Size> {
    cells: Fragment<W>,
    /// Of the [`Passes`].
    pass: u32,
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric, W: Size> Stage<KeyTurns<'a, E, N, B, S>>
    for Outputs<W>
{
    fn turn(&mut self, n: usize, turns: &mut KeyTurns<'a, E, N, B, S>) {
        let mut next = turns.look_up(n);
        turns.rescale(n, &mut self.cells);
        if self.pass > 0 {
            turns.await_probabilities(n);
            let tile = turns.tiles.source.tile(n);
            replace_values(&mut tile.leading(self.cells.layout.cols), self.pass);
        }
        turns.multiply_nn(n, &mut self.cells, &mut next);
    }
}

/// Lines of the contracts of [`mla`].
const Q: &str = "q: [s, h, d_qk] f32|bf16|f16, rows";
const ROWS: &str = "kv: [s_kv, d_qk] or [n_pages, page_size, d_qk] as q, rows";
/// Pages of fp8 records: the latent's codes, a scale for each 128 of them, the rope part in bf16.
const RECORDS: &str = "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) \
                       + 2 * (d_qk - kv_lora_rank))] u8, rows";
const SINK: &str = "attn_sink: [h] f32 (optional)";
const SCALARS: &[&str] = &[
    "softmax_scale: number above 0",
    "d_v: integer 1 to d_qk",
    "splits: integer 1 to 1024 (chosen for the device)",
];
const RECORD_SCALARS: &[&str] = &[
    "softmax_scale: number above 0",
    "d_v: integer 1 to d_qk",
    "splits: integer 1 to 1024 (chosen for the device)",
    "kv_lora_rank: integer 1 to d_qk",
    "page_size: integer 1 to 1048576",
];
const SIZES: &[&str] = &["h: 1 to 128", "d_qk: 1 to 1024"];
const RECORD_SIZES: &[&str] =
    &["h: 1 to 128", "d_qk: 1 to 1024", "n_pages * page_size: 0 to 2147483647"];

/// What [`mla`] takes and returns for listed keys in rows: FlashMLA `flash_mla_sparse_fwd`, without its demands on
/// h and topk.
pub const SPARSE_MLA: Contract = Contract {
    name: "sparse_mla",
    tensors: &[Q, ROWS, SINK, "indices: [s, topk] i32, rows", "topk_length: [s] i32 (optional)"],
    scalars: SCALARS,
    sizes: SIZES,
    outputs: OUTPUTS,
};

/// For listed keys in fp8 records: FlashMLA `flash_mla_with_kvcache` with `indices`; codes times their scale, any f32,
/// are rounded to the type of q.
pub const SPARSE_MLA_PAGED: Contract = Contract {
    name: "sparse_mla_paged",
    tensors: &[Q, RECORDS, SINK, "indices: [s, topk] i32, rows", "topk_length: [s] i32 (optional)"],
    scalars: RECORD_SCALARS,
    sizes: RECORD_SIZES,
    ..SPARSE_MLA
};

/// For ranges of rows: dense attention in the absorbed form.
pub const DENSE_MLA: Contract = Contract {
    name: "dense_mla",
    tensors: &[Q, ROWS, SINK, "ks: [s] i32", "ke: [s] i32"],
    ..SPARSE_MLA
};

/// For ranges of fp8 records.
pub const DENSE_MLA_PAGED: Contract = Contract {
    name: "dense_mla_paged",
    tensors: &[Q, RECORDS, SINK, "ks: [s] i32", "ke: [s] i32"],
    scalars: RECORD_SCALARS,
    sizes: RECORD_SIZES,
    ..SPARSE_MLA
};

/// How attention of `dtype` runs on `device`, sizes permitting.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    // A wave of 64, or a warpgroup for each of the roles.
    device.matrix_machine(dtype.elem(), 3).unwrap_or_else(|| device.machine(64))
}

/// Attention of each query token's heads over rows that they share, its list of them or its range: the same body, so
/// that neither side is tuned better than the other ([`SPARSE_MLA`], [`SPARSE_MLA_PAGED`], [`DENSE_MLA`],
/// [`DENSE_MLA_PAGED`]).
///
/// - `q`: `[s, h, d_qk]` f32, bf16 or f16;
/// - returns `[s, h, d_v]` of the type of q, and what [`AttentionOut`] says.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn mla(q: &Tensor, kv: &Kv, keys: &Keys, args: &AttentionArgs) -> Result<AttentionOut> {
    let sink = args.attn_sink.as_ref();
    let scalars = [args.softmax_scale.into(), args.d_v.into(), args.splits.into()];
    let (first, second) = keys.tensors();
    let bound = match *kv {
        Kv::Rows(kv) => {
            let contract = if keys.are_listed() { &SPARSE_MLA } else { &DENSE_MLA };
            contract.check([Some(q), Some(kv), sink, Some(first), second], &scalars)?
        }
        Kv::Records { cache, page_size, record } => {
            let contract = if keys.are_listed() { &SPARSE_MLA_PAGED } else { &DENSE_MLA_PAGED };
            let [scale, d_v, splits] = scalars;
            let scalars = [scale, d_v, splits, record.kv_lora_rank.into(), page_size.into()];
            let tensors = [Some(q), Some(cache), sink, Some(first), second];
            let bound = contract.check(tensors, &scalars)?;
            record.expect_columns(q)?;
            bound
        }
    };
    let [s, heads, d_qk] = bound.sizes(["s", "h", "d_qk"])?;
    let whole = AttentionOut::of(&bound)?;
    if s == 0 {
        return Ok(whole);
    }

    let device = q.device();
    let rows = KeyRows::new(kv);
    let lists = KeyLists::new(keys, rows.count);
    // Without rows there is no key, whatever the lists say.
    let limit = if rows.count == 0 { 0 } else { lists.limit };
    let mut machine = machine(device, q.dtype());
    let tiling = |machine| Tiling::new(machine, heads, d_qk, args);
    if !tiling(machine).fits(machine, device, q.dtype().elem()) {
        machine = device.machine(64);
    }
    let mut tiling = tiling(machine);
    let programs = s * heads.div_ceil(tiling.heads);
    let splits = args.splits.unwrap_or_else(|| {
        // As many programs as run at once, but no split of so few tiles that merging them costs more.
        let least = if machine.can().fills_core { 2 } else { 8 };
        let most = limit.div_ceil(least * tiling.keys).max(1);
        device.splits_of(machine, programs).clamp(1, most)
    });
    tiling.has_sink &= splits == 1;
    let part = match splits {
        1 => whole.clone(),
        _ => AttentionOut::empty(device, &[splits, s, heads], args.d_v, DType::F32)?,
    };
    let sink = args.attn_sink.as_ref().unwrap_or(&whole.lse);
    let elements = match rows.format {
        RowFormat::Elements => &rows.buffer,
        RowFormat::Record { .. } => q,
    };
    let vectors = load_width(machine, q.dtype().size());
    let width = if q.in_vectors(vectors) && elements.in_vectors(vectors) { vectors } else { 1 };
    let out_width = match part.out.dtype().size() {
        size if stages_rows(machine, size) && part.out.in_vectors(LANES) => LANES,
        _ if part.out.in_vectors(store_width(machine)) => store_width(machine),
        _ => 1,
    };
    let part_out = if splits == 1 { part.out.unsqueeze(0) } else { part.out.clone() };
    // SAFETY: shapes and strides are as the contract says; the kernel compares heads, list entries and
    // rows with their counts before it reads, and writes `splits · s · heads` rows of d_v.
    unsafe {
        attend_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs * splits)?,
            machine.cube_dim(),
            device.addresses([q, &rows.buffer, &lists.indices, &part.out]),
            width,
            rows.record_width(),
            out_width,
            machine.cell_width(),
            q.view(width),
            rows.launch(q, width),
            lists.launch(limit),
            sink.arg(1),
            part_out.view(out_width),
            part.lse.arg(1),
            part.max_logits.arg(1),
            args.softmax_scale,
            tiling,
            machine,
            [q.dtype().elem(), part.out.dtype().elem(), machine.kept(q.dtype().elem())],
        );
    }
    if splits > 1 {
        merge_splits(&part, &whole, args)?;
    }
    Ok(whole)
}
