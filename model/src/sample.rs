//! From logits to the next token.
//!
//! ```text
//! T ≤ 0:  the id of the largest logit
//! else:   p_i = exp((logit_i − max) / max(T, 1e-5)) / sum                softmax, f32
//!         the k most probable                                            top_k
//!         of these, the most probable until their share reaches top_p    top_p
//!         of these, those with p_i ≥ min_p · max p                       min_p
//!         the id of the largest p_i / E_i, E_i ~ Exp(1)                  exponential race: id i wins with probability p_i
//! ```
//!
//! Of equals the lowest id comes first, everywhere. The noise E of an id depends on the seed, the request, the position and
//! the id alone: neither the batch a request is in, nor the chunks its prompt came in, nor what the other settings leave
//! out changes it.
//!
//! Source: `sample` of the DeepSeek-V3.2-Exp inference demo's `generate.py`; top-p of Holtzman et al., 1904.09751; min-p of
//! Nguyen et al., 2407.01082.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

mod defaults;
#[cfg(test)]
mod tests;

pub use defaults::Defaults;

/// The seed of the DeepSeek-V3.2-Exp demo.
pub const DEFAULT_SEED: u64 = 33_377_335;
/// The temperature of the demo's command line.
pub const DEFAULT_TEMPERATURE: f32 = 0.6;
/// Temperatures between 0 and this one count as this one.
const LEAST_TEMPERATURE: f32 = 1e-5;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 and below take the largest.
    pub temperature: f32,
    /// How many ids stay; 0: all.
    pub top_k: usize,
    /// Which share of the probability stays, 0 to 1; at least one id does.
    pub top_p: f32,
    /// The least probability that stays, as a share of the largest, 0 to 1.
    pub min_p: f32,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: DEFAULT_TEMPERATURE,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: DEFAULT_SEED,
        }
    }
}

impl Sampling {
    /// The largest logit, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: DEFAULT_SEED };

    /// The settings that have a number, by the names that files and requests give them.
    pub const SETTINGS: [&str; 4] = ["temperature", "top_k", "top_p", "min_p"];

    /// Sets one of [`Sampling::SETTINGS`].
    ///
    /// # Errors
    /// [`Error::Config`] for another name, and for a top_k that is no whole number.
    pub fn set(&mut self, setting: &str, value: f64) -> Result<()> {
        match setting {
            "temperature" => self.temperature = value as f32,
            "top_p" => self.top_p = value as f32,
            "min_p" => self.min_p = value as f32,
            "top_k" if value >= 0.0 && value.fract() == 0.0 => self.top_k = value as usize,
            "top_k" => return Err(Error::config(setting, value, "a whole number, 0 or more")),
            _ => {
                let expected = Self::SETTINGS.join(", ");
                return Err(Error::config("a setting", setting, expected));
            }
        }
        Ok(())
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] for a temperature that is no finite number, and for a top_p or min_p outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let temperature = self.temperature;
        Error::check(temperature.is_finite(), "temperature", temperature, "a finite number")?;
        Error::check(share(self.top_p), "top_p", self.top_p, "0 to 1")?;
        Error::check(share(self.min_p), "min_p", self.min_p, "0 to 1")
    }

    /// The id drawn from `logits` `[vocab_size]` for the token at `position` of `request`.
    ///
    /// # Errors
    /// As [`Sampling::check`] and [`check_logits`].
    pub fn sample(&self, logits: &[f32], request: u64, position: usize) -> Result<u32> {
        self.check()?;
        check_logits(logits)?;
        if self.temperature <= 0.0 {
            return Ok(largest(logits.iter().map(|logit| f64::from(*logit))));
        }
        let kept = self.kept(logits);
        let mut noise = Noise::new(self.seed, request, position);
        // Plain loops here and in `kept`: they run over the whole vocabulary for each token, and this crate is built without
        // optimisation.
        let (mut winner, mut best, mut n) = (kept[0].id, 0.0, 0);
        while n < kept.len() {
            let Candidate { id, p } = kept[n];
            let (p, uniform) = (f64::from(p), noise.uniform(id));
            // E = −ln(1 − u) is at least u: most ids have lost before the logarithm is taken.
            if p > best * uniform {
                let score = p / exponential(uniform);
                if score > best {
                    (winner, best) = (id, score);
                }
            }
            n += 1;
        }
        Ok(winner)
    }

    /// The ids that may be drawn, ascending, each with its probability.
    ///
    /// # Errors
    /// As [`Sampling::sample`].
    pub fn probabilities(&self, logits: &[f32]) -> Result<Vec<(u32, f32)>> {
        self.check()?;
        check_logits(logits)?;
        if self.temperature <= 0.0 {
            return Ok(vec![(largest(logits.iter().map(|logit| f64::from(*logit))), 1.0)]);
        }
        let kept = self.kept(logits);
        let sum: f64 = kept.iter().map(|kept| f64::from(kept.p)).sum();
        Ok(kept.iter().map(|kept| (kept.id, (f64::from(kept.p) / sum) as f32)).collect())
    }

    /// The ids that may be drawn, ascending.
    fn kept(&self, logits: &[f32]) -> Vec<Candidate> {
        let temperature = self.temperature.max(LEAST_TEMPERATURE);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut kept = Vec::with_capacity(logits.len());
        let mut id = 0;
        while id < logits.len() {
            // Not normalised: a common factor changes no share and no race.
            let p = ((logits[id] - max) / temperature).exp();
            if p > 0.0 {
                kept.push(Candidate { id: id as u32, p });
            }
            id += 1;
        }
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, Candidate::more_probable);
            kept.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            kept.sort_unstable_by(Candidate::more_probable);
            let sum: f64 = kept.iter().map(|kept| f64::from(kept.p)).sum();
            let mut share = 0.0;
            let mut n = 0;
            while n < kept.len() && (n == 0 || ((share / sum) as f32) < self.top_p) {
                share += f64::from(kept[n].p);
                n += 1;
            }
            kept.truncate(n);
        }
        // The largest probability is 1 here, exp(0).
        kept.retain(|candidate| candidate.p >= self.min_p);
        kept.sort_unstable_by_key(|candidate| candidate.id);
        kept
    }
}

