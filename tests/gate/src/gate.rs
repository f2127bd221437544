//! The gate: a kernel against its reference on generated cases.
//!
//! Cases come in *forms*: what decides how a kernel is compiled is drawn once, and [`INPUTS`] inputs follow for
//! it, since compiling takes most of a case's time. The first form, and one in four, has a model's dimensions
//! with few tokens; the others have any. A case that falls is shrunk and saved.

use crate::case::{Case, Outputs};
use crate::compare::{Closeness, compare_on};
use crate::diagnosis::diagnose;
use crate::generate::{Form, Model};
use crate::kernels::Kernel;
use dsa_kernels::Device;
use dsa_kernels::tile::MatrixUnit;
use plan::{Plan, Planned};
use std::panic::{AssertUnwindSafe, catch_unwind};

mod failure;
mod plan;
mod saved;
mod seed;

pub use failure::GateFailure;
pub use saved::{Replayed, failures_folder, keep, regressions, replay};
pub use seed::{DEFAULT_CASES, DEFAULT_SEED, Setting, cases, new_seed, seed};

/// Inputs of one form: cases that one compilation carries.
pub const INPUTS: u32 = 4;

/// What a kernel's passing says.
#[derive(Clone, Debug)]
pub struct GateReport {
    /// The kernel.
    pub kernel: &'static str,
    /// Cases run.
    pub cases: u32,
    /// Forms that they are of: compilations, at least.
    pub forms: usize,
    /// Cases that have a model's dimensions.
    pub of_models: Vec<(Model, u32)>,
    /// Seed of the cases.
    pub seed: u64,
    /// Code paths of the device that ran, and those that there are; none where no device was asked.
    pub paths: (Vec<&'static str>, usize),
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

    fn add(&mut self, close: Vec<Closeness>, case: &Case) {
        self.cases += 1;
        for c in close {
            match self.worst.iter().position(|w| w.output == c.output) {
                Some(at) if self.worst[at].worst >= c.worst => {}
                Some(at) => (self.worst[at], self.worst_case[at]) = (c, format!("{case:?}")),
                None => {
                    self.worst.push(c);
                    self.worst_case.push(format!("{case:?}"));
                }
            }
        }
    }
}

impl std::fmt::Display for GateReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} cases passed (seed {})", self.kernel, self.cases, self.seed)?;
        write!(f, "\n  {} forms", self.forms)?;
        for (model, cases) in &self.of_models {
            write!(f, "; {cases} cases at {model}'s dimensions")?;
        }
        let (ran, all) = (self.paths.0.len(), self.paths.1);
        if all > 0 {
            write!(f, "; code paths of this device: {ran} of {all}")?;
        }
        for (c, case) in self.worst.iter().zip(&self.worst_case) {
            write!(
                f,
                "\n  {}: largest error {:.1} % of the tolerance, {} for {} at {:?} of {case}",
                c.output,
                100.0 * c.worst,
                c.got,
                c.expected,
                c.worst_at
            )?;
        }
        Ok(())
    }
}

/// A way of computing a kernel's outputs: the kernel itself, or in the harness's own tests a cheat.
pub type Run<'a> = dyn Fn(&Case) -> Result<Outputs, crate::CaseError> + 'a;

/// Runs `kernel` on `device` against its reference on `cases` generated cases.
///
/// # Errors
/// [`GateFailure`] with the smallest case found, saved, that falls; or if `cases` is 0, or as many as
/// [`DEFAULT_CASES`] and some code of the kernel on this device was in none of them.
pub fn gate(
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    gate_watched(kernel, device, cases, seed, &|_| {})
}

/// [`gate`] that tells `watch` of each case that passed how many did.
///
/// # Errors
/// As [`gate`].
pub fn gate_watched(
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
    watch: &dyn Fn(u32),
) -> Result<GateReport, Box<GateFailure>> {
    Gate {
        kernel,
        run: &|case: &Case| kernel.run(device, case),
        device: Some(device),
        named: device.kind().to_string(),
        unit: (kernel.machine)(device).matrix,
        seed,
        watch,
    }
    .judge(cases, true)
}

