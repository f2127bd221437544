//! Top-k selection: which keys a query attends to.
//!
//! For each row of logits, over the columns `ks .. ke`:
//!
//! ```text
//! J = the k columns with the largest logits; of equal logits the lowest column first
//! ```
//!
//! NaN and -inf are never selected; -0 equals +0. Columns come out ascending, then -1 up to k. The result
//! depends on the values alone: no order of atomics shows in it (sglang #31115, flashinfer #2584).
//!
//! Method, in two kernels:
//!
//! 1. *Sift* ([`sift_kernel`]), for long rows only. A sample of the row, spread evenly over it, says which
//!    rank about 1.5 k columns of the row reach. One pass over the row then lists those columns; several
//!    programs share a row where there are few.
//! 2. *Choose* ([`choose_kernel`]). Radix select, 8 bits at a time, finds the place of the last column taken
//!    among the listed ones. The columns up to it are marked in a set of bits, which is written in order.
//!
//! The sample only saves time. Where the lists do not hold the k best (because the sample misled, or the
//! k-th best is one of more equals than a list has room for), or where nothing was sifted, the second
//! kernel reads the row itself, as often as it must: the result is exact for every input.
//!
//! Cost: one read of the row, `4 · L` bytes; without lists one read for each 8 bits that tell the last
//! column taken from the next (2 to 8), and one more.
//!
//! Budget (sm_90a): at most 64 registers a unit, 18 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 72 registers a unit, 18 KB of shared memory, no spills; vector arithmetic.

mod columns;

use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use columns::*;
use cubecl::prelude::*;

/// Which keys are taken. **[`budget`] and [`rank`] are the functions to change to try another policy.**
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The k best: as published.
    #[default]
    Fixed,
    /// The best `per_mille` of a thousand keys (rounded up), at least `min` and at most k.
    Fraction {
        /// Keys taken of a thousand.
        per_mille: u32,
        /// Least number of keys taken.
        min: u32,
    },
    /// The first `sinks` and the last `window` keys of the range always, the rest by score; if these
    /// alone are more than k, the sinks first and then the most recent.
    Window {
        /// Most recent keys always kept.
        window: u32,
        /// First keys always kept.
        sinks: u32,
    },
}

/// How many keys are taken of a range of `len`.
#[cube]
fn budget(len: u32, topk: u32, #[comptime] policy: Policy) -> u32 {
    match comptime![policy] {
        Policy::Fixed => topk,
        Policy::Fraction { per_mille, min: least } => {
            // In two parts, so that the product stays below 2^32.
            let share = len / 1000 * per_mille + (len % 1000 * per_mille).div_ceil(1000u32);
            min(max(share, least), topk)
        }
        Policy::Window { .. } => topk,
    }
}

/// The rank key of the logit at `position` of `start .. end`: larger is taken first, 0 is never taken.
#[cube]
fn rank(logit: f32, position: u32, start: u32, end: u32, #[comptime] policy: Policy) -> u32 {
    let key = ordered_key(logit);
    match comptime![policy] {
        Policy::Window { window, sinks } => {
            // The key of +inf is 0xff80_0000: the keys above it are free for what is always kept.
            let age = end - 1 - position;
            let mut kept = key;
            if key != 0 {
                if position - start < sinks {
                    kept = 0xffff_ffffu32;
                } else if age < window {
                    kept = 0xffff_fffeu32 - age;
                }
            }
            kept
        }
        _ => key,
    }
}

/// An unsigned integer that orders as the logits do: NaN and -inf give 0, -0 and +0 the same key.
#[cube]
fn ordered_key(logit: f32) -> u32 {
    // Adding +0 makes a -0 positive and changes no other number.
    let bits = u32::reinterpret(logit + 0.0f32);
    let negative = (bits >> 31) == 1u32;
    let key = select(negative, !bits, bits | 0x8000_0000u32);
    // From the lowest finite number, 0x0080_0000, to +inf, 0xff80_0000. -inf and the NaNs are outside.
    select(key - 0x0080_0000u32 <= 0xff00_0000u32, key, 0u32)
}

/// The range of a row, clamped to its `length`.
#[derive(CubeType)]
struct Range {
    start: u32,
    end: u32,
}

