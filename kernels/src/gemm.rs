//! Batched matrix product: the projections of a layer, and the absorbed products of MLA.
//!
//! ```text
//! out[b, m, n] = Σ_k x[b, m, k] · w[b, n, k]
//! ```
//!
//! Cost: `2 · b · m · n · k` FLOP; reads x and w once per tile of the other, writes out once.
//!
//! Budget (sm_90a): at most 192 registers a unit, 192 KB of shared memory, no spills; wgmma bf16.
//! Budget (gfx950): at most 136 registers a unit, 132 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// One program computes one `tiling.m x tiling.n` tile of `out`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gemm_kernel<E: Numeric, O: Numeric, S: Numeric, N: Size, P: Size, W: Size>(
    x: &View<Vector<E, N>>,       // [b, m, k]
    w: &View<Vector<E, N>>,       // [b, n, k]
    out: &mut View<Vector<O, P>>, // [b, m, n]
    #[comptime] tiling: Tiling,
    #[comptime] machine: Machine,
    #[define(E, O, S)] _types: [ElemType; 3],
) {
    let (m, n, k) = (x.shape(1), w.shape(1), x.shape(2));
    let (tiles_m, tiles_n) = (m.div_ceil(tiling.m), n.div_ceil(tiling.n));
    let program = program_id(machine);
    if program >= x.shape(0) * tiles_m * tiles_n {
        terminate!();
    }
    let (b, tile_m, tile_n) = unravel(program, tiles_m, tiles_n);
    let (m0, n0) = (tile_m * tiling.m, tile_n * tiling.n);

    let layout = comptime![Layout::new(machine, tiling.m, tiling.n)];
    let x_shape = comptime![TileShape::new(machine, tiling.m, tiling.k)];
    let w_shape = comptime![TileShape::new(machine, tiling.n, tiling.k)];
    let operands = Operands::new(
        x.rows(1, m0, b * x.stride(0), k),
        w.rows(1, n0, b * w.stride(0), k),
        Ring::<S>::new(x_shape, tiling.stages),
        Ring::new(w_shape, tiling.stages),
        comptime![Schedule::of_running_products(machine, tiling.stages)],
    );
    let steps = k.div_ceil(tiling.k);
    let mut sums = Fragment::<W>::zeroed(layout);
    operands.start(steps);
    for step in 0..steps {
        operands.await_tile(step);
        operands.load_next(step);
        let x_tile = operands.source.x_ring.tile(step);
        let w_tile = operands.source.w_ring.tile(step);
        start_nt(&mut sums, &x_tile, &w_tile);
        // This product runs while the next is started; the one before is done.
        finish_product(&mut sums, 1usize);
    }
    finish_product(&mut sums, 0usize);

    let (out_batch, out_row) = (out.stride(0), out.stride(1));
    #[unroll(layout.unrolled())]
    for own in 0..comptime![layout.own_rows()] {
        let row = m0 + row_of(own, layout);
        if row < m {
            let at = b * out_batch + row * out_row + n0;
            store_row(&sums, own, 1.0f32, &mut out.data, at, n - n0);
        }
    }
}

/// The tiles of one program along k.
#[derive(CubeType)]
struct Operands<'a, E: Numeric, N: Size, S: Numeric> {
    x_rows: Strided<'a, E, N>,
    w_rows: Strided<'a, E, N>,
    x_ring: Ring<S>,
    w_ring: Ring<S>,
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Operands<'a, E, N, S> {
    fn new(
        x_rows: Strided<'a, E, N>,
        w_rows: Strided<'a, E, N>,
        x_ring: Ring<S>,
        w_ring: Ring<S>,
        #[comptime] schedule: Schedule,
    ) -> Pipeline<Operands<'a, E, N, S>> {
        let tiles = Operands::<'a, E, N, S> { x_rows, w_rows, x_ring, w_ring };
        Pipeline::<Operands<'a, E, N, S>>::new(tiles, schedule)
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Source for Operands<'a, E, N, S> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        let k0 = min(n * comptime![self.x_ring.shape.cols], self.x_rows.cols);
        let (mut x_tile, mut w_tile) = (self.x_ring.tile(n), self.w_ring.tile(n));
        self.x_rows.from_column(k0).load_part(&mut x_tile, 0usize, part);
        self.w_rows.from_column(k0).load_part(&mut w_tile, 0usize, part);
    }
}

