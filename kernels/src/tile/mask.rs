//! Which scores of a tile count: those of a key that the row's query sees.
//!
//! What is seen is looked up before it is applied, so that the lookup may run beside the product of the tile:
//!
//! | seen by | looked up | kept as |
//! |---|---|---|
//! | every row alike: listed keys | [`Mask::of_columns`] | the bits of each of a unit's cells |
//! | each row by itself: a range of keys | [`Mask::of_ranges`] | two ends for each of a unit's rows |

use super::fragment::{Fragment, FragmentExpand, Layout, col_of};
use cubecl::prelude::*;

/// Which columns each row of a tile of scores sees.
#[derive(CubeType)]
pub enum Mask<W: Size> {
    /// For each of a unit's cells all bits of the columns that are seen, and none of the others.
    Columns(Array<Vector<u32, W>>),
    /// What each of a unit's own rows sees, and the number of the tile's first column.
    Ranges(RowRanges, i32),
}

/// The columns that some rows see: `start .. end` of each.
#[derive(CubeType)]
pub struct RowRanges {
    /// The first.
    pub start: Array<i32>,
    /// The one after the last.
    pub end: Array<i32>,
}

#[cube]
impl RowRanges {
    /// Ranges of `rows` rows, yet to be set.
    pub fn new(#[comptime] rows: usize) -> Self {
        RowRanges { start: Array::new(rows), end: Array::new(rows) }
    }

    /// Whether the `i`-th row sees `col`.
    pub fn see(&self, i: usize, col: i32) -> bool {
        col >= self.start[i] && col < self.end[i]
    }
}

#[cube]
impl<W: Size> Mask<W> {
    /// The same columns for every row.
    pub fn of_columns(bits: Array<Vector<u32, W>>) -> Self {
        Mask::<W>::new_Columns(bits)
    }

    /// The columns of each of a unit's own rows, the tile's first being number `first`.
    pub fn of_ranges(ranges: RowRanges, first: i32) -> Self {
        Mask::<W>::new_Ranges(ranges, first)
    }

    /// All bits of the columns of `cell` that the unit's `own`-th row sees, none of the others.
    fn bits(&self, own: usize, cell: usize, #[comptime] layout: Layout) -> Vector<u32, W> {
        match self {
            Mask::Columns(bits) => bits[cell],
            Mask::Ranges(ranges, first) => {
                let col = *first + col_of(cell, layout) as i32;
                let mut bits = Vector::<u32, W>::new(0u32);
                #[unroll]
                for i in 0..W::value() {
                    let seen = ranges.see(own, col + i as i32);
                    bits.insert(i, select(seen, u32::MAX, 0u32));
                }
                bits
            }
        }
    }
}

/// The bits of an f32 of -inf.
const NEG_INFINITY_BITS: u32 = 0xff80_0000;

#[cube]
impl<W: Size> Fragment<W> {
    /// Sets to -inf, whatever they hold, the scores of columns that their rows do not see. Choosing by bits is one
    /// instruction, and no padding is added to.
    pub fn mask(&mut self, mask: &Mask<W>) {
        let layout = comptime![self.layout];
        let none = Vector::<u32, W>::new(NEG_INFINITY_BITS);
        #[unroll(layout.unrolled())]
        for cell in 0..comptime![layout.run()] {
            #[unroll(layout.unrolled())]
            for own in 0..comptime![layout.own_rows()] {
                let bits = Vector::<u32, W>::reinterpret(self.get(own, cell));
                let kept = ((bits ^ none) & mask.bits(own, cell, layout)) ^ none;
                self.set(own, cell, Vector::reinterpret(kept));
            }
        }
    }
}
