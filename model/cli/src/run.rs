//! `dsa run`: one kernel, or its reference, on a case from a file.

use super::{Usage, device_name, open};
use anyhow::bail;
use clap::Args;
use dsa_files::{FileError, printable, same_file};
use dsa_gate::case::{Case, save_outputs};
use dsa_gate::kernels::{Kernel, find};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What `dsa run` takes.
#[derive(Args, Debug)]
pub(super) struct Run {
    /// The kernel.
    kernel: String,
    /// The case: tensors by the names below, scalars as metadata.
    #[arg(long)]
    inputs: PathBuf,
    /// Where the outputs go: a file that is made or replaced whole, or a device or pipe.
    #[arg(long)]
    out: PathBuf,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    device: Option<String>,
    /// Runs the ndarray reference instead.
    #[arg(long)]
    pub reference: bool,
    /// A scalar that the file lacks, or in its place: NAME=VALUE.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    scalars: Vec<String>,
}

pub(super) fn run(out: &mut dyn Write, run: &Run) -> anyhow::Result<()> {
    let kernel = find(&run.kernel)?;
    if same_file(&run.inputs, &run.out) {
        bail!("--out {}: is the file of --inputs, which would be lost", run.out.display());
    }
    expect_place(&run.out)?;
    let case = case(kernel, run)?;
    let (outputs, by) = if run.reference {
        (kernel.reference(&case)?, "the reference".to_string())
    } else {
        let device = open(run.device.as_deref())?;
        (kernel.run(&device, &case)?, format!("{} ({})", device.kind(), device.name()))
    };
    save_outputs(&run.out, &outputs)?;
    let list: Vec<_> = outputs.iter().map(|(n, t)| format!("{n}: {t:?}")).collect();
    writeln!(out, "{} on {by}: {} -> {}", kernel.name, list.join(", "), run.out.display())?;
    Ok(())
}

/// The case in the file, with the scalars of the command line.
fn case(kernel: &Kernel, run: &Run) -> anyhow::Result<Case> {
    let mut case = Case::load(&run.inputs)?;
    if !case.kernel.is_empty() && case.kernel != kernel.name {
        let (file, of) = (run.inputs.display(), printable(&case.kernel, 60));
        bail!("{file} is a case of {of:?}, not of {}", kernel.name);
    }
    case.kernel = kernel.name.to_string();
    let mut set = BTreeSet::new();
    for scalar in &run.scalars {
        match scalar.split_once('=') {
            Some(("kernel", _)) => {
                return Err(Usage::error("--set kernel: the kernel is the first argument"));
            }
            Some((name, value)) if !name.is_empty() => {
                if !set.insert(name) {
                    return Err(Usage::error(format!("--set {name}: is there twice")));
                }
                case = case.set(name, value);
            }
            _ => return Err(Usage::error(format!("--set {scalar:?}, expected NAME=VALUE"))),
        }
    }
    Ok(case)
}

/// Refuses a place where no file can be made, before anything is computed for it.
pub(super) fn expect_place(path: &Path) -> Result<(), FileError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let metadata = std::fs::metadata(folder).map_err(|error| FileError::io(path, error))?;
    match (metadata.is_dir(), path.is_dir()) {
        (false, _) => Err(FileError::refused(path, "lies in no folder")),
        (_, true) => Err(FileError::refused(path, "is a folder, expected a file's name")),
        _ => Ok(()),
    }
}
