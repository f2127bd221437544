//! Rows that are written to slots of a cache.
//!
//! Of several rows with the same slot the last is stored, as if they were written one after the other. No two
//! programs write one place, so no order of theirs shows in it.

use crate::tile::*;
use cubecl::prelude::*;
use std::ops::Range;

/// Rows of one launch. Each looks through those after it, which costs as much as writing them does where they
/// are this many; launches follow each other in order.
const ROWS: usize = 4096;

/// The slot of `row`, of `rows` in this launch, and whether the row is stored: its slot is one of `n_slots`, and
/// no later row has it. The slot of a row that is not stored is 0. Every unit of the team calls it.
#[cube]
pub(crate) fn slot_of(
    slots: &[i32],
    row: usize,
    rows: usize,
    n_slots: usize,
    #[comptime] machine: Machine,
) -> (usize, bool) {
    // Each plane looks for itself, so that none waits for another.
    let lanes = comptime![machine.plane];
    let slot = slots[row];
    let mut again = false.runtime();
    for step in 0..(rows - row - 1).div_ceil(lanes) {
        let later = row + 1 + step * lanes + unit_id(machine) % lanes;
        if later < rows {
            again = again || slots[later] == slot;
        }
    }
    if comptime![lanes > 1] {
        again = plane_any(again);
    }
    let stored = !again && slot >= 0 && slot < n_slots as i32;
    (select(stored, slot, 0i32) as usize, stored)
}

/// The launches that `n` rows take, one after the other.
pub(crate) fn launches(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(ROWS).map(move |first| first..n.min(first + ROWS))
}
