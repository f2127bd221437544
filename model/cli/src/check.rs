//! `dsa check`: the gate of the kernels, and the cases that fell before.

use super::{compiled, device_name, open};
use anyhow::bail;
use clap::Args;
use dsa_gate::gate::{self, DEFAULT_CASES, gate, new_seed};
use dsa_gate::kernels::{ALL, Kernel};
use dsa_kernels::Device;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// What `dsa check` takes.
#[derive(Args, Debug)]
pub(super) struct Check {
    /// Kernels, or source files (`indexer`, `top_k`, `quant`, ...); all if none is named.
    kernels: Vec<String>,
    /// cpu, cuda, hip or with an index, cuda:1.
    #[arg(long, env = "DSA_DEVICE", value_parser = device_name)]
    device: Option<String>,
    /// Cases of each kernel, from 1.
    #[arg(long, env = "DSA_CASES", default_value_t = DEFAULT_CASES,
          value_parser = clap::value_parser!(u32).range(1..))]
    cases: u32,
    /// Seed of the cases; a new one each time if it is not given.
    #[arg(long, env = "DSA_SEED")]
    seed: Option<u64>,
    /// Keeps the case in FILE, which fell once, for good: the tests replay it from then on. Checks nothing.
    #[arg(long, value_name = "FILE", conflicts_with = "kernels")]
    keep: Option<PathBuf>,
}

/// Runs the gates, or keeps a case.
pub(super) fn check(out: &mut dyn Write, check: &Check) -> anyhow::Result<ExitCode> {
    if let Some(file) = &check.keep {
        let kept = gate::keep(file, &gate::regressions())?;
        writeln!(out, "{} -> {}", file.display(), kept.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = chosen(&check.kernels)?;
    let device = open(check.device.as_deref())?;
    let seed = check.seed.unwrap_or_else(new_seed);
    writeln!(out, "seed {seed} (DSA_SEED={seed} draws the same cases again)")?;
    out.flush()?;
    let mut failed = 0;
    for kernel in chosen {
        let start = Instant::now();
        if !replay(out, kernel, &device)? {
            failed += 1;
            continue;
        }
        match gate(kernel, &device, check.cases, seed) {
            Ok(report) => {
                writeln!(out, "PASS {report}\n  on {} in {:.1?}", device.kind(), start.elapsed())?;
                out.flush()?;
                if !compiled::table(out, kernel)? {
                    failed += 1;
                }
            }
            Err(failure) => {
                failed += 1;
                writeln!(out, "FAIL {failure}")?;
            }
        }
        out.flush()?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kernels of these names, or of these source files.
fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Kernel>> {
    let mut chosen = Vec::new();
    for name in names {
        let file =
            format!("{}.rs", name.trim_end_matches(".rs").rsplit('/').next().unwrap_or(name));
        let found: Vec<_> = ALL.iter().filter(|k| k.name == name || k.file == file).collect();
        if found.is_empty() {
            let known: Vec<_> = ALL.iter().map(|k| k.name).collect();
            bail!("no kernel or source file {name:?}; kernels: {}", known.join(", "));
        }
        chosen.extend(found);
    }
    if names.is_empty() {
        chosen.extend(ALL);
    }
    Ok(chosen)
}

/// Replays the cases of `kernel` that fell before; returns whether all of them pass.
fn replay(out: &mut dyn Write, kernel: &Kernel, device: &Device) -> anyhow::Result<bool> {
    let (mut cases, mut passes) = (0, true);
    for folder in [gate::failures_folder(), gate::regressions()] {
        let replayed = match gate::replay(kernel, device, &folder) {
            Ok(replayed) => replayed,
            Err(error) => bail!("saved failures in {}: {error}", folder.display()),
        };
        cases += replayed.cases;
        for (path, reason) in &replayed.unread {
            writeln!(out, "  not replayed: {}: {reason}", path.display())?;
        }
        for (path, reason) in &replayed.fallen {
            passes = false;
            writeln!(out, "FAIL {}: {} falls again\n  {reason}", kernel.name, path.display())?;
        }
    }
    if cases > 0 {
        let what = if cases == 1 { "saved failure" } else { "saved failures" };
        writeln!(out, "{}: {cases} {what} replayed", kernel.name)?;
        out.flush()?;
    }
    Ok(passes)
}
