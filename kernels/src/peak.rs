//! The ceilings of arithmetic: products of tiles that stay where they are, for the matrix unit, and chains of fused
//! multiplications and additions in registers, for vector arithmetic.
//!
//! ```text
//! products: out[i, j] = rounds · Σ_k x[i, k] · w[j, k]
//! chains:   s[c] ← s[c] · factor + addend, rounds · 16 times, each chain for itself
//! ```
//!
//! Nothing is loaded in the loop and nothing but products is computed: what a kernel that multiplies
//! tiles of this type could reach if all else were free. The operands are the caller's, since a matrix
//! unit that multiplies zeros draws less power and so runs faster than one that has work to do.
//!
//! Cost: products `2 · programs · rounds · 128 · 256 · k` FLOP; chains 2 FLOP for each step of each lane.
//!
//! Budget (sm_90a): at most 160 registers a unit, 96 KB of shared memory, no spills; wgmma bf16, wgmma e4m3, wgmma f16.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Rows of `x` and of `w`.
const TILE: (usize, usize) = (128, 256);
/// Bytes of a row of either.
const ROW_BYTES: usize = 256;

#[cube(launch_unchecked)]
fn peak_kernel<E: Numeric, N: Size, P: Size, W: Size>(
    x: &[Vector<E, N>],
    w: &[Vector<E, N>],
    out: &mut [Vector<f32, P>],
    rounds: u32,
    #[comptime] k: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let mut x_tile = Tile::<E>::new(comptime![TileShape::new(machine, TILE.0, k)]);
    let mut w_tile = Tile::<E>::new(comptime![TileShape::new(machine, TILE.1, k)]);
    let layout = comptime![Layout::new(machine, TILE.0, TILE.1)];
    Strided::<'_, E, N>::new(x, 0usize, k, TILE.0, k).load(&mut x_tile);
    Strided::<'_, E, N>::new(w, 0usize, k, TILE.1, k).load(&mut w_tile);
    finish_loads(machine);
    let mut sums = Fragment::<W>::zeroed(layout);
    for _ in 0..rounds {
        multiply_nt(&mut sums, &x_tile, &w_tile);
    }
    #[unroll]
    for own in 0..comptime![layout.own_rows()] {
        let at = row_of(own, layout) * comptime![TILE.1];
        store_row(&sums, own, 1.0f32, out, at, comptime![TILE.1]);
    }
}

/// Columns of the operands of type `dtype`.
pub fn peak_k(dtype: DType) -> usize {
    ROW_BYTES / dtype.size()
}

/// Multiplies `x` by `w` transposed `rounds` times in each of `programs` programs, all of which write the
/// same sums; returns the FLOP that took, or `None` on a device without a matrix unit for the type.
///
/// `x`: `[128, k]`, `w`: `[256, k]` with k of [`peak_k`], e4m3, bf16 or f16, contiguous; `out`: `[128, 256]`
/// f32.
pub fn multiply_in_place(
    x: &Tensor,
    w: &Tensor,
    out: &Tensor,
    programs: usize,
    rounds: usize,
) -> Result<Option<f64>> {
    let device = x.device();
    let k = peak_k(x.dtype());
    x.expect_shape("x", &[("rows", TILE.0), ("k", k)])?;
    w.expect_shape("w", &[("rows", TILE.1), ("k", k)])?;
    out.expect_shape("out", &[("rows", TILE.0), ("cols", TILE.1)])?;
    w.expect_dtype("w", &[x.dtype()])?;
    out.expect_dtype("out", &[DType::F32])?;
    for (name, tensor) in [("x", x), ("w", w), ("out", out)] {
        tensor.expect_contiguous(name)?;
    }
    if !(1..=1 << 20).contains(&programs) || !(1..=1 << 20).contains(&rounds) {
        return Err(KernelError::Value {
            name: "rounds",
            got: format!("{rounds} of {programs} programs"),
            expected: "1 to 2^20 of each".to_string(),
        });
    }
    let Some(machine) = device.matrix_machine(x.dtype().elem(), 2) else { return Ok(None) };
    let width = load_width(machine, x.dtype().size());
    // SAFETY: the operands are one tile each, the output one tile of sums, and nothing else is accessed.
    unsafe {
        peak_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            width,
            1,
            machine.cell_width(),
            x.arg(width),
            w.arg(width),
            out.arg(1),
            rounds as u32,
            k,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(Some(2.0 * (programs * rounds * TILE.0 * TILE.1 * k) as f64))
}

/// Steps of each chain between two looks at the counter.
const STEPS: usize = 16;

/// How the chains are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chains {
    /// f32 lanes of a vector.
    pub width: usize,
    /// Chains of vectors that a unit works on in turn, so that none waits for its own last step.
    pub chains: usize,
    /// Teams of 256 units for each core of a GPU; of a CPU one unit.
    pub programs: usize,
}

