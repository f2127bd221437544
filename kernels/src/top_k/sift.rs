//! Sifting, the first half of [`crate::top_k`]: a short list of the columns that may be among a row's best.
//!
//! A sample of the row, spread evenly over it, says which rank about 1.5 k columns of the row reach. One
//! pass over the row then lists those columns; several programs share a row where there are few rows.
//!
//! Nothing that comes out of the second half depends on how well the sample guessed, nor on the order of a
//! list: a guess that was wrong costs time only.
//!
//! Cost: one read of the row, `4 · L` bytes; and in each program up to eight reads of the sample, of up to
//! 4096 columns, from cache but for the first.
//!
//! Budget (sm_90a): at most 64 registers a unit, 2 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 56 registers a unit, 2 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::device::Device;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tile::*;
use crate::top_k::columns::*;
use crate::top_k::policy::{Policy, budget};
use crate::top_k::radix::*;
use cubecl::prelude::*;

/// Columns of a row that are sampled, at most.
const SAMPLE: u32 = 4096;

/// Vectors that neighbouring units read together; the programs of a row take turns at them, so that each
/// gets its share of the best columns wherever in the row these are.
const GRAIN: u32 = 32;

/// How many of `sampled` columns out of `len` to go down the ranking, to find a rank that more than
/// `wanted` of all columns reach: their share, and five standard deviations of it more.
#[cube]
fn wanted_of_sample(wanted: u32, sampled: u32, len: u32) -> u32 {
    let share = f32::cast_from(wanted) * f32::cast_from(sampled) / f32::cast_from(max(len, 1u32));
    u32::cast_from(share + 5.0f32 * share.sqrt()) + 5u32
}

/// Lists the columns of each row that may be among its best. Program `(row, piece)` lists those of its piece:
/// `places[row, piece, ..]`, in no particular order, and how many in `counts[row, piece]`, which is more than
/// `capacity` if not all found room.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sift_kernel<N: Size>(
    logits: &View<Vector<f32, N>>, // [rows, length]
    starts: &[i32],                // [rows]
    ends: &[i32],                  // [rows]
    places: &mut [u64],            // [rows, pieces, capacity]
    counts: &mut [u32],            // [rows, pieces]
    topk: u32,
    pieces: u32,
    capacity: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let program = program_id(machine);
    if program >= logits.shape(0) * pieces as usize {
        terminate!();
    }
    let (row, piece) = divided(program, pieces as usize);
    let piece = piece as u32;
    let base = row * logits.stride(0);
    // Columns are numbers of 32 bits, as in their places.
    let range = range_of(starts, ends, row, logits.shape(1) as u32);
    let (start, end) = (range.start, range.end);
    let wanted = budget(end - start, topk, policy);

    // Every `every`-th vector is sampled; odd, so that no period of the row hides from it.
    let every = (end - start).div_ceil(SAMPLE) | 1u32;
    let sample = Row::new(&logits.data, base, start, end, every / 2, every, 1u32, policy, machine);
    let wanted = wanted_of_sample(wanted, (end - start) / every, end - start);
    let mut histogram = Histogram::new(machine);
    let least = rank_of(last_place::<Row<N>>(&sample, start, end, wanted, &mut histogram));

    let mut cursor = Cursor::new(machine);
    let own = Row::new(&logits.data, base, start, end, piece, pieces, GRAIN, policy, machine);
    let list = program * capacity as usize;
    let walk = own.walk(start, end);
    for step in walk.first..walk.end {
        for place in own.load(step) {
            if rank_of(place) >= least {
                let at = cursor.take();
                if at < capacity {
                    places[list + at as usize] = place;
                }
            }
        }
    }
    sync_team(machine);
    if unit_id(machine) == 0 {
        counts[program] = cursor.taken();
    }
}

/// Rows up to this length are chosen from at once: reading them again, from cache, costs less than sifting.
const SHORT: usize = 16384;

/// Columns of a piece, at least: a load of four for each unit of a team of 512.
const PIECE: usize = 2048;

/// Pieces of a row, at most.
pub(crate) const MOST_PIECES: usize = 1024;

/// Programs a core for which rows are cut into pieces: two hide each other's waiting.
const PROGRAMS: usize = 2;

/// Into how many pieces rows are cut to be sifted; 0 where they are not sifted.
pub(crate) fn pieces(device: &Device, rows: usize, length: usize) -> usize {
    if length <= SHORT {
        return 0;
    }
    (PROGRAMS * device.cores() / rows.max(1)).clamp(1, length / PIECE).min(MOST_PIECES)
}

/// What sifting left of each row: a list of columns for each piece of it. Nothing for 0 pieces.
pub(crate) struct Lists {
    /// `[rows, pieces · capacity]` numbers of 64 bits: columns with their ranks, in no particular order.
    pub(crate) places: Tensor,
    /// `[rows, pieces]` u32: columns that belong in each list, more than `capacity` if not all found room.
    pub(crate) counts: Tensor,
    /// Lists of a row.
    pub(crate) pieces: usize,
    /// Columns that a list has room for.
    pub(crate) capacity: usize,
}

/// Lists the columns of each row of `logits` (`[rows, length]`, read in vectors of `width`) that may be
/// among the `topk` best of `ks .. ke`, the row cut into `pieces`. The caller has checked the tensors.
pub(crate) fn sift(
    logits: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    topk: usize,
    width: usize,
    pieces: usize,
    policy: Policy,
    machine: Machine,
) -> Result<Lists> {
    let device = logits.device();
    let (rows, length) = (logits.shape()[0], logits.shape()[1]);
    // Sifting is meant to leave some 1.5 k columns; more than 2^16 would take as long as the row itself.
    let capacity = (2 * topk).clamp(8192, 1 << 16).min(length.max(1));
    // A place is as long as two of the buffer's elements. No buffer is empty, even if nothing is sifted.
    let room = if pieces > 0 { capacity } else { 1 };
    let places = device.output("places", &[rows, 2 * pieces.max(1) * room], DType::I32)?;
    let counts = device.output("counts", &[rows, pieces.max(1)], DType::I32)?;
    if pieces > 0 {
        // SAFETY: the kernel reads columns below `length` of rows below `rows`, or others of the same
        // vectors, all of which the buffer holds; it clamps the ranges, and compares with `capacity`
        // before it writes a place.
        unsafe {
            sift_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows * pieces)?,
                machine.cube_dim(),
                device.addresses([logits, &places]),
                width,
                logits.view(width),
                ks.arg(1),
                ke.arg(1),
                places.arg(2),
                counts.arg(1),
                topk as u32,
                pieces as u32,
                capacity as u32,
                policy,
                machine,
            );
        }
    }
    Ok(Lists { places, counts, pieces, capacity })
}
