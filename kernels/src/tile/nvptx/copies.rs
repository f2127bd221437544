//! Copies to shared memory that run while the units compute, and asking for a line of the cache.

use super::{GLOBAL, SHARED, in_space, only_nvptx};
use crate::tile::LANES;
use cubecl::prelude::*;
use cubecl_ir::attributes::IndexAttr;
use cubecl_ir::interfaces::side_effects::{MemoryEffect, MemoryEffectsOp};
use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, OperandsInfo, Result as IrResult, Rewriter as _,
    Typed as _, Value, op_interface_impl, op_traits,
};
use cubecl_ir::{AddressSpace, CanMaterialize, HasSideEffects, cube_op};
use cubecl_llvm::shared::intrinsic::{call_void, int_ty};
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_i32_const;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{CastOpInterface as _, llvm};

/// Bytes that one asynchronous copy moves.
pub const COPY_BYTES: usize = 16;

/// Starts an asynchronous copy of [`COPY_BYTES`] bytes from `source[from]` to shared memory, beginning at
/// the vector `tile[to]`; zeros if not `valid`. PTX: `cp.async.cg.shared.global [to], [from], 16, size`.
///
/// A vector of `source` is 16 bytes, and `E` and `S` have the same size: nothing is converted. 16 bytes
/// are one vector of a 2-byte `S`, two of a 1-byte `S` (then `to` is even), half of one of a 4-byte `S`
/// (refused). `from` must be an index of `source` even if not `valid`, although nothing is read then.
///
/// The bytes are there for this unit after [`commit_copies`] and [`wait_copies`], for the others after a
/// barrier as well, and for a warpgroup MMA after `sync_async_proxy_shared` before that barrier.
#[cube]
pub fn copy_async<E: Numeric, N: Size, S: Numeric>(
    tile: &mut [Vector<S, Const<8>>],
    to: usize,
    source: &[Vector<E, N>],
    from: usize,
    valid: bool,
) {
    copy_some(tile, to, source, from, select(valid, 16u32, 0u32));
}

/// [`copy_async`] of the first `bytes` bytes, and zeros for the rest.
#[cube]
#[allow(unused_variables)]
fn copy_some<E: Numeric, N: Size, S: Numeric>(
    tile: &mut [Vector<S, Const<8>>],
    to: usize,
    source: &[Vector<E, N>],
    from: usize,
    bytes: u32,
) {
    intrinsic!(|scope| {
        let (kept, stored) = (S::elem_type(scope).size(), E::elem_type(scope).size());
        let width = N::__expand_value(scope);
        if stored * width != COPY_BYTES || kept != stored || kept * LANES > COPY_BYTES {
            scope.push_error(format!(
                "an asynchronous copy moves {COPY_BYTES} bytes, not {width} elements of {stored} \
                 bytes to a tile of elements of {kept}"
            ));
        }
        let destination = tile.__expand_index_mut_method(scope, to).value(scope);
        let source = source.__expand_index_method(scope, from).value(scope);
        let bytes = bytes.read_value(scope);
        scope.register(&CopyOp::new(scope.ctx_mut(), source, destination, bytes));
    })
}

/// Closes the group of all copies this unit started since the last such call.
/// PTX: `cp.async.commit_group`.
#[cube]
pub fn commit_copies() {
    intrinsic!(|scope| {
        scope.register(&CommitCopiesOp::new(scope.ctx_mut()));
    })
}

/// Waits until at most the last `pending` groups of this unit's copies are still under way.
/// PTX: `cp.async.wait_group pending`.
#[cube]
pub fn wait_copies(#[comptime] pending: usize) {
    intrinsic!(|scope| {
        scope.register(&WaitCopiesOp::new(scope.ctx_mut(), pending));
    })
}

/// Asks for the line of the first-level cache that `source[at]` is in. `at` must be an index of `source`.
/// PTX: `prefetch.global.L1`.
#[cube]
#[allow(unused_variables)]
pub fn prefetch_line<E: CubePrimitive>(source: &[E], at: usize) {
    intrinsic!(|scope| {
        let address = source.__expand_index_method(scope, at).value(scope);
        scope.register(&PrefetchOp::new(scope.ctx_mut(), address));
    })
}

/// The four bytes of `source[at]`, asked for here and not where they are used: the assembler moves other reads below
/// the products and barriers that come before their use, and what they hide is lost. PTX: `ld.global.b32`.
#[cube]
#[allow(unused_variables)]
pub fn read_early_32<E: CubePrimitive>(source: &[E], at: usize) -> u32 {
    let like = 0u32.runtime();
    intrinsic!(|scope| {
        let address = source.__expand_index_method(scope, at).value(scope);
        let like = like.read_value(scope);
        scope.register_with_result(&ReadEarlyOp::new(scope.ctx_mut(), address, like)).into()
    })
}

