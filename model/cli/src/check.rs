//! `dsa check`: the gate of the kernels, and the cases that fell before.

use super::{compiled, device_name, open};
use anstyle::{AnsiColor, Style};
use anyhow::bail;
use clap::Args;
use dsa_gate::Case;
use dsa_gate::contract::nearest;
use dsa_gate::gate::{self, DEFAULT_CASES, GateFailure, GateReport, gate_watched, new_seed};
use dsa_gate::kernels::{ALL, Kernel, find};
use dsa_kernels::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
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
    /// Judges the case in FILE alone, as a failure saved it.
    #[arg(long, value_name = "FILE", conflicts_with = "kernels")]
    case: Option<PathBuf>,
    /// Keeps the case in FILE, which fell once, for good: the tests replay it from then on. Checks nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "case", "json"])]
    keep: Option<PathBuf>,
    /// One JSON object a line and kernel, for editors and scripts, in place of the text.
    #[arg(long)]
    json: bool,
}

impl Check {
    /// The flag that has it look at one case, if there is one.
    pub fn of_one_case(&self) -> Option<&'static str> {
        let keep = self.keep.as_ref().map(|_| "--keep");
        self.case.as_ref().map(|_| "--case").or(keep)
    }
}

/// Runs the gates, judges one case, or keeps one.
pub(super) fn check(out: &mut dyn Write, check: &Check) -> anyhow::Result<ExitCode> {
    if let Some(file) = &check.keep {
        let kept = gate::keep(file, &gate::regressions())?;
        writeln!(out, "{} -> {}", file.display(), kept.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = &check.case {
        let case = Case::load(file)?;
        let (kernel, device) = (find(&case.kernel)?, open(check.device.as_deref())?);
        return judge(out, kernel, &device, &case, file, check.json);
    }
    let chosen = chosen(&check.kernels)?;
    let device = open(check.device.as_deref())?;
    let seed = check.seed.unwrap_or_else(new_seed);
    if !check.json {
        writeln!(out, "seed {seed} (DSA_SEED={seed} draws the same cases again)")?;
        out.flush()?;
    }
    let mut passed = true;
    for kernel in chosen {
        passed &= match check.json {
            true => in_json(out, kernel, &device, check.cases, seed)?,
            false => in_text(out, kernel, &device, check.cases, seed)?,
        };
        out.flush()?;
    }
    Ok(status(passed))
}

fn status(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The word for a verdict, in colour where the output shows any.
fn word(passed: bool) -> String {
    let (word, colour) = if passed { ("PASS", AnsiColor::Green) } else { ("FAIL", AnsiColor::Red) };
    let style = Style::new().bold().fg_color(Some(colour.into()));
    format!("{style}{word}{style:#}")
}

/// The gate of one kernel, told as it goes; returns whether it passes.
fn in_text(
    out: &mut dyn Write,
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> anyhow::Result<bool> {
    let start = Instant::now();
    let replayed = replay(kernel, device)?;
    for (path, reason) in &replayed.unread {
        writeln!(out, "  not replayed: {}: {reason}", path.display())?;
    }
    for (path, reason) in &replayed.fallen {
        let (word, name) = (word(false), kernel.name);
        writeln!(out, "{word} {name}: {} falls again\n  {reason}", path.display())?;
    }
    if replayed.cases > 0 {
        let what = if replayed.cases == 1 { "saved failure" } else { "saved failures" };
        writeln!(out, "{}: {} {what} replayed", kernel.name, replayed.cases)?;
        out.flush()?;
    }
    if !replayed.fallen.is_empty() {
        return Ok(false);
    }
    match gated(kernel, device, cases, seed) {
        Ok(report) => {
            let (word, kind) = (word(true), device.kind());
            writeln!(out, "{word} {report}\n  on {kind} in {:.1?}", start.elapsed())?;
            out.flush()?;
            compiled::table(out, kernel)
        }
        Err(failure) => {
            writeln!(out, "{} {failure}", word(false))?;
            Ok(false)
        }
    }
}

/// The gate of one kernel as one line of JSON; returns whether it passes.
fn in_json(
    out: &mut dyn Write,
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> anyhow::Result<bool> {
    let start = Instant::now();
    let replayed = replay(kernel, device)?;
    let again: Vec<_> = replayed
        .fallen
        .iter()
        .map(|(path, reason)| json!({ "file": path.display().to_string(), "reason": reason }))
        .collect();
    let mut passed = again.is_empty();
    let mut line = json!({
        "kernel": kernel.name,
        "device": device.kind().to_string(),
        "seed": seed,
        "replayed": replayed.cases,
        "fell_again": again,
    });
    if passed {
        match gated(kernel, device, cases, seed) {
            Ok(report) => {
                let mut table = Vec::new();
                passed = compiled::table(&mut table, kernel)?;
                let table = String::from_utf8_lossy(&table);
                line["compiled"] = table.lines().map(str::trim_end).collect();
                add(&mut line, passing(&report));
            }
            Err(failure) => {
                passed = false;
                add(&mut line, failing(&failure));
            }
        }
    }
    line["passed"] = json!(passed);
    line["seconds"] = json!(start.elapsed().as_secs_f64());
    writeln!(out, "{line}")?;
    Ok(passed)
}

fn add(line: &mut Value, more: Value) {
    if let (Value::Object(line), Value::Object(more)) = (line, more) {
        line.extend(more);
    }
}

fn passing(report: &GateReport) -> Value {
    let outputs: Vec<_> = report
        .worst
        .iter()
        .zip(&report.worst_case)
        .map(|(close, case)| {
            json!({
                "output": close.output,
                "error_of_tolerance": close.worst,
                "at": close.worst_at,
                "got": close.got,
                "expected": close.expected,
                "case": case,
            })
        })
        .collect();
    let (ran, all) = (&report.paths.0, report.paths.1);
    json!({ "cases": report.cases, "forms": report.forms, "paths": ran, "paths_of": all,
            "outputs": outputs })
}

fn failing(failure: &GateFailure) -> Value {
    let (function, of) = failure.reference;
    let drawn = failure.drawn.as_ref();
    json!({
        "cases": failure.passed,
        "case": failure.case,
        "reason": failure.reason,
        "file": failure.saved.then_some(&failure.file),
        "fell_first": drawn.map(|(case, reason)| json!({ "case": case, "reason": reason })),
        "reference": { "function": function, "file": of },
    })
}

/// Runs the gate under a bar, which only a terminal shows.
fn gated(
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    let bar = ProgressBar::new(cases.into());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} cases") {
        bar.set_style(style);
    }
    bar.set_message(kernel.name);
    bar.tick();
    let judged =
        gate_watched(kernel, device, cases, seed, &|passed| bar.set_position(passed.into()));
    bar.finish_and_clear();
    judged
}

/// Judges one case; returns whether it passes.
fn judge(
    out: &mut dyn Write,
    kernel: &'static Kernel,
    device: &Device,
    case: &Case,
    file: &Path,
    in_json: bool,
) -> anyhow::Result<ExitCode> {
    let unit = (kernel.machine)(device).matrix;
    let judged = gate::judge_on(unit, kernel, &|case| kernel.run(device, case), case);
    let (name, passed) = (kernel.name, judged.is_ok());
    if in_json {
        let reason = judged.as_ref().err();
        let file = file.display().to_string();
        let line = json!({ "kernel": name, "device": device.kind().to_string(), "file": file,
                           "case": format!("{case:?}"), "passed": passed, "reason": reason });
        writeln!(out, "{line}")?;
        return Ok(status(passed));
    }
    writeln!(out, "{} {case:?} on {}", word(passed), device.kind())?;
    match judged {
        Ok(close) => {
            for close in close {
                writeln!(out, "  {close}")?;
            }
        }
        Err(reason) => writeln!(out, "  {reason}")?,
    }
    Ok(status(passed))
}

/// The kernels of these names, or of these source files.
fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Kernel>> {
    let mut chosen = Vec::new();
    for name in names {
        let stem = name.trim_end_matches(".rs").rsplit('/').next().unwrap_or(name);
        let file = format!("{stem}.rs");
        let found: Vec<_> = ALL.iter().filter(|k| k.name == name || k.file == file).collect();
        if found.is_empty() {
            let known: Vec<_> = ALL.iter().map(|k| k.name).collect();
            let files = ALL.iter().map(|k| k.file.trim_end_matches(".rs"));
            let near = nearest(stem, &known.iter().copied().chain(files).collect::<Vec<_>>());
            let meant = near.map_or(String::new(), |near| format!(", did you mean {near}?"));
            bail!("no kernel or source file {name:?}{meant}; kernels: {}", known.join(", "));
        }
        chosen.extend(found);
    }
    if names.is_empty() {
        chosen.extend(ALL);
    }
    Ok(chosen)
}

/// Replays the cases of `kernel` that fell before.
fn replay(kernel: &Kernel, device: &Device) -> anyhow::Result<gate::Replayed> {
    let mut all = gate::Replayed::default();
    for folder in [gate::failures_folder(), gate::regressions()] {
        let replayed = match gate::replay(kernel, device, &folder) {
            Ok(replayed) => replayed,
            Err(error) => bail!("saved failures in {}: {error}", folder.display()),
        };
        all.cases += replayed.cases;
        all.fallen.extend(replayed.fallen);
        all.unread.extend(replayed.unread);
    }
    Ok(all)
}
