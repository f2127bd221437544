//! The small kernels around the three, one size each.

use super::{INDEX_DIM, ROPE, one, shape, vec_i32};
use crate::args::Axes;
use crate::peaks::random;
use crate::session::Spec;
use crate::timed::{Call, Cut, Drawn, Timed};
use dsa_figures::Stage;
use dsa_gate::generate::{Fill, tensor};
use dsa_gate::{Case, CaseError, HostTensor};
use dsa_kernels::fold_scales::fold_scales;
use dsa_kernels::quant::{ScaleFmt, act_quant, round_trip};
use dsa_kernels::random::Rng;
use dsa_kernels::rope::Pairing;
use dsa_kernels::{DType, Device, Result, Tensor, gemm, hadamard, norm, rope};

/// Factor of the normalised rows' mean square.
const EPS: f32 = 1e-6;

/// All of them.
pub fn all(device: &Device, axes: &Axes, seed: u64) -> Result<Vec<Spec>> {
    let (rows, dtype) = (axes.s_q * axes.index_heads, axes.dtype);
    let x = random(device, dtype, &[rows, INDEX_DIM], seed)?;
    let mut rng = Rng::new(seed);
    let small = tensor(&mut rng, dtype, &[3, INDEX_DIM], Fill::Normal);
    let (n, size) = (rows * INDEX_DIM, dtype.size());
    let of_rows = |kernel, flop: usize, bytes: usize, gate, work: Call, cut: Cut| Spec {
        kernel,
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("rows", rows), ("cols", INDEX_DIM)]),
        dtype: dtype.to_string(),
        flop: flop as u64,
        bytes: bytes as u64,
        gate,
        work,
        timed: Timed { rows, heads: 1, cost: INDEX_DIM, cut },
    };
    // Each kernel's case with `x` and what else it takes.
    let of_x = |kernel: &'static str| {
        let x = x.clone();
        move |at: &Drawn| Ok::<_, CaseError>(Case::new(kernel).with("x", at.rows(&x)?))
    };
    let mut specs = Vec::new();

    let (y, case) = (x.clone(), of_x("act_quant"));
    specs.push(of_rows(
        "act_quant",
        3 * n,
        n * (size + 1),
        Case::new("act_quant").with("x", small.clone()).set("fmt", "ue8m0"),
        Box::new(move || {
            let q = act_quant(&y, ScaleFmt::Ue8m0)?;
            Ok(vec![("codes", q.codes), ("scale", q.scale)])
        }),
        Box::new(move |at, out| Ok((case(at)?.set("fmt", "ue8m0"), at.outputs(out)?))),
    ));

    let (y, out, case) = (x.clone(), device.empty(&[rows, INDEX_DIM], dtype)?, of_x("round_trip"));
    specs.push(of_rows(
        "round_trip",
        4 * n,
        2 * n * size,
        Case::new("round_trip").with("x", small.clone()).set("fmt", "ue8m0"),
        Box::new(move || {
            round_trip(&y, &out, ScaleFmt::Ue8m0)?;
            Ok(one("out", out.clone()))
        }),
        Box::new(move |at, out| Ok((case(at)?.set("fmt", "ue8m0"), at.outputs(out)?))),
    ));

    let (y, case) = (x.clone(), of_x("hadamard"));
    specs.push(of_rows(
        "hadamard",
        7 * n,
        2 * n * size,
        Case::new("hadamard").with("x", small.clone()),
        Box::new(move || Ok(one("out", hadamard::hadamard(&y)?))),
        Box::new(move |at, out| Ok((case(at)?, at.outputs(out)?))),
    ));

    let of_cols = |seed| random(device, DType::F32, &[INDEX_DIM], seed);
    let (weight, bias) = (of_cols(1)?, of_cols(2)?);
    let small_weight = tensor(&mut rng, DType::F32, &[INDEX_DIM], Fill::Normal);
    let norm_gate = |kernel| {
        let case = Case::new(kernel).with("x", small.clone()).set("eps", EPS);
        case.with("weight", small_weight.clone())
    };
    let (y, by, case) = (x.clone(), weight.clone(), of_x("rms_norm"));
    let cut_weight = weight.clone();
    specs.push(of_rows(
        "rms_norm",
        4 * n,
        2 * n * size,
        norm_gate("rms_norm"),
        Box::new(move || Ok(one("out", norm::rms_norm(&y, &by, EPS)?))),
        Box::new(move |at, out| {
            let case = case(at)?.with("weight", at.whole(&cut_weight)?).set("eps", EPS);
            Ok((case, at.outputs(out)?))
        }),
    ));
    let (y, by, plus, case) = (x.clone(), weight.clone(), bias.clone(), of_x("layer_norm"));
    specs.push(of_rows(
        "layer_norm",
        6 * n,
        2 * n * size,
        norm_gate("layer_norm").with("bias", small_weight.clone()),
        Box::new(move || Ok(one("out", norm::layer_norm(&y, &by, &plus, EPS)?))),
        Box::new(move |at, out| {
            let case = case(at)?.with("weight", at.whole(&weight)?);
            Ok((case.with("bias", at.whole(&bias)?).set("eps", EPS), at.outputs(out)?))
        }),
    ));
    specs.push(fold_spec(device, axes, &mut rng)?);
    specs.push(rope_spec(device, axes, &mut rng, seed)?);
    specs.push(gemm_spec(device, axes, &mut rng, seed)?);
    Ok(specs)
}