/// [`read_early_32`] of eight bytes. PTX: `ld.global.b64`.
#[cube]
#[allow(unused_variables)]
pub fn read_early_64<E: CubePrimitive>(source: &[E], at: usize) -> u64 {
    let like = 0u64.runtime();
    intrinsic!(|scope| {
        let address = source.__expand_index_method(scope, at).value(scope);
        let like = like.read_value(scope);
        scope.register_with_result(&ReadEarlyOp::new(scope.ctx_mut(), address, like)).into()
    })
}

/// A copy of 16 bytes to shared memory, of which the first `bytes` are read and the rest are zeros.
#[cube_op(name = "dsa.copy_async")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct CopyOp {
    pub source: Value,
    pub destination: Value,
    pub bytes: Value,
}

#[op_interface_impl]
impl MemoryEffectsOp for CopyOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::Read(self.source(ctx)), MemoryEffect::Write(self.destination(ctx))]
    }
}

#[op_interface_impl]
impl ToLLVMDialect for CopyOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let destination = in_space(ctx, rewriter, self.destination(ctx), SHARED);
        let source = in_space(ctx, rewriter, self.source(ctx), GLOBAL);
        let args = vec![destination, source, self.bytes(ctx)];
        // The intrinsic and not inline PTX: LLVM folds constant offsets into its addresses.
        call_void(ctx, rewriter, "llvm.nvvm.cp.async.cg.shared.global.16.s", args);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// The end of a group of copies.
#[cube_op(name = "dsa.commit_copies")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct CommitCopiesOp {}

#[op_interface_impl]
impl MemoryEffectsOp for CommitCopiesOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        copies_land()
    }
}

#[op_interface_impl]
impl ToLLVMDialect for CommitCopiesOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        call_void(ctx, rewriter, "llvm.nvvm.cp.async.commit.group", vec![]);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// The wait for all but the last `pending` groups of copies.
#[cube_op(name = "dsa.wait_copies")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct WaitCopiesOp {
    pub pending: IndexAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for WaitCopiesOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        copies_land()
    }
}

#[op_interface_impl]
impl ToLLVMDialect for WaitCopiesOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let pending = self.pending(ctx).0 as i32;
        let pending = insert_i32_const(ctx, rewriter, pending);
        call_void(ctx, rewriter, "llvm.nvvm.cp.async.wait.group", vec![pending]);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// A read of global memory that stays where it is, of as many bits as `like`.
#[cube_op(name = "dsa.read_early")]
#[result_ty(same_as = like)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct ReadEarlyOp {
    pub address: Value,
    pub like: Value,
}

#[op_interface_impl]
impl MemoryEffectsOp for ReadEarlyOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::Read(self.address(ctx))]
    }
}

#[op_interface_impl]
impl ToLLVMDialect for ReadEarlyOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let (word, long) = (int_ty(ctx, 32), int_ty(ctx, 64));
        let address = in_space(ctx, rewriter, self.address(ctx), GLOBAL);
        let address = llvm::PtrToIntOp::new(ctx, address, long);
        let address = insert(ctx, rewriter, &address);
        let ty = self.like(ctx).get_type(ctx);
        let (text, constraints) = if ty == word {
            ("ld.global.b32 $0, [$1];", "=r,l")
        } else {
            ("ld.global.b64 $0, [$1];", "=l,l")
        };
        let read = llvm::InlineAsmOp::new(ctx, ty, vec![address], text, constraints, true);
        let read = insert(ctx, rewriter, &read);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![read]);
        Ok(())
    }
}

/// A line of global memory on its way to the first-level cache.
#[cube_op(name = "dsa.prefetch_line")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct PrefetchOp {
    pub address: Value,
}

#[op_interface_impl]
impl MemoryEffectsOp for PrefetchOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::Read(self.address(ctx))]
    }
}

#[op_interface_impl]
impl ToLLVMDialect for PrefetchOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let address = in_space(ctx, rewriter, self.address(ctx), GLOBAL);
        call_void(ctx, rewriter, "llvm.nvvm.prefetch.global.L1", vec![address]);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// What committing and waiting do to memory: after them shared memory may hold other bytes than before,
/// wherever the copies under way write, so no load from it is the same as one before.
pub(super) fn copies_land() -> Vec<MemoryEffect> {
    vec![
        MemoryEffect::ReadAllInSpace(AddressSpace::Shared),
        MemoryEffect::WriteAllInSpace(AddressSpace::Shared),
    ]
}
