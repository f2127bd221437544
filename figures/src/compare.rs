//! Two files of rows side by side: what got faster, what got slower, what cannot be told.
//!
//! The rule. Each measurement gets an interval around its median, ± 3 standard errors:
//! 3 · 1.2533 · 1.4826 · MAD / √samples (1.4826·MAD estimates sigma, 1.2533·sigma/√n is the
//! standard error of a median, both for normal noise). With `threshold` the relative change that
//! one cares about:
//! - **Faster** / **Slower**: the intervals do not overlap and the medians differ by more than
//!   the threshold;
//! - **Same**: the medians differ by no more than the threshold, and neither interval is wider
//!   to either side than the threshold;
//! - **Unclear**: anything else, and whenever a side has fewer than [`FEWEST_SAMPLES`] samples.
//!
//! Letting overlap of intervals decide, with a verdict for "cannot tell", follows the idea of
//! NVIDIA nvbench's comparison script; the intervals and the rule are our own.

use std::collections::BTreeMap;
use std::fmt;

use dsa_files::printable;

use crate::{Error, Place, Row, Timing};

/// Fewest samples of a measurement that is judged.
pub const FEWEST_SAMPLES: usize = 3;

/// Default of the relative change that one cares about.
pub const THRESHOLD: f64 = 0.03;

/// How a measurement changed. In rising order of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Surely faster, by more than the threshold.
    Faster,
    /// Surely within the threshold.
    Same,
    /// The samples do not tell.
    Unclear,
    /// Surely slower, by more than the threshold.
    Slower,
}

/// One measurement in both files.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which measurement.
    pub place: Place,
    /// Median of the baseline, seconds.
    pub base_s: f64,
    /// Median now, seconds.
    pub new_s: f64,
    /// Whether the kernel's hash differs.
    pub kernel_changed: bool,
    /// The judgement.
    pub verdict: Verdict,
}

impl Change {
    /// Time now over time before: below 1 is faster.
    pub fn ratio(&self) -> f64 {
        self.new_s / self.base_s
    }
}

/// All measurements of two files.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Those in both, ordered by place.
    pub changes: Vec<Change>,
    /// Those only in the baseline.
    pub gone: Vec<Place>,
    /// Those only in the new file.
    pub added: Vec<Place>,
}

/// Pairs rows by their place (the key without the kernel's hash; of several rows the last counts)
/// and judges each pair. `threshold` is relative: 0.03 is three percent.
pub fn compare(base: &[Row], new: &[Row], threshold: f64) -> Result<Comparison, Error> {
    if !threshold.is_finite() || threshold <= 0.0 {
        return Err(Error::value("threshold", threshold, "a finite share above 0"));
    }
    let by_place = |rows| -> BTreeMap<Place, &Row> {
        let rows: &[Row] = rows;
        rows.iter().map(|row| (row.what().place(), row)).collect()
    };
    let (base, new) = (by_place(base), by_place(new));
    let missing = |from: &BTreeMap<Place, &Row>, other: &BTreeMap<Place, &Row>| {
        from.keys().filter(|place| !other.contains_key(place)).cloned().collect()
    };
    let changes = base
        .iter()
        .filter_map(|(place, old)| Some((place, *old, *new.get(place)?)))
        .map(|(place, old, now)| Change {
            place: place.clone(),
            base_s: old.timing().median_s(),
            new_s: now.timing().median_s(),
            kernel_changed: old.what().kernel_hash != now.what().kernel_hash,
            verdict: judge(old.timing(), now.timing(), threshold),
        })
        .collect();
    Ok(Comparison { changes, gone: missing(&base, &new), added: missing(&new, &base) })
}

/// The rule of the module's documentation.
pub fn judge(base: &Timing, new: &Timing, threshold: f64) -> Verdict {
    if base.samples().len() < FEWEST_SAMPLES || new.samples().len() < FEWEST_SAMPLES {
        return Verdict::Unclear;
    }
    let (old_half, new_half) = (half_width(base), half_width(new));
    let (old, now) = (base.median_s(), new.median_s());
    let apart = (now - old).abs() > old_half + new_half;
    let change = now / old - 1.0;
    let sharp = old_half <= threshold * old && new_half <= threshold * now;
    if change.abs() <= threshold {
        return if sharp { Verdict::Same } else { Verdict::Unclear };
    }
    match (apart, change > 0.0) {
        (false, _) => Verdict::Unclear,
        (true, true) => Verdict::Slower,
        (true, false) => Verdict::Faster,
    }
}

/// Half of a timing's interval, seconds.
fn half_width(timing: &Timing) -> f64 {
    3.0 * 1.2533 * 1.4826 * timing.mad_s() / (timing.samples().len() as f64).sqrt()
}