impl std::fmt::Display for Chains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { width, chains, programs } = self;
        write!(f, "{chains} chains of {width} lanes, {programs} teams a core")
    }
}

/// The layouts worth trying on `device`.
pub fn chains(device: &Device) -> Vec<Chains> {
    let sizes = match device.kind() {
        DeviceKind::Cpu => vec![(8, 8, 1), (16, 8, 1), (8, 16, 1), (16, 16, 1)],
        _ => vec![(1, 4, 8), (1, 8, 8), (2, 4, 8), (1, 8, 4)],
    };
    let of = |(width, chains, programs)| Chains { width, chains, programs };
    sizes.into_iter().map(of).collect()
}

#[cube(launch_unchecked)]
fn chain_kernel<N: Size>(
    x: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    programs: u32,
    rounds: u32,
    #[comptime] chains: usize,
    #[comptime] machine: Machine,
) {
    let program = program_id(machine);
    if program >= programs as usize {
        terminate!();
    }
    // They come from memory, so that no compiler knows them.
    let (factor, addend) = (x[0], x[1]);
    let mut sums = Array::<Vector<f32, N>>::new(chains);
    #[unroll]
    for c in 0..chains {
        sums[c] = x[2 + c];
    }
    for _ in 0..rounds {
        #[unroll]
        for _ in 0..STEPS {
            #[unroll]
            for c in 0..chains {
                sums[c] = fma(sums[c], factor, addend);
            }
        }
    }
    let mut total = sums[0];
    #[unroll]
    for c in 1..chains {
        total += sums[c];
    }
    out[program * comptime![machine.team] + unit_id(machine)] = total;
}

/// Rows of the sums that [`chain`] writes.
pub fn chain_rows(device: &Device, shape: Chains) -> usize {
    shape.programs * device.cores() * device.machine(256).team
}

/// Runs the chains; returns the FLOP that took.
///
/// - `x`: `[2 + chains, width]` f32, contiguous: factor, addend, and what each chain starts from;
/// - `out`: `[rows, width]` f32, rows of [`chain_rows`], contiguous: in each the sum of the chains.
pub fn chain(x: &Tensor, out: &Tensor, shape: Chains, rounds: usize) -> Result<f64> {
    let device = x.device();
    let Chains { width, chains, programs } = shape;
    let rows = chain_rows(device, shape);
    x.expect_shape("x", &[("factor, addend and chains", 2 + chains), ("width", width)])?;
    out.expect_shape("out", &[("rows", rows), ("width", width)])?;
    for (name, tensor) in [("x", x), ("out", out)] {
        tensor.expect_dtype(name, &[DType::F32])?;
        tensor.expect_contiguous(name)?;
    }
    if !(1..=1 << 20).contains(&rounds) {
        let (got, expected) = (rounds.to_string(), "1 to 2^20".to_string());
        return Err(KernelError::Value { name: "rounds", got, expected });
    }
    let machine = device.machine(256);
    let programs = programs * device.cores();
    // SAFETY: x holds a row for each chain and two more, the output one for each unit of each program.
    unsafe {
        chain_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            width,
            x.arg(width),
            out.arg(width),
            programs as u32,
            rounds as u32,
            chains,
            machine,
        );
    }
    Ok(2.0 * (rows * width * chains * STEPS * rounds) as f64)
}