/// How products of `dtype` run on `device`.
pub fn machine(device: &Device, dtype: DType) -> Machine {
    device.matrix_machine(dtype.elem(), 2).unwrap_or_else(|| device.machine(256))
}

/// Rows of `x`, rows of `w` and elements of k in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiling {
    m: usize,
    n: usize,
    k: usize,
    /// Tiles of each in memory.
    stages: usize,
}

impl Tiling {
    /// The tiles of a product of `m` rows that suit `machine`.
    fn new(machine: Machine, m: usize, n: usize) -> Self {
        if let Some(group) = machine.can().group {
            // Groups below each other; of few rows side by side, each with part of the columns.
            let (rows, stages) = (group.rows * machine.groups(), 4);
            return match m {
                _ if m <= group.rows => Self { m: group.rows, n: 128, k: 128, stages },
                _ if n <= 128 => Self { m: rows, n: 128, k: 64, stages },
                _ => Self { m: rows, n: group.most_cols, k: 64, stages },
            };
        }
        // Few rows (decode) get a low tile; a GPU's team needs eight rows to go round.
        let rows = match m {
            0..=4 if machine.team == 1 => 4,
            0..=8 => 8,
            _ => 32,
        };
        let lanes = Layout::new(machine, rows, LANES).lanes();
        Self { m: rows, n: (LANES * lanes).max(64), k: 128, stages: 1 }
    }
}

/// What [`gemm`] takes and returns.
pub const GEMM: Contract = Contract {
    name: "gemm",
    tensors: &["x: [b, m, k] f32|bf16|f16, rows", "w: [b, n, k] as x, rows"],
    scalars: &["out: f32|bf16|f16 (f32)"],
    // Without elements in x and w the size of the output would be anybody's number.
    sizes: &["k: at least 1"],
    outputs: &["out: [b, m, n] as out"],
};

/// What [`gemm_into`] takes and changes.
pub const GEMM_INTO: Contract = Contract {
    name: "gemm_into",
    tensors: &[GEMM.tensors[0], GEMM.tensors[1], "out: [b, m, n] f32|bf16|f16, rows"],
    scalars: &[],
    ..GEMM
};

/// `out[b, m, n] = Σ_k x[b, m, k] · w[b, n, k]`, accumulated in f32 ([`GEMM`]).
///
/// - `x`: `[b, m, k]`, f32, bf16 or f16;
/// - `w`: `[b, n, k]` of the same type;
/// - returns `[b, m, n]` of `out_dtype`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn gemm(x: &Tensor, w: &Tensor, out_dtype: DType) -> Result<Tensor> {
    let out = GEMM.check([x, w].map(Some), &[out_dtype.into()])?.output("out")?;
    gemm_into(x, w, &out)?;
    Ok(out)
}

/// [`gemm`] into an existing tensor ([`GEMM_INTO`]).
///
/// # Errors
/// What is not as the contract says.
pub fn gemm_into(x: &Tensor, w: &Tensor, out: &Tensor) -> Result<()> {
    let device = x.device();
    let bound = GEMM_INTO.check([x, w, out].map(Some), &[])?;
    let [b, m, n] = bound.sizes(["b", "m", "n"])?;
    if b * m * n == 0 {
        return Ok(());
    }
    let machine = machine(device, x.dtype());
    let tiling = Tiling::new(machine, m, n);
    let programs = b * m.div_ceil(tiling.m) * n.div_ceil(tiling.n);
    let vectors = load_width(machine, x.dtype().size());
    let width = if x.in_vectors(vectors) && w.in_vectors(vectors) { vectors } else { 1 };
    let pair = store_width(machine);
    let out_width = if out.in_vectors(pair) { pair } else { 1 };
    // SAFETY: shapes and strides are checked above, and the kernel compares every row and column with
    // them before it reads or writes.
    unsafe {
        gemm_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([x, w, out]),
            width,
            out_width,
            machine.cell_width(),
            x.view(width),
            w.view(width),
            out.view(out_width),
            tiling,
            machine,
            [x.dtype().elem(), out.dtype().elem(), machine.kept(x.dtype().elem())],
        );
    }
    Ok(())
}
