//! The second half of a layer that was timed, one token of it, against the reference.
//!
//! The reference gets the weights as they are on the device, of the experts that the token chose alone: the kernels'
//! choice, which a row has whatever rows stand beside it, and which the reference's gate must make of the same logits.

use super::super::error::Result;
use super::super::thresholds::{FEED_FORWARD, worst_row};
use super::Judged;
use dsa_kernels::gemm::gemm;
use dsa_kernels::router::{RouterConfig, router};
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Tensor};
use dsa_model::config::Config;
use dsa_model::layers::{Matrices, MlpWeights, Output};
use dsa_reference::arithmetic::Arithmetic;
use dsa_reference::experts::routed_experts;
use dsa_reference::feed_forward::{FeedForwardWeights, feed_forward};
use dsa_reference::router::{self as gate, Routing};
use dsa_reference::weight::Weight as Known;
use ndarray::{Array1, Array2, ArrayView2};
use std::collections::BTreeSet;

/// The routed experts that a step's tokens went to, each counted once; `None` in a dense layer.
///
/// # Errors
/// If a kernel fails.
pub fn experts_visited(weights: &MlpWeights, output: &Output) -> Result<Option<usize>> {
    let MlpWeights::Experts { gate, bias, router, .. } = weights else { return Ok(None) };
    let Weight::Plain(gate) = gate else { return Ok(None) };
    let listed = choice(&output.ffn_in, gate, bias, router)?.1.indices.download_i32()?; // [n · top_k]
    Ok(Some(listed.into_iter().collect::<BTreeSet<i32>>().len()))
}

/// The gate's logits `[n, experts]` of `x` `[n, hidden]`, and its choice.
fn choice(
    x: &Tensor,
    gate: &Tensor,
    bias: &Tensor,
    config: &RouterConfig,
) -> Result<(Tensor, dsa_kernels::router::Routing)> {
    let logits = gemm(&x.unsqueeze(0), &gate.unsqueeze(0), DType::F32)?; // [1, n, experts]
    let logits = logits.reshape(&[x.shape()[0], gate.shape()[0]])?; // [n, experts]
    let chosen = router(&logits, bias, config)?;
    Ok((logits, chosen))
}

/// Judges row `row` of what the layer put out.
pub(super) fn judge(
    weights: &MlpWeights,
    output: &Output,
    config: &Config,
    row: usize,
) -> Result<Judged> {
    let arithmetic = Arithmetic {
        dsa: super::super::reference::attention_options(config),
        fp8_linear: true,
        bf16: output.x.dtype() == DType::Bf16,
        scale_fmt: super::super::reference::attention_options(config).scale_fmt,
    };
    let x = output.ffn_in.narrow(0, row, 1)?; // [1, hidden]
    let on_host = matrix(&x)?; // [1, hidden]
    let want = match weights {
        MlpWeights::Dense(mlp) => feed_forward(on_host.view(), &known(mlp)?, &arithmetic)?,
        MlpWeights::Experts { gate: weight, bias, router: config, experts, shared } => {
            let Weight::Plain(weight) = weight else {
                return Ok(failed(row, "the gate's weight is in fp8"));
            };
            let (logits, chosen) = choice(&x, weight, bias, config)?;
            let listed = chosen.indices.download_i32()?; // [top_k]
            let by_reference = gate::router(
                matrix(&logits)?.view(),
                Array1::from_vec(bias.download_f32()?).view(),
                &gate::RouterConfig {
                    num_experts_per_tok: config.num_experts_per_tok,
                    n_group: config.n_group,
                    topk_group: config.topk_group,
                    norm_topk_prob: config.norm_topk_prob,
                    routed_scaling_factor: config.routed_scaling_factor,
                },
            )?;
            if by_reference.indices.iter().ne(&listed) {
                let found =
                    format!("experts {listed:?}, {} by the reference", by_reference.indices);
                return Ok(failed(row, &found));
            }
            // In ascending order, as they are added.
            let weights = chosen.weights.download_f32()?; // [top_k]
            let mut pairs: Vec<(i32, f32)> = listed.iter().copied().zip(weights).collect();
            pairs.sort_unstable_by_key(|(expert, _)| *expert);
            let of = |(expert, weight): &(i32, f32)| {
                Ok((*weight, known(&one_of(experts, *expert as usize)?)?))
            };
            let visited = pairs.iter().map(of).collect::<Result<Vec<_>>>()?;
            let routed = sum_of_experts(on_host.view(), &visited, &arithmetic)?; // [1, hidden]
            let shared = feed_forward(on_host.view(), &known(shared)?, &arithmetic)?; // [1, hidden]
            arithmetic.rounded(routed + shared)
        }
    }; // [1, hidden]
    let got = matrix(&output.x.narrow(0, row, 1)?)?; // [1, hidden]
    let error = worst_row(got.view(), want.view(), |_| true);
    let share = error.map_or(f64::INFINITY, |(error, _)| error / FEED_FORWARD);
    Ok(Judged { what: format!("feed-forward of token {row}, of its own input"), share })
}

