//! One measurement: what ran, that it was right, how long it took, where it came from.
//!
//! A row is one line of JSON; the README of this folder lists its fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Key, PassedGate, Timing, What, timing};

/// Version of the row's schema. Rows of another version are refused, not guessed at.
pub const SCHEMA: u32 = 1;

/// The bench whose rows make the curve of cost against context.
pub const COST_BENCH: &str = "cost_vs_context";

/// The lowest and the highest rate that can be a device's, FLOP or bytes per second. With times within
/// [`crate::timing::SECONDS`] every share of such a peak is finite.
const RATES: std::ops::RangeInclusive<f64> = 1.0..=1e24;

/// The device's limits as they were measured on it, not as its data sheet has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// FLOP per second of a matrix product in the row's number type.
    pub flops: f64,
    /// Bytes per second of a device copy, read and written bytes together.
    pub bytes_per_s: f64,
    /// How both were measured, in a few words.
    pub how: String,
}

/// The work of one call, counted by hand from the shapes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Floating-point operations of one call, a multiply-add being two; 0 when not counted.
    pub flop: u64,
    /// Bytes that one call must move at the least; 0 when not counted.
    pub bytes: u64,
    /// The device's measured limits, when they were measured.
    pub peak: Option<Peak>,
}

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The git commit.
    pub commit: String,
    /// Whether the working tree differed from that commit.
    pub dirty: bool,
    /// When, as RFC 3339: "2026-01-31T12:00:00Z".
    pub created: String,
    /// The command line that runs this measurement again.
    pub command: String,
    /// Processes that were running or waiting to run, mean of the minute before; none where the operating
    /// system does not say, and in rows that are older than this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<f64>,
}

/// One measurement. It cannot be built, nor read back, without a passed gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawRow")]
pub struct Row {
    schema: u32,
    #[serde(flatten)]
    what: What,
    gate: PassedGate,
    #[serde(flatten)]
    timing: Timing,
    #[serde(flatten)]
    work: Work,
    fraction_of_peak: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stages_s: Option<BTreeMap<String, f64>>,
    #[serde(flatten)]
    origin: Origin,
}

impl Row {
    /// Puts a row together and checks each part of it.
    pub fn new(
        what: What,
        gate: PassedGate,
        timing: Timing,
        work: Work,
        origin: Origin,
    ) -> Result<Self, Error> {
        what.check()?;
        check_origin(&origin)?;
        if let Some(peak) = &work.peak {
            for (field, value) in
                [("peak.flops", peak.flops), ("peak.bytes_per_s", peak.bytes_per_s)]
            {
                if !RATES.contains(&value) {
                    return Err(Error::value(field, value, "a rate from 1 to 1e24 a second"));
                }
            }
        }
        let fraction_of_peak = fraction_of_peak(&work, timing.median_s());
        if let Some(bad) = fraction_of_peak.filter(|share| !share.is_finite()) {
            return Err(Error::value("fraction_of_peak", bad, "a finite share of the peak"));
        }
        let stages_s = None;
        Ok(Row { schema: SCHEMA, what, gate, timing, work, fraction_of_peak, stages_s, origin })
    }

    /// Adds where the time of one call went: stage name to seconds.
    ///
    /// Names the pictures know: `norms`, `projections`, `indexer`, `top_k`, `attention`, `feed_forward`, `experts`.
    ///
    /// Each is the median over the samples, and the median of times is at most twice their mean: so all
    /// together are at most twice the mean of the samples, or they are of other calls.
    pub fn with_stages(mut self, stages_s: BTreeMap<String, f64>) -> Result<Self, Error> {
        let longest = *timing::SECONDS.end();
        if let Some((name, s)) = stages_s.iter().find(|(_, s)| !(0.0..=longest).contains(*s)) {
            let value = format!("{s} for {name}");
            return Err(Error::value("stages_s", value, "seconds from 0 to 1e9"));
        }
        let sum: f64 = stages_s.values().sum();
        let mean = self.timing.mean_s();
        if sum > 2.0 * mean {
            let value = format!("{sum} s of calls of {mean} s");
            return Err(Error::value("stages_s", value, "no more than the calls themselves took"));
        }
        self.stages_s = Some(stages_s);
        Ok(self)
    }

    /// What ran.
    pub fn what(&self) -> &What {
        &self.what
    }

    /// The gate that it passed.
    pub fn gate(&self) -> &PassedGate {
        &self.gate
    }

    /// How long it took.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// What it had to do.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Seconds that the measured limits allow, over the median; none without limits or counts.
    pub fn fraction_of_peak(&self) -> Option<f64> {
        self.fraction_of_peak
    }

    /// Seconds of one call by stage, when the bench took them apart.
    pub fn stages_s(&self) -> Option<&BTreeMap<String, f64>> {
        self.stages_s.as_ref()
    }

    /// Names this measurement: see [`What::key`].
    pub fn key(&self) -> Key {
        self.what.key()
    }
}

/// The roofline: no call is faster than max(FLOP / peak, bytes / bandwidth).
fn fraction_of_peak(work: &Work, median_s: f64) -> Option<f64> {
    let peak = work.peak.as_ref()?;
    let least_s = (work.flop as f64 / peak.flops).max(work.bytes as f64 / peak.bytes_per_s);
    (least_s > 0.0).then_some(least_s / median_s)
}

fn check_origin(origin: &Origin) -> Result<(), Error> {
    let pattern = "0000-00-00T00:00:00";
    let created = origin.created.as_bytes();
    let fits = created.len() > pattern.len()
        && pattern.bytes().zip(created).all(|(want, have)| match want {
            b'0' => have.is_ascii_digit(),
            _ => want == *have,
        });
    if !fits {
        let expected = "RFC 3339, as in 2026-01-31T12:00:00Z";
        return Err(Error::value("created", &origin.created, expected));
    }
    match origin.load_average {
        Some(load) if !(0.0..=1e9).contains(&load) => {
            Err(Error::value("load_average", load, "a number of processes"))
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct RawRow {
    schema: u32,
    #[serde(flatten)]
    what: What,
    gate: PassedGate,
    #[serde(flatten)]
    timing: Timing,
    #[serde(flatten)]
    work: Work,
    stages_s: Option<BTreeMap<String, f64>>,
    #[serde(flatten)]
    origin: Origin,
}

impl TryFrom<RawRow> for Row {
    type Error = Error;

    /// The fraction of peak is derived again, so a row cannot claim another.
    fn try_from(raw: RawRow) -> Result<Self, Error> {
        if raw.schema != SCHEMA {
            return Err(Error::value("schema", raw.schema, "1"));
        }
        let row = Row::new(raw.what, raw.gate, raw.timing, raw.work, raw.origin)?;
        match raw.stages_s {
            Some(stages) => row.with_stages(stages),
            None => Ok(row),
        }
    }
}
