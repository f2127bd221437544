//! Sifting, the first half of [`crate::top_k`]: a short list of the columns that may be among a row's best.
//!
//! A sample of the row, spread evenly over it, says which rank about 1.5 k columns of the row reach. One
//! pass over the row then lists those columns; several programs share a row where there are few rows.
//!
//! Where many more columns reach that rank because they are equal, only those above it are listed: the second half
//! takes of the equal ones, from the row itself, as many as it still wants.
//!
//! Nothing that comes out of the second half depends on how well the sample guessed, nor on the order of a
//! list: a guess that was wrong costs time only.
//!
//! Cost: one read of the row, `4 · L` bytes, and in each program one of its sample, of up to 4096 columns.
//!
//! Budget (sm_90a): at most 64 registers a unit, 18 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 56 registers a unit, 18 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::device::Device;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tile::*;
use crate::top_k::columns::*;
use crate::top_k::kept::Kept;
use crate::top_k::lists::listed;
use crate::top_k::policy::{Policy, budget, number_of};
use crate::top_k::radix::*;
use cubecl::prelude::*;

/// Columns of a row that are sampled, at most.
const SAMPLE: u32 = 4096;

/// Vectors that neighbouring units read together; the programs of a row take turns at them, so that each
/// gets its share of the best columns wherever in the row these are.
const GRAIN: u32 = 32;

/// Columns that a unit of a GPU sifts together: four loads of four are on their way at once.
const SIFTED: usize = 16;

/// How many of `sampled` columns out of `len` to go down the ranking, to find a rank that more than
/// `wanted` of all columns reach: their share, and five standard deviations of it more.
#[cube]
fn wanted_of_sample(wanted: u32, sampled: u32, len: u32) -> u32 {
    let share = f32::cast_from(wanted) * f32::cast_from(sampled) / f32::cast_from(max(len, 1u32));
    u32::cast_from(share + 5.0f32 * share.sqrt()) + 5u32
}

/// A rank such that the columns of `range` above it are likely to be a few more than the `wanted` best, or fewer if
/// too many are equal; 0 if the sample is no help. It is the same for every program of the row.
#[cube]
fn floor_of<N: Size>(
    logits: &[Vector<f32, N>],
    base: usize,
    range: &Range,
    wanted: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) -> u32 {
    let (start, end) = (range.start, range.end);
    // Every `every`-th vector is sampled; odd, so that no period of the row hides from it.
    let every = (end - start).div_ceil(SAMPLE) | 1u32;
    let runs = Runs { phase: every / 2, stride: every, grain: 1u32 };
    let sample = Row::new(logits, base, range, runs, IN_FLIGHT, policy, machine);
    let mut kept = Kept::new(comptime![SAMPLE as usize], false, machine);
    kept.take_row::<N>(&sample, false);
    let wanted = wanted_of_sample(wanted, (end - start) / every, end - start);
    let mut histogram = Histogram::new(machine);
    let (walk, bounds) = (kept.walk(start, end), Bounds::any());
    let slack = wanted / 8;
    let found =
        search::<Kept>(&kept, &walk, &bounds, wanted, slack, 0u32, Key::Rank, &mut histogram);
    let reach = found.above + found.count;
    // A quarter more than wanted reach it only if they are equal; fewer do if the sample has no more.
    let floor = select(reach > wanted + wanted / 4, found.number, max(found.number, 1u32) - 1);
    select(reach < wanted, 0u32, floor)
}

