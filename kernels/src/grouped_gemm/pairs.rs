//! The pairs of one program: which expert they are of, and which rows of x they take.

use super::Tiling;
use crate::tile::*;
use cubecl::prelude::*;

/// Some pairs of one expert.
#[derive(CubeType)]
pub(super) struct Pairs {
    /// The expert; as many as there are for pairs of none.
    pub expert: usize,
    /// The place in the order of the first of them.
    pub first: usize,
    /// How many; none for a tile beyond the last.
    pub count: usize,
}

/// Where in the order the pairs of `expert` begin and end. Those behind the last expert's are of none.
#[cube]
fn range_of(ends: &[i32], expert: usize, experts: usize, pairs: usize) -> (usize, usize) {
    let before = ends[select(expert == 0, 0usize, expert - 1)];
    let own = ends[min(expert, experts - 1)];
    let most = pairs as i32;
    let start = select(expert == 0, 0i32, min(max(before, 0i32), most));
    let end = select(expert == experts, most, min(max(own, 0i32), most));
    (start as usize, max(start, end) as usize)
}

#[cube]
impl Pairs {
    /// The `nth` tile of rows: each expert's pairs are cut into tiles of `tiling.rows`, one expert after the other.
    /// The units of the team look in a run of experts each.
    pub fn of_tile(
        ends: &[i32],
        experts: usize,
        pairs: usize,
        nth: usize,
        #[comptime] tiling: Tiling,
        #[comptime] machine: Machine,
    ) -> Pairs {
        let rows = comptime![tiling.rows];
        let mut scan = TeamScan::new(machine);
        let mut found = team_memory::<u32>(3usize, 4usize, machine);
        if unit_id(machine) == 0 {
            found[0] = experts as u32;
            found[1] = 0u32;
            found[2] = 0u32;
        }
        // One more than there are experts: the pairs of none.
        let each = (experts + 1).div_ceil(comptime![machine.team]);
        let run = unit_id(machine) * each;
        let run_end = min(run + each, experts + 1);
        let mut own = 0u32.runtime();
        for expert in run..run_end {
            let (start, end) = range_of(ends, expert, experts, pairs);
            own += (end - start).div_ceil(rows) as u32;
        }
        let mut tile = scan.count(own).before as usize;
        for expert in run..run_end {
            let (start, end) = range_of(ends, expert, experts, pairs);
            let tiles = (end - start).div_ceil(rows);
            if nth >= tile && nth < tile + tiles {
                let first = start + (nth - tile) * rows;
                found[0] = expert as u32;
                found[1] = first as u32;
                found[2] = min(end - first, rows) as u32;
            }
            tile += tiles;
        }
        sync_team(machine);
        Pairs {
            expert: asked_anew(found[0] as usize, machine),
            first: asked_anew(found[1] as usize, machine),
            count: asked_anew(found[2] as usize, machine),
        }
    }
}

/// The rows of x that some pairs take, looked up once.
#[derive(CubeType)]
pub(super) struct PairRows {
    /// The row of each pair; [`NO_ROW`] beyond the last, and where the order names none.
    rows: Shared<[u32]>,
    stride: usize,
    #[cube(comptime)]
    count: usize,
}

const NO_ROW: u32 = u32::MAX;

#[cube]
impl PairRows {
    /// The rows, of `n`, that `pairs` take: of `top_k` pairs to a token the token's, or with none their own place in
    /// the order. Every unit of the team calls it.
    pub fn new(
        order: &[i32],
        pairs: &Pairs,
        n: usize,
        top_k: usize,
        #[comptime] by_token: bool,
        #[comptime] count: usize,
        #[comptime] machine: Machine,
    ) -> PairRows {
        let mut rows = team_memory::<u32>(count, 4usize, machine);
        for step in 0..comptime![count.div_ceil(machine.team)] {
            let i = step * comptime![machine.team] + unit_id(machine);
            if i < count {
                let mut row = NO_ROW.runtime();
                if i < pairs.count {
                    row = (pairs.first + i) as u32;
                    if comptime![by_token] {
                        // A negative pair is a number beyond all tokens.
                        row = order[pairs.first + i] as u32 / top_k as u32;
                    }
                    if row >= n as u32 {
                        row = NO_ROW.runtime();
                    }
                }
                rows[i] = row;
            }
        }
        sync_team(machine);
        PairRows { rows, stride: 0usize, count }
    }

    /// The same rows where they are `stride` elements apart.
    pub fn apart(&self, stride: usize) -> PairRows {
        PairRows { rows: self.rows.clone(), stride, count: self.count }
    }
}

#[cube]
impl Rows for PairRows {
    fn row(&self, i: usize) -> (usize, bool) {
        let row = self.rows[min(i, comptime![self.count - 1])];
        let exists = row != NO_ROW && i < comptime![self.count];
        (select(exists, row as usize, 0usize) * self.stride, exists)
    }
}