impl Comparison {
    /// Whether anything got slower. An error where nothing is in both: that is no verdict.
    pub fn slower(&self) -> Result<bool, Error> {
        if self.changes.is_empty() {
            let side = |places: &[Place]| match places.first() {
                None => "no measurement".to_string(),
                Some(first) => {
                    let device = printable(&first.device, 60);
                    format!("{} measurements, such as {first} on {device}", places.len())
                }
            };
            let reason = format!(
                "the baseline has {}; the new rows have {}",
                side(&self.gone),
                side(&self.added)
            );
            return Err(Error::NothingCompared { reason });
        }
        Ok(self.changes.iter().any(|change| change.verdict == Verdict::Slower))
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.changes.iter().filter(|change| change.verdict == verdict).count()
    }

    /// The worst change: by verdict, then by ratio. None when nothing is in both files.
    pub fn worst(&self) -> Option<&Change> {
        let worse = |a: &&Change, b: &&Change| {
            a.verdict.cmp(&b.verdict).then(a.ratio().total_cmp(&b.ratio()))
        };
        self.changes.iter().max_by(worse)
    }
}

impl fmt::Display for Comparison {
    /// A table, one measurement a line, then what has no partner, then the sum; no newline at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<8} {:>7} {:>12} {:>12}  measurement", "verdict", "ratio", "base", "new")?;
        for change in &self.changes {
            let word = format!("{:?}", change.verdict);
            let (base, new) = (seconds(change.base_s), seconds(change.new_s));
            let edited = if change.kernel_changed { "" } else { " (same kernel)" };
            let ratio = change.ratio();
            writeln!(f, "{word:<8} {ratio:>7.3} {base:>12} {new:>12}  {}{edited}", change.place)?;
        }
        for (word, places) in [("gone", &self.gone), ("added", &self.added)] {
            for place in places {
                writeln!(f, "{word:<8} {:>7} {:>12} {:>12}  {place}", "", "", "")?;
            }
        }
        let [faster, same, unclear, slower] =
            [Verdict::Faster, Verdict::Same, Verdict::Unclear, Verdict::Slower]
                .map(|verdict| self.count(verdict));
        write!(
            f,
            "{} compared: {slower} slower, {unclear} unclear, {same} same, {faster} faster",
            self.changes.len()
        )
    }
}

/// Seconds with a unit that leaves one to three digits before the point.
fn seconds(value: f64) -> String {
    match value {
        v if v < 1e-3 => format!("{:.2} us", v * 1e6),
        v if v < 1.0 => format!("{:.2} ms", v * 1e3),
        v => format!("{v:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::row;

    fn timing(median: f64, spread: f64) -> Timing {
        let samples = (-4..=4).map(|i| median + spread * f64::from(i)).collect();
        Timing::from_samples(samples).unwrap()
    }

    #[test]
    fn the_four_verdicts() {
        let base = timing(1.0, 0.001);
        assert_eq!(judge(&base, &timing(1.01, 0.001), 0.03), Verdict::Same);
        assert_eq!(judge(&base, &timing(1.10, 0.001), 0.03), Verdict::Slower);
        assert_eq!(judge(&base, &timing(0.90, 0.001), 0.03), Verdict::Faster);
        assert_eq!(judge(&base, &timing(1.10, 0.1), 0.03), Verdict::Unclear);
        assert_eq!(judge(&base, &timing(1.01, 0.1), 0.03), Verdict::Unclear);
        let two = Timing::from_samples(vec![2.0, 2.0]).unwrap();
        assert_eq!(judge(&base, &two, 0.03), Verdict::Unclear);
    }

    #[test]
    fn rows_are_paired_by_place() {
        let base = [row("a", 'a', vec![1.0; 5]), row("b", 'a', vec![1.0; 5])];
        let new =
            [row("a", 'b', vec![9.0; 5]), row("a", 'b', vec![2.0; 5]), row("c", 'b', vec![1.0; 5])];
        let found = compare(&base, &new, THRESHOLD).unwrap();
        assert_eq!((found.changes.len(), found.gone.len(), found.added.len()), (1, 1, 1));
        let worst = found.worst().unwrap();
        assert_eq!((worst.verdict, worst.ratio()), (Verdict::Slower, 2.0));
        assert!(worst.kernel_changed);
        let table = found.to_string();
        assert!(table.contains("Slower     2.000       1.00 s       2.00 s  indexer"), "{table}");
        assert!(compare(&base, &new, f64::NAN).is_err());
        assert!(table.ends_with("1 compared: 1 slower, 0 unclear, 0 same, 0 faster"), "{table}");
        assert!(found.slower().unwrap());
        assert_eq!(compare(&[], &new, THRESHOLD).unwrap().worst(), None);
    }

    #[test]
    fn nothing_in_common_is_no_verdict() {
        let (one, other) = ([row("a", 'a', vec![1.0; 5])], [row("b", 'a', vec![1.0; 5])]);
        let error = compare(&one, &other, THRESHOLD).unwrap().slower().unwrap_err().to_string();
        assert!(
            error.starts_with("nothing was compared: the baseline has 1 measurements"),
            "{error}"
        );
        let error = compare(&one, &[], THRESHOLD).unwrap().slower().unwrap_err().to_string();
        assert!(error.ends_with("the new rows have no measurement"), "{error}");
        assert!(!compare(&one, &one, THRESHOLD).unwrap().slower().unwrap());
    }
}
