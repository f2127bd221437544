//! The ceiling of the memory: a buffer copied to another, or only read.
//!
//! ```text
//! copy: out[i] = x[i]
//! read: sums[u] = Σ x[i] over the vectors i that unit u reads, as 32-bit integers that wrap
//! ```
//!
//! How fast that is depends on how the buffers are walked ([`Walk`]), and which walk is fastest on the device: so
//! there is a list of them ([`walks`]), of which the fastest counts.
//!
//! Cost: no FLOP; every element is read once and, by the copy, written once.
//!
//! Budget (sm_90a): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 56 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::device::{Device, DeviceKind};
use crate::dtype::DType;
use crate::error::KernelError;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;

/// How a probe walks its buffers.
///
/// A *block* is what a team moves in one turn: `in_flight` vectors of each of its units, all of them loaded before
/// the first is stored. On a GPU the units of a team read side by side and the programs share the buffer block by
/// block; on a CPU each program has one piece of it to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Walk {
    /// f32 elements of a vector: 4 are the 16 bytes that a GPU loads at once.
    pub width: usize,
    /// Vectors that a unit has on their way at once.
    pub in_flight: usize,
    /// Units of a team.
    pub team: usize,
    /// Programs for each core, which take as many turns as it needs; one turn for each program if `None`.
    pub programs: Option<usize>,
}

impl std::fmt::Display for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { width, in_flight, team, programs } = self;
        write!(f, "{in_flight} x {} bytes a unit, teams of {team}, ", 4 * width)?;
        match programs {
            Some(programs) => write!(f, "{programs} a core"),
            None => write!(f, "one turn each"),
        }
    }
}

/// The walks worth trying on `device`.
pub fn walks(device: &Device) -> Vec<Walk> {
    let mut walks = Vec::new();
    if device.kind() == DeviceKind::Cpu {
        for (width, in_flight) in [(8, 1), (8, 4), (16, 1), (16, 4)] {
            walks.push(Walk { width, in_flight, team: 1, programs: Some(1) });
        }
        return walks;
    }
    for in_flight in [1, 2, 4, 8] {
        for team in [256, 1024] {
            // As many units as a core holds, or as many programs as there are blocks.
            for programs in [Some(2048 / team), None] {
                walks.push(Walk { width: 4, in_flight, team, programs });
            }
        }
    }
    walks
}

/// The launch of a walk over some vectors.
struct Plan {
    machine: Machine,
    programs: usize,
    turns: usize,
}

impl Plan {
    fn new(device: &Device, walk: Walk, vectors: usize) -> Self {
        let machine = device.machine(walk.team);
        let blocks = vectors.div_ceil(walk.in_flight * machine.team).max(1);
        let programs = walk.programs.map_or(blocks, |n| blocks.min(n * device.cores()));
        Self { machine, programs, turns: blocks.div_ceil(programs) }
    }
}

/// The first vector of this unit in the block of `turn`.
#[cube]
fn first_vector(
    turn: u32,
    turns: u32,
    programs: u32,
    #[comptime] in_flight: usize,
    #[comptime] machine: Machine,
) -> usize {
    let program = program_id(machine);
    let block = if comptime![machine.team == 1] {
        program * turns as usize + turn as usize
    } else {
        turn as usize * programs as usize + program
    };
    block * comptime![in_flight * machine.team] + unit_id(machine)
}