/// Lists the columns of each row that may be among its best. Program `(row, piece)` lists those of its piece:
/// `lists[row, piece, ..]`, in no particular order, and how many in `counts[row, piece]`, which is more than
/// `capacity` if not all found room. The last of the counts of a row is the rank above which columns are listed.
///
/// Rows of which up to `short` columns count are left out: they are chosen from at once.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sift_kernel<N: Size>(
    logits: &View<Vector<f32, N>>, // [rows, length]
    starts: &[i32],                // [rows]
    ends: &[i32],                  // [rows]
    lists: &mut [u64],             // [rows, pieces, capacity]
    counts: &mut [u32],            // [rows, pieces + 1]
    topk: u32,
    pieces: u32,
    capacity: u32,
    #[comptime] short: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let program = program_id(machine);
    if program >= logits.shape(0) * pieces as usize {
        terminate!();
    }
    let (row, piece) = divided(program, pieces as usize);
    let base = row * logits.stride(0);
    // Columns are numbers of 32 bits, as in their places.
    let range = range_of(starts, ends, row, logits.shape(1) as u32);
    let (start, end) = (range.start, range.end);
    if end - start <= short {
        terminate!();
    }
    let wanted = budget(end - start, topk, policy);
    let floor = floor_of(&logits.data, base, &range, wanted, policy, machine);
    let number = number_of(floor);

    let mut cursor = Cursor::new(machine);
    let runs = Runs { phase: piece as u32, stride: pieces, grain: GRAIN };
    let own = Row::new(&logits.data, base, &range, runs, SIFTED, policy, machine);
    let list = program * capacity as usize;
    let walk = own.walk(start, end);
    for step in walk.first..walk.end {
        let mut hits = own.above(step, floor, number);
        // The units of a plane ask together; the one of a CPU seldom has anything to ask for.
        if comptime![machine.team > 1] || hits != 0 {
            let mut at = cursor.take(hits.count_ones());
            while hits != 0 {
                let column = own.column(step, hits.trailing_zeros());
                if at < capacity {
                    lists[list + at as usize] = listed(own.logit(column), column);
                }
                at += 1;
                hits &= hits - 1u32;
            }
        }
    }
    sync_team(machine);
    if unit_id(machine) == 0 {
        let first = row * (pieces as usize + 1);
        counts[first + piece] = cursor.taken();
        if piece == 0 {
            counts[first + pieces as usize] = floor;
        }
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
    /// `[rows, pieces · capacity]` numbers of 64 bits: columns with their logits, in no particular order.
    pub(crate) lists: Tensor,
    /// `[rows, pieces + 1]` u32: columns that belong in each list, more than `capacity` if not all found room, and the
    /// rank above which they are listed.
    pub(crate) counts: Tensor,
    /// Lists of a row.
    pub(crate) pieces: usize,
    /// Columns that a list has room for.
    pub(crate) capacity: usize,
}

/// Lists the columns of each row of `logits` (`[rows, length]`, read in vectors of `width`) that may be
/// among the `topk` best of `ks .. ke`, the row cut into `pieces`; not those of rows of up to `short` columns. The
/// caller has checked the tensors.
pub(crate) fn sift(
    logits: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    topk: usize,
    width: usize,
    pieces: usize,
    short: u32,
    policy: Policy,
    machine: Machine,
) -> Result<Lists> {
    let device = logits.device();
    let (rows, length) = (logits.shape()[0], logits.shape()[1]);
    // Sifting is meant to leave some 1.5 k columns; more than 2^16 would take as long as the row itself.
    let capacity = (2 * topk).clamp(8192, 1 << 16).min(length.max(1));
    // An entry is as long as two of the buffer's elements. No buffer is empty, even if nothing is sifted.
    let room = if pieces > 0 { capacity } else { 1 };
    let lists = device.output("lists", &[rows, 2 * pieces.max(1) * room], DType::I32)?;
    let counts = device.output("counts", &[rows, pieces + 1], DType::I32)?;
    if pieces > 0 {
        // SAFETY: the kernel reads columns below `length` of rows below `rows`, or others of the same
        // vectors, all of which the buffer holds; it clamps the ranges, and compares with `capacity`
        // before it writes to a list.
        unsafe {
            sift_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows * pieces)?,
                machine.cube_dim(),
                device.addresses([logits, &lists]),
                width,
                logits.view(width),
                ks.arg(1),
                ke.arg(1),
                lists.arg(2),
                counts.arg(1),
                topk as u32,
                pieces as u32,
                capacity as u32,
                short,
                policy,
                machine,
            );
        }
    }
    Ok(Lists { lists, counts, pieces, capacity })
}
