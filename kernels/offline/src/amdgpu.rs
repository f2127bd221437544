//! AMD code objects: what their metadata says, and their assembly.

use super::{Target, Usage};
use dsa_kernels::{KernelError, Result};
use llvm_sys::core::{
    LLVMContextCreate, LLVMContextDispose, LLVMCreateMemoryBufferWithMemoryRangeCopy,
    LLVMDisposeMemoryBuffer, LLVMDisposeMessage, LLVMDisposeModule, LLVMGetBufferSize,
    LLVMGetBufferStart,
};
use llvm_sys::error::{LLVMDisposeErrorMessage, LLVMGetErrorMessage};
use llvm_sys::ir_reader::LLVMParseIRInContext2;
use llvm_sys::prelude::{LLVMContextRef, LLVMModuleRef};
use llvm_sys::target::{LLVMDisposeTargetData, LLVMSetModuleDataLayout};
use llvm_sys::target_machine::{
    LLVMCodeGenFileType, LLVMCodeGenOptLevel, LLVMCodeModel, LLVMCreateTargetDataLayout,
    LLVMCreateTargetMachine, LLVMDisposeTargetMachine, LLVMGetTargetFromTriple, LLVMRelocMode,
    LLVMTargetMachineEmitToMemoryBuffer, LLVMTargetMachineRef,
};
use llvm_sys::transforms::pass_builder::{
    LLVMCreatePassBuilderOptions, LLVMDisposePassBuilderOptions, LLVMRunPasses,
};
use object::elf::{FileHeader64, NoteType};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader};
use rmpv::Value;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

fn failed(reason: impl Into<String>) -> KernelError {
    KernelError::Tool { tool: "LLVM for AMD", reason: reason.into() }
}

/// The type of the note that holds a code object's metadata as MessagePack.
const NT_AMDGPU_METADATA: NoteType = NoteType(32);

/// What the metadata of a code object of one kernel says.
pub(super) fn usage(code_object: &[u8]) -> Result<Usage> {
    let note = metadata(code_object)
        .map_err(|error| failed(format!("the code object is no ELF: {error}")))?
        .ok_or_else(|| failed("the code object has no metadata"))?;
    let metadata = rmpv::decode::read_value(&mut &note[..])
        .map_err(|error| failed(format!("the metadata is no MessagePack: {error}")))?;
    let kernel = field(&metadata, "amdhsa.kernels")
        .and_then(|kernels| kernels.as_array()?.first())
        .ok_or_else(|| failed("the metadata names no kernel"))?;
    let number = |name: &str| {
        field(kernel, name)
            .and_then(Value::as_u64)
            .map(|n| n as usize)
            .ok_or_else(|| failed(format!("the metadata has no {name}")))
    };
    // Scalar registers that are too few are kept in lanes of vector registers, and those in memory.
    let spilled = number(".vgpr_spill_count")? + number(".sgpr_spill_count")?;
    Ok(Usage {
        registers: number(".vgpr_count")?,
        spills: 4 * spilled,
        stack: number(".private_segment_fixed_size")?,
        shared_memory: number(".group_segment_fixed_size")?,
        matrix: BTreeMap::new(),
        warnings: Vec::new(),
    })
}

/// The bytes of the metadata note.
fn metadata(code_object: &[u8]) -> object::Result<Option<&[u8]>> {
    let header = FileHeader64::<LittleEndian>::parse(code_object)?;
    for segment in header.program_headers(LittleEndian, code_object)? {
        let Some(mut notes) = segment.notes(LittleEndian, code_object)? else { continue };
        while let Some(note) = notes.next()? {
            if note.name() == b"AMDGPU" && note.n_type(LittleEndian) == NT_AMDGPU_METADATA {
                return Ok(Some(note.desc()));
            }
        }
    }
    Ok(None)
}

/// The value of `name` in a map.
fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    map.as_map()?.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

/// The assembly of `ir`, by the passes and options with which cubecl-llvm makes the code object; it
/// keeps the assembly itself only while it dumps everything to a folder.
pub(super) fn assemble(ir: &str, target: Target) -> Result<String> {
    let module = Module::parse(ir)?;
    let machine = Machine::new(target)?;
    module.optimise(&machine)?;
    module.emit(&machine)
}

/// A module in a context of its own.
struct Module {
    context: LLVMContextRef,
    module: LLVMModuleRef,
}

