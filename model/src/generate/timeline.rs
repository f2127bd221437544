//! When each step ran and where its time went, for a trace that a browser shows.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What ran.
    pub name: String,
    /// 0: the steps, 1: their stages on the device.
    pub track: usize,
    /// Since the timeline began.
    pub start: Duration,
    /// How long.
    pub length: Duration,
    /// What else is known: tokens, positions.
    pub facts: Vec<(&'static str, usize)>,
}

/// What ran when.
#[derive(Clone, Debug)]
pub struct Timeline {
    begin: Instant,
    spans: Vec<Span>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { begin: Instant::now(), spans: Vec::new() }
    }
}

impl Timeline {
    /// What was noted, in the order in which it ended.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Notes what ran from `since` until now, and `stages` of it with the seconds that each took: the sums over all
    /// layers, one behind the other.
    pub fn note(
        &mut self,
        name: &str,
        since: Instant,
        facts: &[(&'static str, usize)],
        stages: &[(&str, f64)],
    ) {
        let start = since.saturating_duration_since(self.begin);
        let span = Span {
            name: name.to_string(),
            track: 0,
            start,
            length: since.elapsed(),
            facts: facts.to_vec(),
        };
        self.spans.push(span);
        let mut start = start;
        for (name, seconds) in stages.iter().filter(|(_, seconds)| *seconds > 0.0) {
            // A profiler's seconds are finite; one that is not would be no duration.
            let length = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
            let name = name.to_string();
            self.spans.push(Span { name, track: 1, start, length, facts: vec![] });
            start += length;
        }
    }

    /// The trace in the format of chrome://tracing and Perfetto: complete events in microseconds.
    pub fn to_json(&self) -> String {
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        let event = |span: &Span| {
            let facts = span.facts.iter().map(|(name, value)| (name.to_string(), json!(value)));
            json!({ "name": span.name, "ph": "X", "pid": 1, "tid": span.track, "ts": micros(span.start),
                "dur": micros(span.length), "args": Value::Object(facts.collect()) })
        };
        let track = |(tid, name): (usize, &str)| json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": { "name": name } });
        let tracks = ["steps", "stages on the device, summed over the layers"];
        let mut events: Vec<Value> = tracks.into_iter().enumerate().map(track).collect();
        events.extend(self.spans.iter().map(event));
        json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()
    }
}
