//! One way of attending, with a cache of its own: what a step of it puts out.

use super::Settings;
use super::compare::{Kept, attention, kept};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::run::{Batch, Cache, Mode, Shown, Stage};
use dsa_kernels::gemm::gemm;
use dsa_kernels::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A mode and its cache.
pub(super) struct Pass {
    pub mode: Mode,
    pub cache: Cache,
}

/// What a step put out.
pub(super) struct Out {
    /// `[vocab_size]` of each request.
    pub logits: Vec<Vec<f32>>,
    /// By layer, if it was watched.
    pub seen: BTreeMap<usize, Tensor>,
    /// Seconds of each stage, if they were measured.
    pub stages: Vec<(&'static str, f64)>,
}

impl Pass {
    pub fn new(model: &Model, mode: Mode, settings: &Settings) -> Result<Self> {
        let Settings { requests, max_seq, page_size, format, .. } = *settings;
        Ok(Self { mode, cache: model.cache_in_pages(requests, max_seq, page_size, format)? })
    }

    /// A chunk of one request's prompt, from position `start` on: the logits behind its last token.
    pub fn read(
        &mut self,
        model: &Model,
        ids: &[u32],
        (request, start): (usize, usize),
        measured: bool,
    ) -> Result<Out> {
        let batch = Batch::chunk(&self.cache, request, start, ids.len(), self.mode)?;
        let batch = if measured { batch.measured()? } else { batch };
        let logits = model.forward_last(ids, &batch, &mut self.cache)?;
        Ok(Out { logits: rows(&logits)?, seen: BTreeMap::new(), stages: stages(&batch, measured) })
    }

    /// The next token of each request, `(request, position)`: the logits behind each. With `watch`, what each layer
    /// makes of that name is kept.
    pub fn decode(
        &mut self,
        model: &Model,
        ids: &[u32],
        next: &[(usize, usize)],
        watch: Option<&'static str>,
        measured: bool,
    ) -> Result<Out> {
        let mut batch = Batch::decode_of(&self.cache, next, self.mode)?;
        if measured {
            batch = batch.measured()?;
        }
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        if let Some(wanted) = watch {
            let to = seen.clone();
            batch = batch.watched(move |Shown { layer, name, tensor }| {
                if name == wanted {
                    // A copy: the layer may go on in place.
                    let (shape, dtype) = (tensor.shape(), tensor.dtype());
                    let copy = tensor.device().upload(&tensor.download()?, shape, dtype)?;
                    to.lock().unwrap_or_else(PoisonError::into_inner).insert(layer, copy);
                }
                Ok(None)
            });
        }
        let logits = model.forward(ids, &batch, &mut self.cache)?;
        let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Out { logits: rows(&logits)?, seen, stages: stages(&batch, measured) })
    }

    /// What each layer's selection kept of dense attention, of each request of a decoded step: `selected` by layer
    /// `[n, topk]`, `asked` by layer `[n, h, rank + rope]`, what this pass, the dense one, asked its keys with.
    pub fn kept(
        &self,
        config: &Config,
        next: &[(usize, usize)],
        selected: &BTreeMap<usize, Tensor>,
        asked: &BTreeMap<usize, Tensor>,
    ) -> Result<Vec<Vec<Option<Kept>>>> {
        // The tokens are held by now; a batch of the same places reads them.
        let batch = Batch::decode_of(&self.cache, next, self.mode)?;
        let mut of_requests = vec![Vec::with_capacity(config.num_hidden_layers); next.len()];
        for layer in 0..config.num_hidden_layers {
            let none = |name| {
                let value = format!("none of layer {layer}");
                Error::Argument { name, value, expected: "those of every layer".into() }
            };
            let q = asked.get(&layer).ok_or_else(|| none("queries"))?; // [n, h, d]
            let keys = selected.get(&layer).ok_or_else(|| none("selected keys"))?; // [n, topk]
            let (topk, keys) = (keys.shape()[1], keys.download_i32()?);
            // Not read where every key is selected.
            if next.iter().all(|(_, position)| *position < topk) {
                of_requests.iter_mut().for_each(|kept| kept.push(None));
                continue;
            }
            let rows = self.cache.held(layer)?.latents(&batch)?; // [n · longest, d]
            for (n, (_, position)) in next.iter().enumerate() {
                let seen = position + 1;
                let rows = rows.narrow(0, n * batch.longest(), seen)?.unsqueeze(0); // [1, seen, d]
                let scores = gemm(&q.narrow(0, n, 1)?, &rows, DType::F32)?; // [1, h, seen]
                let shares = attention(&scores.download_f32()?, seen, config.softmax_scale());
                of_requests[n].push(kept(&keys[n * topk..][..topk], &shares));
            }
        }
        Ok(of_requests)
    }
}

/// The rows of `[n, vocab_size]`.
fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    let width = logits.shape()[1].max(1);
    Ok(logits.download_f32()?.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

fn stages(batch: &Batch, measured: bool) -> Vec<(&'static str, f64)> {
    let all = if measured { &Stage::ALL[..] } else { &[] };
    all.iter().map(|stage| (stage.name(), batch.stages().seconds(*stage))).collect()
}
