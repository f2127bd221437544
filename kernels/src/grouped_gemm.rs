//! Grouped matrix product: each token with the weights of its experts, in one launch over all of them.
//!
//! ```text
//! out[i, j] = Σ_c x[r, c] · w[e, j, c]      i: a place in the order of pairs; e: the expert whose pairs include it
//! r = order[i] / top_k                      rows of tokens (w1, w3)
//! r = i                                     rows in the order of the pairs (w2)
//! ```
//!
//! `MoE` of the DeepSeek-V3.2-Exp demo, whose loop over experts is here a tile's number. With fp8 weights the product
//! is [`linear`](crate::linear)'s: x is quantised 1 x 128, once a token, and each block of k scaled as it is added.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | x | `[n, k]`, rows of pairs `[n · top_k, k]` | f32, bf16, f16 |
//! | w | `[E, m, k]`, of any size: beyond 2^32 elements addresses are 64 bits wide | as x, or e4m3 |
//! | w_scale | `[E, ceil(m / 128), ceil(k / 128)]` | f32, of e4m3 |
//! | order | `[n · top_k]` | i32: pair `t · top_k + j` is token t's j-th expert; sorted by expert |
//! | ends | `[E]` | i32, ascending: where in `order` each expert's pairs end |
//! | out | `[n · top_k, m]` | f32, bf16, f16 |
//!
//! Nothing is read back: every program finds its expert and rows by a scan over `ends`. The experts' last tiles are
//! partial, so there are at most `(pairs + E · (rows - 1)) / rows` tiles of rows, and that many are launched; those
//! beyond the last end at once. Pairs behind the last end have no expert, and zeros as their row, and so has a pair
//! that names no token. A row's bits do not depend on the other rows ([`product`](crate::product)).
//!
//! Cost: `2 · pairs · m · k` FLOP; reads the weights of every expert that has pairs once per tile of them, x once per
//! tile of columns, writes out once. Of few tokens it is bound by reading the weights.
//!
//! Budget (sm_90a): at most 208 registers a unit, 193 KB of shared memory, no spills; wgmma bf16, wgmma e4m3.
//! Budget (gfx950): at most 136 registers a unit, 132 KB of shared memory, no spills; vector arithmetic.

mod pairs;

use crate::Result;
use crate::contract::{Contract, Given};
use crate::device::Device;
use crate::dispatch::Dispatch;
use crate::dtype::DType;
use crate::product::*;
use crate::quant::{BLOCK, ScaleFmt, act_quant};
use crate::tensor::Tensor;
use crate::tile::*;
use crate::weight::Weight;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use pairs::{PairRows, Pairs};

/// One program computes one `tiling.rows x tiling.cols` tile of `out`, of one expert.
#[cube(launch_unchecked, address_type = "dynamic")]
fn grouped_gemm_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, P: Size, W: Size>(
    x: &View<Vector<E, N>>,       // [n, k], or [pairs, k]
    x_scale: &[f32],              // [n, ceil(k / 128)], or [pairs, ..]
    w: &View<Vector<E, N>>,       // [E, m, k]
    w_scale: &[f32],              // [E, ceil(m / 128), ceil(k / 128)]
    order: &[i32],                // [pairs]
    ends: &[i32],                 // [E]
    out: &mut View<Vector<O, P>>, // [pairs, m]
    top_k: usize,
    row_tiles: usize,
    #[comptime] by_token: bool,
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let (experts, m, k) = (w.shape(0), w.shape(1), w.shape(2));
    let col_tiles = m.div_ceil(tiling.cols);
    let program = program_id(machine);
    if program >= row_tiles * col_tiles {
        terminate!();
    }
    let (row_tile, col_tile) = in_bands(program, row_tiles, col_tiles);
    let pairs = Pairs::of_tile(ends, experts, out.shape(0), row_tile, tiling, machine);
    if pairs.count == 0 {
        terminate!();
    }
    let col = col_tile * tiling.cols;
    // Pairs of no expert multiply nothing, with any expert's weights.
    let expert = min(pairs.expert, experts - 1);
    let steps = select(pairs.expert == expert, k.div_ceil(tiling.k), 0usize);

    let roles = comptime![FeedRoles::of(machine, tiling.scaled)];
    let layout = comptime![Layout::new(roles.products, tiling.rows, tiling.cols)];
    let rows = PairRows::<'_, E, N>::new(x, order, &pairs, top_k, by_token, tiling.rows, machine);
    let (blocks, m_blocks) = (k.div_ceil(BLOCK), m.div_ceil(BLOCK));
    let scales = BlockScales::new::<S, PairRows<'_, E, N>>(
        x_scale,
        w_scale,
        &rows,
        expert * m_blocks * blocks,
        col,
        blocks,
        tiling,
        layout,
    );
    let mut operands = Operands::<'_, E, N, S, PairRows<'_, E, N>>::new(
        rows.from_column(0usize),
        w.rows(1, col, expert * w.stride(0), k),
        tiling,
        roles,
    );
    let sums =
        product::<E, N, S, PairRows<'_, E, N>, W>(&mut operands, &scales, steps, tiling, layout);

    if takes(roles.products) {
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let i = row_of(own, layout);
            if i < pairs.count {
                // Nothing is zeros, whatever an expert's weights are.
                let at = (pairs.first + i) * out.stride(0) + col;
                let scale = select(rows.exists(i), 1.0f32, 0.0f32);
                store_row(&sums, own, scale, &mut out.data, at, m - col);
            }
        }
    }
}

/// How products of `dtype` run on `device`, of many rows.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    crate::product::machine(device, dtype, usize::MAX)
}