impl Module {
    fn parse(ir: &str) -> Result<Self> {
        // SAFETY: the buffer is a copy of `ir`, which the parser does not keep and we dispose; the
        // context outlives the module, both are owned by the value returned, or disposed on failure.
        unsafe {
            let context = LLVMContextCreate();
            let start = ir.as_ptr().cast::<c_char>();
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(start, ir.len(), c"kernel".as_ptr());
            let (mut module, mut error) = (null_mut(), null_mut());
            let refused = LLVMParseIRInContext2(context, buffer, &mut module, &mut error) != 0;
            LLVMDisposeMemoryBuffer(buffer);
            if refused {
                LLVMContextDispose(context);
                return Err(failed(message(error)));
            }
            Ok(Self { context, module })
        }
    }

    fn optimise(&self, machine: &Machine) -> Result<()> {
        // SAFETY: module and machine are alive; the module copies the layout, which is ours; an error
        // handed back is ours and consumed by reading it.
        unsafe {
            let layout = LLVMCreateTargetDataLayout(machine.0);
            LLVMSetModuleDataLayout(self.module, layout);
            LLVMDisposeTargetData(layout);
            let options = LLVMCreatePassBuilderOptions();
            let error = LLVMRunPasses(self.module, c"default<O3>".as_ptr(), machine.0, options);
            LLVMDisposePassBuilderOptions(options);
            if error.is_null() {
                return Ok(());
            }
            let text = LLVMGetErrorMessage(error);
            let reason = CStr::from_ptr(text).to_string_lossy().into_owned();
            LLVMDisposeErrorMessage(text);
            Err(failed(reason))
        }
    }

    fn emit(&self, machine: &Machine) -> Result<String> {
        let kind = LLVMCodeGenFileType::LLVMAssemblyFile;
        // SAFETY: module and machine are alive; the buffer handed back is ours, read within its length
        // and disposed.
        unsafe {
            let (mut buffer, mut error) = (null_mut(), null_mut());
            let refused = LLVMTargetMachineEmitToMemoryBuffer(
                machine.0,
                self.module,
                kind,
                &mut error,
                &mut buffer,
            ) != 0;
            if refused {
                return Err(failed(message(error)));
            }
            let start = LLVMGetBufferStart(buffer).cast::<u8>();
            let bytes = std::slice::from_raw_parts(start, LLVMGetBufferSize(buffer));
            let text = String::from_utf8_lossy(bytes).into_owned();
            LLVMDisposeMemoryBuffer(buffer);
            Ok(text)
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: both are owned by this value; the module goes before its context.
        unsafe {
            LLVMDisposeModule(self.module);
            LLVMContextDispose(self.context);
        }
    }
}

/// LLVM's model of the target.
struct Machine(LLVMTargetMachineRef);

impl Machine {
    fn new(target: Target) -> Result<Self> {
        let cpu = CString::new(target.name()).map_err(|error| failed(error.to_string()))?;
        let triple = c"amdgcn-amd-amdhsa";
        // SAFETY: all strings outlive the calls, which copy them. The AMD target is registered: only
        // code that was compiled for it comes here.
        unsafe {
            let (mut llvm_target, mut error) = (null_mut(), null_mut());
            if LLVMGetTargetFromTriple(triple.as_ptr(), &mut llvm_target, &mut error) != 0 {
                return Err(failed(message(error)));
            }
            let machine = LLVMCreateTargetMachine(
                llvm_target,
                triple.as_ptr(),
                cpu.as_ptr(),
                c"".as_ptr(),
                LLVMCodeGenOptLevel::LLVMCodeGenLevelAggressive,
                LLVMRelocMode::LLVMRelocPIC,
                LLVMCodeModel::LLVMCodeModelDefault,
            );
            if machine.is_null() {
                return Err(failed(format!("there is no machine {target}")));
            }
            Ok(Self(machine))
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the machine is owned by this value.
        unsafe { LLVMDisposeTargetMachine(self.0) }
    }
}

/// # Safety
/// `text` must be a message that LLVM handed over, or null.
unsafe fn message(text: *mut c_char) -> String {
    if text.is_null() {
        return "LLVM gave no reason".to_string();
    }
    // SAFETY: the caller's contract; the message is read before it is disposed, once.
    unsafe {
        let reason = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeMessage(text);
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_code_object_or_no_ir_is_refused_with_a_reason() {
        for bytes in [&b""[..], b"no ELF at all", &[0x7f; 64]] {
            let error = usage(bytes).expect_err("refused").to_string();
            assert!(error.contains("ELF"), "{error}");
        }
        // A code object was compiled before any is assembled, which registers the target.
        let error = Module::parse("this is no IR").map(|_| ()).expect_err("refused").to_string();
        assert!(error.starts_with("LLVM for AMD: ") && error.len() > 20, "{error}");
    }
}
