//! The vocabulary the kernels are written in: load a tile, multiply, reduce, rescale, store.
//!
//! A body names *what* happens to a tile; the comptime [`Machine`] decides *how*. Each verb has one
//! meaning and a lowering per matrix unit, chosen while the kernel is compiled:
//!
//! | verb | `Plain` (CPU, any GPU) | `Wgmma` (sm_90a) |
//! |---|---|---|
//! | [`team_memory`] | private memory on the CPU, shared on a GPU | shared memory, aligned for the swizzle |
//! | [`Tile`] | rows of vectors, f32 | the swizzled layout the descriptors name, element type as stored |
//! | [`multiply_nt`], [`multiply_nn`] | blocks of vector arithmetic | warpgroup MMAs |
//! | [`Fragment`], [`Share`] | cells of [`LANES`] columns | cells of the accumulator registers |
//! | [`sum_lanes`], [`max_lanes`] | within a unit, then shuffles | shuffles of a quad |

mod fragment;
mod machine;
mod multiply;
mod reduce;
mod softmax;
mod tiles;

pub use fragment::*;
pub use machine::*;
pub use multiply::*;
pub use reduce::*;
pub use softmax::*;
pub use tiles::*;

use cubecl::prelude::Const;

/// Columns that move together: tiles are loaded, kept and multiplied in vectors of this many
/// elements, and tile widths are rounded up to a multiple of it.
pub const LANES: usize = 8;

/// [`LANES`] as the size of a `Vector`.
pub type Lanes = Const<8>;

/// `n` rounded up to whole vectors of [`LANES`].
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}
