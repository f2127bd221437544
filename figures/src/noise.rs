//! Whether a run can be believed: a busy machine shows in its own numbers, and is named.

use std::fmt;

use dsa_files::printable;

use crate::{Row, Stage};

/// A point whose fastest and slowest sample are further apart than this share of its median is noisy.
pub const WIDE: f64 = 0.2;

/// Dense attention costs a straight line over the context. A line that explains less than this share of
/// the variance was bent by something else.
pub const LEAST_R2: f64 = 0.98;

/// What makes a run noisy.
#[derive(Debug, Clone, PartialEq)]
pub struct Noise {
    points: usize,
    wide: usize,
    widest: (String, f64),
    bent: Vec<(Stage, f64)>,
    busy: Option<(f64, u64)>,
    again: String,
}

impl Noise {
    /// Looks at the rows of one picture and at the R² of its dense lines; none if all is quiet.
    pub fn of(rows: &[&Row], lines: &[(Stage, f64)]) -> Option<Self> {
        let spread = |row: &&&Row| row.timing().spread();
        let widest = rows.iter().max_by(|a, b| spread(a).total_cmp(&spread(b)))?;
        let wide = rows.iter().filter(|row| spread(row) > WIDE).count();
        let bent: Vec<(Stage, f64)> =
            lines.iter().copied().filter(|line| line.1 < LEAST_R2).collect();
        if wide == 0 && bent.is_empty() {
            return None;
        }
        let busy = rows
            .iter()
            .filter_map(|row| Some((row.origin().load_average?, row.what().device.cores)));
        Some(Noise {
            points: rows.len(),
            wide,
            widest: (widest.what().place().to_string(), spread(&widest)),
            bent,
            busy: busy.max_by(|a, b| a.0.total_cmp(&b.0)),
            again: again(&widest.origin().command),
        })
    }
}

/// The command of a bench, told not to go on from what is there.
fn again(command: &str) -> String {
    let command = printable(command.trim(), 300);
    let given = format!("{command} ");
    if given.contains(" --fresh ") || !given.contains(" -- ") {
        command
    } else {
        format!("{command} --fresh")
    }
}

impl fmt::Display for Noise {
    /// One paragraph: what was seen, then the command that repeats the run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen = Vec::new();
        if self.wide > 0 {
            let (place, spread) = &self.widest;
            seen.push(format!(
                "{} of {} points spread by more than {:.0} % (the widest by {:.0} %: {place})",
                self.wide,
                self.points,
                100.0 * WIDE,
                100.0 * spread
            ));
        }
        for (stage, r2) in &self.bent {
            let stage = stage.name();
            seen.push(format!("the dense line of {stage} has R2 {r2:.4}, below {LEAST_R2}"));
        }
        if let Some((load, cores)) = self.busy {
            seen.push(format!("load average up to {load:.1} ({cores} cores)"));
        }
        write!(f, "NOISY RUN: {}. Repeat it on an idle machine: {}", seen.join("; "), self.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::row;

    #[test]
    fn wide_bands_are_named_with_the_command_that_repeats_the_run() {
        let quiet = row("quiet", 'a', vec![1.0, 1.1, 1.2]);
        let loud = row("loud", 'a', vec![1.0, 1.0, 1.3]);
        assert_eq!(Noise::of(&[&quiet], &[(Stage::Prefill, 0.99)]), None);
        assert_eq!(Noise::of(&[], &[(Stage::Prefill, 0.5)]), None);
        let said = Noise::of(&[&quiet, &loud], &[]).unwrap().to_string();
        let start =
            "NOISY RUN: 1 of 2 points spread by more than 20 % (the widest by 30 %: indexer";
        assert!(said.starts_with(start), "{said}");
        assert!(said.ends_with("idle machine: cargo bench"), "{said}");
    }

    #[test]
    fn a_bent_dense_line_is_named() {
        let quiet = row("quiet", 'a', vec![1.0, 1.0]);
        let said = Noise::of(&[&quiet], &[(Stage::Prefill, 0.99), (Stage::Decode, 0.91)]);
        let said = said.unwrap().to_string();
        assert!(said.starts_with("NOISY RUN: the dense line of decode has R2 0.9100, below 0.98."));
    }

    #[test]
    fn the_command_starts_afresh_once() {
        assert_eq!(again("cargo bench --bench x --"), "cargo bench --bench x -- --fresh");
        assert_eq!(again("cargo bench -- --fresh --s-q 4"), "cargo bench -- --fresh --s-q 4");
        assert_eq!(again("python mine.py"), "python mine.py");
    }
}
