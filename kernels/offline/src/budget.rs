//! What a kernel may take of a device, as its file's header states it.
//!
//! One sentence for each target, on one line of the file's `//!` text:
//!
//! ```text
//! Budget (sm_90a): at most 168 registers a unit, 216 KB of shared memory, no spills; wgmma bf16, wgmma e4m3.
//! Budget (gfx950): at most 96 registers a unit, 8 KB of shared memory, 40 bytes of spills; vector arithmetic.
//! ```
//!
//! It holds for every kernel of the file: the largest of each number, all kinds of matrix instruction.

use super::{Target, Usage};
use dsa_kernels::{KernelError, Result};
use std::collections::BTreeSet;

/// What the kernels of one file may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Vector registers of a unit.
    pub registers: usize,
    /// Shared memory of a cube, in KB of 1024 bytes.
    pub shared_kb: usize,
    /// Bytes of spilled registers of a unit.
    pub spills: usize,
    /// The kinds of matrix instruction that must be there, and no others.
    pub matrix: BTreeSet<String>,
}

impl Budget {
    /// The budget that the header of `file` (as `indexer.rs`) states for `target`.
    ///
    /// # Errors
    /// [`KernelError::Value`] if there is no such file, or its header has no such sentence.
    pub fn of(file: &str, target: Target) -> Result<Self> {
        let missing = |got: String| KernelError::Value {
            name: "budget",
            got,
            expected: format!("a line in kernels/src/{file}, as {}", Self::default().line(target)),
        };
        let source =
            dsa_kernels::source_text(file).ok_or_else(|| missing("no such file".to_string()))?;
        let start = format!("//! Budget ({target}): ");
        let mut lines = source.lines().filter_map(|line| line.strip_prefix(&start));
        let sentence = lines.next().ok_or_else(|| missing("nothing".to_string()))?;
        Self::parse(sentence).ok_or_else(|| missing(format!("{start}{sentence}")))
    }

    /// Reads the sentence after `Budget (TARGET): `.
    fn parse(sentence: &str) -> Option<Self> {
        let rest = sentence.strip_prefix("at most ")?.strip_suffix('.')?;
        let (numbers, matrix) = rest.split_once("; ")?;
        let mut numbers = numbers.split(", ");
        let mut number = |unit: &str| numbers.next()?.strip_suffix(unit)?.parse().ok();
        let registers = number(" registers a unit")?;
        let shared_kb = number(" KB of shared memory")?;
        let spills = match numbers.next()? {
            "no spills" => 0,
            some => some.strip_suffix(" bytes of spills")?.parse().ok()?,
        };
        if numbers.next().is_some() {
            return None;
        }
        let matrix = match matrix {
            "vector arithmetic" => BTreeSet::new(),
            kinds => kinds.split(", ").map(str::to_string).collect(),
        };
        Some(Self { registers, shared_kb, spills, matrix })
    }

    /// The least budget that `usages` keep, its registers in whole eights: both vendors hand them out so.
    pub fn covering<'a>(usages: impl IntoIterator<Item = &'a Usage>) -> Self {
        let mut budget = Self::default();
        for usage in usages {
            budget.registers = budget.registers.max(usage.registers.next_multiple_of(8));
            budget.shared_kb = budget.shared_kb.max(usage.shared_memory.div_ceil(1024));
            budget.spills = budget.spills.max(usage.spills);
            budget.matrix.extend(usage.matrix.keys().cloned());
        }
        budget
    }

    /// Whether no number of `taken` is larger.
    pub fn covers(&self, taken: &Self) -> bool {
        taken.registers <= self.registers
            && taken.shared_kb <= self.shared_kb
            && taken.spills <= self.spills
    }

    /// Whether `taken`, of all kernels of the file, keeps this budget: no number is larger, and the
    /// matrix instructions are the ones named.
    pub fn holds(&self, taken: &Self) -> bool {
        self.covers(taken) && taken.matrix == self.matrix
    }

    /// The line of a header that states this budget.
    pub fn line(&self, target: Target) -> String {
        let spills = match self.spills {
            0 => "no spills".to_string(),
            bytes => format!("{bytes} bytes of spills"),
        };
        let matrix = match self.matrix.is_empty() {
            true => "vector arithmetic".to_string(),
            false => self.matrix.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        format!(
            "//! Budget ({target}): at most {} registers a unit, {} KB of shared memory, {spills}; {matrix}.",
            self.registers, self.shared_kb
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_read_as_it_is_written() {
        let matrix = ["wgmma bf16", "wgmma e4m3"].map(String::from).into();
        let spilling = Budget { registers: 168, shared_kb: 216, spills: 40, matrix };
        for budget in [spilling, Budget { registers: 32, ..Budget::default() }] {
            let line = budget.line(Target::Sm90a);
            let sentence = line.strip_prefix("//! Budget (sm_90a): ").expect("the fixed start");
            assert_eq!(Budget::parse(sentence), Some(budget), "{line}");
        }
        for wrong in [
            "at most 1 registers a unit, no spills; vector arithmetic.",
            "at most x registers a unit, 1 KB of shared memory, no spills; vector arithmetic.",
            "at most 1 registers a unit, 1 KB of shared memory, no spills; vector arithmetic",
        ] {
            assert_eq!(Budget::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_budget_holds_what_is_no_larger_and_of_the_same_kind() {
        let budget = Budget { registers: 8, shared_kb: 2, spills: 0, matrix: BTreeSet::new() };
        assert!(budget.holds(&Budget { registers: 7, ..budget.clone() }));
        assert!(!budget.holds(&Budget { registers: 9, ..budget.clone() }));
        assert!(!budget.holds(&Budget { shared_kb: 3, ..budget.clone() }));
        assert!(!budget.holds(&Budget { spills: 4, ..budget.clone() }));
        assert!(!budget.holds(&Budget { matrix: ["mfma bf16".into()].into(), ..budget.clone() }));
    }
}
