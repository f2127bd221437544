//! Warpgroup MMAs (`wgmma`, sm_90a) into registers the body owns: an `Array` of f32 cells that it may
//! scale between products, which the registers of `cubecl::wgmma::Accumulator` do not allow.
//!
//! An MMA runs while its units go on, so the order of the calls is what makes it right and fast:
//!
//! ```text
//! cells[..] = ..                 the units write the registers
//! fence_cells(&mut cells)        the compiler moves no access to them below here,
//! fence_mma()                    and neither does the device
//! issue_mma(&mut cells, ..)      any number; nothing in between touches the registers
//! commit_mma()
//! ..                             work on other registers
//! wait_mma(pending)
//! fence_cells(&mut cells)        the compiler moves no access to them above here
//! .. = cells[..]                 the units read and write them again
//! ```
//!
//! What ptxas makes of it (13.0, seen in its remarks and in the machine code):
//! * an access to the cells between `issue_mma` and the wait for its group makes it wait after *every* MMA
//!   of the kernel (remark C7514: «instructions are serialized»), without an error; a missing
//!   `fence_mma` is put in for us (C7519); a branch between issue and wait can get a wait put in (C7517);
//! * a call anywhere in the kernel does the same (C7509), and when code is assembled to be linked, as CubeCL's
//!   runtime does, an IEEE division or reciprocal of f32 is one: use [`reciprocal`](super::reciprocal);
//! * groups of different cells overlap: scores, commit, outputs, commit, `wait_mma(1)`, work on the scores,
//!   `wait_mma(0)`; and cells may stay in flight across a loop's end;
//! * it sinks arithmetic, even shuffles, below the next wait, where it no longer overlaps. A store to shared
//!   memory stays above, with all that it depends on: store what was computed (the probabilities, a row's
//!   sum) before the wait.
//!
//! The cells of a `64 x n` product in unit `u` of the warpgroup: cell `4 g + 2 r + e` is row
//! `16 (u / 32) + (u % 32) / 4 + 8 r`, column `8 g + 2 (u % 4) + e`.

use cubecl::prelude::*;
use cubecl::wgmma::{Major, WARPGROUP_M, WgmmaTileLayout};
use cubecl_ir::dialect::matrix::{
    WgmmaCommitGroupOp, WgmmaDescriptorOp, WgmmaFenceOp, WgmmaFenceOperandOp, WgmmaOp,
    WgmmaWaitGroupOp, warpgroup_elems_per_unit,
};
use cubecl_ir::features::WgmmaElems;
use cubecl_ir::prelude::{TypeAttr, Value};
use cubecl_ir::types::MatrixShape;

/// The descriptor of `tile`, laid out as `layout` in shared memory and aligned to
/// `layout.alignment()`, through which a warpgroup MMA reads it.
///
/// It counts the tile's address in units of 16 bytes, so that of a part of the tile is the sum with
/// `layout.byte_offset(row, k, size) / 16`: `k` is a multiple of the MMA's k, `row` of 8 (K-major) or of
/// the columns of a panel (MN-major).
#[cube]
#[allow(unused_variables)]
pub fn descriptor<S: Numeric>(
    tile: &[Vector<S, Const<8>>],
    #[comptime] layout: WgmmaTileLayout,
) -> u64 {
    intrinsic!(|scope| {
        if let Err(error) = layout.validate(S::elem_type(scope).size()) {
            scope.push_error(format!("a warpgroup MMA cannot read the tile: {error}"));
        }
        let first = 0usize.into_expand(scope);
        let start = tile.__expand_index_method(scope, first).value(scope);
        let op = WgmmaDescriptorOp::new(
            scope.ctx_mut(),
            start,
            layout.leading_byte_offset(),
            layout.stride_byte_offset(),
            layout.swizzle,
        );
        scope.register_with_result(&op).into()
    })
}

/// Issues `cells += a · b`, 64 x `n` in f32, over the 32 bytes of k at which the [`descriptor`]s `a`
/// (64 rows) and `b` (`n` rows, or columns if `b_major` is `MN`) point.
///
/// `cells`: the `n / 2` registers of this unit (`W` is 1), between the fences the module names.
/// PTX: `wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{S}.{S}`.
#[cube]
#[allow(unused_variables)]
pub fn issue_mma<S: Numeric, W: Size>(
    cells: &mut Array<Vector<f32, W>>,
    a: u64,
    b: u64,
    #[comptime] n: usize,
    #[comptime] a_major: Major,
    #[comptime] b_major: Major,
) {
    intrinsic!(|scope| {
        let (a, b) = (a.read_value(scope), b.read_value(scope));
        issue::<S, W>(scope, cells, a, b, n, a_major, b_major);
    })
}

