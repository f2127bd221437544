//! Counters, in the text form that Prometheus reads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is counted since the server began.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Answers by the status of HTTP.
    answers: Mutex<BTreeMap<u16, u64>>,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub new_tokens: AtomicU64,
    /// Requests whose client left before they ended.
    pub left: AtomicU64,
    /// Answers in which the model left its format.
    pub unread: AtomicU64,
    /// Microseconds until the first token, and from that to the end.
    pub first: AtomicU64,
    pub rest: AtomicU64,
    /// Requests that ended.
    pub ended: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Metrics {
    pub fn answered(&self, status: u16) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() +=
            1;
    }

    /// All of them; `taken` requests run or wait.
    pub fn text(&self, taken: usize) -> String {
        let mut text = String::new();
        let mut write = |name: &str, kind: &str, help: &str, values: &[(String, String)]| {
            text += &format!("# HELP dsa_{name} {help}\n# TYPE dsa_{name} {kind}\n");
            for (labels, value) in values {
                text += &format!("dsa_{name}{labels} {value}\n");
            }
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let one = |value: String| [(String::new(), value)];
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let by_status: Vec<(String, String)> = answers
            .iter()
            .map(|(status, n)| (format!("{{status=\"{status}\"}}"), n.to_string()))
            .collect();
        drop(answers);
        write("answers_total", "counter", "Answers by the status of HTTP.", &by_status);
        for (name, help, counter) in [
            ("prompt_tokens_total", "Tokens of prompts.", &self.prompt_tokens),
            (
                "cached_tokens_total",
                "Tokens of prompts that were in the cache.",
                &self.cached_tokens,
            ),
            ("new_tokens_total", "Tokens drawn.", &self.new_tokens),
            ("requests_left_total", "Requests whose client left.", &self.left),
            ("answers_unread_total", "Answers that left the model's format.", &self.unread),
            ("requests_ended_total", "Requests that ended.", &self.ended),
        ] {
            write(name, "counter", help, &one(read(counter).to_string()));
        }
        for (name, help, counter) in [
            ("first_token_seconds_total", "Time until first tokens.", &self.first),
            ("further_tokens_seconds_total", "Time of all further tokens.", &self.rest),
        ] {
            write(name, "counter", help, &one(format!("{}", read(counter) as f64 / 1e6)));
        }
        let running = taken.min(1);
        write("requests_running", "gauge", "Requests that run.", &one(running.to_string()));
        write(
            "requests_waiting",
            "gauge",
            "Requests that wait.",
            &one((taken - running).to_string()),
        );
        text
    }
}
