//! How well a text is predicted, densely and with other selections.
//!
//! ```text
//! perplexity = exp(−mean ln q(next token))
//! kl         = mean over the tokens of Σ_i p_i ln(p_i / q_i)          p dense, q this one
//! ```
//! The text is cut into windows that know nothing of each other; a window's first token is given.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::generate::divergence;
use crate::model::Model;
use crate::run::{Batch, Cache, KvFormat, Mode};
use crate::sample::log_softmax;

/// Sums over the tokens predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Tokens predicted.
    pub tokens: usize,
    /// Minus the logarithms of the probabilities of the tokens that came, in nats.
    pub surprise: f64,
    /// Divergences of dense attention's distribution from this one, in nats.
    pub kl: f64,
    /// Tokens at which both find the same one most probable.
    pub same_top: usize,
}

impl Quality {
    /// exp of the mean surprise.
    pub fn perplexity(&self) -> f64 {
        (self.surprise / self.tokens.max(1) as f64).exp()
    }

    fn add(&mut self, logits: &[f32], dense: &[f32], next: u32) -> Result<()> {
        let (kl, same_top) = divergence(dense, logits)?;
        self.tokens += 1;
        self.surprise -= f64::from(log_softmax(logits)?[next as usize]);
        self.kl += kl;
        self.same_top += usize::from(same_top);
        Ok(())
    }
}

/// The quality of dense attention over `ids`, and of sparse attention as each of `variants` says: configurations of
/// `model` that select other keys ([`Model::selecting`]). After each chunk `done` is told how many tokens have run.
///
/// - `window`: tokens of a window, at least 2;
/// - `chunk`: tokens of a step. Nothing of sparse attention depends on it; of dense attention a chunk of one token runs in
///   the form of decoding, whose last bits are others.
///
/// # Errors
/// [`Error::Argument`] for a window or a chunk that is too small, and a text of fewer than two tokens; as
/// [`Model::selecting`] and [`Model::forward`].
pub fn quality(
    model: &Model,
    ids: &[u32],
    (window, chunk): (usize, usize),
    format: KvFormat,
    variants: &[Config],
    mut done: impl FnMut(usize),
) -> Result<Vec<Quality>> {
    Error::check(window > 1, "window", window, "at least 2 tokens")?;
    Error::check(chunk > 0, "chunk", chunk, "at least 1 token")?;
    Error::check(ids.len() > 1, "text", format!("{} tokens", ids.len()), "at least 2")?;
    let room = window.min(ids.len());
    let mut passes: Vec<(Model, Mode, Cache)> = Vec::with_capacity(1 + variants.len());
    passes.push((model.clone(), Mode::Dense, model.cache_of(1, room, format)?));
    for config in variants {
        let other = model.clone().selecting(config)?;
        let cache = other.cache_of(1, room, format)?;
        passes.push((other, Mode::Sparse, cache));
    }
    let mut sums = vec![Quality::default(); passes.len()];
    let mut ran = 0;
    for window in ids.chunks(window).filter(|window| window.len() > 1) {
        passes.iter_mut().for_each(|(.., cache)| cache.clear());
        for start in (0..window.len() - 1).step_by(chunk) {
            // The last token's prediction has nothing to be held against.
            let end = (start + chunk).min(window.len() - 1);
            let mut dense: Vec<f32> = Vec::new();
            for ((model, mode, cache), sum) in passes.iter_mut().zip(&mut sums) {
                let batch = Batch::chunk(cache, 0, start, end - start, *mode)?;
                let logits = model.forward(&window[start..end], &batch, cache)?.download_f32()?;
                if *mode == Mode::Dense {
                    dense = logits.clone();
                }
                let vocab = model.config().vocab_size;
                let rows = logits.chunks_exact(vocab).zip(dense.chunks_exact(vocab));
                for ((logits, dense), next) in rows.zip(&window[start + 1..]) {
                    sum.add(logits, dense, *next)?;
                }
            }
            ran += end - start;
            done(ran);
        }
    }
    Ok(sums)
}
