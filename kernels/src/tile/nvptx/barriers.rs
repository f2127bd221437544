//! Barriers of a part of a cube's units: mbarriers, which count arrivals in shared memory, and the named barriers of the
//! hardware.

use super::copies::copies_land;
use super::{SHARED, in_space, only_nvptx};
use cubecl::prelude::*;
use cubecl_ir::attributes::IndexAttr;
use cubecl_ir::interfaces::side_effects::{MemoryEffect, MemoryEffectsOp};
use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, OperandsInfo, Result as IrResult, Rewriter as _, Value,
    op_interface_impl, op_traits,
};
use cubecl_ir::{CanMaterialize, HasSideEffects, cube_op};
use cubecl_llvm::shared::intrinsic::{call_intrinsic, call_void, int_ty};
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_i32_const;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{CastOpInterface as _, VoidType, llvm};
use pliron::irbuild::inserter::Inserter as _;

/// What is done with an mbarrier.
const INITIALISE: usize = 0;
const INVALIDATE: usize = 1;
const ARRIVE: usize = 2;
const ARRIVE_WHEN_COPIED: usize = 3;
const AWAIT: usize = 4;

/// Makes `words[at]` an mbarrier of which each phase ends with the `arrivals`-th arrival. By one unit; the others see it
/// after a barrier. PTX: `mbarrier.init`.
#[cube]
pub fn initialise_barrier(words: &mut [u64], at: usize, arrivals: u32) {
    use_barrier(words, at, arrivals, INITIALISE);
}

/// Ends the mbarrier `words[at]`, at which nobody waits, so that it can be initialised again. PTX: `mbarrier.inval`.
#[cube]
pub fn invalidate_barrier(words: &mut [u64], at: usize) {
    use_barrier(words, at, 0u32, INVALIDATE);
}

/// This unit's arrival at the mbarrier `words[at]`: what it wrote before is seen by those who wait there.
/// PTX: `mbarrier.arrive`.
#[cube]
pub fn arrive(words: &mut [u64], at: usize) {
    use_barrier(words, at, 1u32, ARRIVE);
}

/// An arrival at `words[at]` as soon as all asynchronous copies are there that this unit has started.
/// PTX: `cp.async.mbarrier.arrive.noinc`.
#[cube]
pub fn arrive_when_copied(words: &mut [u64], at: usize) {
    use_barrier(words, at, 0u32, ARRIVE_WHEN_COPIED);
}

/// Waits until the phase of the mbarrier `words[at]` whose parity is `parity` has ended: 0 for the first.
/// PTX: `mbarrier.try_wait.parity`.
#[cube]
pub fn await_arrivals(words: &mut [u64], at: usize, parity: u32) {
    use_barrier(words, at, parity, AWAIT);
}

#[cube]
#[allow(unused_variables)]
fn use_barrier(words: &mut [u64], at: usize, argument: u32, #[comptime] verb: usize) {
    intrinsic!(|scope| {
        let address = words.__expand_index_mut_method(scope, at).value(scope);
        let argument = argument.read_value(scope);
        scope.register(&BarrierOp::new(scope.ctx_mut(), address, argument, verb));
    })
}

/// Waits until all `units` units that use the hardware's barrier `id` are here, whole planes of them; 0 is that of the
/// cube. PTX: `barrier.cta.sync.aligned id, units`.
#[cube]
pub fn sync_units(#[comptime] id: usize, #[comptime] units: usize) {
    intrinsic!(|scope| {
        scope.register(&SyncUnitsOp::new(scope.ctx_mut(), id, units));
    })
}

/// `x`, as if it were not known before: what is computed of it is computed here, where the compiler would otherwise do
/// so before a loop and keep it all the while.
#[cube]
#[allow(unused_variables)]
pub fn fresh(x: u32) -> u32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        scope.register_with_result(&FreshOp::new(scope.ctx_mut(), x)).into()
    })
}

/// A use of an mbarrier.
#[cube_op(name = "dsa.barrier")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct BarrierOp {
    pub address: Value,
    pub argument: Value,
    pub verb: IndexAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for BarrierOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        copies_land()
    }
}

#[op_interface_impl]
impl ToLLVMDialect for BarrierOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let address = in_space(ctx, rewriter, self.address(ctx), SHARED);
        let argument = self.argument(ctx);
        let verb = self.verb(ctx).0;
        match verb {
            INITIALISE => {
                let name = "llvm.nvvm.mbarrier.init.shared";
                call_void(ctx, rewriter, name, vec![address, argument]);
            }
            INVALIDATE => {
                call_void(ctx, rewriter, "llvm.nvvm.mbarrier.inval.shared", vec![address]);
            }
            ARRIVE => {
                let token = int_ty(ctx, 64);
                let name = "llvm.nvvm.mbarrier.arrive.scope.cta.space.cta";
                call_intrinsic(ctx, rewriter, name, token, vec![address, argument]);
            }
            ARRIVE_WHEN_COPIED => {
                let name = "llvm.nvvm.cp.async.mbarrier.arrive.noinc.shared";
                call_void(ctx, rewriter, name, vec![address]);
            }
            _ => {
                let word = int_ty(ctx, 32);
                let address = llvm::PtrToIntOp::new(ctx, address, word);
                let address = insert(ctx, rewriter, &address);
                let text = "{\n.reg .pred done;\nwait:\n\
                            mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;\n@!done bra wait;\n}";
                let none = VoidType::get(ctx).into();
                let args = vec![address, argument];
                let wait = llvm::InlineAsmOp::new(ctx, none, args, text, "r,r,~{memory}", true);
                rewriter.insert_op(ctx, &wait);
            }
        }
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// A named barrier of the hardware.
#[cube_op(name = "dsa.sync_units")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct SyncUnitsOp {
    pub id: IndexAttr,
    pub units: IndexAttr,
}

#[op_interface_impl]
impl MemoryEffectsOp for SyncUnitsOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        copies_land()
    }
}

#[op_interface_impl]
impl ToLLVMDialect for SyncUnitsOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let (id, units) = (self.id(ctx).0 as i32, self.units(ctx).0 as i32);
        let id = insert_i32_const(ctx, rewriter, id);
        let units = insert_i32_const(ctx, rewriter, units);
        let name = "llvm.nvvm.barrier.cta.sync.aligned.count";
        call_void(ctx, rewriter, name, vec![id, units]);
        rewriter.erase_operation(ctx, self.get_operation());
        Ok(())
    }
}

/// A number that the compiler knows nothing of.
#[cube_op(name = "dsa.fresh")]
#[result_ty(same_as = input)]
#[op_traits(CanMaterialize, HasSideEffects)]
struct FreshOp {
    pub input: Value,
}

#[op_interface_impl]
impl MemoryEffectsOp for FreshOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        copies_land()
    }
}

#[op_interface_impl]
impl ToLLVMDialect for FreshOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let word = int_ty(ctx, 32);
        let args = vec![self.input(ctx)];
        let same = llvm::InlineAsmOp::new(ctx, word, args, "mov.b32 $0, $1;", "=r,r", true);
        let same = insert(ctx, rewriter, &same);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![same]);
        Ok(())
    }
}