/// [`gate`] that ends with the first case that falls, which is neither shrunk nor saved: for kernels that are
/// known to fall.
///
/// # Errors
/// As [`gate`].
pub fn gate_once(
    kernel: &'static Kernel,
    device: &Device,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    Gate {
        kernel,
        run: &|case: &Case| kernel.run(device, case),
        device: Some(device),
        named: device.kind().to_string(),
        unit: (kernel.machine)(device).matrix,
        seed,
        watch: &|_| {},
    }
    .judge(cases, false)
}

/// [`gate`] of any way of computing the outputs, by the tolerances of plain arithmetic.
///
/// # Errors
/// As [`gate`].
pub fn gate_of(
    kernel: &'static Kernel,
    run: &Run,
    device: &str,
    cases: u32,
    seed: u64,
) -> Result<GateReport, Box<GateFailure>> {
    let (named, watch) = (device.to_string(), &|_| {});
    Gate { kernel, run, device: None, named, unit: MatrixUnit::Plain, seed, watch }
        .judge(cases, true)
}

/// One kernel before the gate.
struct Gate<'a> {
    kernel: &'static Kernel,
    run: &'a Run<'a>,
    /// The device it runs on, if it is the kernel itself that runs.
    device: Option<&'a Device>,
    named: String,
    unit: MatrixUnit,
    seed: u64,
    /// Told of each case that passed how many did.
    watch: &'a dyn Fn(u32),
}

impl Gate<'_> {
    fn judge(&self, cases: u32, shrunk: bool) -> Result<GateReport, Box<GateFailure>> {
        if cases == 0 {
            return Err(self.refused("0 cases: nothing would be checked".to_string()));
        }
        let plan = Plan::draw(self.kernel, self.device, cases, self.seed)
            .map_err(|reason| self.refused(reason))?;
        let mut report = GateReport {
            kernel: self.kernel.name,
            cases: 0,
            forms: plan.forms.len(),
            of_models: plan.of_models(),
            seed: self.seed,
            paths: (plan.ran.clone(), plan.all.len()),
            worst: vec![],
            worst_case: vec![],
        };
        // The first form alone, so that what falls there falls at once; then as many as the cores compile.
        let (mut done, mut batch) = (0, 1);
        while done < plan.forms.len() {
            let forms = &plan.forms[done..plan.forms.len().min(done + batch)];
            self.compile(forms);
            for planned in forms {
                for (nth, seed) in planned.seeds.iter().enumerate() {
                    let case = planned.form.case(*seed);
                    match self.verdict(&case) {
                        Ok(close) => {
                            report.add(close, &case);
                            (self.watch)(report.cases);
                        }
                        Err(reason) => {
                            let drawn = (format!("{case:?}"), reason.clone());
                            let (case, reason) = match shrunk {
                                true => self.shrink(&plan, planned, nth, reason),
                                false => (case, reason),
                            };
                            let mut failure = self.fallen(&case, reason, shrunk);
                            (failure.passed, failure.model) = (report.cases, planned.model);
                            failure.drawn = Some(drawn).filter(|drawn| drawn.0 != failure.case);
                            return Err(failure);
                        }
                    }
                }
            }
            done += forms.len();
            batch = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        }
        match left_out(&plan.all, &plan.ran, cases) {
            Some(reason) => Err(self.refused(reason)),
            None => Ok(report),
        }
    }

    /// Compiles what the forms need, on all cores at once. What does not compile is said where it is run.
    fn compile(&self, forms: &[Planned]) {
        if let (Some(device), [_, _, ..]) = (self.device, forms) {
            device.compile_ahead(|| {
                for planned in forms {
                    let case = planned.form.case(planned.seeds[0]);
                    let _ = catch_unwind(AssertUnwindSafe(|| (self.run)(&case)));
                }
            });
        }
    }

    /// How close the outputs of `case` are, or why they do not pass; a panic is a reason.
    fn verdict(&self, case: &Case) -> Result<Vec<Closeness>, String> {
        catch_unwind(AssertUnwindSafe(|| judge_on(self.unit, self.kernel, self.run, case)))
            .unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied());
                Err(format!("it panicked: {}", text.unwrap_or("no message")))
            })
    }

    /// The smallest case found that falls, from input `nth` of `planned` on, and why it does.
    fn shrink(&self, plan: &Plan, planned: &Planned, nth: usize, reason: String) -> (Case, String) {
        // A form that is compiled is tried with more than the inputs that fell.
        let mut seeds = planned.seeds.clone();
        seeds.swap(0, nth);
        let falls = |form: &Form| {
            seeds.iter().find_map(|seed| {
                let case = form.case(*seed);
                self.verdict(&case).err().map(|reason| (case, reason))
            })
        };
        plan.smallest(planned, falls).unwrap_or_else(|| (planned.form.case(seeds[0]), reason))
    }

    fn fallen(&self, case: &Case, reason: String, save: bool) -> Box<GateFailure> {
        let saved = if save { saved::save(case) } else { Err("not asked for".to_string()) };
        self.failure(format!("{case:?}"), reason, saved)
    }

    /// A failure without a case.
    fn refused(&self, reason: String) -> Box<GateFailure> {
        self.failure("none".to_string(), reason, Err("there is no case".to_string()))
    }

    fn failure(
        &self,
        case: String,
        reason: String,
        saved: Result<String, String>,
    ) -> Box<GateFailure> {
        let (kernel, device, seed) = (self.kernel.name, self.named.clone(), self.seed);
        let (saved, file) = (saved.is_ok(), saved.unwrap_or_else(|why| why));
        let (reference, passed, model, drawn) = (self.kernel.reference, 0, None, None);
        Box::new(GateFailure {
            kernel,
            reference,
            device,
            seed,
            passed,
            model,
            drawn,
            case,
            reason,
            file,
            saved,
        })
    }
}