/// [`issue_mma`] with the rows of `a` in registers: the elements of this unit for one step of k, 8 of a
/// 2-byte type, ordered as the cells of a 64 x k product. They must not change until the MMA is waited
/// for, and are fenced ([`fence_fragment`], [`fence_mma`]) after they were written.
#[cube]
#[allow(unused_variables)]
pub fn issue_mma_registers<S: Numeric, W: Size>(
    cells: &mut Array<Vector<f32, W>>,
    a: &Array<S>,
    b: u64,
    #[comptime] n: usize,
    #[comptime] b_major: Major,
) {
    intrinsic!(|scope| {
        let (a, b) = (a.read_value(scope), b.read_value(scope));
        issue::<S, W>(scope, cells, a, b, n, Major::K, b_major);
    })
}

/// Pins the registers of `cells` in place: no access to them moves across this point. Costs nothing.
#[cube]
#[allow(unused_variables)]
pub fn fence_cells<W: Size>(cells: &mut Array<Vector<f32, W>>) {
    intrinsic!(|scope| {
        let cells = cells.__extract_list(scope);
        scope.register(&WgmmaFenceOperandOp::new(scope.ctx_mut(), cells));
    })
}

/// [`fence_cells`] of the registers of an `a` ([`issue_mma_registers`]).
#[cube]
#[allow(unused_variables)]
pub fn fence_fragment<S: Numeric>(a: &Array<S>) {
    intrinsic!(|scope| {
        let a = a.__extract_list(scope);
        scope.register(&WgmmaFenceOperandOp::new(scope.ctx_mut(), a));
    })
}

/// Orders what the units did with registers before the MMAs that follow. PTX:
/// `wgmma.fence.sync.aligned`.
#[cube]
pub fn fence_mma() {
    intrinsic!(|scope| {
        scope.register(&WgmmaFenceOp::new(scope.ctx_mut()));
    })
}

/// Closes the group of all MMAs issued since the last such call. PTX:
/// `wgmma.commit_group.sync.aligned`.
#[cube]
pub fn commit_mma() {
    intrinsic!(|scope| {
        scope.register(&WgmmaCommitGroupOp::new(scope.ctx_mut()));
    })
}

/// Waits until at most the last `pending` groups of MMAs are still running. PTX:
/// `wgmma.wait_group.sync.aligned pending`.
#[cube]
pub fn wait_mma(#[comptime] pending: usize) {
    intrinsic!(|scope| {
        scope.register(&WgmmaWaitGroupOp::new(scope.ctx_mut(), pending));
    })
}

/// Adds one MMA to the kernel, and an error if the device has no such form.
fn issue<S: Numeric, W: Size>(
    scope: &Scope,
    cells: &NativeExpand<Array<Vector<f32, W>>>,
    a: Value,
    b: Value,
    n: usize,
    a_major: Major,
    b_major: Major,
) {
    let elem = S::elem_type(scope);
    let elems = WgmmaElems { a: elem, b: elem, cd: f32::elem_type(scope) };
    let shape = MatrixShape { m: WARPGROUP_M, n, k: WgmmaTileLayout::k_step(elem.size()) };
    let properties = scope.state().device_properties.clone();
    let known = properties.as_ref().is_none_or(|known| {
        known.features.matmul.wgmma.iter().any(|form| form.matches(elems, shape))
    });
    if !known {
        scope.push_error(format!(
            "the device has no {}x{n}x{} warpgroup MMA of {elem:?} into f32",
            shape.m, shape.k
        ));
    }
    let registers = cells.__expand_len_method(scope) * W::__expand_value(scope);
    let expected = warpgroup_elems_per_unit(n);
    if W::__expand_value(scope) != 1 || registers != expected {
        scope.push_error(format!(
            "a warpgroup MMA of {n} columns adds to {expected} single cells, not to {registers}"
        ));
    }
    let cells = cells.__extract_list(scope);
    let ty = TypeAttr::new(S::__expand_as_type(scope));
    let op = WgmmaOp::new(scope.ctx_mut(), a, b, cells, ty.clone(), ty, shape, a_major, b_major);
    scope.register(&op);
}
