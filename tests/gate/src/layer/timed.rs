//! Whether a step that was timed is right.
//!
//! A few of its tokens, drawn by a seed, are judged in two ways. The attention kernel is held against the reference on
//! the kernel's own inputs and with the keys that it was given, so that rounding which changes a selection is no
//! error of attention. And the same token is run in another form, which goes through other kernels: a token of a
//! prompt is decoded alone, a decoded token is run as the first of a prompt of two. Keys and output of both are
//! compared; where rounding makes the two select different keys, the other form is given those of the timed one. The
//! layer's second half is held against the reference on its own input, with the weights as they are on the device
//! ([`mlp`]).

use super::error::Result;
use super::thresholds::{DECODED, RECALL, worst_row};
use crate::compare::{Mismatch, compare_on};
use crate::kernels::find;
use crate::{Case, HostTensor, Outputs};
use dsa_kernels::copy::place_rows;
use dsa_kernels::random::Rng;
use dsa_kernels::{Device, Tensor};
use dsa_model::layers::{Attention, Block, Output, Trace};
use dsa_model::run::{Batch, Cache, Phase};
use ndarray::ArrayView2;

mod mlp;

pub use mlp::experts_visited;

/// Tokens that are judged.
const JUDGED: usize = 2;
/// Multiplications that the reference may make for a token's attention, if one head does not make more.
const BUDGET: usize = 100_000_000;

/// What a step computed, kept to be judged.
pub struct Timed {
    /// What the layer made of the residual stream.
    pub output: Output,
    /// What its attention was given, `[n, hidden]`.
    pub x: Tensor,
    /// What its attention computed.
    pub trace: Trace,
    /// The step.
    pub batch: Batch,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// What was compared, and where it differs most.
    pub what: String,
    /// Share of the allowed error: at most 1 passes.
    pub share: f64,
}

/// A layer whose step was timed, the cache it left, and what was found so far.
struct Judge<'a> {
    device: &'a Device,
    layer: &'a Attention,
    cache: &'a mut Cache,
    timed: &'a Timed,
    found: Vec<Judged>,
}

/// Judges tokens of a step of `layer` that was timed, drawn by `seed`, the last among them: `cache` is that of the
/// step, of one layer, and nothing was run on it since. A decoded token needs room for one
/// more behind it. Afterwards the cache holds what the other forms left there.
///
/// # Errors
/// [`Error::Model`](super::Error::Model) if there is no room, or a kernel fails.
pub fn judge_timed(
    device: &Device,
    layer: &Block,
    cache: &mut Cache,
    timed: &Timed,
    seed: u64,
) -> Result<Vec<Judged>> {
    let n = timed.batch.tokens();
    let mut rng = Rng::new(seed);
    let mut rows = vec![n - 1];
    for _ in 0..4 * JUDGED {
        let row = rng.below(n);
        if rows.len() < JUDGED && !rows.contains(&row) {
            rows.push(row);
        }
    }
    // Of a prompt the later tokens first: run alone, a token is the last that its request holds.
    rows.sort_unstable_by(|a, b| b.cmp(a));
    let attention = layer.attention();
    let mut judge = Judge { device, layer: attention, cache, timed, found: Vec::new() };
    for row in &rows {
        judge.attention(*row, &mut rng)?;
    }
    for row in &rows {
        judge.other_form(*row)?;
    }
    let mut found = judge.found;
    found.push(mlp::judge(&layer.mlp(), &timed.output, attention.config(), rows[0])?);
    Ok(found)
}

