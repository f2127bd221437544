//! From a measurement's description to its row: gate, time, write.

use crate::args::{Common, repository};
use crate::peaks::Ceilings;
use crate::timed::judge;
use anyhow::bail;
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use dsa_figures::compare::{THRESHOLD, compare};
use dsa_figures::row::COST_BENCH;
use dsa_figures::terminal::{note, say};
use dsa_figures::{
    Error, Gate, Options, Origin, PassedGate, Place, Row, Run, Timing, Variant, What, Work, draw,
    read_all,
};
use dsa_files::printable;
use dsa_gate::bench::{Named, Spec};
use dsa_gate::gate::{gate, judge_on};
use dsa_gate::kernels;
use dsa_kernels::timing::Stopwatch;
use dsa_kernels::{Device, DeviceKind};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Samples of each measurement.
pub const SAMPLES: usize = 10;

/// A run of a bench on a device.
pub struct Session {
    args: Common,
    command: String,
    device: Device,
    run: Run,
    figures: PathBuf,
    baseline: Option<Vec<Row>>,
    gates: HashMap<&'static str, PassedGate>,
}

/// How long and how often `kernels` measures and judges.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Seconds that criterion measures each case for.
    pub seconds: f64,
    /// Random cases of each kernel's gate.
    pub gate_cases: u32,
}

impl Session {
    /// Opens everything that `bench` writes and reads: what would stop it at its end stops it here.
    /// `command` measures the same again.
    pub fn open(
        bench: &str,
        command: String,
        args: Common,
        device: Device,
    ) -> anyhow::Result<Self> {
        let rows = args.rows_of(bench, &device);
        let run = Run::open(&rows)?;
        if let Some(torn) = run.torn() {
            note(format!("warning: {torn}"));
        }
        let figures = args.figures_of(&device);
        dsa_figures::plot::ready(&figures)?;
        let baseline = match args.baseline() {
            None => None,
            Some(path) => {
                let found = read_all(&path)?;
                if let Some(torn) = found.torn {
                    note(format!("warning: {torn}"));
                }
                Some(found.rows)
            }
        };
        Ok(Self { args, command, device, run, figures, baseline, gates: HashMap::new() })
    }

    /// Says what this run is to measure. What an interrupted run has measured of it is kept; if that run was
    /// finished (or `--fresh` is given), this one measures everything again. A baseline that has nothing
    /// of it is refused.
    pub fn plan(&mut self, all: &[What]) -> anyhow::Result<()> {
        if all.is_empty() {
            bail!("nothing to measure; expected at least one context and kernel");
        }
        self.run.plan(all, self.args.fresh)?;
        if let Some(base) = &mut self.baseline {
            let mine: BTreeSet<Place> = all.iter().map(What::place).collect();
            let other = base.first().map(|row| row.what().place());
            // Rows of other devices and of what the filter leaves out are no part of the verdict.
            base.retain(|row| mine.contains(&row.what().place()));
            if base.is_empty() {
                let has = other.map_or("no rows".to_string(), |place| {
                    format!("rows such as {place} on {}", printable(&place.device, 60))
                });
                bail!(
                    "--baseline has nothing that this run measures: it has {has}; the run measures {} \
                     and the like on {}",
                    all[0].place(),
                    self.device.name()
                );
            }
        }
        Ok(())
    }

    /// The file of rows.
    pub fn path(&self) -> &Path {
        self.run.path()
    }

    /// Measures `specs` with criterion; what the file of rows already has is left out.
    pub fn kernels(
        &mut self,
        specs: Vec<Spec>,
        effort: Effort,
        ceilings: &Ceilings,
    ) -> anyhow::Result<()> {
        let seconds = Duration::from_secs_f64(effort.seconds);
        let mut criterion = Criterion::default()
            .sample_size(SAMPLES)
            .measurement_time(seconds)
            .warm_up_time(seconds.div_f64(4.0).max(Duration::from_millis(50)))
            .without_plots();
        let n = specs.len();
        for (i, spec) in specs.into_iter().enumerate() {
            let what = self.what(&spec)?;
            if let Some(row) = self.run.has(&what) {
                note(format!("[{}/{n}] {}", i + 1, before(row)));
                continue;
            }
            note(format!("[{}/{n}] {}", i + 1, what.place()));
            let origin = self.origin();
            let passed = self.gate(&spec, effort.gate_cases)?;
            let mut group =
                criterion.benchmark_group(format!("{}/{}", spec.kernel, spec.stage.name()));
            let (samples, outputs) = time(&mut group, &self.device, &spec)?;
            group.finish();
            let kernel = kernels::find(spec.kernel)?;
            let passed =
                judge(kernel, &self.device, &spec.timed, &outputs, self.args.seed, &passed)?;
            let peak = Some(ceilings.of(&spec.dtype));
            let work = Work { flop: spec.flop, bytes: spec.bytes, peak };
            let row = Row::new(what, passed, Timing::from_samples(samples)?, work, origin)?;
            report(&row);
            self.keep(row)?;
        }
        Ok(())
    }

