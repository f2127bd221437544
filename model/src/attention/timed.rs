//! Whether a step that was timed is right.
//!
//! A few of its tokens, drawn by a seed, are judged in two ways. The attention kernel is held against the reference on
//! the kernel's own inputs and with the keys that it was given, so that rounding which changes a selection is no
//! error of attention. And the same token is run in another form, which goes through other kernels: a token of a
//! prompt is decoded alone, a decoded token is run as the first of a prompt of two. Keys and output of both are
//! compared; the output only of tokens for which both selected the same keys.

use super::step::{Phase, Step};
use super::{Attention, Mode, Stages, Trace};
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::verify::thresholds::{RECALL, Threshold, worst_row};
use dsa_kernels::copy::place_rows;
use dsa_kernels::{Device, Tensor};
use dsa_tests::compare::{Mismatch, compare_on};
use dsa_tests::generate::Rng;
use dsa_tests::kernels::find;
use dsa_tests::{Case, HostTensor, Outputs};
use ndarray::ArrayView2;

/// Tokens that are judged; more are drawn until one selects the same keys in both forms.
const JUDGED: usize = 2;
/// The most that are drawn.
const DRAWN: usize = 8;
/// Multiplications that the reference may make for a token's attention, if one head does not make more.
const BUDGET: usize = 100_000_000;

/// Relative error `|a - b| / |b|` of a token's output between two forms of the same step, at most. Both take the
/// same lossy steps, so a code of fp8 flips only where the forms round its input differently: measured 5e-3
/// between expanded and absorbed heads in bf16 with an fp8 indexer, 0 between two absorbed ones.
const FORMS: Threshold = Threshold { exact: 1e-5, lossy: 1e-2, bf16: 3e-2, bf16_lossy: 0.1 };

/// What a step computed, kept to be judged.
pub struct TimedStep {
    trace: Trace,
    step: Step,
    mode: Mode,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// What was compared, and where it differs most.
    pub what: String,
    /// Share of the allowed error: at most 1 passes.
    pub share: f64,
}

impl TimedStep {
    /// The output `[n, hidden]`.
    pub fn hidden(&self) -> &Tensor {
        &self.trace.hidden
    }
}