/// Tiles of `rows` rows that `pairs` pairs of `experts` experts, and of none, take at most.
fn most_tiles(pairs: usize, experts: usize, rows: usize) -> usize {
    let partial = (experts + 1).min(pairs);
    ((pairs + partial * (rows - 1)) / rows).min(pairs)
}

/// Which rows of x the pairs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// That of their token, of which there are `top_k` pairs.
    Tokens {
        /// Experts of a token.
        top_k: usize,
    },
    /// Their own: x is in the order of the pairs.
    Pairs,
}

/// What [`grouped_gemm`] takes and returns for weights of numbers.
pub const GROUPED_GEMM: Contract = Contract {
    name: "grouped_gemm",
    tensors: &[
        "x: [n, k] f32|bf16|f16, rows",
        "w: [E, m, k] as x, rows",
        "order: [n * num_experts_per_tok] i32",
        "ends: [E] i32",
    ],
    scalars: &[
        "rows: tokens|pairs (tokens)",
        "num_experts_per_tok: integer 1 to E (with rows=tokens)",
        "out: f32|bf16|f16 (f32)",
    ],
    sizes: &["E: 1 to 512", "k: at least 1"],
    outputs: &["out: [n * num_experts_per_tok, m] as out"],
};

/// For fp8 weights.
pub const GROUPED_GEMM_FP8: Contract = Contract {
    name: "grouped_gemm_fp8",
    tensors: &[
        GROUPED_GEMM.tensors[0],
        "w: [E, m, k] e4m3, rows",
        GROUPED_GEMM.tensors[2],
        GROUPED_GEMM.tensors[3],
        "w_scale: [E, ceil(m / 128), ceil(k / 128)] f32",
    ],
    ..GROUPED_GEMM
};

/// The products of tokens with the weights of their experts ([`GROUPED_GEMM`], [`GROUPED_GEMM_FP8`]).
///
/// - `x`: `[n, k]` f32, bf16 or f16, where `rows` says;
/// - `w`: `[E, m, k]`, plain of the type of x; of fp8 weights x is quantised before, with scales as `fmt` says;
/// - returns `[n · top_k, m]` of `out_dtype`, whose row i is pair `order[i]`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output and the codes of x.
pub fn grouped_gemm(
    x: &Tensor,
    w: &Weight,
    dispatch: &Dispatch,
    rows: Rows,
    fmt: ScaleFmt,
    out_dtype: DType,
) -> Result<Tensor> {
    let device = x.device();
    let Dispatch { order, ends } = dispatch;
    let (word, top_k) = match rows {
        Rows::Tokens { top_k } => ("tokens", Some(top_k)),
        Rows::Pairs => ("pairs", None),
    };
    let scalars = [Given::Word(word), top_k.into(), out_dtype.into()];
    let bound = match w {
        Weight::Plain(w) => GROUPED_GEMM.check([x, w, order, ends].map(Some), &scalars)?,
        Weight::Fp8 { codes, scale } => {
            GROUPED_GEMM_FP8.check([x, codes, order, ends, scale].map(Some), &scalars)?
        }
    };
    let [experts, m] = bound.sizes(["E", "m"])?;
    let out = bound.output("out")?;
    let pairs = order.len();
    if pairs * m == 0 {
        return Ok(out);
    }
    let (x, x_scale, w, w_scale) = match w {
        // Numbers have no scales: what is bound in their place is not read.
        Weight::Plain(w) => (x.clone(), ends.clone(), w, ends),
        Weight::Fp8 { codes, scale } => {
            let x = act_quant(x, fmt)?;
            (x.codes, x.scale, codes, scale)
        }
    };
    let (rows, scaled) = (pairs.div_ceil(experts), x.dtype() == DType::E4m3);
    let machine = crate::product::machine(device, x.dtype(), rows);
    let tiling = Tiling::new(machine, rows, m, scaled);
    let row_tiles = most_tiles(pairs, experts, tiling.rows);
    let programs = row_tiles * m.div_ceil(tiling.cols);
    let vectors = load_width(machine, x.dtype().size());
    let width = if x.in_vectors(vectors) && w.in_vectors(vectors) { vectors } else { 1 };
    let pair = store_width(machine);
    let out_width = if out.in_vectors(pair) { pair } else { 1 };
    let elem = x.dtype().elem();
    // SAFETY: shapes and strides are checked above; the kernel compares every row, column and pair with them, and
    // what `order` and `ends` hold too, before it reads or writes.
    unsafe {
        grouped_gemm_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([&x, w, &out]),
            width,
            out_width,
            machine.cell_width(),
            x.view(width),
            x_scale.arg(1),
            w.view(width),
            w_scale.arg(1),
            order.arg(1),
            ends.arg(1),
            out.view(out_width),
            top_k.unwrap_or(1),
            row_tiles,
            top_k.is_some(),
            tiling,
            machine,
            [elem, out.dtype().elem(), machine.kept(elem)],
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::most_tiles;

    #[test]
    fn no_distribution_of_pairs_takes_more_tiles_than_are_launched() {
        for pairs in 1..40 {
            for (experts, rows) in [(1, 4), (2, 8), (7, 4), (64, 32)] {
                // As many experts as can be have one pair more than fills tiles, and one all the rest.
                let one_more = (0..=experts).map(|i| {
                    let partial = i.min(pairs);
                    partial + (pairs - partial) / rows
                });
                let worst = one_more.max().unwrap_or(0);
                assert!(most_tiles(pairs, experts, rows) >= worst, "{pairs} {experts} {rows}");
                assert!(most_tiles(pairs, experts, rows) <= pairs.div_ceil(rows) + experts + 1);
            }
        }
    }
}
