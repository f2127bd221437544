//! Linear layer with an fp8 weight: `x` is quantised on its way in, each block of k has a sum of its own.
//!
//! ```text
//! q, q_scale = act_quant(x)                                                    1 x 128
//! out[t, j]  = Σ_b ⟨q[t, b], w[j, b]⟩ · (q_scale[t, b] · w_scale[j / 128, b])     b: 128 columns of k
//! ```
//!
//! DeepSeek-V3.2-Exp demo, `fp8_gemm`; DeepGEMM's fp8 gemm with 1 x 128 and 128 x 128 scales. The products of a block
//! are summed in f32 by the matrix unit and added to the f32 sum of all blocks after they are scaled. The product of
//! the two scales is an f32 too.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | x | `[n, k]` | f32, bf16, f16 |
//! | w | `[m, k]` | e4m3 |
//! | w_scale | `[ceil(m / 128), ceil(k / 128)]` | f32: the checkpoint's `weight_scale_inv`, which multiplies |
//! | out | `[n, m]` | f32, bf16, f16 |
//!
//! A row's bits do not depend on the other rows ([`product`](crate::product)).
//!
//! Cost: `2 · n · m · k` FLOP; reads w once per tile of rows and the codes of x once per tile of columns, writes out
//! once. Of few rows it is bound by reading w.
//!
//! Budget (sm_90a): at most 152 registers a unit, 193 KB of shared memory, no spills; wgmma e4m3.
//! Budget (gfx950): at most 136 registers a unit, 132 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::product::*;
use crate::quant::{BLOCK, ScaleFmt, act_quant};
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program computes one `tiling.rows x tiling.cols` tile of `out`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn linear_fp8_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, P: Size, W: Size>(
    x: &View<Vector<E, N>>,       // [n, k]
    x_scale: &[f32],              // [n, ceil(k / 128)]
    w: &View<Vector<E, N>>,       // [m, k]
    w_scale: &[f32],              // [ceil(m / 128), ceil(k / 128)]
    out: &mut View<Vector<O, P>>, // [n, m]
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let (n, m, k) = (x.shape(0), w.shape(0), x.shape(1));
    let (row_tiles, col_tiles) = (n.div_ceil(tiling.rows), m.div_ceil(tiling.cols));
    let program = program_id(machine);
    if program >= row_tiles * col_tiles {
        terminate!();
    }
    let (row_tile, col_tile) = in_bands(program, row_tiles, col_tiles);
    let (row, col) = (row_tile * tiling.rows, col_tile * tiling.cols);

    let roles = comptime![FeedRoles::of(machine, tiling.scaled)];
    let layout = comptime![Layout::new(roles.products, tiling.rows, tiling.cols)];
    let blocks = k.div_ceil(BLOCK);
    let x_rows = Consecutive::new(x.rows(0, row, 0usize, k), row);
    let scales = BlockScales::new::<S, Consecutive<'_, E, N>>(
        x_scale, w_scale, &x_rows, 0usize, col, blocks, tiling, layout,
    );
    let mut operands = Operands::<'_, E, N, S, Consecutive<'_, E, N>>::new(
        x_rows,
        w.rows(0, col, 0usize, k),
        tiling,
        roles,
    );
    let sums = product::<E, N, S, Consecutive<'_, E, N>, W>(
        &mut operands,
        &scales,
        blocks,
        tiling,
        layout,
    );

    if takes(roles.products) {
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let t = row + row_of(own, layout);
            if t < n {
                let at = t * out.stride(0) + col;
                store_row(&sums, own, 1.0f32, &mut out.data, at, m - col);
            }
        }
    }
}

/// Rows of x that follow each other.
#[derive(CubeType)]
struct Consecutive<'a, E: Numeric, N: Size> {
    rows: Strided<'a, E, N>,
    /// The number of the first.
    first: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size> Consecutive<'a, E, N> {
    /// `rows`, which are those of x from `first` on.
    fn new(rows: Strided<'a, E, N>, first: usize) -> Self {
        Consecutive::<'a, E, N> { rows, first }
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> TileRows<S> for Consecutive<'a, E, N> {
    fn number(&self, i: usize) -> (usize, bool) {
        (self.first + i, i < self.rows.count)
    }

    fn load_from(&self, tile: &mut Tile<S>, col: usize, #[comptime] part: Part) {
        self.rows.from_column(col).load_part(tile, 0usize, part);
    }
}

/// How products of many rows of codes run on `device`.
pub fn machine(device: &Device) -> Machine {
    crate::grouped_gemm::machine(device, DType::E4m3)
}

/// What [`linear_fp8`] takes and returns.
pub const LINEAR_FP8: Contract = Contract {
    name: "linear_fp8",
    tensors: &[
        "x: [n, k] f32|bf16|f16, rows",
        "w: [m, k] e4m3, rows",
        "w_scale: [ceil(m / 128), ceil(k / 128)] f32",
    ],
    scalars: &["out: f32|bf16|f16 (f32)"],
    // Without elements in x and w the size of the output would be anybody's number.
    sizes: &["k: at least 1"],
    outputs: &["out: [n, m] as out"],
};

/// `x · wᵀ` with x quantised 1 x 128 on the way in and w stored in 128 x 128 blocks ([`LINEAR_FP8`]).
///
/// - `x`: `[n, k]` f32, bf16 or f16; `fmt` says how its scales are rounded;
/// - `w`: `[m, k]` e4m3; `w_scale`: `[ceil(m / 128), ceil(k / 128)]` f32; the last block of either axis may be partial;
/// - returns `[n, m]` of `out_dtype`. A NaN in x makes its row NaN, one in w its column.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output and the codes of x.
pub fn linear_fp8(
    x: &Tensor,
    w: &Tensor,
    w_scale: &Tensor,
    fmt: ScaleFmt,
    out_dtype: DType,
) -> Result<Tensor> {
    let device = x.device();
    let bound = LINEAR_FP8.check([x, w, w_scale].map(Some), &[out_dtype.into()])?;
    let [n, m] = bound.sizes(["n", "m"])?;
    let out = bound.output("out")?;
    if n * m == 0 {
        return Ok(out);
    }
    let x = act_quant(x, fmt)?;
    let machine = crate::product::machine(device, DType::E4m3, n);
    let tiling = Tiling::new(machine, n, m, true);
    let programs = n.div_ceil(tiling.rows) * m.div_ceil(tiling.cols);
    let vectors = load_width(machine, DType::E4m3.size());
    let width = if x.codes.in_vectors(vectors) && w.in_vectors(vectors) { vectors } else { 1 };
    let pair = store_width(machine);
    let out_width = if out.in_vectors(pair) { pair } else { 1 };
    let codes = DType::E4m3.elem();
    // SAFETY: shapes and strides are checked above, and the kernel compares every row and column with
    // them before it reads or writes.
    unsafe {
        linear_fp8_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([&x.codes, w, &out]),
            width,
            out_width,
            machine.cell_width(),
            x.codes.view(width),
            x.scale.arg(1),
            w.view(width),
            w_scale.arg(1),
            out.view(out_width),
            tiling,
            machine,
            [codes, out.dtype().elem(), machine.kept(codes)],
        );
    }
    Ok(out)
}
