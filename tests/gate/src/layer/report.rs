//! What a verification found, and how it is printed.

use std::fmt;

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was verified, and what of it decides the result, as name and value.
    pub settings: Vec<(String, String)>,
    /// Its parts.
    pub sections: Vec<Section>,
}

/// One comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// What was compared.
    pub title: String,
    /// What must hold.
    pub checks: Vec<Check>,
    /// What is so, as name and value.
    pub facts: Vec<(String, String)>,
}

/// A number that must be within a bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was measured.
    pub name: String,
    /// The worst value found.
    pub value: f64,
    /// What it must keep to.
    pub bound: Bound,
    /// Where the worst value is; empty if everything is exact.
    pub worst: String,
}

/// A bound, itself included. NaN keeps to none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Check {
    /// Whether the value keeps to its bound.
    pub fn passed(&self) -> bool {
        match self.bound {
            Bound::AtMost(bound) => self.value <= bound,
            Bound::AtLeast(bound) => self.value >= bound,
        }
    }
}

impl Section {
    /// Whether it compared something, and all of its checks passed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(Check::passed)
    }

    /// Adds a check.
    pub(super) fn check(&mut self, name: &str, value: f64, bound: Bound, worst: String) {
        self.checks.push(Check { name: name.to_string(), value, bound, worst });
    }

    /// Adds a fact.
    pub(super) fn fact(&mut self, name: &str, value: String) {
        self.facts.push((name.to_string(), value));
    }
}

impl Report {
    /// Whether there are sections, each of them compared something, and all checks passed.
    pub fn passed(&self) -> bool {
        !self.sections.is_empty() && self.sections.iter().all(Section::passed)
    }

    /// All checks.
    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.sections.iter().flat_map(|section| &section.checks)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "ok    " } else { "FAILED" };
        let (word, bound) = match self.bound {
            Bound::AtMost(bound) => ("at most", bound),
            Bound::AtLeast(bound) => ("at least", bound),
        };
        let (value, bound) = (Short(self.value), Short(bound));
        write!(f, "{verdict}  {:<64} {value:>8}, {word} {bound}", self.name)?;
        if self.worst.is_empty() { Ok(()) } else { write!(f, "  ({})", self.worst) }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        if self.checks.is_empty() {
            writeln!(f, "  FAILED  nothing was compared")?;
        }
        self.checks.iter().try_for_each(|check| writeln!(f, "  {check}"))?;
        write_facts(f, &self.facts)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.settings.is_empty() {
            writeln!(f, "configuration")?;
            write_facts(f, &self.settings)?;
            writeln!(f)?;
        }
        self.sections.iter().try_for_each(|section| writeln!(f, "{section}"))?;
        let (failed, all) = (self.checks().filter(|c| !c.passed()).count(), self.checks().count());
        match (self.passed(), failed) {
            (true, _) => write!(f, "passed: {all} checks"),
            (false, 0) => write!(f, "FAILED: a part compared nothing, {all} checks in the others"),
            (false, _) => write!(f, "FAILED: {failed} of {all} checks"),
        }
    }
}

/// Names and values, under those of the checks.
fn write_facts(f: &mut fmt::Formatter<'_>, facts: &[(String, String)]) -> fmt::Result {
    facts.iter().try_for_each(|(name, value)| writeln!(f, "          {name:<64} {value}"))
}

/// A number in few digits: as it is near 1, with an exponent far from it.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        let text = match self.0 {
            value if value.fract() == 0.0 && size < 1e6 => format!("{value}"),
            value if (1e-2..1e4).contains(&size) => format!("{value:.4}"),
            value => format!("{value:.1e}"),
        };
        f.pad(&text)
    }
}
