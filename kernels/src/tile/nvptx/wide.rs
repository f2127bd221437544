//! Copies to shared memory with what CubeCL's and LLVM's own lack: a hint to the second-level cache, eight bytes, and
//! constants that are added to addresses.

use super::copies::COPY_BYTES;
use super::{GLOBAL, SHARED, in_space, only_nvptx};
use crate::tile::LANES;
use cubecl::prelude::*;
use cubecl_ir::attributes::IndexAttr;
use cubecl_ir::interfaces::side_effects::{MemoryEffect, MemoryEffectsOp};
use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, OperandsInfo, Result as IrResult, Rewriter as _, Value,
    op_interface_impl, op_traits,
};
use cubecl_ir::{AddressSpace, CanMaterialize, HasSideEffects, cube_op};
use cubecl_llvm::shared::intrinsic::int_ty;
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{CastOpInterface as _, VoidType, llvm};
use pliron::irbuild::inserter::Inserter as _;

/// [`copy_async`](super::copy_async) to `tile[to + more_to]` from `source[from + more_from]`, which also asks the
/// second-level cache for the rest of the 256 bytes that the source is in.
/// PTX: `cp.async.cg.shared.global.L2::256B`.
#[cube]
#[allow(unused_variables)]
pub fn copy_async_wide<E: Numeric, N: Size, S: Numeric>(
    tile: &mut [Vector<S, Const<8>>],
    to: usize,
    source: &[Vector<E, N>],
    from: usize,
    valid: bool,
    #[comptime] more_to: usize,
    #[comptime] more_from: usize,
) {
    let bytes = select(valid, 16u32, 0u32);
    intrinsic!(|scope| {
        let (kept, stored) = (S::elem_type(scope).size(), E::elem_type(scope).size());
        let width = N::__expand_value(scope);
        if stored * width != COPY_BYTES || kept != stored || kept * LANES != COPY_BYTES {
            scope.push_error(format!(
                "a wide copy moves {COPY_BYTES} bytes, not {width} elements of {stored} bytes to a tile of \
                 elements of {kept}"
            ));
        }
        let destination = tile.__expand_index_mut_method(scope, to).value(scope);
        let source = source.__expand_index_method(scope, from).value(scope);
        let bytes = bytes.read_value(scope);
        let (to, from) = (more_to * COPY_BYTES, more_from * COPY_BYTES);
        let op = WideCopyOp::new(scope.ctx_mut(), destination, source, bytes, to, from, COPY_BYTES);
        scope.register(&op);
    })
}

/// Copies the [`COPY_BYTES`] bytes of `tile[to]` in two halves from the vectors of eight bytes `source[from]` and the
/// next, which need begin at a multiple of eight bytes alone. PTX: `cp.async.ca.shared.global`, twice.
#[cube]
#[allow(unused_variables)]
pub fn copy_async_halves<B: Size, S: Numeric>(
    tile: &mut [Vector<S, Const<8>>],
    to: usize,
    source: &[Vector<u8, B>],
    from: usize,
    valid: bool,
) {
    let bytes = select(valid, 8u32, 0u32);
    intrinsic!(|scope| {
        let (size, width) = (S::elem_type(scope).size(), B::__expand_value(scope));
        if size * LANES != COPY_BYTES || width != COPY_BYTES / 2 {
            scope.push_error(format!(
                "a copy in halves moves {COPY_BYTES} bytes in vectors of 8, not of {width} to elements of {size}"
            ));
        }
        let destination = tile.__expand_index_mut_method(scope, to).value(scope);
        let source = source.__expand_index_method(scope, from).value(scope);
        let bytes = bytes.read_value(scope);
        for half in [0, COPY_BYTES / 2] {
            let size = COPY_BYTES / 2;
            let op = WideCopyOp::new(scope.ctx_mut(), destination, source, bytes, half, half, size);
            scope.register(&op);
        }
    })
}

/// A copy of `size` bytes to shared memory, of which the first `bytes` are read; `to` and `from` are bytes that are
/// added to the addresses.
#[cube_op(name = "dsa.copy_async_wide")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct WideCopyOp {
    pub destination: Value,
    pub source: Value,
    pub bytes: Value,
    pub to: IndexAttr,
    pub from: IndexAttr,
    pub size: IndexAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for WideCopyOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        vec![
            MemoryEffect::Read(self.source(ctx)),
            MemoryEffect::ReadAllInSpace(AddressSpace::Shared),
            MemoryEffect::WriteAllInSpace(AddressSpace::Shared),
        ]
    }
}

#[op_interface_impl]
impl ToLLVMDialect for WideCopyOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let (word, long) = (int_ty(ctx, 32), int_ty(ctx, 64));
        let destination = in_space(ctx, rewriter, self.destination(ctx), SHARED);
        let destination = llvm::PtrToIntOp::new(ctx, destination, word);
        let destination = insert(ctx, rewriter, &destination);
        let source = in_space(ctx, rewriter, self.source(ctx), GLOBAL);
        let source = llvm::PtrToIntOp::new(ctx, source, long);
        let source = insert(ctx, rewriter, &source);
        // No intrinsic has the hint. What is constant of the addresses stands in the text: as operands each would
        // be an addition, and a register.
        let (to, from, size) = (self.to(ctx).0, self.from(ctx).0, self.size(ctx).0);
        let kind =
            if size == COPY_BYTES { "cg.shared.global.L2::256B" } else { "ca.shared.global" };
        let text = format!("cp.async.{kind} [$0+{to}], [$1+{from}], {size}, $2;");
        let none = VoidType::get(ctx).into();
        let args = vec![destination, source, self.bytes(ctx)];
        let copy = llvm::InlineAsmOp::new(ctx, none, args, &text, "r,l,r,~{memory}", true);
        rewriter.insert_op(ctx, &copy);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}