    /// Writes a row to the file.
    pub fn keep(&mut self, row: Row) -> anyhow::Result<()> {
        Ok(self.run.keep(row)?)
    }

    /// The row that this run has of it already.
    pub fn has(&self, what: &What) -> Option<&Row> {
        self.run.has(what)
    }

    /// Everything is measured: drops the older rows of the same, and draws the pictures. Gives back the rows
    /// drawn: of this device, of the kernels as they are now, and `of_kind`.
    pub fn finish(&self, of_kind: impl Fn(&Row) -> bool) -> anyhow::Result<Vec<Row>> {
        if self.run.mine().is_empty() {
            bail!("nothing was measured: everything was left out, see above");
        }
        if let Err(error) = self.run.finish() {
            note(format!("warning: older rows stay in the file behind the new ones: {error}"));
        }
        let mut current = self.run.current(&describe(&self.device), hash_of);
        if !current.unknown.is_empty() {
            let names: Vec<&str> = current.unknown.iter().map(String::as_str).collect();
            note(format!(
                "{} has rows of {}, for which this build has no kernel: they stay there and are not drawn",
                printable(&self.path().to_string_lossy(), 500),
                names.join(", ")
            ));
        }
        current.rows.retain(of_kind);
        let options = Options { price_per_hour: self.args.price, ..Default::default() };
        match draw(&current.rows, &self.figures, &options) {
            Ok(files) => files.iter().try_for_each(|file| say(file.display()))?,
            Err(nothing @ Error::Nothing { .. }) => note(format!("no picture: {nothing}")),
            Err(error) => return Err(error.into()),
        }
        Ok(current.rows)
    }

    /// Every spec's measurement, for [`Session::plan`].
    pub fn whats(&self, specs: &[Spec]) -> anyhow::Result<Vec<What>> {
        specs.iter().map(|spec| self.what(spec)).collect()
    }

    fn what(&self, spec: &Spec) -> anyhow::Result<What> {
        Ok(What {
            bench: spec.kernel.to_string(),
            stage: spec.stage,
            variant: Variant::Neither,
            case: spec.case.clone(),
            shape: spec.shape.clone(),
            dtype: spec.dtype.clone(),
            seed: self.args.seed,
            device: describe(&self.device),
            kernel_hash: dsa_kernels::source_hash(Some(kernels::find(spec.kernel)?.file)),
        })
    }

    /// The kernel's random cases, once a run, and the measured variant's own case.
    fn gate(&mut self, spec: &Spec, cases: u32) -> anyhow::Result<PassedGate> {
        let kernel = kernels::find(spec.kernel)?;
        let device = &self.device;
        let unit = (kernel.machine)(device).matrix;
        let own = judge_on(unit, kernel, &|case| kernel.run(device, case), &spec.gate).map_err(
            |reason| anyhow::anyhow!("{} fell before it was timed: {reason}", kernel.name),
        )?;
        let own = own.iter().map(|c| c.worst).fold(0.0, f64::max);
        if let Some(passed) = self.gates.get(spec.kernel) {
            let worst = own.max(passed.worst_error());
            let at = if own > passed.worst_error() { "its own shape" } else { passed.worst_at() };
            return Ok(Gate::judge(passed.against(), worst, 1.0, at, passed.cases() + 1)?);
        }
        let report = gate(kernel, device, cases, self.args.seed)
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let worst = report.worst_error().max(own);
        let at = report.worst_case.first().cloned().unwrap_or_default();
        let against = "dsa-reference; errors as a share of the tolerance table";
        let passed = Gate::judge(against, worst, 1.0, at, u64::from(report.cases) + 1)?;
        self.gates.insert(spec.kernel, passed.clone());
        Ok(passed)
    }

    /// Where a row that is measured now comes from: the commit of the repository that the bench was built
    /// from, or `DSA_COMMIT` where it runs without one.
    pub fn origin(&self) -> Origin {
        let carried = std::env::var("DSA_COMMIT").ok().filter(|commit| !commit.is_empty());
        Origin::now(repository().as_deref(), carried, self.command.clone())
    }

