//! What was timed is what is right: rows of the timed output, drawn by the seed, against the reference.
//!
//! The gate before a timing sees small inputs. After it, the outputs of the last timed call are still there: a few
//! of their rows, and of those a few heads where a whole row would take the reference too long, are cut out
//! together with the inputs they were computed from, and held to the same table of tolerances.

use anyhow::Context;
use dsa_figures::{Gate, PassedGate};
use dsa_gate::bench::{Named, Timed};
use dsa_gate::compare::compare_on;
use dsa_gate::kernels::Kernel;
use dsa_kernels::{DType, Device};

/// Judges the outputs of a timed call of `kernel`: `passed` with this comparison added to it.
///
/// # Errors
/// The element that is wrong, if one is; or why it cannot be judged.
pub fn judge(
    kernel: &Kernel,
    device: &Device,
    timed: &Timed,
    outputs: &Named,
    seed: u64,
    passed: &PassedGate,
) -> anyhow::Result<PassedGate> {
    let drawn = timed.draw(device, seed);
    let cut = (timed.cut)(&drawn, outputs).and_then(|(case, got)| {
        let mut expected = kernel.reference(&case)?;
        for (name, want) in &mut expected {
            // The product may round its sums to another type than the reference returns.
            let dtype = got.get(name).map_or(want.dtype, |have| have.dtype);
            if dtype != want.dtype && DType::FLOATS.contains(&dtype) && want.dtype == DType::F32 {
                *want = want.cast(dtype);
            }
        }
        Ok((got, expected))
    });
    let (got, expected) =
        cut.with_context(|| format!("what was timed of {} cannot be judged", kernel.name))?;
    let unit = (kernel.machine)(device).matrix;
    let close = compare_on(unit, kernel.name, &got, &expected)
        .with_context(|| format!("{} fell after it was timed, {drawn}", kernel.name))?;
    let worst = close.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
    let worst = worst.with_context(|| format!("{} has no output to judge", kernel.name))?;
    let (error, at) = if worst.worst > passed.worst_error() {
        (worst.worst, format!("{}{:?} of {drawn}", worst.output, worst.worst_at))
    } else {
        (passed.worst_error(), passed.worst_at().to_string())
    };
    Ok(Gate::judge(passed.against(), error, passed.tolerance(), at, passed.cases() + 1)?)
}

#[cfg(test)]
mod tests;
