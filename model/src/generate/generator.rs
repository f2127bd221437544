//! Requests side by side, driven step by step.

use super::compare::{Comparison, divergence};
use super::pass::{Out, Pass};
use super::text::Text;
use super::{Attention, Ended, Event, Finish, Request, Settings, Timeline, Token, What};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::run::Mode;
use crate::sample::log_softmax;
use crate::tokenizer::Tokenizer;
use std::time::Instant;

/// Runs requests on a model.
pub struct Generator<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    /// The tokens that end an answer.
    ends: Vec<u32>,
    settings: Settings,
    /// The first one's logits decide; a second one is compared with it.
    passes: Vec<Pass>,
    slots: Vec<Option<Slot<'a>>>,
    /// The tokens that the caches hold of each place.
    held: Vec<Vec<u32>>,
    timeline: Option<Timeline>,
}

/// A request that runs.
struct Slot<'a> {
    request: Request,
    /// Prompt and answer.
    ids: Vec<u32>,
    /// Tokens of the prompt that the cache held at the beginning.
    cached: usize,
    text: Text<'a>,
}

impl<'a> Generator<'a> {
    /// A generator whose answers end at `ends`, the configuration's and those of
    /// [`Defaults`](crate::sample::Defaults).
    ///
    /// # Errors
    /// [`Error::Argument`] for a size of 0; [`Error::Kernel`] if the device has no memory for the caches.
    pub fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        ends: &[u32],
        settings: Settings,
    ) -> Result<Self> {
        Error::check(settings.chunk > 0, "chunk", settings.chunk, "at least 1 token")?;
        let modes: &[Mode] = match settings.attention {
            Attention::Dense => &[Mode::Dense],
            Attention::Sparse => &[Mode::Sparse],
            Attention::Both => &[Mode::Sparse, Mode::Dense],
        };
        let pass = |mode: &Mode| Pass::new(model, *mode, &settings);
        Ok(Self {
            model,
            tokenizer,
            ends: ends.to_vec(),
            settings,
            passes: modes.iter().map(pass).collect::<Result<_>>()?,
            slots: (0..settings.requests).map(|_| None).collect(),
            held: vec![vec![]; settings.requests],
            timeline: None,
        })
    }

    /// Notes from now on when each step ran. The device is waited for after every stage, which takes longer.
    pub fn trace(&mut self) {
        self.timeline = Some(Timeline::default());
    }

    /// What was noted, if anything was to be.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// How it runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether a request runs.
    pub fn is_busy(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    /// Whether another request can begin.
    pub fn has_room(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Begins a request: the place that it has from now until it ends. Nothing is computed yet.
    ///
    /// # Errors
    /// As [`Request::check`]; [`Error::Argument`] for a token outside the vocabulary, and if all places are taken.
    pub fn begin(&mut self, request: Request) -> Result<usize> {
        request.check(self.settings.max_seq)?;
        let vocab = self.model.config().vocab_size;
        let outside = request.prompt.iter().find(|id| **id as usize >= vocab);
        let expected = format!("below the vocabulary's {vocab}");
        Error::check(outside.is_none(), "token id", outside.copied().unwrap_or(0), expected)?;
        // At least the last token is computed, for its logits.
        let most = request.prompt.len() - 1;
        let common = |slot: usize| {
            let same = self.held[slot].iter().zip(&request.prompt).take_while(|(a, b)| a == b);
            same.count().min(most)
        };
        let free = (0..self.slots.len()).filter(|slot| self.slots[*slot].is_none());
        // Of equals the first.
        let best =
            free.map(|slot| (common(slot), slot)).max_by_key(|(n, slot)| (*n, usize::MAX - slot));
        let Some((cached, slot)) = best else {
            let value = format!("one beside {} others", self.slots.len());
            let expected = "a place that no request has".into();
            return Err(Error::Argument { name: "request", value, expected });
        };
        self.held[slot].truncate(cached);
        let text = Text::new(self.tokenizer.decoder(), request.stop.clone());
        self.slots[slot] = Some(Slot { ids: request.prompt.clone(), cached, text, request });
        Ok(slot)
    }

    /// Ends the request at `slot`, if one runs there: what was held back of its text is in the event.
    pub fn cancel(&mut self, slot: usize) -> Option<Event> {
        let running = self.slots.get_mut(slot)?.take()?;
        Some(running.ended(slot, Finish::Cancelled))
    }

    /// Reads a chunk of one request's prompt, or draws the next token of every request. Does nothing if none runs.
    ///
    /// # Errors
    /// As [`Model::forward`] and [`Sampling::sample`](crate::sample::Sampling::sample). The requests that took part have
    /// ended then.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let reading = (0..self.slots.len()).find(|slot| self.pending(*slot) > 1);
        let taking: Vec<usize> = match reading {
            Some(slot) => vec![slot],
            None => (0..self.slots.len()).filter(|slot| self.pending(*slot) == 1).collect(),
        };
        let done = match reading {
            Some(slot) => self.read(slot),
            None if taking.is_empty() => Ok(vec![]),
            None => self.decode(&taking),
        };
        if done.is_err() {
            for slot in taking {
                self.slots[slot] = None;
                self.held[slot].clear();
            }
        }
        done
    }

    /// Tokens of a request that the cache does not hold yet; 0 if none runs there.
    fn pending(&self, slot: usize) -> usize {
        self.slots[slot].as_ref().map_or(0, |running| running.ids.len() - self.held[slot].len())
    }

    fn read(&mut self, slot: usize) -> Result<Vec<Event>> {
        let Some(running) = &self.slots[slot] else { return Ok(vec![]) };
        let (start, of) = (self.held[slot].len(), running.ids.len());
        // Where both ways are compared, the last token is a decoded one.
        let end = if self.passes.len() > 1 { of - 1 } else { of };
        let ids = running.ids[start..end.min(start + self.settings.chunk)].to_vec();
        let mut outs = Vec::with_capacity(self.passes.len());
        for pass in &mut self.passes {
            let since = Instant::now();
            let measured = self.timeline.is_some();
            let out = pass.read(self.model, &ids, (slot, start), measured)?;
            note(
                &mut self.timeline,
                pass,
                "prompt",
                since,
                &[("tokens", ids.len()), ("from", start)],
                &out,
            );
            outs.push(out);
        }
        self.held[slot].extend_from_slice(&ids);
        let read = self.held[slot].len();
        let mut events = vec![Event { slot, what: What::Read(read, of) }];
        if read == of
            && let [out] = &outs[..]
        {
            events.extend(self.draw(slot, &out.logits[0], None)?);
        }
        Ok(events)
    }

    fn decode(&mut self, taking: &[usize]) -> Result<Vec<Event>> {
        let next: Vec<(usize, usize)> =
            taking.iter().map(|slot| (*slot, self.held[*slot].len())).collect();
        let last =
            |slot: &usize| self.slots[*slot].as_ref().and_then(|slot| slot.ids.last().copied());
        let ids: Vec<u32> = taking.iter().filter_map(last).collect();
        let both = self.passes.len() > 1;
        let mut outs = Vec::with_capacity(self.passes.len());
        for pass in &mut self.passes {
            let since = Instant::now();
            let watch = match pass.mode {
                Mode::Sparse => "index.topk",
                Mode::Dense => "mla.q",
            };
            let (watch, measured) = (both.then_some(watch), self.timeline.is_some());
            let out = pass.decode(self.model, &ids, &next, watch, measured)?;
            let longest = next.iter().map(|(_, position)| position + 1).max().unwrap_or(0);
            note(
                &mut self.timeline,
                pass,
                "token",
                since,
                &[("requests", ids.len()), ("context", longest)],
                &out,
            );
            outs.push(out);
        }
        let kept = match (&outs[..], self.passes.last()) {
            ([sparse, dense], Some(pass)) => {
                pass.kept(self.model.config(), &next, &sparse.seen, &dense.seen)?
            }
            _ => vec![vec![]; taking.len()],
        };
        for (slot, id) in taking.iter().zip(&ids) {
            self.held[*slot].push(*id);
        }
        let mut events = Vec::new();
        for ((n, slot), layers) in taking.iter().enumerate().zip(kept) {
            let comparison = match &outs[..] {
                [sparse, dense] => {
                    let (kl, same_top) = divergence(&dense.logits[n], &sparse.logits[n])?;
                    Some(Comparison { kl, same_top, layers })
                }
                _ => None,
            };
            // Of a prompt of one token, or of the last one where both ways run.
            let read = self.slots[*slot].as_ref().map_or(0, |running| running.request.prompt.len());
            if self.held[*slot].len() == read {
                events.push(Event { slot: *slot, what: What::Read(read, read) });
            }
            events.extend(self.draw(*slot, &outs[0].logits[n], comparison)?);
        }
        Ok(events)
    }

    /// Draws the next token of a request, and ends it where it ends.
    fn draw(
        &mut self,
        slot: usize,
        logits: &[f32],
        comparison: Option<Comparison>,
    ) -> Result<Vec<Event>> {
        let Some(running) = &mut self.slots[slot] else { return Ok(vec![]) };
        let Request { number, sampling, logprobs, max_new_tokens, ignore_ends, .. } =
            running.request;
        let position = running.ids.len();
        let id = sampling.sample(logits, number, position)?;
        running.ids.push(id);
        let (logprob, top) = match logprobs {
            None => (None, vec![]),
            Some(n) => {
                let all = log_softmax(logits)?;
                (Some(all[id as usize]), most_probable(&all, n))
            }
        };
        let mut token = Token { id, logprob, top, comparison, ..Token::default() };
        let ends = !ignore_ends && self.ends.contains(&id);
        let finish = if ends {
            Some(Finish::End(id))
        } else {
            let (text, stop) = running.text.push(id);
            token.text = text;
            let new = running.ids.len() - running.request.prompt.len();
            match stop {
                Some(stop) => Some(Finish::Stop(stop)),
                None if new >= max_new_tokens => Some(Finish::Length),
                None if position >= self.settings.max_seq => Some(Finish::Full),
                None => None,
            }
        };
        let mut events = vec![Event { slot, what: What::Token(token) }];
        if let Some(finish) = finish
            && let Some(running) = self.slots[slot].take()
        {
            events.push(running.ended(slot, finish));
        }
        Ok(events)
    }
}

