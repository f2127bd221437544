//! Hadamard rotation of index heads.
//!
//! ```text
//! y = H · x · n^-1/2,   H[i, j] = (-1)^popcount(i & j)     (Sylvester order)
//! ```
//!
//! Applied to queries and keys alike it leaves their products unchanged and spreads outliers before the
//! rounding to fp8 (DeepSeek-V3.2-Exp demo, `rotate_activation`).
//!
//! The sums of a row that comes near the end of f32's range would leave it, although `y` does not: such a row
//! is rotated divided by n, which is exact.
//!
//! Cost: `n log2 n` additions a row; bound by memory.
//!
//! Budget (sm_90a): at most 32 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 32 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// The magnitude up to which the sum of a row's 1024 numbers, at most, is in f32's range.
const LARGE: f32 = (1u128 << 117) as f32;

/// How the units of a team share rows of `n` elements: some lanes of a plane hold a row, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    /// Lanes of a row.
    lanes: usize,
    /// Elements of a lane.
    held: usize,
    /// Rows of a team.
    rows: usize,
}

impl Share {
    /// Lanes hold a vector each, or more where a row has more than a plane has room for.
    fn new(machine: Machine, n: usize) -> Self {
        let lanes = (n / LANES).clamp(1, machine.plane);
        Self { lanes, held: n / lanes, rows: machine.team / lanes }
    }
}

/// One program rotates some rows, each in the registers of a few lanes: log2(n) stages of butterflies on pairs `half`
/// apart, first those of a lane's own elements, then those of elements in two lanes.
#[cube(launch_unchecked, address_type = "dynamic")]
fn hadamard_kernel<E: Numeric, N: Size>(
    x: &View<Vector<E, N>>,       // [rows, n]
    out: &mut View<Vector<E, N>>, // [rows, n]
    #[comptime] n: usize,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let width = N::value();
    let share = comptime![Share::new(machine, n)];
    let (unit, held) = (unit_id(machine), comptime![share.held]);
    let row = program_id(machine) * share.rows + unit / share.lanes;
    let exists = row < x.shape(0);
    // Lanes of a row that does not exist go along, so that planes stay whole.
    let row = min(row, x.shape(0) - 1);
    let lane = unit % share.lanes;
    let from = (row * x.stride(0) + lane * held) / width;
    let mut values = Array::<f32>::new(held);
    let mut large = 0u32.runtime();
    #[unroll(machine.unrolled())]
    for v in 0..comptime![held / width] {
        let vector = x.data[from + v];
        #[unroll]
        for i in 0..width {
            let value = f32::cast_from(vector.extract(i));
            values[v * width + i] = value;
            if value.abs() > LARGE {
                large = 1u32;
            }
        }
    }
    #[unroll]
    for step in 0..comptime![share.lanes.ilog2()] {
        large |= plane_shuffle_xor(large, comptime![1u32 << step]);
    }
    if large != 0u32 {
        #[unroll(machine.unrolled())]
        for i in 0..held {
            values[i] *= comptime![1.0 / n as f32];
        }
    }
    #[unroll]
    for stage in 0..comptime![n.ilog2()] {
        let half = comptime![1usize << stage];
        if comptime![half < held] {
            #[unroll(machine.unrolled())]
            for pair in 0..comptime![held / 2] {
                let i = pair / half * comptime![2 * half] + pair % half;
                let a = values[i];
                let b = values[i + half];
                values[i] = a + b;
                values[i + half] = a - b;
            }
        } else {
            let apart = comptime![half / held];
            let upper = lane / apart % 2 == 1;
            #[unroll]
            for i in 0..held {
                let own = values[i];
                let other = plane_shuffle_xor(own, comptime![apart as u32]);
                values[i] = select(upper, other - own, own + other);
            }
        }
    }
    let scale = comptime![1.0 / (n as f32).sqrt()];
    let scale = select(large != 0u32, comptime![scale * n as f32], scale);
    if exists {
        let to = (row * out.stride(0) + lane * held) / width;
        #[unroll(machine.unrolled())]
        for v in 0..comptime![held / width] {
            let mut vector = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..width {
                vector.insert(i, values[v * width + i] * scale);
            }
            out.data[to + v] = round_vector(vector, machine);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`hadamard`] takes and returns.
pub const HADAMARD: Contract = Contract {
    name: "hadamard",
    tensors: &["x: [rows, n] f32|bf16|f16, rows"],
    scalars: &[],
    sizes: &["n: 1 to 1024, a power of two"],
    outputs: &["out: [rows, n] as x"],
};

/// Rotates every row ([`HADAMARD`]).
///
/// `x`: `[rows, n]` f32, bf16 or f16, n a power of two up to 1024. Returns `[rows, n]` of the same type.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn hadamard(x: &Tensor) -> Result<Tensor> {
    let device = x.device();
    let bound = HADAMARD.check([Some(x)], &[])?;
    let [rows, n] = bound.sizes(["rows", "n"])?;
    let out = bound.output("out")?;
    if rows > 0 {
        let machine = machine(device);
        let share = Share::new(machine, n);
        let in_vectors = x.in_vectors(LANES) && out.in_vectors(LANES);
        let width = if in_vectors && share.held.is_multiple_of(LANES) { LANES } else { 1 };
        // SAFETY: the kernel reads and writes n elements of each of `rows` rows.
        unsafe {
            hadamard_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows.div_ceil(share.rows))?,
                machine.cube_dim(),
                device.addresses([x, &out]),
                width,
                x.view(width),
                out.view(width),
                n,
                machine,
                x.dtype().elem(),
            );
        }
    }
    Ok(out)
}
