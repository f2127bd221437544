//! NVIDIA's assembler, which knows what a kernel takes of a multiprocessor.

use super::{Target, Usage};
use dsa_kernels::{KernelError, Result};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

fn failed(reason: String) -> KernelError {
    KernelError::Tool { tool: "ptxas", reason }
}

/// Where a toolkit lies if nothing says so; CubeCL looks for libdevice there too.
const USUAL: [&str; 2] = ["/usr/local/cuda/bin", "/opt/cuda/bin"];

/// ptxas of the toolkit in `cuda`, or else of the search path `path` or of the usual folders.
fn find(cuda: Option<OsString>, path: Option<OsString>, usual: &[&str]) -> Result<PathBuf> {
    let beside = cuda.map(|cuda| PathBuf::from(cuda).join("bin"));
    let path = path.unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(usual.iter().map(PathBuf::from))
        .map(|folder| folder.join("ptxas"))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            failed(
                "neither $CUDA_PATH/bin nor PATH has it; setup/setup.sh fetches it into \
                 setup/fetched/cuda, where CUDA_PATH points if cargo started this"
                    .to_string(),
            )
        })
}

/// What ptxas says of `ptx`, which holds one kernel, assembled as CubeCL's CUDA runtime has the driver do it: as
/// an object to be linked (`-c`; cubecl-cuda, `cuLinkAddData`). There the IEEE division and reciprocal are
/// calls of a function outside, and a kernel with any such call has its warpgroup products serialised (remark
/// C7509), of which ptxas says nothing when it assembles a whole program.
pub(super) fn usage(ptx: &str, target: Target) -> Result<Usage> {
    let ptxas = find(std::env::var_os("CUDA_PATH"), std::env::var_os("PATH"), &USUAL)?;
    let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    let (source, object) = (folder.path().join("kernel.ptx"), folder.path().join("kernel.cubin"));
    std::fs::write(&source, ptx).map_err(|error| failed(error.to_string()))?;
    let output = Command::new(&ptxas)
        .args(["-c", "-v"])
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
        } else if line.contains("warning") || line.contains(" : (C") {
            // Advice has a number: (C7510).
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
            ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are \
            serialized due to insufficient register resources for the function 'k'\n\
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

    /// Two products on one accumulator; `between` is what is done to it meanwhile.
    fn products(between: &str) -> String {
        let product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 \
                       {%f0, %f1, %f2, %f3}, %rd2, %rd2, 1, 1, 1, 0, 0;";
        format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n\
             .visible .entry k(.param .u64 out, .param .u64 tile)\n{{\n\
             .reg .f32 %f<5>;\n.reg .b64 %rd<3>;\n\
             ld.param.u64 %rd1, [out];\nld.param.u64 %rd2, [tile];\n\
             mov.f32 %f0, 0f00000000;\nmov.f32 %f1, 0f00000000;\n\
             mov.f32 %f2, 0f00000000;\nmov.f32 %f3, 0f00000000;\n\
             wgmma.fence.sync.aligned;\n{product}\n{between}\n{product}\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
             st.global.f32 [%rd1], %f0;\nret;\n}}\n"
        )
    }

    #[test]
    fn products_that_wait_for_each_other_are_found_and_others_are_not() {
        let waits = |between| {
            let usage = usage(&products(between), Target::Sm90a).expect("assembled");
            usage.serialised().count()
        };
        assert_eq!(waits("add.f32 %f0, %f0, 0f3F800000;"), 1);
        assert_eq!(waits(""), 0);
        // As an object to be linked this is a call, anywhere in the kernel.
        let call =
            "ld.global.f32 %f4, [%rd1+8];\nrcp.rn.f32 %f4, %f4;\nst.global.f32 [%rd1+4], %f4;";
        assert_eq!(waits(call), 1);
    }

    #[test]
    fn ptx_that_is_none_is_refused_with_what_ptxas_says_of_it() {
        let error = usage("this is no PTX", Target::Sm90a).expect_err("refused").to_string();
        assert!(error.starts_with("ptxas: ") && error.contains("kernel.ptx"), "{error}");
    }

    #[test]
    fn ptxas_is_found_in_the_toolkit_or_on_the_path_or_missed_in_one_sentence() {
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).expect("a folder");
        std::fs::write(bin.join("ptxas"), "").expect("a file");
        let cuda = || Some(folder.path().into());
        assert_eq!(find(cuda(), None, &[]), Ok(bin.join("ptxas")));
        assert_eq!(
            find(Some("/nowhere".into()), Some(bin.clone().into()), &[]),
            Ok(bin.join("ptxas"))
        );
        let error = find(Some("/nowhere".into()), None, &[]).expect_err("missing").to_string();
        assert!(error.contains("setup/setup.sh") && error.contains("CUDA_PATH"), "{error}");
    }
}