impl Judge<'_> {
    /// The attention kernel's output of one row, a few heads, on its own inputs.
    fn attention(&mut self, row: usize, rng: &mut Rng) -> Result<()> {
        let Timed { trace, batch, .. } = self.timed;
        let (device, config) = (self.device, self.layer.config());
        let (q, all) = (&trace.q, trace.q.shape()[1]);
        let (first, length) = (self.begin(row), batch.positions()[row] + 1);
        let width = q.shape()[2] + trace.attention.out.shape()[2];
        let keys = trace.indices.as_ref().map_or(length, |indices| indices.shape()[1].min(length));
        let count = (BUDGET / (keys * width).max(1)).clamp(1, all);
        let from = rng.below(all - count + 1);
        let part = |tensor: &Tensor| download(&tensor.narrow(0, row, 1)?.narrow(1, from, count)?);
        let scale = config.softmax_scale() as f32;
        let case = |kernel: &str, q| Case::new(kernel).with("q", q).set("softmax_scale", scale);
        let q = part(q)?;
        let case = if let Some((k, v)) = &trace.expanded {
            let heads = |tensor: &Tensor| {
                packed(device, &tensor.narrow(0, first, length)?.narrow(1, from, count)?)
            };
            let case = case("dense_mha", q).with("k", heads(k)?).with("v", heads(v)?);
            case.with("ks", HostTensor::i32(&[1], &[0]))
                .with("ke", HostTensor::i32(&[1], &[length as i32]))
        } else {
            let rank = config.kv_lora_rank;
            let cache = self.cache.held(0)?;
            let own = |rows: Tensor| download(&rows.narrow(0, first, length)?);
            let listed = match &trace.indices {
                Some(indices) => Some(self.keys(indices, row)?),
                None => None,
            };
            let listed = listed.map(|keys| HostTensor::i32(&[1, keys.len()], &keys));
            match (listed, cache.records(batch)?) {
                // The records, where there are some.
                (keys, Some((pages, record))) => {
                    let bytes = record.bytes();
                    let own = pages[first * bytes..(first + length) * bytes].to_vec();
                    let records = HostTensor::u8(&[length, bytes], own);
                    let case = match keys {
                        Some(indices) => case("sparse_mla_paged", q).with("indices", indices),
                        None => case("dense_mla_paged", q)
                            .with("ks", HostTensor::i32(&[1], &[0]))
                            .with("ke", HostTensor::i32(&[1], &[length as i32])),
                    };
                    case.with("cache", records).set("kv_lora_rank", rank).set("page_size", 1)
                }
                (Some(indices), None) => case("sparse_mla", q)
                    .with("kv", own(cache.latents(batch)?)?)
                    .with("indices", indices)
                    .set("d_v", rank),
                (None, None) => case("dense_mla", q)
                    .with("kv", own(cache.latents(batch)?)?)
                    .with("ks", HostTensor::i32(&[1], &[0]))
                    .with("ke", HostTensor::i32(&[1], &[length as i32]))
                    .set("d_v", rank),
            }
        };
        let a = &trace.attention;
        let got: Outputs =
            [("out", part(&a.out)?), ("lse", part(&a.lse)?), ("max_logits", part(&a.max_logits)?)]
                .into();
        let kernel = find(&case.kernel)?;
        let expected = kernel.reference(&case)?;
        let unit = (kernel.machine)(device).matrix;
        let at = format!("{} of token {row}, heads {from}..{}", kernel.name, from + count);
        self.found.push(match compare_on(unit, kernel.name, &got, &expected) {
            Ok(close) => {
                let share = close.iter().map(|c| c.worst).fold(0.0, f64::max);
                Judged { what: format!("{at}, of its own inputs"), share }
            }
            Err(Mismatch::Values(c)) => {
                Judged { what: format!("{at}: {c}"), share: c.worst.max(c.cos / c.tolerance.cos) }
            }
            Err(form) => Judged { what: format!("{at}: {form}"), share: f64::INFINITY },
        });
        Ok(())
    }

    /// Runs one row of the attention in the other form.
    fn other_form(&mut self, row: usize) -> Result<()> {
        let Timed { trace, batch, x, .. } = self.timed;
        let (dtype, config) = (self.layer.dtype(), self.layer.config());
        let (request, position) = (batch.request_of(row), batch.positions()[row]);
        let token = x.narrow(0, row, 1)?; // [1, hidden]
        let (form, x) = match batch.phase() {
            Phase::Prefill => ("decoded alone", token),
            Phase::Decode => ("in a prompt", self.twice(&token)?),
        };
        let other = Batch::chunk(self.cache, request, position, x.shape()[0], batch.mode())?;
        let mut by_other = self.layer.trace(&x, &other, self.cache.layer(0)?)?;
        self.cache.advance(&other);
        if let (Some(mine), Some(others)) = (&trace.indices, &by_other.indices) {
            let listed =
                |keys: Vec<i32>| keys.into_iter().filter(|key| *key >= 0).collect::<Vec<_>>();
            let given = self.keys(mine, row)?; // [topk]
            let all = others.download_i32()?; // [1 or 2, topk]
            let topk = given.len();
            let (mine, others_keys) = (listed(given.clone()), listed(all[..topk].to_vec()));
            let both = mine.iter().filter(|key| others_keys.binary_search(key).is_ok()).count();
            let recall = both as f64 / mine.len().max(others_keys.len()).max(1) as f64;
            let least = RECALL.of(dtype, config.attention_options);
            let share = (1.0 - recall) / (1.0 - least);
            self.found.push(Judged { what: format!("keys of token {row} {form}"), share });
            if mine != others_keys {
                let keys = [&given, &all[topk..]].concat();
                let keys = self.device.upload_i32(&keys, others.shape())?;
                by_other = self.layer.trace_with_keys(&x, &other, self.cache.layer(0)?, &keys)?;
            }
        }
        let hidden = |of: &Tensor, row| of.narrow(0, row, 1)?.download_f32();
        let (got, want) = (hidden(&trace.hidden, row)?, hidden(&by_other.hidden, 0)?);
        let shape = (1, got.len());
        let rows =
            ArrayView2::from_shape(shape, &got).ok().zip(ArrayView2::from_shape(shape, &want).ok());
        let error = rows.and_then(|(got, want)| worst_row(got, want, |_| true));
        let most = DECODED.of(dtype, config.attention_options);
        let share = error.map_or(f64::INFINITY, |(error, _)| error / most);
        self.found.push(Judged { what: format!("output of token {row} {form}"), share });
        Ok(())
    }

    /// Positions of its own request that a row's token selected; -1 where it selected none.
    fn keys(&self, indices: &Tensor, row: usize) -> Result<Vec<i32>> {
        Ok(indices.narrow(0, row, 1)?.download_i32()?)
    }

    /// `[1, hidden]` below itself.
    fn twice(&self, token: &Tensor) -> dsa_kernels::Result<Tensor> {
        let bytes = token.download()?;
        self.device.upload(&[bytes.clone(), bytes].concat(), &[2, token.shape()[1]], token.dtype())
    }

    /// The row of the step's table where the request of `row` begins.
    fn begin(&self, row: usize) -> usize {
        let batch = &self.timed.batch;
        (batch.request_of(row) - batch.request_of(0)) * batch.longest()
    }
}

fn download(tensor: &Tensor) -> dsa_kernels::Result<HostTensor> {
    HostTensor::download(tensor)
}

/// `[rows, heads, width]` with gaps, without.
fn packed(device: &Device, tensor: &Tensor) -> dsa_kernels::Result<HostTensor> {
    let out = device.empty(tensor.shape(), tensor.dtype())?;
    let slots: Vec<i32> = (0..tensor.shape()[0] as i32).collect();
    place_rows(tensor, &device.upload_i32(&slots, &[slots.len()])?, &out)?;
    download(&out)
}

#[cfg(test)]
mod tests;
