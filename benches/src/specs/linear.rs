//! The fp8 linear, and the first product of experts with weights of both kinds.

use super::{INDEX_DIM, one, shape, vec_i32};
use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use crate::timed::{Drawn, Timed};
use dsa_figures::Stage;
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::{Case, HostTensor};
use dsa_kernels::dispatch::Dispatch;
use dsa_kernels::grouped_gemm::{Rows, grouped_gemm};
use dsa_kernels::linear::linear_fp8;
use dsa_kernels::quant::{BLOCK, ScaleFmt};
use dsa_kernels::random::Rng;
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Device, Result, Tensor};

/// Experts, and those of a token.
const EXPERTS: usize = 16;
const TOP_K: usize = 2;

/// Positive scales.
fn scales(device: &Device, shape: &[usize]) -> Result<Tensor> {
    let mut rng = Rng::new(6);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| 0.01 + rng.normal().abs() / 100.0).collect();
    device.upload(&DType::F32.encode(&values), shape, DType::F32)
}

/// The latent's projection to index heads, 1536 x 8192 in V3.2, of fp8 weights.
pub fn linear(device: &Device, axes: &Axes, seed: u64) -> Result<Spec> {
    let (n, k, m) = (axes.s_q, 24 * axes.index_heads, axes.index_heads * INDEX_DIM);
    let (dtype, rng) = (axes.dtype, &mut Rng::new(seed));
    let x = random(device, dtype, &[n, k], seed)?;
    let w = random(device, DType::E4m3, &[m, k], seed + 1)?;
    let scale = scales(device, &[m.div_ceil(BLOCK), k.div_ceil(BLOCK)])?;
    let gate = Case::new("linear_fp8")
        .with("x", tensor(rng, dtype, &[n.min(40), k], Fill::Normal))
        .with("w", tensor(rng, DType::E4m3, &[70, k], Fill::Normal))
        .with("w_scale", tensor(rng, DType::F32, &[1, k.div_ceil(BLOCK)], Fill::Tenth));
    let inputs = [x.clone(), w.clone(), scale.clone()];
    Ok(Spec {
        kernel: "linear_fp8",
        stage: Stage::Prefill,
        case: "wq_b".to_string(),
        shape: shape([("n", n), ("m", m), ("k", k)]),
        dtype: dtype.to_string(),
        flop: (2 * n * m * k) as u64,
        bytes: (m * k + n * (k + m) * dtype.size()) as u64,
        gate,
        work: Box::new(move || Ok(one("out", linear_fp8(&x, &w, &scale, ScaleFmt::Ue8m0, dtype)?))),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: m * k,
            cut: Box::new(move |at, out| {
                let [x, w, scale] = &inputs;
                let case = Case::new("linear_fp8").with("x", at.rows(x)?).with("w", at.whole(w)?);
                let case = case.with("w_scale", at.whole(scale)?).set("out", dtype);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

/// Tokens with the weights of two of sixteen experts each, of fp8 or of the type of the tokens.
pub fn experts(device: &Device, axes: &Axes, fp8: bool, seed: u64) -> Result<Spec> {
    let (n, k, m) = (axes.s_q, 24 * axes.index_heads, 32 * axes.index_heads);
    let (dtype, rng) = (axes.dtype, &mut Rng::new(seed));
    let kernel = if fp8 { "grouped_gemm_fp8" } else { "grouped_gemm" };
    let stored = if fp8 { DType::E4m3 } else { dtype };
    let x = random(device, dtype, &[n, k], seed)?;
    let w = random(device, stored, &[EXPERTS, m, k], seed + 1)?;
    let blocks = [m.div_ceil(BLOCK), k.div_ceil(BLOCK)];
    let scale = scales(device, &[EXPERTS, blocks[0], blocks[1]])?;
    // Two of the experts have no token.
    let mut pairs: Vec<(usize, i32)> =
        (0..n * TOP_K).map(|pair| (rng.below(EXPERTS - 2), pair as i32)).collect();
    pairs.sort_unstable();
    let order: Vec<i32> = pairs.iter().map(|(_, pair)| *pair).collect();
    let ends: Vec<i32> =
        (0..EXPERTS).map(|e| pairs.partition_point(|pair| pair.0 <= e) as i32).collect();
    let dispatch = Dispatch { order: vec_i32(device, &order)?, ends: vec_i32(device, &ends)? };
    let gate = Case::new(kernel)
        .with("x", tensor(rng, dtype, &[4, k], Fill::Normal))
        .with("w", tensor(rng, stored, &[2, 70, k], Fill::Normal))
        .with("order", HostTensor::i32(&[4], &[3, 0, 2, 1]))
        .with("ends", HostTensor::i32(&[2], &[1, 4]))
        .set("rows", "tokens")
        .set("top_k", 1);
    let gate = match fp8 {
        true => gate.with("w_scale", tensor(rng, DType::F32, &[2, 1, blocks[1]], Fill::Tenth)),
        false => gate,
    };
    let weight = match fp8 {
        true => Weight::Fp8 { codes: w.clone(), scale: scale.clone() },
        false => Weight::Plain(w.clone()),
    };
    let inputs = [x.clone(), w, scale];
    Ok(Spec {
        kernel,
        stage: Stage::Prefill,
        case: "w1".to_string(),
        shape: shape([("n", n), ("top_k", TOP_K), ("experts", EXPERTS), ("m", m), ("k", k)]),
        dtype: dtype.to_string(),
        flop: (2 * n * TOP_K * m * k) as u64,
        bytes: (EXPERTS * m * k * stored.size() + n * (k + TOP_K * m) * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            let rows = Rows::Tokens { top_k: TOP_K };
            let out = grouped_gemm(&x, &weight, &dispatch, rows, ScaleFmt::Ue8m0, dtype)?;
            Ok(one("out", out))
        }),
        timed: Timed {
            rows: n * TOP_K,
            heads: 1,
            cost: EXPERTS * m * k,
            cut: Box::new(move |at, out| {
                let [x, w, scale] = &inputs;
                // The rows of the drawn places, each its own pair.
                let tokens = at.rows.iter().map(|i| order[*i] as usize / TOP_K).collect();
                let x =
                    Drawn { device: at.device, rows: tokens, heads: at.heads.clone() }.rows(x)?;
                let before = |end: &i32| at.rows.partition_point(|i| *i < *end as usize) as i32;
                let case = Case::new(kernel)
                    .with("x", x)
                    .with("w", at.whole(w)?)
                    .with("order", HostTensor::i32(&[at.rows.len()], &vec![0; at.rows.len()]))
                    .with(
                        "ends",
                        HostTensor::i32(&[EXPERTS], &ends.iter().map(before).collect::<Vec<_>>()),
                    )
                    .set("rows", "pairs")
                    .set("out", dtype);
                let case = if fp8 { case.with("w_scale", at.whole(scale)?) } else { case };
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
