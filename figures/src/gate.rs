//! The correctness gate in front of every timing.
//!
//! A [`crate::Row`] needs a [`PassedGate`], and the only ways to one are [`Gate::judge`] and
//! reading a row back, which judges again. So no row holds the time of a wrong kernel.

use dsa_files::printable;
use serde::{Deserialize, Serialize};

/// Judges a kernel's output; holds nothing itself.
pub struct Gate;

impl Gate {
    /// Passes when `worst_error <= tolerance` over at least one case.
    ///
    /// `against` names the reference, `worst_at` the place of the worst error (case and index).
    /// Both errors are in the unit of the tolerance table that the caller took them from.
    pub fn judge(
        against: impl Into<String>,
        worst_error: f64,
        tolerance: f64,
        worst_at: impl Into<String>,
        cases: u64,
    ) -> Result<PassedGate, GateFailed> {
        let (against, worst_at) = (against.into(), worst_at.into());
        if cases == 0 {
            return Err(GateFailed::NoCases { against });
        }
        if !tolerance.is_finite() || tolerance < 0.0 {
            return Err(GateFailed::Tolerance { against, tolerance });
        }
        // Written so that a NaN on the left fails too.
        let passed = (0.0..=tolerance).contains(&worst_error);
        if !passed {
            return Err(GateFailed::Wrong { against, worst_error, tolerance, worst_at });
        }
        Ok(PassedGate { against, worst_error, tolerance, worst_at, cases })
    }
}

/// Proof that a kernel's output was compared with a reference and was close enough.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawGate")]
pub struct PassedGate {
    against: String,
    worst_error: f64,
    tolerance: f64,
    worst_at: String,
    cases: u64,
}

impl PassedGate {
    /// The reference that the output was compared with.
    pub fn against(&self) -> &str {
        &self.against
    }

    /// The largest error over all cases; never above [`PassedGate::tolerance`].
    pub fn worst_error(&self) -> f64 {
        self.worst_error
    }

    /// The largest error that was allowed.
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// Where the largest error was.
    pub fn worst_at(&self) -> &str {
        &self.worst_at
    }

    /// How many cases were compared; at least 1.
    pub fn cases(&self) -> u64 {
        self.cases
    }
}

/// Why a gate did not pass.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GateFailed {
    /// The output is too far from the reference, or the error is not a number.
    #[error(
        "against {}: error {worst_error} at {}; expected 0 to {tolerance}",
        printable(against, 100),
        printable(worst_at, 200)
    )]
    Wrong {
        /// The reference.
        against: String,
        /// The error found; NaN when the comparison made one.
        worst_error: f64,
        /// The largest error allowed.
        tolerance: f64,
        /// Where the error was.
        worst_at: String,
    },
    /// The tolerance itself is unusable.
    #[error(
        "against {}: tolerance {tolerance}; expected a finite number of 0 or more",
        printable(against, 100)
    )]
    Tolerance {
        /// The reference.
        against: String,
        /// The tolerance given.
        tolerance: f64,
    },
    /// Nothing was compared.
    #[error("against {}: 0 cases compared; expected at least 1", printable(against, 100))]
    NoCases {
        /// The reference.
        against: String,
    },
}

#[derive(Deserialize)]
struct RawGate {
    against: String,
    worst_error: f64,
    tolerance: f64,
    worst_at: String,
    cases: u64,
}

impl TryFrom<RawGate> for PassedGate {
    type Error = GateFailed;

    fn try_from(raw: RawGate) -> Result<Self, GateFailed> {
        Gate::judge(raw.against, raw.worst_error, raw.tolerance, raw.worst_at, raw.cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_up_to_the_tolerance() {
        assert!(Gate::judge("reference", 1e-3, 1e-3, "[0]", 4).is_ok());
        assert!(Gate::judge("reference", 0.0, 0.0, "[0]", 1).is_ok());
    }

    #[test]
    fn refuses_what_is_wrong_or_empty() {
        let judge = |error, tolerance, cases| Gate::judge("r", error, tolerance, "[1]", cases);
        assert!(matches!(judge(2e-3, 1e-3, 1), Err(GateFailed::Wrong { .. })));
        assert!(matches!(judge(f64::NAN, 1e-3, 1), Err(GateFailed::Wrong { .. })));
        assert!(matches!(judge(-1.0, 1e-3, 1), Err(GateFailed::Wrong { .. })));
        assert!(matches!(judge(0.0, f64::INFINITY, 1), Err(GateFailed::Tolerance { .. })));
        assert!(matches!(judge(0.0, f64::NAN, 1), Err(GateFailed::Tolerance { .. })));
        assert!(matches!(judge(0.0, 1e-3, 0), Err(GateFailed::NoCases { .. })));
    }

    #[test]
    fn reading_judges_again() {
        let good = Gate::judge("r", 1e-4, 1e-3, "[1]", 2).unwrap();
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<PassedGate>(&text).unwrap(), good);
        let forged = text.replace("0.0001", "0.5");
        assert!(serde_json::from_str::<PassedGate>(&forged).is_err());
    }
}
