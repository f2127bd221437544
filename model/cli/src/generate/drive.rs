//! Runs requests on a generator until all have ended, and tells what comes.

use dsa_model::chat::{Answer, Chat, ChatError, Delta, Reader};
use dsa_model::generate::{Comparison, Ended, Finish, Generator, Request, Token, What};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A request, and how its answer is read.
pub(super) struct Job {
    pub request: Request,
    /// Whether the answer begins with thoughts.
    pub thinking: bool,
}

/// What comes of the job of a number.
pub(super) enum News<'a> {
    /// So many tokens of the prompt have been read, of so many.
    Read(usize, usize),
    /// A token, and what it makes certain of the answer.
    Token(&'a Token, &'a [Delta]),
    /// What was held back at the end, and all there is.
    Ended(&'a [Delta], &'a Outcome),
}

/// How a job ended.
#[derive(Clone)]
pub(super) struct Outcome {
    pub answer: Answer,
    pub ended: Ended,
    /// Where the model left the format of answers.
    pub left: Option<ChatError>,
    /// Of each token, where both ways of attending ran.
    pub comparisons: Vec<Comparison>,
    /// From the beginning to the first token, and from that to the end.
    pub times: (Duration, Duration),
}

struct Running {
    job: usize,
    reader: Option<Reader>,
    answer: Answer,
    comparisons: Vec<Comparison>,
    begin: Instant,
    first: Option<Instant>,
}

/// Runs `jobs`, as many at a time as there is room for, in their order. Once `stop` is set, those that run end and the
/// others do not begin.
///
/// # Errors
/// Those of the generator and of `take`.
pub(super) fn drive(
    generator: &mut Generator,
    chat: &Chat,
    jobs: Vec<Job>,
    stop: &AtomicBool,
    mut take: impl FnMut(usize, News) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut waiting: VecDeque<(usize, Job)> = jobs.into_iter().enumerate().collect();
    let mut running: BTreeMap<usize, Running> = BTreeMap::new();
    loop {
        let mut events = Vec::new();
        if stop.load(Ordering::Relaxed) {
            waiting.clear();
            events.extend(running.keys().filter_map(|slot| generator.cancel(*slot)));
        }
        while generator.has_room()
            && let Some((job, Job { request, thinking })) = waiting.pop_front()
        {
            let slot = generator.begin(request)?;
            let reader = Some(Reader::new(chat, thinking));
            let (answer, comparisons, begin) = (Answer::default(), vec![], Instant::now());
            running.insert(slot, Running { job, reader, answer, comparisons, begin, first: None });
        }
        if events.is_empty() {
            if !generator.is_busy() {
                return Ok(());
            }
            events = generator.step()?;
        }
        for event in events {
            let Some(of) = running.get_mut(&event.slot) else { continue };
            match event.what {
                What::Read(read, all) => take(of.job, News::Read(read, all))?,
                What::Token(token) => {
                    of.first.get_or_insert_with(Instant::now);
                    of.comparisons.extend(token.comparison.clone());
                    let deltas = of.take(&token.text);
                    take(of.job, News::Token(&token, &deltas))?;
                }
                What::Ended(ended) => {
                    let Some(of) = running.remove(&event.slot) else { continue };
                    let (job, deltas, outcome) = of.end(ended);
                    take(job, News::Ended(&deltas, &outcome))?;
                }
            }
        }
    }
}

impl Running {
    fn take(&mut self, text: &str) -> Vec<Delta> {
        let deltas = self.reader.as_mut().map(|reader| reader.push(text)).unwrap_or_default();
        deltas.iter().cloned().for_each(|delta| self.answer.push(delta));
        deltas
    }

    fn end(mut self, ended: Ended) -> (usize, Vec<Delta>, Outcome) {
        let mut deltas = self.take(&ended.text);
        let whole = matches!(ended.finish, Finish::End(_));
        let (last, left) = match self.reader.take() {
            Some(reader) => reader.end(whole),
            None => (vec![], None),
        };
        last.iter().cloned().for_each(|delta| self.answer.push(delta));
        deltas.extend(last);
        let first = self.first.unwrap_or_else(Instant::now);
        let times = (first.saturating_duration_since(self.begin), first.elapsed());
        let outcome =
            Outcome { answer: self.answer, ended, left, comparisons: self.comparisons, times };
        (self.job, deltas, outcome)
    }
}

/// What a job has to be told of how it ended, if that is not as it should be.
pub(super) fn trouble(outcome: &Outcome) -> Option<String> {
    match &outcome.ended.finish {
        Finish::Full => Some(format!(
            "the context is full: {} tokens of prompt and {} of the answer (--max-seq says how many there may be)",
            outcome.ended.prompt_tokens, outcome.ended.new_tokens
        )),
        _ => None,
    }
}

/// The name of how an answer ended.
pub(super) fn finish_name(finish: &Finish) -> &'static str {
    match finish {
        Finish::End(_) | Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::Full => "context",
        Finish::Cancelled => "cancelled",
    }
}

/// The number of tokens of `request` at most, prompt and answer.
pub(super) fn most_tokens(request: &Request) -> usize {
    request.prompt.len().saturating_add(request.max_new_tokens)
}