    /// Compares what this run measured with the baseline, if one was asked for.
    pub fn verdict(&self) -> anyhow::Result<ExitCode> {
        let Some(base) = &self.baseline else {
            return Ok(ExitCode::SUCCESS);
        };
        let found = compare(base, &self.run.mine(), THRESHOLD)?;
        say(&found)?;
        let slower = found.slower()?;
        Ok(if slower && self.args.fail_on_slower { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }
}

/// What is said of a measurement that an interrupted run has left.
pub fn before(row: &Row) -> String {
    format!("{}: measured before, {}", row.what().place(), printable(&row.origin().created, 30))
}

/// The hash of a kernel's source, if this build has a kernel of that name.
fn hash_of(bench: &str) -> Option<String> {
    match kernels::find(bench) {
        Ok(kernel) => Some(dsa_kernels::source_hash(Some(kernel.file))),
        Err(_) if bench == COST_BENCH => Some(dsa_kernels::source_hash(None)),
        Err(_) => None,
    }
}

/// More launches than a call makes.
const LAUNCHES: usize = 18;
/// Calls of a sample that are timed one by one.
const MOST_CALLS: u64 = 10;

/// Times one call with criterion on the device's own clock; returns seconds a call, sample by sample, and what
/// the last call computed.
fn time(
    group: &mut BenchmarkGroup<WallTime>,
    device: &Device,
    spec: &Spec,
) -> anyhow::Result<(Vec<f64>, Named)> {
    let watch = Stopwatch::new(device, LAUNCHES)?;
    let mut samples = Vec::new();
    let mut failed: Option<dsa_kernels::KernelError> = None;
    let mut outputs = Named::new();
    let name: Vec<String> = spec.shape.iter().map(|(name, n)| format!("{name}={n}")).collect();
    group.bench_function(format!("{} {}", spec.dtype, name.join(" ")), |bencher| {
        bencher.iter_custom(|calls| {
            // Where each call is timed behind copies, those take longer than most calls: a few make a sample.
            let (windows, each) = match watch.covers() {
                true => (calls.min(MOST_CALLS), 1),
                false => (1, calls),
            };
            let mut call = || {
                // Those of the call before go first, so that a call needs no more memory than it does.
                outputs.clear();
                outputs = (spec.work)()?;
                Ok(())
            };
            let mut timed = Ok(Duration::ZERO);
            for _ in 0..windows {
                let window = watch.time(|| (0..each).try_for_each(|_| call()));
                timed = timed.and_then(|sum| Ok(sum + window?));
            }
            match timed {
                Ok(time) => {
                    let seconds = time.as_secs_f64() / (windows * each) as f64;
                    samples.push(seconds);
                    Duration::from_secs_f64(seconds * calls as f64)
                }
                Err(error) => {
                    failed = Some(error);
                    Duration::from_nanos(1)
                }
            }
        });
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    if samples.len() < SAMPLES {
        bail!("criterion took {} samples, expected {SAMPLES}", samples.len());
    }
    // The first calls were criterion's warm-up.
    Ok((samples.split_off(samples.len() - SAMPLES), outputs))
}

fn report(row: &Row) {
    let median = row.timing().median_s();
    let rate = |n: u64, unit: &str| format!("{:.2} G{unit}/s", n as f64 / median / 1e9);
    note(format!(
        "    {:.3} ms, {}, {}, {:.1} % of the measured ceiling, error {:.1} % of the tolerance",
        median * 1e3,
        rate(row.work().flop, "FLOP"),
        rate(row.work().bytes, "B"),
        100.0 * row.fraction_of_peak().unwrap_or(0.0),
        100.0 * row.gate().worst_error(),
    ));
}

/// The device as rows name it.
pub fn describe(device: &Device) -> dsa_figures::Device {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let first_line = |text: String| text.lines().next().unwrap_or("").trim().to_string();
    let (kind, driver) = match device.kind() {
        DeviceKind::Cpu => {
            (dsa_figures::DeviceKind::Cpu, Some(format!("LLVM {}", dsa_kernels::llvm_version())))
        }
        DeviceKind::Cuda => {
            (dsa_figures::DeviceKind::Cuda, read("/proc/driver/nvidia/version").map(first_line))
        }
        DeviceKind::Hip => {
            (dsa_figures::DeviceKind::Hip, read("/sys/module/amdgpu/version").map(first_line))
        }
    };
    dsa_figures::Device {
        name: device.name().to_string(),
        kind,
        driver: driver.unwrap_or_else(|| "unknown".to_string()),
        cores: device.cores() as u64,
    }
}
