//! Samples of one measurement and the two numbers that sum them up.

use serde::{Deserialize, Serialize};

use crate::Error;

/// The shortest and the longest time that can be a measurement, seconds: a picosecond is below any clock,
/// and 1e9 s are 30 years. Within them every number that is derived from a row is finite.
pub const SECONDS: std::ops::RangeInclusive<f64> = 1e-12..=1e9;

/// Times of the same call, in seconds, in the order they were taken.
///
/// The median and the median absolute deviation are used throughout: a mean and a standard
/// deviation follow the odd slow sample, and benches have odd slow samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawTiming")]
pub struct Timing {
    samples: Vec<f64>,
    median_s: f64,
    mad_s: f64,
}

impl Timing {
    /// Takes at least one sample; each must be a time within [`SECONDS`].
    pub fn from_samples(samples: Vec<f64>) -> Result<Self, Error> {
        if samples.is_empty() {
            return Err(Error::value("samples", "empty", "at least one time in seconds"));
        }
        if let Some(bad) = samples.iter().find(|s| !SECONDS.contains(*s)) {
            return Err(Error::value("samples", bad, "seconds from 1e-12 to 1e9"));
        }
        let median_s = median(samples.clone());
        let mad_s = median(samples.iter().map(|s| (s - median_s).abs()).collect());
        Ok(Timing { samples, median_s, mad_s })
    }

    /// The samples in seconds, in the order they were taken; never empty.
    pub fn samples(&self) -> &[f64] {
        &self.samples
    }

    /// The median in seconds.
    pub fn median_s(&self) -> f64 {
        self.median_s
    }

    /// The median absolute deviation from the median in seconds, not scaled to a sigma.
    pub fn mad_s(&self) -> f64 {
        self.mad_s
    }

    /// The width of the band from the fastest to the slowest sample, as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.max_s() - self.min_s()) / self.median_s
    }

    /// The mean in seconds.
    pub(crate) fn mean_s(&self) -> f64 {
        self.samples.iter().sum::<f64>() / self.samples.len() as f64
    }

    /// The fastest sample in seconds.
    pub fn min_s(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The slowest sample in seconds.
    pub fn max_s(&self) -> f64 {
        self.samples.iter().copied().fold(0.0, f64::max)
    }
}

/// Mean of the middle two of an even count. The caller never passes an empty list or a NaN.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { 0.5 * (values[middle - 1] + values[middle]) }
}

#[derive(Deserialize)]
struct RawTiming {
    samples: Vec<f64>,
    median_s: f64,
    mad_s: f64,
}

impl TryFrom<RawTiming> for Timing {
    type Error = Error;

    /// Derives the median and the deviation again; a row that claims others was edited.
    fn try_from(raw: RawTiming) -> Result<Self, Error> {
        let timing = Timing::from_samples(raw.samples)?;
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * timing.median_s;
        if !near(timing.median_s, raw.median_s) {
            return Err(Error::value("median_s", raw.median_s, "the median of the samples"));
        }
        if !near(timing.mad_s, raw.mad_s) {
            return Err(Error::value("mad_s", raw.mad_s, "the deviation of the samples"));
        }
        Ok(timing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_deviation() {
        let odd = Timing::from_samples(vec![3.0, 1.0, 10.0]).unwrap();
        assert_eq!((odd.median_s(), odd.mad_s()), (3.0, 2.0));
        assert_eq!((odd.min_s(), odd.max_s(), odd.spread()), (1.0, 10.0, 3.0));
        let even = Timing::from_samples(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median_s(), even.mad_s()), (2.5, 1.0));
    }

    #[test]
    fn refuses_what_is_not_a_time() {
        for bad in [vec![], vec![f64::NAN], vec![1.0, -1.0], vec![0.0], vec![f64::INFINITY]] {
            assert!(Timing::from_samples(bad).is_err());
        }
        for bad in [vec![5e-324], vec![1.0, 1e300], vec![0.9e-12]] {
            assert!(Timing::from_samples(bad).is_err());
        }
    }

    #[test]
    fn an_edited_median_is_refused() {
        let text = r#"{"samples":[1.0,2.0,3.0],"median_s":1.0,"mad_s":1.0}"#;
        assert!(serde_json::from_str::<Timing>(text).is_err());
    }
}
