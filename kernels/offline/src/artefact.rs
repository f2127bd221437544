//! What a kernel was compiled to, and what can be read off it.

use super::{Target, amdgpu, ptxas};
use dsa_kernels::Result;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Code in the form the target's driver loads.
#[derive(Clone, Debug)]
pub enum Code {
    /// PTX, which the driver assembles.
    Ptx(String),
    /// An AMD code object: ELF.
    AmdGpu(Vec<u8>),
}

/// One compiled kernel: one choice of its comptime values and element types.
#[derive(Debug)]
pub struct Artefact {
    /// What it was compiled for.
    pub target: Target,
    /// The kernel's type, whose path begins with the module that defines it.
    pub kernel: &'static str,
    /// The entry point's symbol.
    pub entry: String,
    /// Units of a cube.
    pub units: usize,
    /// Shared memory a launch reserves, in bytes.
    pub shared_memory: usize,
    /// LLVM IR, before LLVM's passes.
    pub ir: String,
    /// The compiled code.
    pub code: Code,
    /// Read off the code when it is first asked for: ptxas takes seconds.
    pub(super) usage: OnceLock<Usage>,
}

/// What a compiled kernel takes of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// 32-bit vector registers of a unit; on AMD those for accumulation among them.
    pub registers: usize,
    /// Bytes of registers that a unit keeps in memory because it has too few.
    pub spills: usize,
    /// Bytes of memory of its own that a unit has: spills, and arrays that are not in registers.
    pub stack: usize,
    /// Bytes of shared memory of a cube.
    pub shared_memory: usize,
    /// Matrix instructions by kind (`wgmma e4m3`, `mfma bf16`), counted in the code. Empty: vector
    /// arithmetic only.
    pub matrix: BTreeMap<String, usize>,
    /// What the assembler warned of.
    pub warnings: Vec<String>,
}

impl Usage {
    /// The warnings that say that warpgroup products wait for each other: all of them, or where ptxas
    /// had to put a wait between two.
    pub fn serialised(&self) -> impl Iterator<Item = &str> {
        let serialised = |line: &&str| {
            line.contains("wgmma.mma_async instructions are serialized")
                || line.contains("warpgroup.wait is injected")
        };
        self.warnings.iter().map(String::as_str).filter(serialised)
    }

    /// The matrix instructions as text: `64 wgmma e4m3`, or `vector arithmetic`.
    pub fn matrix_text(&self) -> String {
        if self.matrix.is_empty() {
            return "vector arithmetic".to_string();
        }
        let kinds: Vec<_> = self.matrix.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        kinds.join(", ")
    }
}

impl Artefact {
    /// The source file in `kernels/src` that defines the kernel: `indexer.rs`.
    pub fn file(&self) -> String {
        let path = self.kernel.split('<').next().unwrap_or(self.kernel);
        // dsa_kernels::FILE::module_of_the_macro::Type
        let parts: Vec<_> = path.split("::").collect();
        let modules = parts.get(1..parts.len().saturating_sub(2)).unwrap_or_default();
        format!("{}.rs", modules.join("/"))
    }

    /// The name of the kernel's function: `indexer_kernel`.
    pub fn function(&self) -> &str {
        let path = self.kernel.split('<').next().unwrap_or(self.kernel);
        path.rsplit("::").nth(1).unwrap_or(path)
    }

    /// The assembly: PTX for NVIDIA (assembling it further needs tools that are not fetched), the
    /// instructions themselves for AMD.
    ///
    /// # Errors
    /// [`KernelError::Tool`](dsa_kernels::KernelError::Tool) if LLVM refuses its own IR.
    pub fn assembly(&self) -> Result<String> {
        match &self.code {
            Code::Ptx(ptx) => Ok(ptx.clone()),
            Code::AmdGpu(_) => amdgpu::assemble(&self.ir, self.target),
        }
    }

    /// What the kernel takes of its device: by ptxas, or by the code object's own metadata.
    ///
    /// # Errors
    /// [`KernelError::Tool`](dsa_kernels::KernelError::Tool) if ptxas is missing or refuses the PTX, or if the
    /// code object's metadata is not understood.
    pub fn usage(&self) -> Result<&Usage> {
        if let Some(usage) = self.usage.get() {
            return Ok(usage);
        }
        let mut usage = match &self.code {
            Code::Ptx(ptx) => ptxas::usage(ptx, self.target)?,
            Code::AmdGpu(object) => amdgpu::usage(object)?,
        };
        // Shared memory is reserved by the launch, not by the code.
        usage.shared_memory += self.shared_memory;
        for line in self.assembly()?.lines() {
            if let Some(kind) = matrix_kind(line) {
                *usage.matrix.entry(kind).or_default() += 1;
            }
        }
        Ok(self.usage.get_or_init(|| usage))
    }
}

/// The kind of the matrix instruction in a line of assembly, if it is one.
fn matrix_kind(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with("//") || line.starts_with(';') {
        return None;
    }
    let word = line.split_whitespace().find(|word| {
        ["wgmma.mma_async", "mma.sync", "wmma.mma", "v_mfma_", "v_smfmac_"]
            .iter()
            .any(|name| word.starts_with(name))
    })?;
    if let Some(name) = word.strip_prefix("v_") {
        // v_mfma_f32_16x16x32_bf16, v_mfma_f32_16x16x32_fp8_fp8: the operands follow the shape.
        let unit = name.split('_').next()?;
        let shape = name.split('_').position(|part| part.matches('x').count() == 2)?;
        let operands: Vec<_> =
            name.split('_').skip(shape + 1).filter(|part| *part != "e64").collect();
        return Some(format!("{unit} {}", operands.join("_")));
    }
    // wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3: result, then operands.
    let parts: Vec<_> = word.split('.').collect();
    let unit = parts.first()?;
    let shape = parts.iter().position(|part| part.starts_with('m') && part.contains('k'))?;
    let types: Vec<_> = parts[shape + 1..]
        .iter()
        .filter(|part| !["row", "col", "sp", "satfinite"].contains(part))
        .collect();
    types.get(1).map(|operand| format!("{unit} {operand}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_instructions_are_told_by_their_unit_and_operands() {
        let kind = |line| matrix_kind(line).unwrap_or_default();
        assert_eq!(
            kind("\twgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {%f1}, %rd1, %rd2;"),
            "wgmma e4m3"
        );
        assert_eq!(kind("{ wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 x"), "wgmma bf16");
        assert_eq!(kind("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {"), "mma f16");
        assert_eq!(kind("\tv_mfma_f32_16x16x32_bf16 v[0:3], v[4:7]"), "mfma bf16");
        assert_eq!(kind("\tv_mfma_f32_16x16x32_fp8_fp8 v[0:3]"), "mfma fp8_fp8");
        for other in ["wgmma.fence.sync.aligned;", "v_fma_f32 v0, v1, v2, v3", "// wgmma.mma_async"]
        {
            assert_eq!(matrix_kind(other), None, "{other}");
        }
    }
}