#[cube]
fn range_of(starts: &[i32], ends: &[i32], row: usize, length: u32) -> Range {
    let start = clamp(starts[row], 0i32, length as i32) as u32;
    let end = max(clamp(ends[row], 0i32, length as i32) as u32, start);
    Range { start, end }
}

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
#[cube(launch_unchecked)]
fn sift_kernel<N: Size>(
    logits: &[Vector<f32, N>],
    starts: &[i32],
    ends: &[i32],
    places: &mut [u64],
    counts: &mut [u32],
    rows: u32,
    length: u32,
    logits_row: u32,
    topk: u32,
    pieces: u32,
    capacity: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let program = program_id(machine);
    if program >= rows as usize * pieces as usize {
        terminate!();
    }
    let row = program / pieces as usize;
    let piece = (program % pieces as usize) as u32;
    let base = row * logits_row as usize;
    let range = range_of(starts, ends, row, length);
    let (start, end) = (range.start, range.end);
    let wanted = budget(end - start, topk, policy);

    // Every `every`-th vector is sampled; odd, so that no period of the row hides from it.

    let every =
        (end - start).div_ceil(comptime![knob("DSA_X_SAMPLE", SAMPLE as usize) as u32]) | 1u32;
    let sample = Row::new(logits, base, start, end, every / 2, every, 1u32, policy, machine);
    let wanted = wanted_of_sample(wanted, (end - start) / every, end - start);
    let mut histogram = Histogram::new(machine);
    let least = rank_of(last_place::<Row<N>>(&sample, start, end, wanted, &mut histogram));

    let mut cursor = Cursor::new(machine);
    let own = Row::new(logits, base, start, end, piece, pieces, GRAIN, policy, machine);
    let list = program * capacity as usize;
    let steps = own.steps(start, end);
    for step in steps.first..steps.end {
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

/// The place of the last of the `wanted` best columns, `wanted` being at least 1; or a lower one that no
/// further column reaches, of rank 1 at least.
#[cube]
fn last_place<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    histogram: &mut Histogram,
) -> u64 {
    let steps = columns.steps(start, end);
    // The bits found so far, and of the columns that begin with them how many are still wanted.
    let mut found = 0u64.runtime();
    let mut known = 0u64.runtime();
    let mut left = wanted;
    let mut shift = 64u64.runtime();
    while shift > 0 {
        shift -= 8u64;
        histogram.clear();
        for step in steps.first..steps.end {
            for place in columns.load(step) {
                if rank_of(place) != 0 && (place & known) == found {
                    histogram.add(u32::cast_from((place >> shift) & 0xffu64));
                }
            }
        }
        let bin = histogram.find(left);
        found |= u64::cast_from(bin.number) << shift;
        known |= 0xffu64 << shift;
        if bin.above + bin.count <= left {
            // The whole bin is wanted: nothing more to tell apart.
            shift = 0u64;
        }
        left -= bin.above;
    }
    max(found, place(1u32, 0xffff_ffffu32))
}

/// Writes the best columns of each row. One program a row, which reads the lists of its `pieces` if they
/// hold these, and the row itself otherwise.
#[cube(launch_unchecked)]
fn choose_kernel<N: Size>(
    logits: &[Vector<f32, N>],
    starts: &[i32],
    ends: &[i32],
    places: &[u64],
    counts: &[u32],
    indices: &mut [i32],
    rows: u32,
    length: u32,
    logits_row: u32,
    topk: u32,
    pieces: u32,
    capacity: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let row = program_id(machine);
    if row >= rows as usize {
        terminate!();
    }
    let base = row * logits_row as usize;
    let range = range_of(starts, ends, row, length);
    let (start, end) = (range.start, range.end);
    let wanted = min(budget(end - start, topk, policy), end - start);
    let out = row * topk as usize;
    let mut written = 0u32.runtime();
    if wanted > 0 {
        let mut tools = Tools { histogram: Histogram::new(machine), marks: Marks::new(machine) };
        let list = row * pieces as usize;
        let sifted = Sifted::new(places, counts, list, pieces, capacity, machine);
        if sifted.hold(wanted) {
            written = write_best::<Sifted>(&sifted, start, end, wanted, indices, out, &mut tools);
        } else {
            let whole = Row::new(logits, base, start, end, 0u32, 1u32, 1u32, policy, machine);
            written = write_best::<Row<N>>(&whole, start, end, wanted, indices, out, &mut tools);
        }
    }
    let team = comptime![machine.team as u32];
    for step in 0..(topk - written).div_ceil(team) {
        let at = written + step * team + unit_id(machine) as u32;
        if at < topk {
            indices[out + at as usize] = -1;
        }
    }
}

/// The memory that [`write_best`] works in.
#[derive(CubeType)]
struct Tools {
    histogram: Histogram,
    marks: Marks,
}

/// Writes the `wanted` best of `columns`, ascending, to `out` from `at` on; returns how many there are.
#[cube]
fn write_best<C: Columns>(
    columns: &C,
    start: u32,
    end: u32,
    wanted: u32,
    out: &mut [i32],
    at: usize,
    tools: &mut Tools,
) -> u32 {
    let last = last_place::<C>(columns, start, end, wanted, &mut tools.histogram);
    let mut written = 0u32.runtime();
    // As many columns at a time as there are marks.
    let blocks = (end - start).div_ceil(MARKS as u32);
    for block in 0..blocks {
        let first = start + block * MARKS as u32;
        let limit = min(end - first, MARKS as u32);
        tools.marks.clear(limit);
        let steps = columns.steps(first, first + limit);
        for step in steps.first..steps.end {
            for place in columns.load(step) {
                // Columns before the block wrap to beyond it.
                let number = column_of(place) - first;
                if place >= last && number < limit {
                    tools.marks.insert(number);
                }
            }
        }
        written += tools.marks.write(limit, out, at + written as usize, first);
    }
    written
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(knob("DSA_X_TEAM", 512))
}

/// For the experiment only.
fn knob(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

/// Rows up to this length are chosen from at once: reading them again, from cache, costs less than sifting.
const SHORT: usize = 16384;

/// Columns of a piece, at least: a vector for each unit.
const PIECE: usize = 2048;

/// Into how many pieces rows are cut to be sifted; 0 where they are not sifted.
fn pieces(device: &Device, rows: usize, length: usize) -> usize {
    if length <= knob("DSA_X_SHORT", SHORT) {
        return 0;
    }
    // Two programs a core hide each other's waiting.
    (knob("DSA_X_PROGRAMS", 2) * device.cores() / rows)
        .clamp(1, length / knob("DSA_X_PIECE", PIECE))
        .min(MOST_PIECES)
}

/// Pieces of a row, at most.
const MOST_PIECES: usize = 1024;

/// The `topk` best columns of each row of `logits`.
///
/// - `logits`: `[rows, length]` f32, last stride 1;
/// - `ks`, `ke`: `[rows]` i32: columns `ks .. ke` count (clamped to the row; may be empty);
/// - `topk`: at least 1, may exceed the length;
/// - returns `[rows, topk]` i32: columns of `logits`, ascending, then -1.
pub fn top_k(
    device: &Device,
    logits: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    topk: usize,
    policy: Policy,
) -> Result<Tensor> {
    top_k_in_pieces(device, logits, ks, ke, topk, policy, None)
}

/// [`top_k`] with rows that are sifted in so many `pieces`, 0 for not at all, or as suits the device. The
/// result is the same.
pub fn top_k_in_pieces(
    device: &Device,
    logits: &Tensor,
    ks: &Tensor,
    ke: &Tensor,
    topk: usize,
    policy: Policy,
    pieces: Option<usize>,
) -> Result<Tensor> {
    logits.expect_rank("logits", &["rows", "length"])?;
    logits.expect_dtype("logits", &[DType::F32])?;
    logits.expect_rows("logits")?;
    let (rows, length) = (logits.shape()[0], logits.shape()[1]);
    for (name, range) in [("ks", ks), ("ke", ke)] {
        range.expect_shape(name, &[("rows", rows)])?;
        range.expect_dtype(name, &[DType::I32])?;
        range.expect_contiguous(name)?;
    }
    if !(1..=1 << 20).contains(&topk) || length >= 1 << 31 {
        return Err(KernelError::Value {
            name: "topk",
            got: format!("{topk} of {length} columns"),
            expected: "1 to 2^20, of fewer than 2^31 columns".to_string(),
        });
    }
    let bad = match policy {
        Policy::Fixed => None,
        Policy::Fraction { per_mille, .. } => {
            (per_mille > 1000).then_some(("per_mille", per_mille))
        }
        // The keys above +inf's are 2^23 - 1: as many positions can be told apart.
        Policy::Window { window, .. } => (window >= 1 << 22).then_some(("window", window)),
    };
    if let Some((name, value)) = bad {
        let expected = "per_mille up to 1000, window below 2^22".to_string();
        return Err(KernelError::Value { name, got: value.to_string(), expected });
    }
    let pieces = pieces.unwrap_or_else(|| self::pieces(device, rows.max(1), length));
    if pieces > MOST_PIECES {
        return Err(KernelError::Value {
            name: "pieces",
            got: pieces.to_string(),
            expected: format!("at most {MOST_PIECES}"),
        });
    }
    let indices = device.empty(&[rows, topk], DType::I32);
    if rows == 0 {
        return Ok(indices);
    }
    let machine = machine(device);
    // Sifting is meant to leave some 1.5 k columns; more than 2^16 would take as long as the row itself.
    let capacity = (2 * topk).clamp(8192, 1 << 16).min(length.max(1));
    // A place is a number of 64 bits, as long as two of the buffer's elements.
    let places =
        device.empty(&[rows, pieces.max(1), if pieces > 0 { capacity } else { 1 }, 2], DType::I32);
    let counts = device.empty(&[rows, pieces.max(1)], DType::I32);
    let width = if logits.in_whole_vectors(4) { 4 } else { 1 };
    let client = device.client();
    // SAFETY: the kernels read columns below `length` of rows below `rows`, or others of the same vectors,
    // all of which the buffer holds; they clamp the ranges, compare with `capacity` before they write a
    // place, and write at most `topk` indices a row.
    unsafe {
        if pieces > 0 {
            sift_kernel::launch_unchecked(
                client,
                machine.cube_count(rows * pieces),
                machine.cube_dim(),
                width,
                logits.arg(width),
                ks.arg(1),
                ke.arg(1),
                places.arg(2),
                counts.arg(1),
                rows as u32,
                length as u32,
                logits.strides()[0] as u32,
                topk as u32,
                pieces as u32,
                capacity as u32,
                policy,
                machine,
            );
        }
        choose_kernel::launch_unchecked(
            client,
            machine.cube_count(rows),
            machine.cube_dim(),
            width,
            logits.arg(width),
            ks.arg(1),
            ke.arg(1),
            places.arg(2),
            counts.arg(1),
            indices.arg(1),
            rows as u32,
            length as u32,
            logits.strides()[0] as u32,
            topk as u32,
            pieces as u32,
            capacity as u32,
            policy,
            machine,
        );
    }
    Ok(indices)
}

/// `out[t, j] = indices[t, j] + first[t]`, what is negative left alone.
#[cube(launch_unchecked)]
fn shift_kernel(
    indices: &[i32],
    first: &[i32],
    out: &mut [i32],
    n: u32,
    topk: u32,
    #[comptime] machine: Machine,
) {
    let i = program_id(machine) * comptime![machine.team] + unit_id(machine);
    if i < n as usize {
        let index = indices[i];
        out[i] = select(index >= 0, index + first[i / topk as usize], index);
    }
}

/// Turns columns of the logits, which count from where each row's request begins, into rows of a table
/// that holds several requests: `indices[t, j] + first[t]`; -1 stays.
///
/// `indices`: `[n, topk]` i32, contiguous; `first`: `[n]` i32. Returns `[n, topk]` i32.
pub fn shift_indices(device: &Device, indices: &Tensor, first: &Tensor) -> Result<Tensor> {
    indices.expect_rank("indices", &["n", "topk"])?;
    let (n, topk) = (indices.shape()[0], indices.shape()[1]);
    first.expect_shape("first", &[("n", n)])?;
    for (name, tensor) in [("indices", indices), ("first", first)] {
        tensor.expect_dtype(name, &[DType::I32])?;
        tensor.expect_contiguous(name)?;
    }
    let out = device.empty(&[n, topk], DType::I32);
    let machine = device.machine(256);
    // SAFETY: both index tensors hold n · topk elements, where the kernel stops.
    unsafe {
        shift_kernel::launch_unchecked(
            device.client(),
            machine.cube_count((n * topk).div_ceil(machine.team)),
            machine.cube_dim(),
            indices.arg(1),
            first.arg(1),
            out.arg(1),
            (n * topk) as u32,
            topk as u32,
            machine,
        );
    }
    Ok(out)
}
