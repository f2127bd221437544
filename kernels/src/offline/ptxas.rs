//! NVIDIA's assembler, which knows what a kernel takes of a multiprocessor.

use super::{Target, Usage};
use crate::{KernelError, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

fn failed(reason: String) -> KernelError {
    KernelError::Tool { tool: "ptxas", reason }
}

/// ptxas of `CUDA_PATH`, or else of `PATH`.
fn find() -> Result<PathBuf> {
    let beside = std::env::var_os("CUDA_PATH").map(|path| PathBuf::from(path).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("ptxas"))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            failed(
                "neither $CUDA_PATH/bin nor PATH has it; setup/setup.sh fetches it into \
                 setup/fetched/cuda, where CUDA_PATH points if dsa is started by cargo"
                    .to_string(),
            )
        })
}

/// What ptxas says of `ptx`, which holds one kernel.
pub(super) fn usage(ptx: &str, target: Target) -> Result<Usage> {
    let ptxas = find()?;
    let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    let (source, object) = (folder.path().join("kernel.ptx"), folder.path().join("kernel.cubin"));
    std::fs::write(&source, ptx).map_err(|error| failed(error.to_string()))?;
    let output = Command::new(&ptxas)
        .arg("-v")
        .arg(format!("-arch={target}"))
        .arg("-o")
        .args([&object, &source])
        .output()
        .map_err(|error| failed(format!("{}: {error}", ptxas.display())))?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(format!("it refused the PTX: {}", said.trim())));
    }
    parse(&said).ok_or_else(|| failed(format!("its report is not understood: {}", said.trim())))
}

/// Reads the report of `ptxas -v` on one kernel.
fn parse(said: &str) -> Option<Usage> {
    let mut usage = Usage {
        registers: 0,
        spills: 0,
        stack: 0,
        shared_memory: 0,
        matrix: BTreeMap::new(),
        warnings: Vec::new(),
    };
    let mut seen = false;
    for line in said.lines() {
        if line.contains("spill stores") {
            let stores = before(line, "bytes spill stores")?;
            let loads = before(line, "bytes spill loads")?;
            usage.spills += stores.max(loads);
            usage.stack = usage.stack.max(before(line, "bytes stack frame")?);
        } else if line.contains("Used ") && line.contains(" registers") {
            seen = true;
            usage.registers = usage.registers.max(before(line, "registers")?);
            usage.shared_memory += before(line, "bytes smem").unwrap_or(0);
        } else if line.contains("warning") || line.contains("Potential Performance Loss") {
            usage.warnings.push(line.trim().to_string());
        }
    }
    seen.then_some(usage)
}

/// The number before `words` in `line`.
fn before(line: &str, words: &str) -> Option<usize> {
    line.split_once(words)?.0.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_registers_spills_stack_and_shared_memory() {
        let said = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : (C7519) Potential Performance Loss: 'wgmma.mma_async' instructions are \
            serialized due to ...\n\
            ptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
            ptxas info    : Function properties for k\n    \
            96 bytes stack frame, 80 bytes spill stores, 84 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 96 bytes cumulative stack size, \
            1024 bytes smem\n";
        let usage = parse(said).expect("the report is whole");
        assert_eq!((usage.registers, usage.spills), (255, 84));
        assert_eq!((usage.stack, usage.shared_memory), (96, 1024));
        assert_eq!(usage.serialised().count(), 1);
        assert_eq!(parse("ptxas info    : 0 bytes gmem"), None);
    }
}
