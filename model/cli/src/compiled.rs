//! What kernels are compiled to for devices that are not here: `dsa emit`, and the table of `dsa check`.

use super::run::expect_place;
use anyhow::bail;
use clap::Args;
use dsa_gate::CaseError;
use dsa_gate::kernels::{Kernel, find};
use dsa_gate::offline::{Compiled, compile};
use dsa_kernels::KernelError;
use dsa_offline::{Budget, Code, Target};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// What `dsa emit` takes.
#[derive(Args, Debug)]
pub(super) struct Emit {
    /// The kernel.
    kernel: String,
    /// sm_90a (H200) or gfx950 (MI350).
    #[arg(long, value_parser = Target::from_str)]
    target: Target,
    #[command(flatten)]
    form: Form,
    /// Only the Nth of the kernels that are launched, as numbered in the output.
    #[arg(long, value_name = "N")]
    only: Option<usize>,
    /// A file in place of the standard output; it is made or replaced whole.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The form of the code.
#[derive(Args, Debug, Clone, Copy)]
#[group(multiple = false)]
struct Form {
    /// Assembly (the default): AMD's instructions; for NVIDIA PTX, as its driver makes the instructions.
    #[arg(long)]
    asm: bool,
    /// PTX; for sm_90a only.
    #[arg(long)]
    ptx: bool,
    /// LLVM IR, before LLVM's passes.
    #[arg(long)]
    ir: bool,
}

/// Writes the code of one kernel.
pub(super) fn emit(out: &mut dyn Write, emit: &Emit) -> anyhow::Result<()> {
    let kernel = find(&emit.kernel)?;
    if emit.form.ptx && emit.target != Target::Sm90a {
        bail!("--ptx is for sm_90a: there is no PTX for {}; try --asm", emit.target);
    }
    if let Some(path) = &emit.out {
        expect_place(path)?;
    }
    let compiled = compile(kernel, emit.target)?;
    let comment = if emit.form.ir || emit.target == Target::Gfx950 { ";" } else { "//" };
    let chosen: Vec<_> = (1..)
        .zip(&compiled)
        .filter(|(number, _)| emit.only.is_none_or(|only| only == *number))
        .collect();
    if chosen.is_empty() {
        let only = emit.only.unwrap_or(0);
        bail!("--only {only}: {} launches {} kernels", kernel.name, compiled.len());
    }
    let mut text = String::new();
    for (number, Compiled { case, artefact }) in chosen {
        text.push_str(&format!(
            "{comment} {number} of {}: {} of kernels/src/{} for {}, cubes of {} units, {} bytes of \
             shared memory; {} with {case}\n",
            compiled.len(),
            artefact.function(),
            artefact.file(),
            emit.target,
            artefact.units,
            artefact.shared_memory,
            kernel.name,
        ));
        match &artefact.code {
            _ if emit.form.ir => text.push_str(&artefact.ir),
            Code::Ptx(ptx) => text.push_str(ptx),
            Code::AmdGpu(_) => text.push_str(&artefact.assembly()?),
        }
        text.push('\n');
    }
    match &emit.out {
        None => out.write_all(text.as_bytes())?,
        Some(path) => {
            dsa_files::replace(path, |file| file.write_all(text.as_bytes()))?;
            writeln!(out, "{} for {} -> {}", kernel.name, emit.target, path.display())?;
        }
    }
    Ok(())
}

/// Prints what each kernel that `kernel` launches takes of each target. Returns whether all of them
/// compile; a tool that is missing is said, and is no failure of the kernel.
pub(super) fn table(out: &mut dyn Write, kernel: &Kernel) -> anyhow::Result<bool> {
    let mut compiles = true;
    writeln!(
        out,
        "  {:<7} {:<20} {:>9} {:>8} {:>8}  matrix instructions",
        "target", "kernel", "registers", "spills", "shared"
    )?;
    for target in Target::ALL {
        match rows(out, kernel, target) {
            Ok(()) => {}
            Err(Failure::Write(error)) => return Err(error.into()),
            Err(Failure::Kernel(CaseError::Kernel(error @ KernelError::Tool { .. }))) => {
                writeln!(out, "  {target:<7} not judged: {error}")?;
            }
            Err(Failure::Kernel(error)) => {
                compiles = false;
                writeln!(out, "  {target:<7} FAIL {error}")?;
            }
        }
    }
    Ok(compiles)
}

/// Why a table ends early.
enum Failure {
    Write(std::io::Error),
    Kernel(CaseError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<CaseError> for Failure {
    fn from(error: CaseError) -> Self {
        Self::Kernel(error)
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error.into())
    }
}

fn rows(out: &mut dyn Write, kernel: &Kernel, target: Target) -> Result<(), Failure> {
    for Compiled { case, artefact } in compile(kernel, target)? {
        let usage = artefact.usage()?;
        writeln!(
            out,
            "  {target:<7} {:<20} {:>9} {:>8} {:>8}  {}  ({case})",
            artefact.function(),
            usage.registers,
            match usage.spills {
                0 => "none".to_string(),
                bytes => format!("{bytes} B"),
            },
            format!("{} KB", usage.shared_memory.div_ceil(1024)),
            usage.matrix_text(),
        )?;
        for warning in &usage.warnings {
            writeln!(out, "          {warning}")?;
        }
        let (taken, file) = (Budget::covering([usage]), artefact.file());
        match Budget::of(&file, target) {
            Ok(budget) if budget.covers(&taken) => {}
            Ok(budget) => {
                let line = budget.line(target);
                writeln!(out, "          more than the header of {file} allows: {line}")?;
            }
            Err(error) => writeln!(out, "          {error}")?,
        }
    }
    Ok(())
}