/// What the experts that a token visits add up to: `x` `[1, hidden]`, each with its weight, side by side on all cores.
fn sum_of_experts(
    x: ArrayView2<f32>,
    visited: &[(f32, FeedForwardWeights)],
    arithmetic: &Arithmetic,
) -> Result<Array2<f32>> {
    let one = |(weight, expert): &(f32, FeedForwardWeights)| {
        let routing =
            Routing { indices: Array2::zeros((1, 1)), weights: Array2::from_elem((1, 1), *weight) };
        routed_experts(x, &routing, std::slice::from_ref(expert), arithmetic)
    };
    let mut sum = Array2::zeros(x.dim()); // [1, hidden]
    std::thread::scope(|threads| {
        let started: Vec<_> =
            visited.iter().map(|expert| threads.spawn(move || one(expert))).collect();
        for thread in started {
            let of_expert = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sum += &of_expert?; // [1, hidden]
        }
        Ok(sum)
    })
}

fn failed(row: usize, why: &str) -> Judged {
    Judged { what: format!("feed-forward of token {row}: {why}"), share: f64::INFINITY }
}

/// The matrices of one expert.
fn one_of(experts: &Matrices, expert: usize) -> Result<Matrices> {
    let one = |tensor: &Tensor| tensor.narrow(0, expert, 1)?.reshape(&tensor.shape()[1..]);
    let weight = |weight: &Weight| -> dsa_kernels::Result<Weight> {
        Ok(match weight {
            Weight::Plain(w) => Weight::Plain(one(w)?),
            Weight::Fp8 { codes, scale } => Weight::Fp8 { codes: one(codes)?, scale: one(scale)? },
        })
    };
    let [gate_proj, up_proj, down_proj] = experts;
    Ok([weight(gate_proj)?, weight(up_proj)?, weight(down_proj)?])
}

/// A network's weights on the host.
fn known([gate_proj, up_proj, down_proj]: &Matrices) -> Result<FeedForwardWeights> {
    let weight = |weight: &Weight| -> Result<Known> {
        Ok(match weight {
            Weight::Plain(w) => Known::F32(matrix(w)?),
            Weight::Fp8 { codes, scale } => {
                Known::Fp8 { codes: shaped(codes, codes.download()?)?, scale: matrix(scale)? }
            }
        })
    };
    Ok(FeedForwardWeights {
        gate_proj: weight(gate_proj)?,
        up_proj: weight(up_proj)?,
        down_proj: weight(down_proj)?,
    })
}

/// A matrix's numbers.
fn matrix(tensor: &Tensor) -> Result<Array2<f32>> {
    shaped(tensor, tensor.download_f32()?)
}

fn shaped<T>(tensor: &Tensor, values: Vec<T>) -> Result<Array2<T>> {
    let (shape, found) = (tensor.shape(), vec![values.len()]);
    let expected = shape.to_vec();
    let wrong = |_| dsa_model::Error::Shape { name: "a weight".into(), found, expected };
    Ok(Array2::from_shape_vec((shape[0], shape[1]), values).map_err(wrong)?)
}
