//! From a measurement's description to its row: gate, time, write.

use crate::args::Args;
use crate::peaks::Ceilings;
use crate::timed::{Call, Named, Timed, judge};
use anyhow::{Context, bail};
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use dsa_figures::compare::{THRESHOLD, Verdict, compare};
use dsa_figures::row::COST_BENCH;
use dsa_figures::{
    Gate, Origin, PassedGate, Row, Stage, Timing, Variant, What, Work, append, find, latest, read,
    read_or_empty,
};
use dsa_kernels::{Device, DeviceKind};
use dsa_tests::gate::{gate, judge_on};
use dsa_tests::{Case, kernels};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Samples of each measurement.
pub const SAMPLES: usize = 10;

/// One measurement.
pub struct Spec {
    /// The kernel in `dsa_tests::kernels`.
    pub kernel: &'static str,
    /// Prefill or decode.
    pub stage: Stage,
    /// What sets it apart from others of the same kernel and stage.
    pub case: String,
    /// Sizes by name.
    pub shape: BTreeMap<String, u64>,
    /// Type of the inputs.
    pub dtype: String,
    /// Operations of one call.
    pub flop: u64,
    /// Bytes that one call must move.
    pub bytes: u64,
    /// A small case that runs the same compiled kernel: gated before anything is timed.
    pub gate: Case,
    /// One call.
    pub work: Call,
    /// How rows of its outputs are judged afterwards.
    pub timed: Timed,
}

/// A run of a bench.
pub struct Session {
    args: Args,
    device: Device,
    path: PathBuf,
    rows: Vec<Row>,
    ceilings: Ceilings,
    gates: HashMap<&'static str, PassedGate>,
}

impl Session {
    /// Opens the file of rows of `bench`; `ceilings`: the device's, measured just now.
    pub fn new(
        bench: &str,
        args: Args,
        device: Device,
        ceilings: Ceilings,
    ) -> anyhow::Result<Self> {
        let path = args.rows_of(bench, &device);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        let rows = read_or_empty(&path)?;
        Ok(Self { args, device, path, rows, ceilings, gates: HashMap::new() })
    }

    /// Says what this run is to measure. What an interrupted run has measured of it is kept; if nothing is
    /// missing (or `--fresh` is given) that run was finished, and this one measures everything again.
    pub fn plan(&mut self, all: &[What]) -> anyhow::Result<()> {
        let finished = all.iter().all(|what| self.has(what));
        if !finished && !self.args.fresh {
            return Ok(());
        }
        self.rows.retain(|row| !all.iter().any(|what| what.place() == row.what().place()));
        let kept = self.path.with_extension("kept");
        let replaced = || format!("{} cannot be replaced", self.path.display());
        std::fs::write(&kept, "").with_context(replaced)?;
        for row in &self.rows {
            append(&kept, row)?;
        }
        std::fs::rename(&kept, &self.path).with_context(replaced)
    }

    /// The rows to draw: of this device and of the kernels as they are now. Rows of others stay in the file.
    pub fn current(&self) -> anyhow::Result<Vec<Row>> {
        let device = describe(&self.device);
        let mut rows = latest(&self.rows);
        let mut failed = None;
        rows.retain(|row| {
            let what = row.what();
            let hash = match kernels::find(&what.bench) {
                Ok(kernel) => dsa_kernels::source_hash(Some(kernel.file)),
                Err(_) if what.bench == COST_BENCH => dsa_kernels::source_hash(None),
                Err(error) => {
                    failed = Some(error);
                    return false;
                }
            };
            what.device == device && what.kernel_hash == hash
        });
        match failed {
            Some(error) => Err(error).context(format!("a row of {}", self.path.display())),
            None => Ok(rows),
        }
    }

    /// The file of rows.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Measures `specs` with criterion; what the file of rows already has is left out.
    pub fn kernels(&mut self, specs: Vec<Spec>) -> anyhow::Result<()> {
        let seconds = Duration::from_secs_f64(self.args.seconds);
        let mut criterion = Criterion::default()
            .sample_size(SAMPLES)
            .measurement_time(seconds)
            .warm_up_time(seconds.div_f64(4.0).max(Duration::from_millis(50)))
            .without_plots();
        let n = specs.len();
        let mut planned = Vec::with_capacity(n);
        for spec in &specs {
            planned.push(self.what(spec)?);
        }
        self.plan(&planned)?;
        for (i, (spec, what)) in specs.into_iter().zip(planned).enumerate() {
            if self.has(&what) {
                eprintln!("[{}/{n}] {}: measured before", i + 1, what.place());
                continue;
            }
            eprintln!("[{}/{n}] {}", i + 1, what.place());
            let passed = self.gate(&spec)?;
            let mut group =
                criterion.benchmark_group(format!("{}/{}", spec.kernel, spec.stage.name()));
            let (samples, outputs) = time(&mut group, &self.device, &spec)?;
            group.finish();
            let kernel = kernels::find(spec.kernel)?;
            let passed =
                judge(kernel, &self.device, &spec.timed, &outputs, self.args.seed, &passed)?;
            let peak = Some(self.ceilings.of(&spec.dtype));
            let work = Work { flop: spec.flop, bytes: spec.bytes, peak };
            let row = Row::new(what, passed, Timing::from_samples(samples)?, work, self.origin())?;
            report(&row);
            self.keep(row)?;
        }
        Ok(())
    }

