//! Rotary position embedding.
//!
//! ```text
//! (x_a, x_b) -> (x_a cos θ - x_b sin θ, x_a sin θ + x_b cos θ),   θ = position · f_i
//! interleaved: a = 2i, b = 2i + 1        half-split: a = i, b = i + dim/2
//! ```
//!
//! MLA rotates interleaved pairs, the indexer half-split ones; the demo of September 2025 mixed them up
//! (DeepSeek-V3.2-Exp, fix of 2025-11-17), and GLM-5 interleaves in both, so the pairing is an argument.
//!
//! Cost: 6 FLOP a pair; bound by memory. Each element is read and written once, eight of a kind at a time where rows allow.
//!
//! Budget (sm_90a): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 64 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Which elements are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `(2i, 2i + 1)`.
    Interleaved,
    /// `(i, i + dim/2)`, NeoX style.
    HalfSplit,
}

impl Pairing {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("interleaved", Self::Interleaved), ("half_split", Self::HalfSplit)];
}

/// One program rotates several heads, each of its units `N` pairs of one at a time: two vectors of `N` elements, which
/// hold them all.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rope_kernel<E: Numeric, N: Size>(
    x: &View<Vector<E, N>>,       // [n, heads, dim]
    cos: &View<Vector<f32, N>>,   // [positions, dim/2]
    sin: &[Vector<f32, N>],       // [positions, dim/2]
    positions: &[i32],            // [n]
    out: &mut View<Vector<E, N>>, // [n, heads, dim]
    #[comptime] dim: usize,
    #[comptime] pairing: Pairing,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let width = N::value();
    let share = comptime![Share::new(machine, dim / 2 / width)];
    let heads = x.shape(1);
    let unit = unit_id(machine);
    let nth = program_id(machine) * share.heads + unit / share.units;
    if nth >= x.shape(0) * heads || unit / share.units >= share.heads {
        terminate!();
    }
    let (row, head) = divided(nth, heads);
    let from = (row * x.stride(0) + head * x.stride(1)) / width;
    let to = (row * out.stride(0) + head * out.stride(1)) / width;
    let position = positions[row];
    let known = position >= 0 && position < cos.shape(0) as i32;
    let line = select(known, position, 0i32) as usize * share.vectors;
    for step in 0..comptime![share.vectors.div_ceil(share.units)] {
        let i = step * share.units + unit % share.units;
        if i < share.vectors {
            let (first, second) = if comptime![pairing == Pairing::Interleaved] {
                (2 * i, 2 * i + 1)
            } else {
                (i, i + share.vectors)
            };
            let (u, v) = (x.data[from + first], x.data[from + second]);
            let (c, s) = (cos.data[line + i], sin[line + i]);
            let mut y = Array::<f32>::new(comptime![2 * width]);
            #[unroll]
            for pair in 0..width {
                let (a, b) = comptime![match pairing {
                    Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                    Pairing::HalfSplit => (pair, width + pair),
                }];
                let (xa, xb) = (element(u, v, a), element(u, v, b));
                let c = select(known, c.extract(pair), f32::NAN);
                let s = select(known, s.extract(pair), f32::NAN);
                y[a] = sum_of_products(xa, c, -xb, s);
                y[b] = sum_of_products(xa, s, xb, c);
            }
            out.data[to + first] = rounded(&y, 0usize, machine);
            out.data[to + second] = rounded(&y, width, machine);
        }
    }
}

/// Element `i` of `u` and `v` one after the other.
#[cube]
fn element<E: Numeric, N: Size>(u: Vector<E, N>, v: Vector<E, N>, #[comptime] i: usize) -> f32 {
    let width = N::value();
    if comptime![i < width] {
        f32::cast_from(u.extract(i))
    } else {
        f32::cast_from(v.extract(comptime![i - width]))
    }
}

/// The elements of `y` from `first` on, rounded.
#[cube]
fn rounded<E: Numeric, N: Size>(
    y: &Array<f32>,
    #[comptime] first: usize,
    #[comptime] machine: Machine,
) -> Vector<E, N> {
    let mut values = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..N::value() {
        values.insert(i, y[comptime![first + i]]);
    }
    round_vector(values, machine)
}

/// How a program's units share heads of so many `vectors` of pairs: so many `units` each, `heads` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    vectors: usize,
    units: usize,
    heads: usize,
}

impl Share {
    fn new(machine: Machine, vectors: usize) -> Self {
        let units = vectors.min(machine.team);
        Self { vectors, units, heads: machine.team / units }
    }
}

/// `a · c + b · d`, of which a product may be out of f32's range where the sum is not, if a table's numbers are
/// above 1 (YaRN's attention factor): then it is the sum of smaller ones.
#[cube]
fn sum_of_products(a: f32, c: f32, b: f32, d: f32) -> f32 {
    let sum = a * c + b * d;
    let halves = (a * 0.0078125f32) * c + (b * 0.0078125f32) * d;
    select(sum.is_inf() || sum.is_nan(), halves * 128.0f32, sum)
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`rope`] takes and changes.
pub const ROPE: Contract = Contract {
    name: "rope",
    tensors: &[
        "x: [n, heads, dim] f32|bf16|f16, rows",
        "cos: [positions, dim / 2] f32",
        "sin: [positions, dim / 2] f32",
        "positions: [n] i32",
        "out: [n, heads, dim] as x, rows",
    ],
    scalars: &[],
    sizes: &["dim: at least 2, even", "positions: at least 1"],
    outputs: &["out: [n, heads, dim] as x"],
};

/// Rotates every head of every row into `out`, which may be `x` itself ([`ROPE`]).
///
/// - `x`, `out`: `[n, heads, dim]` of one float type, dim even;
/// - `cos`, `sin`: `[positions, dim / 2]` f32;
/// - `positions`: `[n]` i32, the row's line of the tables; a row whose line they do not have becomes NaN.
///
/// # Errors
/// What is not as the contract says.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    out: &Tensor,
    pairing: Pairing,
) -> Result<()> {
    let device = x.device();
    let bound = ROPE.check([x, cos, sin, positions, out].map(Some), &[])?;
    let [rows, heads, dim] = bound.sizes(["n", "heads", "dim"])?;
    if rows * heads == 0 {
        return Ok(());
    }
    let machine = machine(device);
    let in_vectors = [x, cos, sin, out].iter().all(|t| t.in_vectors(LANES));
    let width = if in_vectors && dim.is_multiple_of(2 * LANES) { LANES } else { 1 };
    let programs = (rows * heads).div_ceil(Share::new(machine, dim / 2 / width).heads);
    // SAFETY: rows, heads and dim are those of x and out; positions are compared with the tables' lines; the
    // vectors of a unit's pairs are read before they are written, so x and out may be the same.
    unsafe {
        rope_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            device.addresses([x, cos, out]),
            width,
            x.view(width),
            cos.view(width),
            sin.arg(width),
            positions.arg(1),
            out.view(width),
            dim,
            pairing,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}
