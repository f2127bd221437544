//! The gate: a kernel against its reference on generated cases.

use crate::case::{Case, Outputs};
use crate::compare::{Closeness, compare_on};
use crate::generate::strategy;
use crate::kernels::Kernel;
use dsa_kernels::Device;
use dsa_kernels::tile::MatrixUnit;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::path::PathBuf;

/// The seed used if `DSA_SEED` is not set.
pub const DEFAULT_SEED: u64 = 33377335;

/// What a kernel's passing says.
#[derive(Clone, Debug)]
pub struct GateReport {
    /// The kernel.
    pub kernel: &'static str,
    /// Cases run.
    pub cases: u32,
    /// Seed of the cases.
    pub seed: u64,
    /// For each output the closest call.
    pub worst: Vec<Closeness>,
    /// The case of each of them, by its short form.
    pub worst_case: Vec<String>,
}

impl GateReport {
    /// The largest error of any output, as a share of what is allowed.
    pub fn worst_error(&self) -> f64 {
        self.worst.iter().map(|c| c.worst).fold(0.0, f64::max)
    }
}

impl std::fmt::Display for GateReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} cases passed (seed {})", self.kernel, self.cases, self.seed)?;
        for (c, case) in self.worst.iter().zip(&self.worst_case) {
            write!(
                f,
                "\n  {}: closest call {:.3} of what is allowed, {} for {} at {:?} of {case}",
                c.output, c.worst, c.got, c.expected, c.worst_at
            )?;
        }
        Ok(())
    }
}

/// What a kernel's failing says.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kernel} fell on {device} (seed {seed}; replay all with DSA_SEED={seed})\n  case: {case}\n  \
     {reason}\n  saved to {file}\n  kernel:    dsa run {kernel} --inputs {file} --device {device} \
     --out kernel.safetensors\n  reference: dsa run {kernel} --inputs {file} --reference --out \
     reference.safetensors"
)]
pub struct GateFailure {
    /// The kernel.
    pub kernel: &'static str,
    /// The device it ran on.
    pub device: String,
    /// Seed of the cases.
    pub seed: u64,
    /// The smallest failing case found.
    pub case: String,
    /// How it failed.
    pub reason: String,
    /// The case, as a file for `dsa run`.
    pub file: String,
}

/// The seed of this run: `DSA_SEED`, or the default.
pub fn seed() -> u64 {
    std::env::var("DSA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(DEFAULT_SEED)
}

/// A way of computing a kernel's outputs: the kernel itself, or in the harness's own tests a cheat.
pub type Run<'a> = dyn Fn(&Case) -> Result<Outputs, crate::CaseError> + 'a;

/// Runs `kernel` on `device` against its reference on `cases` generated cases.
pub fn gate(
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    let unit = (kernel.machine)(device).matrix;
    let run = |case: &Case| kernel.run(device, case);
    gate_with(kernel, &run, &device.kind().to_string(), unit, cases, seed)
}

/// [`gate`] of any way of computing the outputs, by the tolerances of plain arithmetic.
pub fn gate_of(
    kernel: &'static Kernel,
    run: &Run,
    device: &str,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    gate_with(kernel, run, device, MatrixUnit::Plain, cases, seed)
}

fn gate_with(
    kernel: &'static Kernel,
    run: &Run,
    device: &str,
    unit: MatrixUnit,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let worst: RefCell<Vec<(Closeness, String)>> = RefCell::new(Vec::new());
    let result = TestRunner::new_with_rng(config, rng).run(&strategy(kernel.name), |case| {
        let close = judge_on(unit, kernel, run, &case).map_err(TestCaseError::fail)?;
        let mut worst = worst.borrow_mut();
        for c in close {
            match worst.iter_mut().find(|(w, _)| w.output == c.output) {
                Some((w, _)) if w.worst >= c.worst => {}
                Some(entry) => *entry = (c, format!("{case:?}")),
                None => worst.push((c, format!("{case:?}"))),
            }
        }
        Ok(())
    });
    let fallen = |case: String, reason: String, file: String| {
        let (kernel, device) = (kernel.name, device.to_string());
        Box::new(GateFailure { kernel, device, seed, case, reason, file })
    };
    match result {
        Ok(()) => {
            let (worst, worst_case) = worst.into_inner().into_iter().unzip();
            Ok(GateReport { kernel: kernel.name, cases, seed, worst, worst_case })
        }
        Err(TestError::Fail(reason, case)) => {
            let file = save_failure(&case);
            Err(fallen(format!("{case:?}"), reason.to_string(), file))
        }
        Err(TestError::Abort(reason)) => {
            Err(fallen("none".to_string(), reason.to_string(), "nowhere".to_string()))
        }
    }
}

/// Runs one case and compares it with the reference, by the tolerances of plain arithmetic.
pub fn judge(kernel: &Kernel, run: &Run, case: &Case) -> Result<Vec<Closeness>, String> {
    judge_on(MatrixUnit::Plain, kernel, run, case)
}

/// [`judge`] by the tolerances of the matrix unit that multiplied.
pub fn judge_on(
    unit: MatrixUnit,
    kernel: &Kernel,
    run: &Run,
    case: &Case,
) -> Result<Vec<Closeness>, String> {
    // The kernel goes first, so that no memory it is given can already hold the answer.
    let got = run(case).map_err(|e| e.to_string())?;
    let expected = kernel.reference(case).map_err(|e| e.to_string())?;
    compare_on(unit, kernel.name, &got, &expected).map_err(|e| e.to_string())
}

/// Writes a failing case where `dsa run` can read it; returns the path, or why there is none.
fn save_failure(case: &Case) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in &case.tensors {
        hash.update(name);
        hash.update(&tensor.bytes);
    }
    hash.update(format!("{:?}", case.scalars));
    let digest: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    let folder = std::env::var_os("DSA_FAILURES")
        .map_or_else(|| std::env::temp_dir().join("dsa-failures"), PathBuf::from);
    let path = folder.join(format!("{}-{digest}.safetensors", case.kernel));
    match case.save(&path) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("(not saved: {error})"),
    }
}
