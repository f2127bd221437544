//! Forms and inputs of the small kernels: rotations, norms, products, copies.

use super::form::{D_QK, Exactly, Forms, INDEX_DIM, Model, ROPE_DIM};
use super::{ALL, Fill, extreme, float, gap, slots, tensor};
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
        let fill = rng.choose(&ALL);
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
        // YaRN may stretch the tables.
        let factor = rng.choose(&[1.0, 1.0, 1.5]);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() * factor).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() * factor).collect();
        let fill = rng.choose(&[Fill::Normal, Fill::Normal, Fill::Extreme]);
        let positions: Vec<i32> = (0..n).map(|_| rng.below(table + 2) as i32 - 1).collect();
        Case::new("rope")
            .with("x", tensor(rng, form.dtype, &[n, form.heads, 2 * half], fill))
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
        const FILLS: [Fill; 5] =
            [Fill::Normal, Fill::Tenth, Fill::Outliers, Fill::Extreme, Fill::Extreme];
        let fill = rng.choose(&FILLS);
        // DeepSeek's eps; GLM's; one that is not small beside the squares of Fill::Tenth; and none, or next to
        // none, so that a row of tiny numbers is normalised too.
        let eps = match fill {
            Fill::Extreme => rng.choose(&[1e-6, 1e-30, 0.0]),
            _ => rng.choose(&[1e-6, 1e-5, 1e-2]),
        };
        let weight = match fill {
            Fill::Extreme => extreme::even(rng, DType::F32, &[form.cols]),
            _ => tensor(rng, DType::F32, &[form.cols], Fill::Normal),
        };
        let case = Case::new(kernel)
            .with("x", tensor(rng, form.dtype, &[form.rows, form.cols], fill))
            .with("weight", weight)
            .set("eps", eps)
            .set("strided", form.strided);
        if kernel == "layer_norm" {
            let bias = match fill {
                Fill::Extreme => extreme::even(rng, DType::F32, &[form.cols]),
                _ => tensor(rng, DType::F32, &[form.cols], Fill::Normal),
            };
            case.with("bias", bias)
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
    out: DType,
    strided: &'static str,
}

pub(super) fn gemm() -> Forms {
    let form = |((b, m, n, k), dtype, out, strided)| Gemm { b, m, n, k, dtype, out, strided };
    // Low tiles, high ones, and wide ones.
    let m = prop_oneof![0usize..40, 65usize..80];
    let random = ((1usize..4, m, 1usize..140, 1usize..200), float(), float(), gap()).prop_map(form);
    // A projection, and the absorbed product of some heads.
    let production = move |model: Model| {
        let projection = (Just(1usize), 1usize..5, 1usize..70, Exactly(model.hidden()));
        let (nope, _) = model.expanded();
        let absorbed = (1usize..9, 1usize..5, Exactly(512), Exactly(nope - ROPE_DIM));
        (prop_oneof![projection.boxed(), absorbed.boxed()], float(), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Gemm, rng| {
        const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];
        let (b, m, n, k) = (form.b, form.m, form.n, form.k);
        let fill = rng.choose(&FILLS);
        let scale = 1.0 / (k as f32).sqrt();
        let w: Vec<f32> = (0..b * n * k).map(|_| rng.normal() * scale).collect();
        let mut x = tensor(rng, form.dtype, &[b, m, k], fill);
        let mut w = HostTensor::new(form.dtype, &[b, n, k], &w);
        if rng.one_in(4) {
            // Terms of up to 2^80 and sums of up to 7168 of them: in range in any order.
            x = extreme::rows_within(rng, form.dtype, &[b, m, k], 40);
            w = extreme::rows_within(rng, form.dtype, &[b, n, k], 40);
        }
        Case::new("gemm")
            .with("x", x)
            .with("w", w)
            .set("out", form.out)
            .set("strided", form.strided)
    })
}

pub(super) fn fold_scales() -> Forms {
    let production = |model: Model| (1usize..9, Exactly(model.index_heads()));
    Forms::new((0usize..9, 1usize..129), production, |(s, heads): &(usize, usize), rng| {
        let (fill, factors) = match rng.below(3) {
            0 => (Fill::Extreme, [0.011_048_543, 1e30, 1e-30]),
            _ => (Fill::Normal, [0.011_048_543; 3]),
        };
        let factor: f32 = rng.choose(&factors);
        Case::new("fold_scales")
            .with("weights", tensor(rng, DType::F32, &[*s, *heads], fill))
            .with("q_scale", tensor(rng, DType::F32, &[*s, *heads], fill))
            .set("factor", factor)
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