impl Slot<'_> {
    fn ended(mut self, slot: usize, finish: Finish) -> Event {
        let prompt_tokens = self.request.prompt.len();
        let ended = Ended {
            finish,
            text: self.text.finish(),
            prompt_tokens,
            cached_tokens: self.cached,
            new_tokens: self.ids.len() - prompt_tokens,
        };
        Event { slot, what: What::Ended(ended) }
    }
}

/// The `n` largest, the lowest id of equals first.
fn most_probable(all: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut ids: Vec<usize> = (0..all.len()).collect();
    let order = |a: &usize, b: &usize| all[*b].total_cmp(&all[*a]).then(a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n, order);
        ids.truncate(n);
    }
    ids.sort_unstable_by(order);
    ids.into_iter().map(|id| (id as u32, all[id])).collect()
}

/// Notes a step of `pass` in the timeline, if there is one.
fn note(
    timeline: &mut Option<Timeline>,
    pass: &Pass,
    what: &str,
    since: Instant,
    facts: &[(&'static str, usize)],
    out: &Out,
) {
    if let Some(timeline) = timeline {
        let mode = match pass.mode {
            Mode::Dense => "dense",
            Mode::Sparse => "sparse",
        };
        timeline.note(&format!("{what}, {mode}"), since, facts, &out.stages);
    }
}
