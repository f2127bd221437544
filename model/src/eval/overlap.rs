//! How many of the chosen keys two layers share, and a layer with itself one token later.

use super::chosen;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::run::{Batch, KvFormat, Mode, Shown};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Means over the tokens that were looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlap {
    /// Tokens that were looked at, each with one behind it: all of those that see more keys than are chosen, or as many
    /// as were asked for, evenly.
    pub tokens: usize,
    /// `[layers][layers]`: the share of the keys of one that the other chose too.
    pub layers: Vec<Vec<f64>>,
    /// `[layers]`: the share of the keys that the next token chose too.
    pub next: Vec<f64>,
    /// What random choices would share: the mean of chosen over seen keys.
    pub chance: f64,
}

/// Runs `ids` in chunks of `chunk` tokens and looks at the keys chosen at up to `most` of them.
///
/// # Errors
/// [`Error::Argument`] for a text without a token that sees more keys than are chosen and one behind it; as
/// [`Model::forward`].
pub fn overlap(
    model: &Model,
    ids: &[u32],
    chunk: usize,
    format: KvFormat,
    most: usize,
) -> Result<Overlap> {
    let (topk, layers) = (model.config().index_topk, model.config().num_hidden_layers);
    Error::check(chunk > 0, "chunk", chunk, "at least 1 token")?;
    Error::check(most > 0, "tokens to look at", most, "at least 1")?;
    let expected = format!("at least {}: more than the {topk} keys that are chosen", topk + 2);
    Error::check(ids.len() > topk + 1, "text", format!("{} tokens", ids.len()), expected)?;
    // The last one has none behind it.
    let (first, end) = (topk, ids.len() - 1);
    let step = (end - first).div_ceil(most);
    let looked: Vec<usize> = (first..end).step_by(step).collect();
    let wanted = move |position: usize| {
        let of = move |at: usize| at >= first && at < end && (at - first).is_multiple_of(step);
        of(position) || position.checked_sub(1).is_some_and(of)
    };
    let mut cache = model.cache_of(1, ids.len(), format)?;
    // By position, the keys of each layer.
    let kept: Arc<Mutex<BTreeMap<usize, Vec<Vec<i32>>>>> = Arc::default();
    for ids in ids.chunks(chunk) {
        let (start, to) = (cache.length(0), kept.clone());
        let watch = move |Shown { layer, name, tensor }: Shown| {
            if name == "index.topk" {
                let mut kept = to.lock().unwrap_or_else(PoisonError::into_inner);
                for (n, keys) in chosen(tensor)?.into_iter().enumerate() {
                    if wanted(start + n) {
                        let of = kept.entry(start + n).or_insert_with(|| vec![vec![]; layers]);
                        of[layer] = keys;
                    }
                }
            }
            Ok(None)
        };
        let batch = Batch::chunk(&cache, 0, start, ids.len(), Mode::Sparse)?.watched(watch);
        model.forward_last(ids, &batch, &mut cache)?;
    }
    let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let mut means = Overlap {
        tokens: looked.len(),
        layers: vec![vec![0.0; layers]; layers],
        next: vec![0.0; layers],
        chance: 0.0,
    };
    let n = looked.len() as f64;
    for position in &looked {
        let none = vec![vec![]; layers];
        let here = kept.get(position).unwrap_or(&none);
        let there = kept.get(&(position + 1)).unwrap_or(&none);
        means.chance += topk as f64 / (position + 1) as f64 / n;
        for a in 0..layers {
            means.next[a] += share(&here[a], &there[a]) / n;
            for b in 0..layers {
                means.layers[a][b] += share(&here[a], &here[b]) / n;
            }
        }
    }
    Ok(means)
}

/// The share of `a`'s keys, ascending, that are among `b`'s, ascending too.
fn share(a: &[i32], b: &[i32]) -> f64 {
    let (mut at, mut both) = (0, 0);
    for key in a {
        while at < b.len() && b[at] < *key {
            at += 1;
        }
        both += usize::from(b.get(at) == Some(key));
    }
    both as f64 / a.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn keys_of_both_lists_are_counted() {
        assert_eq!(share(&[1, 3, 5, 9], &[0, 3, 4, 9, 11]), 0.5);
        assert_eq!(share(&[1, 2], &[]), 0.0);
        assert_eq!(share(&[], &[1]), 0.0);
        assert_eq!(share(&[4, 7], &[4, 7]), 1.0);
    }
}
