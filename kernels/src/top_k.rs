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
//! 1. *Sift* (`top_k/sift.rs`), for rows of more than 16384 columns: from a sample of the row it guesses
//!    a rank that about 1.5 k columns reach, and lists these.
//! 2. *Choose* (`choose_kernel`). The listed columns, or all of a short row, are kept in team memory. Radix select,
//!    8 bits at a time, finds the place of the last column taken among them. The columns up to it are marked in a set
//!    of bits, which is written in order.
//!
//! Of many equal columns the sift lists none: the second kernel marks the first of them as it finds them in the row.
//!
//! The sample only saves time. Where the lists do not hold the k best (because the sample misled), the second
//! kernel reads the row itself, as often as it must: the result is exact for every input.
//!
//! **`budget`, `rank` and `exceeds` in `top_k/policy.rs` are the functions to change to try another policy.**
//!
//! Cost: one read of the row, `4 · L` bytes, and of its sample, and one of its lists, from cache; of a row with many
//! equal columns another read, as far as these are wanted; where the sample misled one read for each 8 bits that tell
//! the last column taken from the next (1 to 8), and one more for every 2^17 columns' marks.
//!
//! Budget (sm_90a): at most 64 registers a unit, 70 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 72 registers a unit, 70 KB of shared memory, no spills; vector arithmetic.

mod columns;
mod kept;
mod lists;
mod policy;
mod radix;
mod sift;

pub use policy::Policy;

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::seen::KeyRange;
use crate::tensor::Tensor;
use crate::tile::*;
use columns::*;
use cubecl::prelude::*;
use kept::Kept;
use lists::Sifted;
use policy::budget;
use radix::*;
use sift::{pieces, sift};

/// Columns that a team keeps in its memory: about 1.5 times 2048, and as many standard deviations of it more that lists
/// of so many have room with next to certainty.
const ROOM: usize = 6144;

/// Columns of a row that they surely include, though it may begin inside a vector.
const SHORT_ROW: usize = ROOM - 4;

/// Writes the best columns of each row. One program a row, which takes them from the row if it is short, from the
/// lists of its `pieces` if they hold them, and from the row again otherwise.
#[cube(launch_unchecked, address_type = "dynamic")]
fn choose_kernel<N: Size>(
    logits: &View<Vector<f32, N>>, // [rows, length]
    starts: &[i32],                // [rows]
    ends: &[i32],                  // [rows]
    lists: &[u64],                 // [rows, pieces, capacity]
    counts: &[u32],                // [rows, pieces + 1]
    indices: &mut View<i32>,       // [rows, topk]
    pieces: u32,
    capacity: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let row = program_id(machine);
    if row >= logits.shape(0) {
        terminate!();
    }
    let base = row * logits.stride(0);
    // Columns are numbers of 32 bits, as in their places.
    let topk = indices.shape(1) as u32;
    let range = range_of(starts, ends, row, logits.shape(1) as u32);
    let (start, end) = (range.start, range.end);
    let wanted = min(budget(end - start, topk, policy), end - start);
    let out = row * indices.stride(0);
    let mut written = 0u32.runtime();
    if wanted > 0 {
        let (data, to) = (&logits.data, &mut indices.data);
        let short = end - start <= SHORT_ROW as u32;
        let whole = Row::new(data, base, &range, Runs::all(), IN_FLIGHT, policy, machine);
        let mut tools = Tools::new(machine);
        // Of a short row no list was made.
        let pieces = select(short, 0u32, pieces);
        let sifted = Sifted::new(lists, counts, row, &range, pieces, capacity, policy, machine);
        // Every column above the floor is listed: if these are too few, more have its rank, or there are no more.
        let listed = min(sifted.total, wanted);
        let more = select(sifted.whole() && sifted.floor > 0, wanted - listed, 0u32);
        let in_order = Row::new(data, base, &range, Runs::all(), 1usize, policy, machine);
        let mut equals = Equals::new(in_order, sifted.floor, more);
        let mut done = short;
        if short || sifted.whole() && sifted.total <= ROOM as u32 {
            let mut kept = Kept::new(ROOM, true, machine);
            if short {
                kept.take_row::<N>(&whole, true);
            } else {
                kept.take_lists(&sifted);
            }
            let best = select(short, wanted, listed);
            written = write_best::<Kept, N>(&kept, &equals, start, end, best, to, out, &mut tools);
            done = done || written == wanted || sifted.floor == 0;
        } else if sifted.whole() {
            written =
                write_best::<Sifted, N>(&sifted, &equals, start, end, listed, to, out, &mut tools);
            done = written == wanted || sifted.floor == 0;
        }
        if !done {
            equals.wanted = 0u32;
            written =
                write_best::<Row<N>, N>(&whole, &equals, start, end, wanted, to, out, &mut tools);
        }
    }
    let team = comptime![machine.team as u32];
    for step in 0..(topk - written).div_ceil(team) {
        let at = written + step * team + unit_id(machine) as u32;
        if at < topk {
            indices.data[out + at as usize] = -1;
        }
    }
}

