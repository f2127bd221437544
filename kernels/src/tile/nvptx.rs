//! Instructions of NVIDIA GPUs that CubeCL has no name for, as operations of our own in its IR: copies
//! to shared memory that run while the units compute (`cp.async`), a power of two in one instruction, and
//! the conversion of fp8 codes, for which CubeCL emits some ten integer instructions each.
//!
//! CubeCL lowers whatever implements its `ToLLVMDialect`, so an operation takes three pieces: a
//! `#[cube_op]` struct, what it does to memory (by which CubeCL's optimiser orders it), and the LLVM it
//! becomes. They exist on NVPTX alone: a body chooses them at compile time, and another target refuses
//! them by name.

use super::LANES;
use cubecl::prelude::*;
use cubecl_ir::attributes::IndexAttr;
use cubecl_ir::interfaces::side_effects::{MemoryEffect, MemoryEffectsOp};
use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, OperandsInfo, Result as IrResult, Rewriter as _,
    Typed as _, Value, op_interface_impl, op_traits,
};
use cubecl_ir::{AddressSpace, CanMaterialize, HasSideEffects, Pure, cube_op};
use cubecl_llvm::LlvmTarget;
use cubecl_llvm::shared::intrinsic::{call_intrinsic, call_void, int_ty};
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::constant::insert_i32_const;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{
    CastOpInterface as _, FP16Type, LlvmPointerType, LlvmVectorType, VectorTypeKind, llvm,
};
use cubecl_llvm::target::CtxTarget as _;
use pliron::input_err;

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
    copy_some::<E, N, S>(tile, to, source, from, select(valid, 16u32, 0u32));
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

/// 2 to the power of `x`, to about 2 units in the last place; subnormals count as zero.
/// PTX: `ex2.approx.ftz.f32`.
#[cube]
#[allow(unused_variables)]
pub fn exp2_fast(x: f32) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        scope.register_with_result(&Exp2FastOp::new(scope.ctx_mut(), x)).into()
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

/// `1 / x` to 1 unit in the last place; 0 of an infinity, subnormals count as zero.
/// PTX: `rcp.approx.ftz.f32`.
#[cube]
#[allow(unused_variables)]
pub fn reciprocal_fast(x: f32) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        scope.register_with_result(&ReciprocalFastOp::new(scope.ctx_mut(), x)).into()
    })
}

