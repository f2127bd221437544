//! Instructions of NVIDIA GPUs that CubeCL has no name for, as operations of our own in its IR: copies
//! to shared memory that run while the units compute (`cp.async`), barriers of some of a cube's units, a power of two
//! in one instruction, and the conversion of fp8 codes, for which CubeCL emits some ten integer instructions each.
//!
//! CubeCL lowers whatever implements its `ToLLVMDialect`, so an operation takes three pieces: a
//! `#[cube_op]` struct, what it does to memory (by which CubeCL's optimiser orders it), and the LLVM it
//! becomes. The pieces of all operations look alike, since CubeCL asks for each of them by name. They exist on NVPTX alone: a body chooses them at compile time, and another target refuses
//! them by name.

mod barriers;
mod copies;
mod numbers;
mod wide;

pub use barriers::*;
pub use copies::*;
pub use numbers::*;
pub use wide::*;

use cubecl_ir::prelude::{
    Context, DialectConversionRewriter, Op, Result as IrResult, Typed as _, Value,
};
use cubecl_llvm::LlvmTarget;
use cubecl_llvm::shared::to_llvm::insert::insert;
use cubecl_llvm::shared::to_llvm::prelude::{CastOpInterface as _, LlvmPointerType, llvm};
use cubecl_llvm::target::CtxTarget as _;
use pliron::input_err;

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
