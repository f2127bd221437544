//! Numbers in one instruction: a power of two, a reciprocal, and what fp8 codes stand for.

use super::only_nvptx;
use cubecl::prelude::*;
use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, OperandsInfo, Result as IrResult, Rewriter as _,
    Typed as _, Value, op_interface_impl, op_traits,
};
use cubecl_ir::{CanMaterialize, Pure, cube_op};
use cubecl_llvm::shared::intrinsic::{call_intrinsic, int_ty};
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{
    CastOpInterface as _, FP16Type, LlvmVectorType, VectorTypeKind, llvm,
};

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
