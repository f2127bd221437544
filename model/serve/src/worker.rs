//! The thread of the generator: takes one request after the other.

use super::app::{Monitor, Place};
use super::metrics::add;
use dsa_model::generate::{Finish, Generator, Request, What};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// A request, and who wants its answer.
pub(crate) struct Work {
    pub request: Request,
    /// When it is given up.
    pub deadline: Instant,
    /// Closed once the client has left.
    pub to: UnboundedSender<Message>,
    /// Free again when this is dropped.
    pub place: Place,
}

/// What comes of a request.
#[derive(Debug)]
pub(crate) enum Message {
    /// A step.
    What(What),
    /// It failed, not by its own fault.
    Failed(String),
    /// It took too long.
    Late,
    /// The server is about to end, and it had not begun.
    Closing,
}

/// Runs requests until there can be no more.
pub(crate) fn work(
    generator: &mut Generator,
    mut from: UnboundedReceiver<Work>,
    monitor: &Monitor,
) {
    while let Some(Work { request, deadline, to, place }) = from.blocking_recv() {
        // A client that has left by now does not hear what is sent.
        if monitor.is_closing() {
            let _ = to.send(Message::Closing);
        } else if to.is_closed() {
            add(&monitor.metrics.left, 1);
        } else if let Some(message) = run(generator, request, deadline, &to, monitor) {
            let _ = to.send(message);
        }
        drop(place);
    }
}

/// Runs one request; what went wrong with it.
fn run(
    generator: &mut Generator,
    request: Request,
    deadline: Instant,
    to: &UnboundedSender<Message>,
    monitor: &Monitor,
) -> Option<Message> {
    let (begin, mut first, metrics) = (Instant::now(), None, &monitor.metrics);
    let failed = |error: dsa_model::Error| Some(Message::Failed(error.to_string()));
    let slot = match generator.begin(request) {
        Ok(slot) => slot,
        Err(error) => return failed(error),
    };
    loop {
        let left = to.is_closed();
        if left || Instant::now() > deadline {
            generator.cancel(slot);
            add(&metrics.left, usize::from(left));
            return (!left).then_some(Message::Late);
        }
        let events = match generator.step() {
            Ok(events) => events,
            Err(error) => return failed(error),
        };
        for event in events {
            let mut over = false;
            match &event.what {
                What::Read(..) => {}
                What::Token(_) => {
                    first.get_or_insert_with(Instant::now);
                }
                What::Ended(ended) => {
                    let first = first.unwrap_or_else(Instant::now);
                    add(&metrics.prompt_tokens, ended.prompt_tokens);
                    add(&metrics.cached_tokens, ended.cached_tokens);
                    add(&metrics.new_tokens, ended.new_tokens);
                    let micros = |time: std::time::Duration| time.as_micros() as usize;
                    add(&metrics.first, micros(first.saturating_duration_since(begin)));
                    add(&metrics.rest, micros(first.elapsed()));
                    add(&metrics.ended, usize::from(ended.finish != Finish::Cancelled));
                    over = true;
                }
            }
            let _ = to.send(Message::What(event.what));
            if over {
                return None;
            }
        }
    }
}