/// The two e4m3 codes in the lower half of `codes` as two f16, exactly, the first in the lower half; a NaN
/// code is a NaN. PTX: `cvt.rn.f16x2.e4m3x2` (sm_89).
#[cube]
#[allow(unused_variables)]
pub fn widen_codes(codes: u32) -> u32 {
    intrinsic!(|scope| {
        let codes = codes.read_value(scope);
        scope.register_with_result(&WidenCodesOp::new(scope.ctx_mut(), codes)).into()
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

/// 2 to the power of an f32.
#[cube_op(name = "dsa.exp2_fast")]
#[result_ty(same_as = input)]
#[op_traits(CanMaterialize, Pure)]
struct Exp2FastOp {
    pub input: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for Exp2FastOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        let input = self.input(ctx);
        of_one_number(self, ctx, rewriter, input, "llvm.nvvm.ex2.approx.ftz.f32")
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

/// The reciprocal of an f32.
#[cube_op(name = "dsa.reciprocal_fast")]
#[result_ty(same_as = input)]
#[op_traits(CanMaterialize, Pure)]
struct ReciprocalFastOp {
    pub input: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for ReciprocalFastOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        let input = self.input(ctx);
        of_one_number(self, ctx, rewriter, input, "llvm.nvvm.rcp.approx.ftz.f")
    }
}

/// Two f16 of two e4m3 codes.
#[cube_op(name = "dsa.widen_codes")]
#[result_ty(same_as = input)]
#[op_traits(CanMaterialize, Pure)]
struct WidenCodesOp {
    pub input: Value,
}

#[op_interface_impl]
impl ToLLVMDialect for WidenCodesOp {
    fn rewrite(
        &self,
        ctx: &mut Context,
        rewriter: &mut DialectConversionRewriter,
        _operands_info: &OperandsInfo,
    ) -> IrResult<()> {
        only_nvptx(self, ctx)?;
        let (word, pair) = (int_ty(ctx, 32), int_ty(ctx, 16));
        let half = FP16Type::get(ctx).into();
        let halves = LlvmVectorType::get(ctx, half, 2, VectorTypeKind::Fixed).into();
        let codes = llvm::TruncOp::new(ctx, self.input(ctx), pair);
        let codes = insert(ctx, rewriter, &codes);
        let name = "llvm.nvvm.e4m3x2.to.f16x2.rn";
        let two = call_intrinsic(ctx, rewriter, name, halves, vec![codes]);
        let bits = llvm::BitcastOp::new(ctx, two, word);
        let bits = insert(ctx, rewriter, &bits);
        rewriter.replace_operation_with_values(ctx, self.get_operation(), vec![bits]);
        Ok(())
    }
}

/// Replaces `op` by a call of the intrinsic `name`, which makes a number of `input` of the same type.
fn of_one_number(
    op: &dyn Op,
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    input: Value,
    name: &str,
) -> IrResult<()> {
    only_nvptx(op, ctx)?;
    let ty = input.get_type(ctx);
    let result = call_intrinsic(ctx, rewriter, name, ty, vec![input]);
    rewriter.replace_operation_with_values(ctx, op.get_operation(), vec![result]);
    Ok(())
}

/// What committing and waiting do to memory: after them shared memory may hold other bytes than before,
/// wherever the copies under way write, so no load from it is the same as one before.
fn copies_land() -> Vec<MemoryEffect> {
    vec![
        MemoryEffect::ReadAllInSpace(AddressSpace::Shared),
        MemoryEffect::WriteAllInSpace(AddressSpace::Shared),
    ]
}

/// NVPTX's number of global memory.
const GLOBAL: u32 = 1;
/// NVPTX's number of the shared memory of a cube.
const SHARED: u32 = 3;

/// `pointer` as a pointer into the memory `space`, in which it must point.
fn in_space(
    ctx: &mut Context,
    rewriter: &mut DialectConversionRewriter,
    pointer: Value,
    space: u32,
) -> Value {
    let ty = LlvmPointerType::get(ctx, space).into();
    if pointer.get_type(ctx) == ty {
        return pointer;
    }
    let cast = llvm::AddrSpaceCastOp::new(ctx, pointer, ty);
    insert(ctx, rewriter, &cast)
}

/// An instruction of NVIDIA GPUs in a kernel for something else.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{operation}` is an instruction of NVIDIA GPUs, and this kernel is compiled for {target:?}"
)]
struct NvptxOnly {
    operation: String,
    target: LlvmTarget,
}

/// Refuses `op` unless the kernel is compiled for NVPTX.
fn only_nvptx(op: &dyn Op, ctx: &Context) -> IrResult<()> {
    match ctx.target() {
        LlvmTarget::Nvptx => Ok(()),
        target => {
            input_err!(op.loc(ctx), NvptxOnly { operation: op.get_opid().to_string(), target })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::{Offline, Target};
    use crate::{DType, KernelError};

    /// Copies the same bytes `times` times and adds up what it finds: nothing of it may leave the loop.
    #[cube(launch_unchecked)]
    fn repeated<N: Size>(source: &[Vector<u8, N>], out: &mut [u32], times: u32) {
        let unit = UNIT_POS as usize;
        let mut tile = Shared::<[Vector<u8, Const<8>>]>::new_aligned_slice(64usize, 16usize);
        let mut sum = 0u32.runtime();
        for _ in 0..times {
            copy_async(&mut tile, 2 * unit, source, unit, true);
            commit_copies();
            wait_copies(0usize);
            sum += u32::cast_from(tile[2 * unit].extract(0usize));
        }
        out[unit] = sum;
    }

    #[cube(launch_unchecked)]
    fn powers(out: &mut [f32]) {
        out[UNIT_POS as usize] = exp2_fast(out[UNIT_POS as usize]);
    }

    /// What compiling [`repeated`] from vectors of `width` bytes for a Hopper comes to.
    fn repeated_of(width: usize) -> crate::Result<String> {
        let artefacts = Offline::open(Target::Sm90a)?.compile(|device| {
            let source = device.empty(&[32 * width], DType::U8)?;
            let out = device.empty(&[32], DType::I32)?;
            // SAFETY: both buffers hold what 32 units read and write; and nothing runs offline.
            unsafe {
                repeated::launch_unchecked(
                    device.client(),
                    CubeCount::Static(1, 1, 1),
                    CubeDim::new_1d(32),
                    width,
                    source.arg(width),
                    out.arg(1),
                    3,
                );
            }
            Ok::<_, KernelError>(())
        })?;
        artefacts[0].assembly()
    }

    #[test]
    fn a_copy_that_looks_invariant_stays_in_its_loop() {
        let ptx = repeated_of(16).unwrap();
        let after = |from: usize, what: &str| {
            from + ptx[from..].find(what).unwrap_or_else(|| panic!("no {what} in {ptx}"))
        };
        let mut at = after(0, "\n$L__BB0_");
        for what in [
            "cp.async.cg.shared.global",
            "cp.async.commit_group",
            "cp.async.wait_group",
            "ld.shared",
            "bra",
        ] {
            at = after(at, what);
        }
        assert_eq!(ptx.matches("ld.shared").count(), ptx.matches("cp.async.cg").count(), "{ptx}");
    }

    #[test]
    fn a_copy_of_other_than_16_bytes_is_refused() {
        let error = repeated_of(8).unwrap_err().to_string();
        assert!(error.contains("not 8 elements of 1 bytes"), "{error}");
    }

    #[test]
    fn another_target_refuses_the_instruction_by_name() {
        let compiled = Offline::open(Target::Gfx950).unwrap().compile(|device| {
            let out = device.empty(&[64], DType::F32)?;
            let (count, dim) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(64));
            // SAFETY: the buffer holds what 64 units read and write; and nothing runs offline.
            unsafe { powers::launch_unchecked(device.client(), count, dim, out.arg(1)) };
            Ok::<_, KernelError>(())
        });
        let error = compiled.unwrap_err().to_string();
        assert!(error.contains("dsa.exp2_fast") && error.contains("NVIDIA"), "{error}");
    }
}
