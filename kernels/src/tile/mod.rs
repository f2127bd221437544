//! The vocabulary the kernels are written in: load a tile, multiply, reduce, rescale, store.
//!
//! A body names *what* happens to a tile; the comptime [`Machine`] decides *how*. Each verb has one
//! meaning and a lowering per matrix unit, chosen while the kernel is compiled:
//!
//! | verb | `Plain` (CPU, any GPU) | `Wgmma` (sm_90a) |
//! |---|---|---|
//! | [`team_memory`] | private memory on the CPU, shared on a GPU | shared memory, aligned for the swizzle |
//! | [`Tile`], [`Ring`] | rows of vectors, f32; a ring of one | the swizzled layout the descriptors name, element type as stored; the next tiles on their way |
//! | [`load_part`] of any [`Rows`] | loads and stores | `cp.async` of 16 bytes straight into the swizzle |
//! | [`Pipeline`] | loads when a tile is needed, a barrier | groups of copies, waited for in turn while later ones are on their way, a barrier |
//! | [`round_to`] | the device's conversion; of bf16 on the CPU integers | the device's conversion |
//! | [`codes_to_f32`] | arithmetic of integers | `cvt.rn.f16x2.e4m3x2` |
//! | [`multiply_nt`], [`multiply_nn`], [`multiply_fragment_nn`] | blocks of vector arithmetic | warpgroup MMAs into registers the body owns, from tiles or registers |
//! | [`Fragment`], [`Layout`], [`Mask`] | cells of [`LANES`] columns | cells of the accumulator registers; warpgroups below or beside each other |
//! | [`sum_lanes`], [`max_lanes`], [`scatter_sums`] | within a unit, then shuffles | shuffles of a quad |
//! | [`run`] of two [`Stage`]s | one after the other | three warpgroups, which score and output side by side |
//! | [`OnlineSoftmax`] | `exp`, a division | `ex2.approx`, `rcp.approx`, row maxima exchanged between warpgroups that share a row |
//!
//! What a lowering can do is its row of [`Abilities`] in `machine.rs`, the only file that knows lowerings by name but
//! for the products of `multiply.rs`: all else asks for an ability. Results are shared out in a [`CellOrder`].
//!
//! To add a matrix unit (MFMA on gfx950 is the next): a variant of [`MatrixUnit`] with its abilities, its
//! accumulator's order in `fragment.rs` (`row_of`, `col_of`, `cell_index`), its product in `multiply.rs`, and
//! `Device::matrix_machine` to choose it. No body changes.
//!
//! Each file stands on those below it:
//!
//! | floor | files | what is there |
//! |---|---|---|
//! | 7 | `feed`, `turns` | tiles that some units load for the others; what the two stages of attention hand over |
//! | 6 | `pipeline`, `roles`, `view` | loops over tiles that are loaded ahead; stages in a row or side by side; tensors as a kernel sees them |
//! | 5 | `load`, `multiply`, `values` | what fills tiles, multiplies them, and mends their values |
//! | 4 | `mask`, `softmax`, `tiles` | scores that count, their softmax; operands of products |
//! | 3 | `fragment`, `vectors` | results, shared out among the units of a team; vectors of a row |
//! | 2 | `convert`, `reduce` | numbers of one type from another; sums, counts and sets of a team |
//! | 1 | `machine` | who computes together, and what they can do |
//! | 0 | `nvptx`, `warpgroup` | instructions that CubeCL's own front end lacks or hides |
//!
//! Why not `cubecl::tile` (cubecl-tile 0.12.0-pre.1), which has tiles, stages and an online softmax too: its
//! warpgroup accumulator can only be drained through shared memory, so neither the flash rescale nor a
//! function of each score can be applied to it; its gathers cannot feed a warpgroup product, and an index of
//! -1 reads the last row; its own attention is one body per holder of the scores. What was learnt from it:
//! an instruction chosen by a comptime value, and a softmax whose empty rows stay finite.

mod convert;
mod feed;
mod fragment;
mod load;
mod machine;
mod mask;
mod multiply;
mod nvptx;
mod pipeline;
mod reduce;
mod roles;
mod softmax;
mod tiles;
mod turns;
mod values;
mod vectors;
mod view;
mod warpgroup;

pub use convert::*;
pub use feed::*;
pub use fragment::*;
pub use load::*;
pub use machine::*;
pub use mask::*;
pub use multiply::*;
pub use nvptx::*;
pub use pipeline::*;
pub use reduce::*;
pub use roles::*;
pub use softmax::*;
pub use tiles::*;
pub use turns::*;
pub use values::*;
pub use vectors::*;
pub use view::*;
pub use warpgroup::*;

#[cfg(test)]
mod tests;
