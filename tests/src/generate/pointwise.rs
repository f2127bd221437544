//! Forms and inputs of the small kernels: rotations, norms, products, copies.

use super::form::{D_QK, Exactly, Forms, INDEX_DIM, Model, ROPE_DIM};
use super::{FINITE, Fill, float, gap, slots, tensor};
use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Hadamard {
    rows: usize,
    log: usize,
    dtype: DType,
    strided: &'static str,
}

pub(super) fn hadamard() -> Forms {
    let form = |(rows, log, dtype, strided)| Hadamard { rows, log, dtype, strided };
    let random = (0usize..9, 0usize..9, float(), gap()).prop_map(form);
    let log = INDEX_DIM.ilog2() as usize;
    let production = move |model: Model| {
        (Exactly(model.index_heads()), Exactly(log), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Hadamard, rng| {
        let fill = rng.choose(&FINITE);
        let x = tensor(rng, form.dtype, &[form.rows, 1 << form.log], fill);
        Case::new("hadamard").with("x", x).set("strided", form.strided)
    })
}

#[derive(Clone, Debug)]
struct Rope {
    n: usize,
    heads: usize,
    half: usize,
    table: usize,
    dtype: DType,
    pairing: &'static str,
    strided: &'static str,
}

pub(super) fn rope() -> Forms {
    let form = |(n, heads, half, table, dtype, pairing, strided)| Rope {
        n,
        heads,
        half,
        table,
        dtype,
        pairing,
        strided,
    };
    let pairing = || proptest::sample::select(&["interleaved", "half_split"][..]);
    let random =
        (0usize..5, 1usize..5, 1usize..40, 1usize..9, float(), pairing(), gap()).prop_map(form);
    let production = move |model: Model| {
        let heads = prop_oneof![Exactly(model.heads()), Exactly(model.index_heads())];
        (1usize..4, heads, Exactly(ROPE_DIM / 2), 1usize..9, float(), pairing(), gap())
            .prop_map(form)
    };
    Forms::new(random, production, |form: &Rope, rng| {
        let (n, half, table) = (form.n, form.half, form.table);
        let angles: Vec<f32> = (0..table * half).map(|_| rng.normal() * 50.0).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let positions: Vec<i32> = (0..n).map(|_| rng.below(table + 2) as i32 - 1).collect();
        Case::new("rope")
            .with("x", tensor(rng, form.dtype, &[n, form.heads, 2 * half], Fill::Normal))
            .with("cos", HostTensor::new(DType::F32, &[table, half], &cos))
            .with("sin", HostTensor::new(DType::F32, &[table, half], &sin))
            .with("positions", HostTensor::i32(&[n], &positions))
            .set("pairing", form.pairing)
            .set("strided", form.strided)
    })
}

#[derive(Clone, Debug)]
struct Norm {
    rows: usize,
    cols: usize,
    dtype: DType,
    strided: &'static str,
}

pub(super) fn norm(kernel: &'static str) -> Forms {
    let form = |(rows, cols, dtype, strided)| Norm { rows, cols, dtype, strided };
    let random = (0usize..5, 1usize..300, float(), gap()).prop_map(form);
    let production = move |model: Model| {
        let cols = if kernel == "layer_norm" { INDEX_DIM } else { model.hidden() };
        (1usize..4, Exactly(cols), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, move |form: &Norm, rng| {
        const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Outliers];
        let fill = rng.choose(&FILLS);
        // DeepSeek's eps; GLM's; and one that is not small beside the squares of Fill::Tenth.
        let eps = rng.choose(&[1e-6, 1e-5, 1e-2]);
        let case = Case::new(kernel)
            .with("x", tensor(rng, form.dtype, &[form.rows, form.cols], fill))
            .with("weight", tensor(rng, DType::F32, &[form.cols], Fill::Normal))
            .set("eps", eps)
            .set("strided", form.strided);
        if kernel == "layer_norm" {
            case.with("bias", tensor(rng, DType::F32, &[form.cols], Fill::Normal))
        } else {
            case
        }
    })
}

#[derive(Clone, Debug)]
struct Gemm {
    b: usize,
    m: usize,
    n: usize,
    k: usize,
    dtype: DType,
    strided: &'static str,
}

pub(super) fn gemm() -> Forms {
    let form = |((b, m, n, k), dtype, strided)| Gemm { b, m, n, k, dtype, strided };
    // Low tiles, high ones, and wide ones.
    let m = prop_oneof![0usize..40, 65usize..80];
    let random = ((1usize..4, m, 1usize..140, 1usize..200), float(), gap()).prop_map(form);
    // A projection, and the absorbed product of some heads.
    let production = move |model: Model| {
        let projection = (Just(1usize), 1usize..5, 1usize..70, Exactly(model.hidden()));
        let (nope, _) = model.expanded();
        let absorbed = (1usize..9, 1usize..5, Exactly(512), Exactly(nope - ROPE_DIM));
        (prop_oneof![projection.boxed(), absorbed.boxed()], float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Gemm, rng| {
        const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];
        let (b, m, n, k) = (form.b, form.m, form.n, form.k);
        let fill = rng.choose(&FILLS);
        let scale = 1.0 / (k as f32).sqrt();
        let w: Vec<f32> = (0..b * n * k).map(|_| rng.normal() * scale).collect();
        Case::new("gemm")
            .with("x", tensor(rng, form.dtype, &[b, m, k], fill))
            .with("w", HostTensor::new(form.dtype, &[b, n, k], &w))
            .set("strided", form.strided)
    })
}

pub(super) fn fold_scales() -> Forms {
    let production = |model: Model| (1usize..9, Exactly(model.index_heads()));
    Forms::new((0usize..9, 1usize..129), production, |(s, heads): &(usize, usize), rng| {
        Case::new("fold_scales")
            .with("weights", tensor(rng, DType::F32, &[*s, *heads], Fill::Normal))
            .with("q_scale", tensor(rng, DType::F32, &[*s, *heads], Fill::Normal))
            .set("factor", 0.011_048_543)
    })
}

#[derive(Clone, Debug)]
struct PlaceRows {
    n: usize,
    heads: usize,
    dim: usize,
    rows: usize,
    dtype: DType,
    /// Whether x has one head for all.
    repeated: bool,
    strided: &'static str,
}

pub(super) fn place_rows() -> Forms {
    let form = |((n, heads, dim, rows), dtype, repeated, strided)| PlaceRows {
        n,
        heads,
        dim,
        rows,
        dtype,
        repeated,
        strided,
    };
    let sizes = (0usize..9, 1usize..6, 1usize..100, 1usize..20);
    let random = (sizes, float(), any::<bool>(), gap()).prop_map(form);
    // Keys of every head, and the latent with its rope part.
    let production = move |model: Model| {
        let (heads, d_qk) = (model.heads(), model.expanded().0);
        let rows = || (1usize..4, 1usize..9);
        let sizes = prop_oneof![
            (rows(), Exactly(heads), Exactly(d_qk)).boxed(),
            (rows(), Exactly(1), Exactly(D_QK)).boxed(),
        ]
        .prop_map(|((n, rows), heads, dim)| (n, heads, dim, rows));
        (sizes, float(), any::<bool>(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &PlaceRows, rng| {
        let of_x = if form.repeated { 1 } else { form.heads };
        let out = [form.rows, form.heads, form.dim];
        Case::new("place_rows")
            .with("x", tensor(rng, form.dtype, &[form.n, of_x, form.dim], Fill::Special))
            .with("slots", slots(rng, form.n, form.rows))
            .with("out", tensor(rng, form.dtype, &out, Fill::Normal))
            .set("strided", form.strided)
    })
}