fn fold_spec(device: &Device, axes: &Axes, rng: &mut Rng) -> Result<Spec> {
    let (s, heads) = (axes.s_q, axes.index_heads);
    let weights = random(device, DType::F32, &[s, heads], 4)?;
    let q_scale = random(device, DType::F32, &[s, heads], 5)?;
    let folded = tensor(rng, DType::F32, &[3, heads], Fill::Normal);
    let (of_weights, of_scale) = (weights.clone(), q_scale.clone());
    Ok(Spec {
        kernel: "fold_scales",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", s), ("index_heads", heads)]),
        dtype: DType::F32.to_string(),
        flop: (2 * s * heads) as u64,
        bytes: (12 * s * heads) as u64,
        gate: Case::new("fold_scales")
            .with("weights", folded.clone())
            .with("q_scale", folded)
            .set("factor", 0.5),
        work: Box::new(move || Ok(one("out", fold_scales(&weights, &q_scale, 0.5)?))),
        timed: Timed {
            rows: s,
            heads: 1,
            cost: heads,
            cut: Box::new(move |at, out| {
                let case = Case::new("fold_scales").with("weights", at.rows(&of_weights)?);
                let case = case.with("q_scale", at.rows(&of_scale)?).set("factor", 0.5);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

fn rope_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    let (n, heads, dtype) = (axes.s_q, axes.index_heads, axes.dtype);
    let x = random(device, dtype, &[n, heads, ROPE], seed)?;
    let out = device.empty(&[n, heads, ROPE], dtype)?;
    let cos = random(device, DType::F32, &[n, ROPE / 2], 2)?;
    let sin = random(device, DType::F32, &[n, ROPE / 2], 3)?;
    let positions = vec_i32(device, &(0..n as i32).collect::<Vec<_>>())?;
    let table = tensor(rng, DType::F32, &[2, ROPE / 2], Fill::Tenth);
    let gate = Case::new("rope")
        .with("x", tensor(rng, dtype, &[2, 2, ROPE], Fill::Normal))
        .with("cos", table.clone())
        .with("sin", table)
        .with("positions", HostTensor::i32(&[2], &[1, 0]))
        .set("pairing", "half_split");
    let elements = n * heads * ROPE;
    let inputs = [x.clone(), cos.clone(), sin.clone(), positions.clone()];
    Ok(Spec {
        kernel: "rope",
        stage: Stage::Prefill,
        case: String::new(),
        shape: shape([("s_q", n), ("heads", heads), ("dim", ROPE)]),
        dtype: dtype.to_string(),
        flop: 3 * elements as u64,
        bytes: (2 * elements * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            rope::rope(&x, &cos, &sin, &positions, &out, Pairing::HalfSplit)?;
            Ok(one("out", out.clone()))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: heads * ROPE,
            cut: Box::new(move |at, out| {
                let [x, cos, sin, positions] = &inputs;
                let case = Case::new("rope")
                    .with("x", at.rows(x)?)
                    .with("cos", at.whole(cos)?)
                    .with("sin", at.whole(sin)?)
                    .with("positions", at.rows(positions)?)
                    .set("pairing", "half_split");
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}

fn gemm_spec(device: &Device, axes: &Axes, rng: &mut Rng, seed: u64) -> Result<Spec> {
    // The latent's projection to index heads: 1536 x 8192 in V3.2.
    let (m, k, n) = (axes.s_q, 24 * axes.index_heads, axes.index_heads * INDEX_DIM);
    let dtype = axes.dtype;
    let x = random(device, dtype, &[1, m, k], seed)?;
    let w = random(device, dtype, &[1, n, k], seed + 1)?;
    let gate = Case::new("gemm")
        .with("x", tensor(rng, dtype, &[1, m.min(40), k], Fill::Normal))
        .with("w", tensor(rng, dtype, &[1, 70, k], Fill::Tenth));
    let inputs = [x.clone(), w.clone()];
    Ok(Spec {
        kernel: "gemm",
        stage: Stage::Prefill,
        case: "wq_b".to_string(),
        shape: shape([("m", m), ("n", n), ("k", k)]),
        dtype: dtype.to_string(),
        flop: (2 * m * n * k) as u64,
        bytes: ((m * k + n * k + m * n) * dtype.size()) as u64,
        gate,
        work: Box::new(move || Ok(one("out", gemm::gemm(&x, &w, dtype)?))),
        timed: Timed {
            rows: m,
            heads: 1,
            cost: n * k,
            cut: Box::new(move |at, out| {
                let [x, w] = &inputs;
                let rows = |tensor: &Tensor, cols| -> std::result::Result<HostTensor, CaseError> {
                    let some = at.rows(&tensor.reshape(&[m, cols])?)?;
                    Ok(HostTensor { shape: vec![1, at.rows.len(), cols], ..some })
                };
                let case = Case::new("gemm").with("x", rows(x, k)?).with("w", at.whole(w)?);
                let got = out.iter().map(|(name, out)| Ok((*name, rows(out, n)?)));
                Ok((case, got.collect::<std::result::Result<_, CaseError>>()?))
            }),
        },
    })
}