#[cube(launch_unchecked)]
fn copy_kernel<N: Size>(
    x: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    vectors: u32,
    programs: u32,
    turns: u32,
    #[comptime] in_flight: usize,
    #[comptime] machine: Machine,
) {
    if program_id(machine) >= programs as usize {
        terminate!();
    }
    for turn in 0..turns {
        let first = first_vector(turn, turns, programs, in_flight, machine);
        let last = first + comptime![(in_flight - 1) * machine.team];
        if last < vectors as usize {
            let mut kept = Array::<Vector<f32, N>>::new(in_flight);
            #[unroll]
            for i in 0..in_flight {
                kept[i] = x[first + i * comptime![machine.team]];
            }
            #[unroll]
            for i in 0..in_flight {
                out[first + i * comptime![machine.team]] = kept[i];
            }
        } else {
            for i in 0..in_flight {
                let at = first + i * comptime![machine.team];
                if at < vectors as usize {
                    out[at] = x[at];
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn read_kernel<N: Size>(
    x: &[Vector<u32, N>],
    sums: &mut [Vector<u32, N>],
    vectors: u32,
    programs: u32,
    turns: u32,
    #[comptime] in_flight: usize,
    #[comptime] machine: Machine,
) {
    let program = program_id(machine);
    if program >= programs as usize {
        terminate!();
    }
    let mut sum = Vector::<u32, N>::new(0u32);
    for turn in 0..turns {
        let first = first_vector(turn, turns, programs, in_flight, machine);
        let last = first + comptime![(in_flight - 1) * machine.team];
        if last < vectors as usize {
            let mut kept = Array::<Vector<u32, N>>::new(in_flight);
            #[unroll]
            for i in 0..in_flight {
                kept[i] = x[first + i * comptime![machine.team]];
            }
            #[unroll]
            for i in 0..in_flight {
                sum += kept[i];
            }
        } else {
            for i in 0..in_flight {
                let at = first + i * comptime![machine.team];
                if at < vectors as usize {
                    sum += x[at];
                }
            }
        }
    }
    sums[program * comptime![machine.team] + unit_id(machine)] = sum;
}

/// The vectors of `x`, if a walk can go through them.
fn vectors(name: &'static str, x: &Tensor, walk: Walk) -> Result<usize> {
    x.expect_rank(name, &["rows", "cols"])?;
    x.expect_dtype(name, &[DType::F32])?;
    x.expect_contiguous(name)?;
    if x.in_vectors(walk.width) {
        return Ok(x.len() / walk.width);
    }
    let expected = format!("rows of a multiple of {} elements", walk.width);
    Err(KernelError::Shape { tensor: name, got: x.shape().to_vec(), expected })
}

/// Copies `x` to `out`: both contiguous `[rows, cols]` f32 of one shape, cols a multiple of the walk's width.
pub fn copy(x: &Tensor, out: &Tensor, walk: Walk) -> Result<()> {
    let device = x.device();
    let n = vectors("x", x, walk)?;
    out.expect_shape("out", &[("rows", x.shape()[0]), ("cols", x.shape()[1])])?;
    vectors("out", out, walk)?;
    let Plan { machine, programs, turns } = Plan::new(device, walk, n);
    // SAFETY: both buffers hold `n` vectors, and the kernel stops at that number.
    unsafe {
        copy_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            walk.width,
            x.arg(walk.width),
            out.arg(walk.width),
            n as u32,
            programs as u32,
            turns as u32,
            walk.in_flight,
            machine,
        );
    }
    Ok(())
}

/// The number of elements that [`read`] writes of `len` elements.
pub fn sums(device: &Device, len: usize, walk: Walk) -> usize {
    let Plan { machine, programs, .. } = Plan::new(device, walk, len / walk.width);
    programs * machine.team * walk.width
}

/// Reads `x`, contiguous `[rows, cols]` f32, cols a multiple of the walk's width; `out` `[1, n]` i32, n of [`sums`]:
/// numbers whose wrapping sum is that of all the bit patterns of x.
pub fn read(x: &Tensor, out: &Tensor, walk: Walk) -> Result<()> {
    let device = x.device();
    let n = vectors("x", x, walk)?;
    out.expect_shape("out", &[("1", 1), ("sums", sums(device, x.len(), walk))])?;
    out.expect_dtype("out", &[DType::I32])?;
    out.expect_contiguous("out")?;
    let Plan { machine, programs, turns } = Plan::new(device, walk, n);
    // SAFETY: x holds `n` vectors, and the kernel stops at that number; each unit of each program has a place in
    // the sums.
    unsafe {
        read_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(programs)?,
            machine.cube_dim(),
            walk.width,
            x.arg(walk.width),
            out.arg(walk.width),
            n as u32,
            programs as u32,
            turns as u32,
            walk.in_flight,
            machine,
        );
    }
    Ok(())
}