/// Which of the code paths `all` none of the `cases` cases ran, if there were enough of them to run all.
fn left_out(all: &[&str], ran: &[&str], cases: u32) -> Option<String> {
    let missing: Vec<_> = all.iter().filter(|path| !ran.contains(path)).collect();
    (cases >= DEFAULT_CASES && !missing.is_empty())
        .then(|| format!("no case ran the code paths {missing:?} of this device"))
}

/// Runs one case and compares it with the reference, by the tolerances of plain arithmetic.
///
/// # Errors
/// Why it does not pass, and in the lines below where its outputs are wrong and where they are right.
pub fn judge(kernel: &Kernel, run: &Run, case: &Case) -> Result<Vec<Closeness>, String> {
    judge_on(MatrixUnit::Plain, kernel, run, case)
}

/// [`judge`] by the tolerances of the matrix unit that multiplied.
///
/// # Errors
/// As [`judge`].
pub fn judge_on(
    unit: MatrixUnit,
    kernel: &Kernel,
    run: &Run,
    case: &Case,
) -> Result<Vec<Closeness>, String> {
    // The kernel goes first, so that no memory it is given can already hold the answer.
    let got = run(case).map_err(|e| e.to_string())?;
    let expected = kernel.reference(case).map_err(|e| e.to_string())?;
    compare_on(unit, kernel.name, &got, &expected).map_err(|mismatch| {
        let places = diagnose(unit, kernel, case, &got, &expected);
        std::iter::once(mismatch.to_string()).chain(places).collect::<Vec<_>>().join("\n  ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_no_case_ran_is_no_pass_where_there_were_enough_cases() {
        let reason = left_out(&["f32", "sigmoid"], &["f32"], DEFAULT_CASES).unwrap();
        assert!(reason.contains(r#"["sigmoid"]"#), "{reason}");
        assert_eq!(left_out(&["f32", "sigmoid"], &["sigmoid", "f32"], DEFAULT_CASES), None);
        assert_eq!(left_out(&["f32", "sigmoid"], &["f32"], DEFAULT_CASES - 1), None);
    }
}