impl Attention {
    /// [`Attention::forward`], kept to be judged.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_timed(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        request: usize,
        start: usize,
        mode: Mode,
        stages: &mut Stages,
    ) -> Result<TimedStep> {
        let step = Step::chunk(cache, request, start, self.tokens(x)?)?;
        let trace = self.step(x, &step, cache, mode, stages)?;
        Ok(TimedStep { trace, step, mode })
    }

    /// [`Attention::decode`], kept to be judged.
    ///
    /// # Errors
    /// As [`Attention::decode`].
    pub fn decode_timed(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        positions: &[usize],
        mode: Mode,
        stages: &mut Stages,
    ) -> Result<TimedStep> {
        let step = Step::batch(cache, positions, self.tokens(x)?)?;
        let trace = self.step(x, &step, cache, mode, stages)?;
        Ok(TimedStep { trace, step, mode })
    }

    /// Judges tokens of a timed step, the last among them: `x` and `cache` are those of the step, and nothing was
    /// run on the cache since. A decoded token needs room for one more behind it. Afterwards the cache holds what
    /// the other forms left there.
    ///
    /// # Errors
    /// [`Error::Argument`] if no drawn token selects the same keys in both forms, or if there is no room;
    /// [`Error::Kernel`] if a kernel fails.
    pub fn judge_timed(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        timed: &TimedStep,
        seed: u64,
    ) -> Result<Vec<Judged>> {
        let n = timed.step.tokens();
        let mut rng = Rng::new(seed);
        let mut rows = vec![n - 1];
        for _ in 0..4 * DRAWN {
            let row = rng.below(n);
            if rows.len() < DRAWN && !rows.contains(&row) {
                rows.push(row);
            }
        }
        // Of a prompt the later tokens first: run alone, a token is the last that its request holds.
        rows.sort_unstable_by(|a, b| b.cmp(a));
        let mut judged = Vec::new();
        for row in rows.iter().take(JUDGED) {
            judged.push(self.judge_attention(cache, timed, *row, &mut rng)?);
        }
        let mut same = 0;
        for row in rows {
            if same == JUDGED {
                break;
            }
            same += usize::from(self.judge_form(x, cache, timed, row, &mut judged)?);
        }
        let fallen = judged.iter().any(|one| one.share > 1.0);
        let expected = "a token for which both forms select the same keys";
        Error::check(same > 0 || fallen, "timed step", format!("none among {DRAWN}"), expected)?;
        Ok(judged)
    }

    /// The attention kernel's output of one row, a few heads, on its own inputs.
    fn judge_attention(
        &self,
        cache: &Cache,
        timed: &TimedStep,
        row: usize,
        rng: &mut Rng,
    ) -> Result<Judged> {
        let TimedStep { trace, step, .. } = timed;
        let device = &self.device;
        let (q, all) = (&trace.q, trace.q.shape()[1]);
        let first = begin(cache, step, row);
        let length = step.positions[row] + 1;
        let width = q.shape()[2] + trace.attention.out.shape()[2];
        let keys = trace.indices.as_ref().map_or(length, |indices| indices.shape()[1].min(length));
        let count = (BUDGET / (keys * width).max(1)).clamp(1, all);
        let from = rng.below(all - count + 1);
        let part =
            |tensor: &Tensor| download(device, &tensor.narrow(0, row, 1)?.narrow(1, from, count)?);
        let case =
            |kernel: &str, q| Case::new(kernel).with("q", q).set("softmax_scale", self.scale());
        let q = part(q)?;
        let case = if let Some((k, v)) = &trace.expanded {
            let heads = |tensor: &Tensor| {
                packed(device, &tensor.narrow(0, first, length)?.narrow(1, from, count)?)
            };
            let case = case("dense_mha", q).with("k", heads(k)?).with("v", heads(v)?);
            case.with("ks", HostTensor::i32(&[1], &[0]))
                .with("ke", HostTensor::i32(&[1], &[length as i32]))
        } else {
            let rank = self.config.kv_lora_rank;
            let own = |rows: Tensor| download(device, &rows.narrow(0, first, length)?);
            let listed = match &trace.indices {
                Some(indices) => Some(self.keys(indices, row, first)?),
                None => None,
            };
            let listed = listed.map(|keys| HostTensor::i32(&[1, keys.len()], &keys));
            match (listed, cache.records(step)?) {
                // Sparse decode reads the records, where there are some.
                (Some(indices), Some((pages, record))) if step.phase == Phase::Decode => {
                    let slots = pages.shape()[0] * cache.page_size();
                    case("sparse_mla_paged", q)
                        .with("cache", own(pages.reshape(&[slots, record.bytes()])?)?)
                        .with("indices", indices)
                        .set("kv_lora_rank", rank)
                        .set("page_size", 1)
                }
                (Some(indices), _) => case("sparse_mla", q)
                    .with("kv", own(cache.latents(step)?)?)
                    .with("indices", indices)
                    .set("d_v", rank),
                (None, _) => case("dense_mla", q)
                    .with("kv", own(cache.latents(step)?)?)
                    .with("ks", HostTensor::i32(&[1], &[0]))
                    .with("ke", HostTensor::i32(&[1], &[length as i32]))
                    .set("d_v", rank),
            }
        };
        let a = &trace.attention;
        let got: Outputs =
            [("out", part(&a.out)?), ("lse", part(&a.lse)?), ("max_logits", part(&a.max_logits)?)]
                .into();
        let failed = |error: dsa_tests::CaseError| Error::Argument {
            name: "timed step",
            value: error.to_string(),
            expected: "a case of its attention".into(),
        };
        let kernel = find(&case.kernel).map_err(failed)?;
        let expected = (kernel.reference)(&case).map_err(failed)?;
        let unit = (kernel.machine)(device).matrix;
        let at = format!("{} of token {row}, heads {from}..{}", kernel.name, from + count);
        Ok(match compare_on(unit, kernel.name, &got, &expected) {
            Ok(close) => {
                let share = close.iter().map(|c| c.worst).fold(0.0, f64::max);
                Judged { what: format!("{at}, of its own inputs"), share }
            }
            Err(Mismatch::Values(c)) => {
                Judged { what: format!("{at}: {c}"), share: c.worst.max(c.cos / c.tolerance.cos) }
            }
            Err(form) => Judged { what: format!("{at}: {form}"), share: f64::INFINITY },
        })
    }

    /// Runs one row in the other form; returns whether both selected the same keys.
    fn judge_form(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        timed: &TimedStep,
        row: usize,
        judged: &mut Vec<Judged>,
    ) -> Result<bool> {
        let TimedStep { trace, step, mode } = timed;
        let (request, position) = (step.request_of(row), step.positions[row]);
        let token = x.narrow(0, row, 1)?; // [1, hidden]
        let (form, x) = match step.phase {
            Phase::Prefill => ("decoded alone", token),
            Phase::Decode => ("in a prompt", self.twice(&token)?),
        };
        let other_step = Step::chunk(cache, request, position, x.shape()[0])?;
        let first = begin(cache, step, row);
        let other = self.step(&x, &other_step, cache, *mode, &mut Stages::new())?;
        if let (Some(mine), Some(others)) = (&trace.indices, &other.indices) {
            let listed =
                |keys: Vec<i32>| keys.into_iter().filter(|key| *key >= 0).collect::<Vec<_>>();
            let (mine, others) =
                (listed(self.keys(mine, row, first)?), listed(self.keys(others, 0, 0)?));
            let both = mine.iter().filter(|key| others.binary_search(key).is_ok()).count();
            let recall = both as f64 / mine.len().max(others.len()).max(1) as f64;
            let least = RECALL.of(self.dtype, self.config.attention_options);
            let share = (1.0 - recall) / (1.0 - least);
            judged.push(Judged { what: format!("keys of token {row} {form}"), share });
            if mine != others {
                return Ok(false);
            }
        }
        let hidden = |of: &Tensor, row| self.device.download_f32(&of.narrow(0, row, 1)?);
        let (got, want) = (hidden(&trace.hidden, row)?, hidden(&other.hidden, 0)?);
        let shape = (1, got.len());
        let rows =
            ArrayView2::from_shape(shape, &got).ok().zip(ArrayView2::from_shape(shape, &want).ok());
        let error = rows.and_then(|(got, want)| worst_row(got, want, |_| true));
        let most = FORMS.of(self.dtype, self.config.attention_options);
        let share = error.map_or(f64::INFINITY, |(error, _)| error / most);
        judged.push(Judged { what: format!("output of token {row} {form}"), share });
        Ok(true)
    }

    /// Rows of its own request that a row's token selected; -1 where it selected none.
    fn keys(&self, indices: &Tensor, row: usize, first: usize) -> Result<Vec<i32>> {
        let listed = self.device.download_i32(&indices.narrow(0, row, 1)?)?;
        let own = |key: i32| if key < 0 { -1 } else { key - first as i32 };
        Ok(listed.into_iter().map(own).collect())
    }

    /// `[1, hidden]` below itself.
    fn twice(&self, token: &Tensor) -> dsa_kernels::Result<Tensor> {
        let bytes = self.device.download(token)?;
        self.device.upload(&[bytes.clone(), bytes].concat(), &[2, token.shape()[1]], token.dtype())
    }
}

/// The row of the step's table where the request of `row` begins.
fn begin(cache: &Cache, step: &Step, row: usize) -> usize {
    (step.request_of(row) - step.request) * cache.max_seq()
}

fn download(device: &Device, tensor: &Tensor) -> dsa_kernels::Result<HostTensor> {
    HostTensor::download(device, tensor)
}

/// `[rows, heads, width]` with gaps, without.
fn packed(device: &Device, tensor: &Tensor) -> dsa_kernels::Result<HostTensor> {
    let out = device.empty(tensor.shape(), tensor.dtype());
    let slots: Vec<i32> = (0..tensor.shape()[0] as i32).collect();
    place_rows(device, tensor, &device.upload_i32(&slots, &[slots.len()])?, &out)?;
    download(device, &out)
}

#[cfg(test)]
mod tests;