/// How these kernels run on `device`: in teams of 512. Teams of 1024 gain where rows are many and lose where they
/// are few; fewer columns in flight gain more on many rows and lose nothing on few.
pub fn machine(device: &Device) -> Machine {
    device.machine(512)
}

/// What [`top_k`] takes and returns.
pub const TOP_K: Contract = Contract {
    name: "top_k",
    tensors: &["logits: [rows, length] f32, rows", "ks: [rows] i32", "ke: [rows] i32"],
    scalars: &["topk: integer 1 to 1048576", "pieces: integer 0 to 1024 (chosen for the device)"],
    sizes: &[],
    outputs: &["indices: [rows, topk] i32"],
};

/// The `topk` best columns of each row of `logits` ([`TOP_K`]).
///
/// - `logits`: `[rows, length]` f32;
/// - `seen`: `[rows]`: the columns that count;
/// - `topk`: may exceed the length;
/// - returns `[rows, topk]` i32: columns of `logits`, ascending, then -1.
///
/// # Errors
/// What is not as the contract says, a policy's number out of range, and a device without memory for the indices.
pub fn top_k(logits: &Tensor, seen: &KeyRange, topk: usize, policy: Policy) -> Result<Tensor> {
    top_k_in_pieces(logits, seen, topk, policy, None)
}

/// [`top_k`] with rows that are sifted in so many `pieces`, 0 for not at all, or as suits the device. The
/// result is the same.
pub fn top_k_in_pieces(
    logits: &Tensor,
    seen: &KeyRange,
    topk: usize,
    policy: Policy,
    pieces: Option<usize>,
) -> Result<Tensor> {
    let (device, KeyRange { ks, ke }) = (logits.device(), *seen);
    let bound = TOP_K.check([logits, ks, ke].map(Some), &[topk.into(), pieces.into()])?;
    let [rows, length] = bound.sizes(["rows", "length"])?;
    policy.expect_numbers()?;
    let pieces = pieces.unwrap_or_else(|| self::pieces(device, rows, length));
    let indices = bound.output("indices")?;
    if rows == 0 {
        return Ok(indices);
    }
    let machine = machine(device);
    let width = if logits.in_whole_vectors(4) { 4 } else { 1 };
    let lists = sift(logits, ks, ke, topk, width, pieces, SHORT_ROW as u32, policy, machine)?;
    // SAFETY: the kernel reads columns below `length` of rows below `rows`, or others of the same vectors,
    // all of which the buffer holds, and no list beyond `capacity`; it clamps the ranges, and writes `topk`
    // indices a row.
    unsafe {
        choose_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows)?,
            machine.cube_dim(),
            device.addresses([logits, &lists.lists, &indices]),
            width,
            logits.view(width),
            ks.arg(1),
            ke.arg(1),
            lists.lists.arg(2),
            lists.counts.arg(1),
            indices.view(1),
            lists.pieces as u32,
            lists.capacity as u32,
            policy,
            machine,
        );
    }
    Ok(indices)
}

/// `out[t, j] = indices[t, j] + first[t]`, what is negative left alone.
#[cube(launch_unchecked, address_type = "dynamic")]
fn shift_kernel(
    indices: &View<i32>, // [n, topk]
    first: &[i32],       // [n]
    out: &mut [i32],     // [n, topk]
    #[comptime] machine: Machine,
) {
    let i = program_id(machine) * comptime![machine.team] + unit_id(machine);
    let topk = indices.shape(1);
    if i < indices.shape(0) * topk {
        let index = indices.data[i];
        out[i] = select(index >= 0, index + first[i / topk], index);
    }
}

/// What [`shift_indices`] takes and returns.
pub const SHIFT_INDICES: Contract = Contract {
    name: "shift_indices",
    tensors: &["indices: [n, topk] i32", "first: [n] i32"],
    scalars: &[],
    sizes: &[],
    outputs: &["out: [n, topk] i32"],
};

/// Turns columns of the logits, which count from where each row's request begins, into rows of a table
/// that holds several requests: `indices[t, j] + first[t]`; -1 stays ([`SHIFT_INDICES`]).
///
/// `indices`: `[n, topk]` i32; `first`: `[n]` i32. Returns `[n, topk]` i32.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn shift_indices(indices: &Tensor, first: &Tensor) -> Result<Tensor> {
    let device = indices.device();
    let bound = SHIFT_INDICES.check([indices, first].map(Some), &[])?;
    let [n, topk] = bound.sizes(["n", "topk"])?;
    let out = bound.output("out")?;
    let machine = device.machine(256);
    // SAFETY: both index tensors hold n · topk elements, where the kernel stops.
    unsafe {
        shift_kernel::launch_unchecked(
            device.client(),
            machine.cube_count((n * topk).div_ceil(machine.team))?,
            machine.cube_dim(),
            device.addresses([indices, &out]),
            indices.view(1),
            first.arg(1),
            out.arg(1),
            machine,
        );
    }
    Ok(out)
}