    /// Writes a row to the file.
    pub fn keep(&mut self, row: Row) -> anyhow::Result<()> {
        append(&self.path, &row)?;
        self.rows.push(row);
        Ok(())
    }

    /// Whether a row of this key is there already.
    pub fn has(&self, what: &What) -> bool {
        find(&self.rows, &what.key()).is_some()
    }

    /// The measured ceilings.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
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
    fn gate(&mut self, spec: &Spec) -> anyhow::Result<PassedGate> {
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
        let report = gate(kernel, device, self.args.gate_cases, self.args.seed)
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let worst = report.worst_error().max(own);
        let at = report.worst_case.first().cloned().unwrap_or_default();
        let against = "dsa-reference; errors as a share of the tolerance table";
        let passed = Gate::judge(against, worst, 1.0, at, u64::from(report.cases) + 1)?;
        self.gates.insert(spec.kernel, passed.clone());
        Ok(passed)
    }

    /// Where the rows of this run come from.
    pub fn origin(&self) -> Origin {
        origin()
    }

    /// Compares with the baseline, if one was asked for.
    pub fn verdict(&self) -> anyhow::Result<ExitCode> {
        let Some(base) = self.args.baseline() else {
            return Ok(ExitCode::SUCCESS);
        };
        let mut base = read(&base)?;
        if let Some(only) = &self.args.only {
            base.retain(|row| row.what().bench.contains(only.as_str()));
        }
        let found = compare(&base, &self.rows, THRESHOLD)?;
        print!("{found}");
        let slower = found.worst().is_some_and(|worst| worst.verdict == Verdict::Slower);
        Ok(if slower && self.args.fail_on_slower { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }
}

/// Times one call with criterion on the device's own clock; returns seconds a call, sample by sample, and what
/// the last call computed.
fn time(
    group: &mut BenchmarkGroup<WallTime>,
    device: &Device,
    spec: &Spec,
) -> anyhow::Result<(Vec<f64>, Named)> {
    let mut samples = Vec::new();
    let mut failed = None;
    let mut outputs = Named::new();
    let name: Vec<String> = spec.shape.iter().map(|(name, n)| format!("{name}={n}")).collect();
    group.bench_function(format!("{} {}", spec.dtype, name.join(" ")), |bencher| {
        bencher.iter_custom(|calls| {
            let timed = device.time(|| {
                (0..calls).try_for_each(|_| {
                    // Those of the call before go first, so that a call needs no more memory than it does.
                    outputs.clear();
                    outputs = (spec.work)(device)?;
                    Ok(())
                })
            });
            match timed {
                Ok(time) => {
                    samples.push(time.as_secs_f64() / calls as f64);
                    time
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
    eprintln!(
        "    {:.3} ms, {}, {}, {:.1} % of the measured ceiling, gate {:.3} of what is allowed",
        median * 1e3,
        rate(row.work().flop, "FLOP"),
        rate(row.work().bytes, "B"),
        100.0 * row.fraction_of_peak().unwrap_or(0.0),
        row.gate().worst_error(),
    );
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

/// Commit (of the repository, or `DSA_COMMIT` where there is none), time and command.
fn origin() -> Origin {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let carried = std::env::var("DSA_COMMIT").ok();
    let commit = carried.clone().or_else(|| git(&["rev-parse", "HEAD"]));
    // Rows and pictures of the run itself do not make the kernels dirty.
    let changes = git(&["status", "--porcelain", "--", ":/", ":(top,exclude)figures/*/*"]);
    let bench = std::env::args().next().unwrap_or_default();
    let stem = Path::new(&bench).file_stem().map(|s| s.to_string_lossy().into_owned());
    // Cargo appends a hash to the bench's name; a bench that was carried elsewhere may have lost it.
    let stem = stem.as_deref().unwrap_or_default();
    let name = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
    let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    Origin {
        commit: commit.unwrap_or_else(|| "unknown".to_string()),
        dirty: carried.is_none() && changes.is_none_or(|c| !c.is_empty()),
        created: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        command: format!("cargo bench --bench {name} -- {}", given.join(" ")).trim().to_string(),
    }
}
