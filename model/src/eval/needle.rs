//! A planted sentence: whether its tokens are selected where they are asked for, and what the answer is.

use super::chosen;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::run::{Batch, KvFormat, Mode, Shown};
use crate::sample::Sampling;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A prompt with a planted sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// The prompt's token ids.
    pub prompt: Vec<u32>,
    /// The positions of the sentence's tokens.
    pub planted: Range<usize>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Of each layer, the share of the sentence's tokens among the keys that the prompt's last token selected; `None` where
    /// every key is selected.
    pub selected: Vec<Option<f64>>,
    /// The most probable answer's token ids, up to a token that ends it.
    pub answer: Vec<u32>,
}

/// Runs the prompt and draws at most `new` tokens greedily.
///
/// # Errors
/// [`Error::Argument`] for a prompt of fewer than two tokens or a sentence that is none of it; as [`Model::forward`].
pub fn find(
    model: &Model,
    needle: &Needle,
    (chunk, new): (usize, usize),
    format: KvFormat,
    ends: &[u32],
) -> Result<Found> {
    let Needle { prompt, planted } = needle;
    let n = prompt.len();
    Error::check(n > 1, "prompt", format!("{n} tokens"), "at least 2")?;
    let within = planted.start < planted.end && planted.end <= n;
    Error::check(within, "planted tokens", format!("{planted:?}"), format!("some of 0 to {n}"))?;
    let mut cache = model.cache_of(1, n + new, format)?;
    model_reads(model, &prompt[..n - 1], chunk, &mut cache)?;
    // By layer.
    let keys: Arc<Mutex<Vec<Vec<i32>>>> = Arc::default();
    let to = keys.clone();
    let watch = move |Shown { name, tensor, .. }: Shown| {
        if name == "index.topk" {
            to.lock().unwrap_or_else(PoisonError::into_inner).extend(chosen(tensor)?);
        }
        Ok(None)
    };
    let batch = Batch::chunk(&cache, 0, n - 1, 1, Mode::Sparse)?.watched(watch);
    let mut logits = model.forward(&prompt[n - 1..], &batch, &mut cache)?.download_f32()?;
    let keys = std::mem::take(&mut *keys.lock().unwrap_or_else(PoisonError::into_inner));
    let selected = keys.iter().map(|keys| {
        let of = |key: &&i32| usize::try_from(**key).is_ok_and(|key| planted.contains(&key));
        (keys.len() < n).then(|| keys.iter().filter(of).count() as f64 / planted.len() as f64)
    });
    let (selected, mut answer) = (selected.collect(), Vec::new());
    while answer.len() < new {
        let id = Sampling::GREEDY.sample(&logits, 0, n + answer.len())?;
        if ends.contains(&id) {
            break;
        }
        answer.push(id);
        if answer.len() < new {
            let batch = Batch::chunk(&cache, 0, cache.length(0), 1, Mode::Sparse)?;
            logits = model.forward(&[id], &batch, &mut cache)?.download_f32()?;
        }
    }
    Ok(Found { selected, answer })
}

/// Reads a prompt in chunks.
fn model_reads(
    model: &Model,
    ids: &[u32],
    chunk: usize,
    cache: &mut crate::run::Cache,
) -> Result<()> {
    Error::check(chunk > 0, "chunk", chunk, "at least 1 token")?;
    for ids in ids.chunks(chunk) {
        let batch = Batch::chunk(cache, 0, cache.length(0), ids.len(), Mode::Sparse)?;
        model.forward_last(ids, &batch, cache)?;
    }
    Ok(())
}
