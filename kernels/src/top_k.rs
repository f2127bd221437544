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
//! Method: radix select on an order-preserving 32-bit key, 8 bits a pass. Four passes over the row count
//! how many keys share each next byte and so find the k-th largest key exactly, whatever ties or plateaus
//! the row holds: there is no candidate buffer to overflow. A last pass writes, in column order, every key
//! above it and as many equal to it as are still wanted.
//!
//! Cost: five reads of the row (from cache after the first), `4 · L` bytes from memory a row.
//!
//! Budget (sm_90a): at most 64 registers a unit, 2 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 64 registers a unit, 2 KB of shared memory, no spills; vector arithmetic.

use crate::device::Device;
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
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
    let bits = select(logit == 0.0f32, 0u32, u32::reinterpret(logit));
    let is_nan = (bits & 0x7fff_ffffu32) > 0x7f80_0000u32;
    let negative = (bits >> 31) == 1u32;
    let key = select(negative, !bits, bits | 0x8000_0000u32);
    select(is_nan || bits == 0xff80_0000u32, 0u32, key)
}

/// One program selects for one row. `ranges`: 1 if `starts` and `ends` hold a range for each row, 0 if the
/// whole row counts.
#[cube(launch_unchecked)]
fn top_k_kernel(
    logits: &[f32],
    starts: &[i32],
    ends: &[i32],
    indices: &mut [i32],
    rows: u32,
    length: u32,
    logits_row: u32,
    topk: u32,
    #[comptime] policy: Policy,
    #[comptime] machine: Machine,
) {
    let row = program_id(machine);
    if row >= rows as usize {
        terminate!();
    }
    let base = row * logits_row as usize;
    let start = clamp(starts[row], 0i32, length as i32) as u32;
    let end = max(clamp(ends[row], 0i32, length as i32) as u32, start);
    let team = comptime![machine.team as u32];
    let unit = unit_id(machine) as u32;
    let steps = (end - start).div_ceil(team);
    let wanted = budget(end - start, topk, policy);

    // The k-th largest key, byte by byte: `threshold` holds the bytes found so far, and `ties` how many
    // keys that begin with them are still wanted.
    let mut histogram = Histogram::new(machine);
    let mut threshold = 0u32.runtime();
    let mut found = 0u32.runtime();
    let mut ties = wanted;
    #[unroll]
    for pass in 0..4u32 {
        let shift = comptime![24 - 8 * pass];
        histogram.clear();
        for step in 0..steps {
            let position = start + step * team + unit;
            if position < end {
                let key = rank(logits[base + position as usize], position, start, end, policy);
                if key != 0 && (key & found) == threshold {
                    histogram.add((key >> shift) & 0xffu32);
                }
            }
        }
        sync_team(machine);
        // From the highest bin down, the one in which the wanted key lies.
        let mut bin = 256u32.runtime();
        let mut above = 0u32.runtime();
        let mut reached = 0u32.runtime();
        while bin > 0 && reached < ties {
            bin -= 1;
            above = reached;
            reached += histogram.count(bin);
        }
        // With fewer keys than wanted the walk ends at bin 0 and the threshold at 0: all are taken.
        if reached >= ties {
            ties -= above;
        }
        threshold |= bin << shift;
        found |= comptime![0xffu32 << shift];
    }

    let mut scan = TeamScan::new(machine);
    let out = row * topk as usize;
    let mut count = 0u32.runtime();
    let mut ties_seen = 0u32.runtime();
    for step in 0..steps {
        let position = start + step * team + unit;
        let mut key = 0u32.runtime();
        if position < end {
            key = rank(logits[base + position as usize], position, start, end, policy);
        }
        let tie = key != 0 && key == threshold;
        let tied = scan.count(u32::cast_from(tie));
        let take = key > threshold || (tie && ties_seen + tied.before < ties);
        let taken = scan.count(u32::cast_from(take));
        if take {
            indices[out + (count + taken.before) as usize] = position as i32;
        }
        count += taken.total;
        ties_seen += tied.total;
    }
    for step in 0..(topk - count).div_ceil(team) {
        let at = count + step * team + unit;
        if at < topk {
            indices[out + at as usize] = -1;
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(1024)
}

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
    let indices = device.empty(&[rows, topk], DType::I32);
    if rows == 0 {
        return Ok(indices);
    }
    let machine = machine(device);
    // SAFETY: the kernel reads columns below `length` of rows below `rows`, clamps the ranges, and writes
    // at most `topk` entries a row.
    unsafe {
        top_k_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows),
            machine.cube_dim(),
            logits.arg(1),
            ks.arg(1),
            ke.arg(1),
            indices.arg(1),
            rows as u32,
            length as u32,
            logits.strides()[0] as u32,
            topk as u32,
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