/// The logarithms of the probabilities that `logits` `[vocab_size]` stand for, at temperature 1 and with nothing left out.
///
/// # Errors
/// As [`check_logits`].
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>> {
    check_logits(logits)?;
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    Ok(logits.iter().map(|logit| (f64::from(*logit) - max - sum.ln()) as f32).collect())
}

/// Refuses logits that decide nothing.
///
/// # Errors
/// [`Error::Argument`] for no logits, a NaN or +∞ among them, or nothing but −∞ (which is a token that never comes).
pub fn check_logits(logits: &[f32]) -> Result<()> {
    Error::check(!logits.is_empty(), "logits", "an empty list", "one for each token")?;
    let wrong = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    if let Some(id) = logits.iter().position(wrong) {
        let value = format!("{} for token {id}", logits[id]);
        return Error::check(false, "logits", value, "numbers below infinity");
    }
    let some = logits.iter().any(|logit| logit.is_finite());
    Error::check(some, "logits", "-inf for every token", "a finite one")
}

/// An id that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    /// Its probability as a share of the largest.
    p: f32,
}

impl Candidate {
    /// The order in which ids are kept: the lower of two equally probable ones first.
    fn more_probable(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.p.total_cmp(&a.p).then(a.id.cmp(&b.id))
    }
}

/// The place of the first of the largest values, none of which is NaN.
fn largest(values: impl Iterator<Item = f64>) -> u32 {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > best.1 {
            best = (at, value);
        }
    }
    best.0 as u32
}

/// The noise of one draw.
struct Noise {
    rng: ChaCha8Rng,
    /// The id whose noise comes next.
    next: u32,
}

/// Words of the generator that an id takes.
const WORDS: u128 = 2;

impl Noise {
    fn new(seed: u64, request: u64, position: usize) -> Self {
        let mut key = [0; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, request, position as u64]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        Self { rng: ChaCha8Rng::from_seed(key), next: 0 }
    }

    /// A number between 0 and 1 for `id`, and never one of them. Ids that ascend come fastest.
    fn uniform(&mut self, id: u32) -> f64 {
        if id != self.next {
            self.rng.set_word_pos(u128::from(id) * WORDS);
        }
        self.next = id.wrapping_add(1);
        // The 53 bits of an f64, at the middle of their step.
        ((self.rng.next_u64() >> 11) as f64 + 0.5) * STEP
    }
}

/// 2^-53.
const STEP: f64 = f64::EPSILON / 2.0;

/// A draw of Exp(1), above 0, from one that is uniform between 0 and 1.
fn exponential(uniform: f64) -> f64 {
    -(-uniform).ln_1p()
}
