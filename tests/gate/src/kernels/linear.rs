//! The fp8 linear and the products of experts: entries, forms, code paths, tolerances, cases compiled offline.

use super::*;
use crate::generate::{Fill, Form, Forms, Model, tensor};
use crate::tolerance::Tolerance;
use DType::{Bf16, E4m3, F16, F32};
use dsa_kernels::dispatch::Dispatch;
use dsa_kernels::grouped_gemm::Rows;
use dsa_kernels::quant::{BLOCK, ScaleFmt};
use dsa_kernels::random::Rng;
use dsa_kernels::tile::{MatrixUnit, load_width};
use dsa_kernels::weight::Weight;
use dsa_kernels::{grouped_gemm, linear};
use ndarray::Array2;
use proptest::prelude::*;

/// `linear_fp8`.
pub(super) const LINEAR_FP8: Kernel = Kernel {
    name: "linear_fp8",
    file: "linear.rs",
    tensors: &[
        "x: [n, k] f32|bf16|f16",
        "w: [m, k] e4m3",
        "w_scale: [ceil(m / 128), ceil(k / 128)] f32",
    ],
    scalars: &[FMT, OUT, STRIDED],
    sizes: &["k: at least 1"],
    outputs: &["out: [n, m] as out"],
    scratch: "n * (k + 4 * ceil(k / 128))",
    work: "n * m * k",
    machine: linear::machine,
    launch: run_linear_fp8,
    compute: reference_linear_fp8,
};

/// `grouped_gemm` of plain weights.
pub(super) const GROUPED_GEMM: Kernel = Kernel {
    name: "grouped_gemm",
    file: "grouped_gemm.rs",
    tensors: &[X, "w: [E, m, k] as x", ORDER, ENDS],
    scalars: &[ROWS, TOP_K, OUT, STRIDED],
    sizes: &["E: 1 to 512", "k: at least 1"],
    outputs: &["out: [n * top_k, m] as out"],
    scratch: "0",
    work: "n * top_k * m * k",
    machine: |d| grouped_gemm::machine(d, Bf16),
    launch: run_grouped_gemm,
    compute: reference_grouped_gemm,
};

/// `grouped_gemm` of fp8 weights.
pub(super) const GROUPED_GEMM_FP8: Kernel = Kernel {
    name: "grouped_gemm_fp8",
    tensors: &[
        X,
        "w: [E, m, k] e4m3",
        ORDER,
        ENDS,
        "w_scale: [E, ceil(m / 128), ceil(k / 128)] f32",
    ],
    scalars: &[ROWS, TOP_K, FMT, OUT, STRIDED],
    scratch: "n * (k + 4 * ceil(k / 128))",
    machine: |d| grouped_gemm::machine(d, E4m3),
    ..GROUPED_GEMM
};

const X: &str = "x: [n, k] f32|bf16|f16";
const ORDER: &str = "order: [n * top_k] i32";
const ENDS: &str = "ends: [E] i32";
const FMT: &str = "fmt: ue8m0|plain (ue8m0)";
const OUT: &str = "out: f32|bf16|f16 (f32)";
const ROWS: &str = "rows: tokens|pairs (tokens)";
const TOP_K: &str = "top_k: integer 1 to E (with rows=tokens)";
const STRIDED: &str = "strided: false|true|aligned|wide (false)";

fn fmt(case: &Case) -> Result<ScaleFmt, CaseError> {
    choice(case, "fmt", &[("ue8m0", ScaleFmt::Ue8m0), ("plain", ScaleFmt::Plain)])
}

fn reference_fmt(case: &Case) -> Result<reference::quant::ScaleFmt, CaseError> {
    use reference::quant::ScaleFmt::{Plain, Ue8m0};
    choice(case, "fmt", &[("ue8m0", Ue8m0), ("plain", Plain)])
}

fn out_dtype(case: &Case) -> Result<DType, CaseError> {
    choice(case, "out", &[("f32", F32), ("bf16", Bf16), ("f16", F16)])
}

/// Experts of a token; none where x is in the order of the pairs.
fn top_k(case: &Case) -> Result<Option<usize>, CaseError> {
    let by_token = choice(case, "rows", &[("tokens", true), ("pairs", false)])?;
    if by_token { case.scalar("top_k").map(Some) } else { Ok(None) }
}

fn run_linear_fp8(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, w) = (case.upload_rows(device, "x")?, case.upload_rows(device, "w")?);
    let w_scale = case.upload(device, "w_scale")?;
    let out = linear::linear_fp8(&x, &w, &w_scale, fmt(case)?, out_dtype(case)?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

fn reference_linear_fp8(case: &Case) -> Result<Outputs, CaseError> {
    let (x, w_scale): (Matrix, Matrix) = (case.array("x")?, case.array("w_scale")?);
    let w = case.array_u8("w")?;
    let fmt = reference_fmt(case)?;
    let out = reference::linear::linear_fp8(x.view(), w.view(), w_scale.view(), fmt)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

fn run_grouped_gemm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let x = case.upload_rows(device, "x")?;
    let dispatch =
        Dispatch { order: case.upload(device, "order")?, ends: case.upload(device, "ends")? };
    let w = case.upload_rows(device, "w")?;
    let w = match case.kernel == GROUPED_GEMM_FP8.name {
        true => Weight::Fp8 { codes: w, scale: case.upload(device, "w_scale")? },
        false => Weight::Plain(w),
    };
    let rows = top_k(case)?.map_or(Rows::Pairs, |top_k| Rows::Tokens { top_k });
    let fmt = if matches!(w, Weight::Fp8 { .. }) { fmt(case)? } else { ScaleFmt::Plain };
    let out = grouped_gemm::grouped_gemm(&x, &w, &dispatch, rows, fmt, out_dtype(case)?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

fn reference_grouped_gemm(case: &Case) -> Result<Outputs, CaseError> {
    use reference::grouped_gemm::{Rows, grouped_gemm};
    use reference::weight::Weight;
    let x: Matrix = case.array("x")?;
    let w = case.tensor("w")?;
    let (m, k) = (w.shape[1], w.shape[2]);
    let of_expert = |numbers: &[f32]| Array2::from_shape_fn((m, k), |(i, j)| numbers[i * k + j]);
    let (w, fmt): (Vec<Weight>, _) = if w.dtype == E4m3 {
        let scale: Cuboid = case.array("w_scale")?;
        let codes = w.bytes.chunks((m * k).max(1)).zip(scale.outer_iter());
        let weight = |(codes, scale): (&[u8], ndarray::ArrayView2<f32>)| Weight::Fp8 {
            codes: Array2::from_shape_fn((m, k), |(i, j)| codes[i * k + j]),
            scale: scale.to_owned(),
        };
        (codes.map(weight).collect(), reference_fmt(case)?)
    } else {
        let numbers = w.to_f32();
        let experts = numbers.chunks((m * k).max(1));
        let plain = reference::quant::ScaleFmt::Plain;
        (experts.map(|w| Weight::F32(of_expert(w))).collect(), plain)
    };
    let rows = top_k(case)?.map_or(Rows::Pairs, |top_k| Rows::Tokens { top_k });
    let (order, ends) = (case.vec_i32("order")?, case.vec_i32("ends")?);
    let out = grouped_gemm(x.view(), &w, &order, &ends, rows, fmt)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

/// Rows of activations: of one kind, of all magnitudes, or with infinities and NaN strewn in.
fn activations(rng: &mut Rng, dtype: DType, shape: &[usize]) -> HostTensor {
    const FILLS: [Fill; 6] =
        [Fill::Normal, Fill::Tenth, Fill::Ties, Fill::Zeros, Fill::Outliers, Fill::Special];
    let fill = rng.choose(&FILLS);
    tensor(rng, dtype, shape, fill)
}

/// Codes `[.., k]` of weights: numbers of one kind, any bytes but NaN, pairs that cancel, or with NaN strewn in.
fn codes(rng: &mut Rng, shape: &[usize]) -> HostTensor {
    let kind = rng.below(5);
    let mut bytes = Vec::with_capacity(shape.iter().product());
    for i in 0..shape.iter().product() {
        let byte = rng.below(256) as u8;
        let any = if byte & 0x7f == 0x7f { byte ^ 1 } else { byte };
        bytes.push(match kind {
            0 => any,
            // 448 and its negative by turns, and little beside them.
            1 => [0x7e, 0xfe, any & 0x9f][if i % 3 < 2 { i % 3 } else { 2 }],
            2 if rng.one_in(300) => byte | 0x7f,
            _ => E4m3.encode(&[rng.normal() * 30.0])[0],
        });
    }
    HostTensor { dtype: E4m3, shape: shape.to_vec(), bytes }
}

/// Scales of weights, of one size or of very different ones. Times that of any activation they are normal numbers,
/// and so are they times any product.
fn scales(rng: &mut Rng, shape: &[usize]) -> HostTensor {
    let kind = rng.below(4);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| match kind {
            0 => 1.0,
            1 => 2f32.powi(rng.below(41) as i32 - 20) * (1.0 + rng.below(8) as f32 / 8.0),
            2 if rng.one_in(9) => 0.0,
            _ => (0.1 + rng.normal().abs()) * 1e-3,
        })
        .collect();
    HostTensor::new(F32, shape, &values)
}

/// Makes one product of every element outweigh the others, where there are few: what is left of a row when they cancel
/// would be held against itself.
fn outweigh(x: &mut HostTensor, w: &mut HostTensor, cols: usize, rng: &mut Rng) {
    if cols > 8 {
        return;
    }
    for tensor in [x, w] {
        let k = tensor.shape[tensor.shape.len() - 1];
        let mut values = tensor.to_f32();
        let at = rng.below(1);
        for row in values.chunks_mut(k) {
            let largest = row.iter().filter(|v| v.is_finite()).fold(1.0f32, |a, v| a.max(v.abs()));
            row[at] = largest * if row[at] < 0.0 { -1.0 } else { 1.0 };
        }
        *tensor = HostTensor::new(tensor.dtype, &tensor.shape.clone(), &values);
    }
}

/// Rows: few, some, many.
fn some_rows() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..5, 5usize..9, 9usize..65, 65usize..300]
}

fn words(of: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(of)
}

fn float() -> impl Strategy<Value = DType> {
    proptest::sample::select(&DType::FLOATS[..])
}

const OUTS: &[&str] = &["f32", "bf16", "f16"];
const FMTS: &[&str] = &["plain", "ue8m0"];
const GAPS: &[&str] = &["false", "false", "true", "aligned", "wide"];

#[derive(Clone, Debug)]
struct Linear {
    n: usize,
    m: usize,
    k: usize,
    dtype: DType,
    fmt: &'static str,
    out: &'static str,
    strided: &'static str,
}

fn linear_forms() -> Forms {
    let form = |((n, m, k), dtype, fmt, out, strided)| Linear { n, m, k, dtype, fmt, out, strided };
    let k = || prop_oneof![1usize..400, (1usize..25).prop_map(|k| 16 * k)];
    let random = ((some_rows(), 1usize..300, k()), float(), words(FMTS), words(OUTS), words(GAPS));
    let production = move |model: Model| {
        let sizes = (1usize..5, 1usize..140, Form::exactly(model.hidden()));
        (sizes, float(), words(FMTS), words(OUTS), words(GAPS)).prop_map(form)
    };
    Forms::new(random.prop_map(form), production, |form: &Linear, rng| {
        let (n, m, k) = (form.n, form.m, form.k);
        let mut x = activations(rng, form.dtype, &[n, k]);
        let mut w = codes(rng, &[m, k]);
        outweigh(&mut x, &mut w, m, rng);
        Case::new("linear_fp8")
            .with("x", x)
            .with("w", w)
            .with("w_scale", scales(rng, &[m.div_ceil(BLOCK), k.div_ceil(BLOCK)]))
            .set("fmt", form.fmt)
            .set("out", form.out)
            .set("strided", form.strided)
    })
}

#[derive(Clone, Debug)]
struct Grouped {
    n: usize,
    experts: usize,
    m: usize,
    k: usize,
    /// Experts of a token; none where x is in the order of the pairs.
    top_k: Option<usize>,
    dtype: DType,
    fmt: &'static str,
    out: &'static str,
    strided: &'static str,
}

fn grouped_forms(kernel: &'static str) -> Forms {
    let form = |((n, experts, m, k), top_k, dtype, fmt, out, strided)| {
        let top_k = Option::map(top_k, |top_k: usize| top_k.min(experts));
        Grouped { n, experts, m, k, top_k, dtype, fmt, out, strided }
    };
    let top_k = || proptest::option::of(1usize..9);
    let experts = prop_oneof![1usize..4, 4usize..20, Just(512usize)];
    let k = prop_oneof![1usize..200, (1usize..13).prop_map(|k| 16 * k)];
    let sizes = (some_rows(), experts, 1usize..150, k).prop_map(|(n, experts, m, k)| {
        // Half a gigabyte of weights would prove no more.
        if experts == 512 { (n, experts, m.min(9), k.min(48)) } else { (n, experts, m, k) }
    });
    let random = (sizes, top_k(), float(), words(FMTS), words(OUTS), words(GAPS));
    let production = move |model: Model| {
        let sizes = (1usize..5, 1usize..9, 1usize..20, Form::exactly(model.hidden()));
        (sizes, top_k(), float(), words(FMTS), words(OUTS), words(GAPS)).prop_map(form)
    };
    Forms::new(random.prop_map(form), production, move |form: &Grouped, rng| {
        let (n, experts, m, k) = (form.n, form.experts, form.m, form.k);
        let scaled = kernel == GROUPED_GEMM_FP8.name;
        let (order, ends) = sorted_pairs(rng, n * form.top_k.unwrap_or(1), experts);
        let mut x = activations(rng, form.dtype, &[n, k]);
        let mut w = match scaled {
            true => codes(rng, &[experts, m, k]),
            false => {
                let scale = 1.0 / (k as f32).sqrt();
                let w: Vec<f32> = (0..experts * m * k).map(|_| rng.normal() * scale).collect();
                HostTensor::new(form.dtype, &[experts, m, k], &w)
            }
        };
        outweigh(&mut x, &mut w, m, rng);
        let case = Case::new(kernel)
            .with("x", x)
            .with("w", w)
            .with("order", order)
            .with("ends", ends)
            .set("out", form.out)
            .set("strided", form.strided);
        let case = match form.top_k {
            Some(top_k) => case.set("rows", "tokens").set("top_k", top_k),
            None => case.set("rows", "pairs"),
        };
        if !scaled {
            return case;
        }
        let scales = scales(rng, &[experts, m.div_ceil(BLOCK), k.div_ceil(BLOCK)]);
        case.with("w_scale", scales).set("fmt", form.fmt)
    })
}

/// Pairs sorted by expert, and where each expert's end: of random experts, all of one, or of few; some behind the last
/// end; and, rarely, numbers that are no pair.
fn sorted_pairs(rng: &mut Rng, pairs: usize, experts: usize) -> (HostTensor, HostTensor) {
    let kind = rng.below(4);
    let only = rng.below(experts);
    let expert_of = |rng: &mut Rng| match kind {
        0 => only,
        1 => [only, 0, experts - 1][rng.below(3)],
        // One more than there are is none.
        2 => rng.below(experts + 1),
        _ => rng.below(experts),
    };
    let mut of_pairs: Vec<(usize, i32)> = (0..pairs).map(|p| (expert_of(rng), p as i32)).collect();
    of_pairs.sort_unstable();
    let ends: Vec<i32> =
        (0..experts).map(|e| of_pairs.partition_point(|pair| pair.0 <= e) as i32).collect();
    let wrong = rng.one_in(6);
    let order: Vec<i32> = of_pairs
        .iter()
        .map(|(_, pair)| match wrong && rng.one_in(5) {
            true => rng.choose(&[-1, i32::MIN, i32::MAX, pairs as i32]),
            false => *pair,
        })
        .collect();
    (HostTensor::i32(&[pairs], &order), HostTensor::i32(&[experts], &ends))
}

/// Forms of one of these kernels.
pub(crate) fn forms(kernel: &str) -> Option<Forms> {
    [LINEAR_FP8.name, GROUPED_GEMM.name, GROUPED_GEMM_FP8.name]
        .into_iter()
        .find(|name| *name == kernel)
        .map(|name| if name == LINEAR_FP8.name { linear_forms() } else { grouped_forms(name) })
}

const TILES: &[&str] = &["to 4 rows", "to 8 rows", "to 64 rows", "more rows"];
const LOADS: &[&str] = &["vectors", "elements"];
const TO: &[&str] = &["to f32", "to bf16", "to f16"];

/// The paths of one of these kernels.
pub(crate) fn paths(kernel: &str) -> Option<Vec<&'static str>> {
    let floats: &[&str] = &["f32", "bf16", "f16"];
    let rows: &[&str] = &["rows of tokens", "rows of pairs"];
    let parts: &[&[&'static str]] = match kernel {
        "linear_fp8" => &[floats, LOADS, TILES, TO, FMTS],
        "grouped_gemm" => &[floats, LOADS, TILES, TO, rows],
        "grouped_gemm_fp8" => &[floats, LOADS, TILES, TO, rows, FMTS],
        _ => return None,
    };
    Some(parts.iter().flat_map(|part| part.iter().copied()).collect())
}

/// The paths that `case` of one of these kernels runs on `device`.
pub(crate) fn paths_of(case: &Case, device: &Device) -> Option<Vec<&'static str>> {
    paths(&case.kernel)?;
    let (x, w) = (case.tensors.get("x")?, case.tensors.get("w")?);
    let pairs = case.tensors.get("order").map_or(x.shape[0], |order| order.shape[0]);
    if pairs * w.shape.iter().product::<usize>() * x.shape[1] == 0 {
        return Some(vec![]);
    }
    let word = |name: &str| case.scalars.get(name).map(String::as_str);
    let grouped = case.kernel != LINEAR_FP8.name;
    let gap = case.gap(w.dtype).unwrap_or(0);
    let width = load_width(grouped_gemm::machine(device, w.dtype), w.dtype.size());
    let whole = x.shape[1].is_multiple_of(width) && gap.is_multiple_of(width);
    let rows = pairs.div_ceil(if grouped { w.shape[0] } else { 1 });
    let mut paths = vec![
        match x.dtype {
            Bf16 => "bf16",
            F16 => "f16",
            _ => "f32",
        },
        LOADS[usize::from(!whole)],
        TILES[[4, 8, 64].iter().filter(|most| rows > **most).count()],
        match word("out") {
            Some("bf16") => TO[1],
            Some("f16") => TO[2],
            _ => TO[0],
        },
    ];
    if grouped {
        paths.push(match word("rows") {
            Some("pairs") => "rows of pairs",
            _ => "rows of tokens",
        });
    }
    if w.dtype == E4m3 {
        paths.push(if word("fmt") == Some("plain") { "plain" } else { "ue8m0" });
    }
    Some(paths)
}

/// What of fp8 products is beside the table.
pub(crate) fn tolerance(unit: MatrixUnit, kernel: &str, dtype: DType) -> Option<Tolerance> {
    if ![LINEAR_FP8.name, GROUPED_GEMM_FP8.name].contains(&kernel) || unit == MatrixUnit::Plain {
        return None;
    }
    let rel = match dtype {
        Bf16 => 1.01 / 128.0,
        F16 => 1.01 / 1024.0,
        _ => 0.0,
    };
    Some(Tolerance {
        abs: 2e-3,
        rel,
        cos: 7e-6,
        of_row: true,
        source: "as the indexer's: Hopper's fp8 product accumulates in fewer bits than f32 and cuts the rest off, \
                 here within a block of 128; its sum is f32",
    })
}

fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

/// The cases of one of these kernels whose code is judged without a device: prefill and decode.
pub(crate) fn production(kernel: &str) -> Option<Vec<Case>> {
    const HIDDEN: usize = 7168;
    let blocks = HIDDEN / BLOCK;
    Some(match kernel {
        "linear_fp8" => [128, 1]
            .map(|n| {
                Case::new(kernel)
                    .with("x", zeros(Bf16, &[n, HIDDEN]))
                    .with("w", zeros(E4m3, &[256, HIDDEN]))
                    .with("w_scale", zeros(F32, &[2, blocks]))
                    .set("out", "bf16")
            })
            .into(),
        "grouped_gemm" | "grouped_gemm_fp8" => [(128, "tokens"), (1, "tokens"), (128, "pairs")]
            .map(|(n, rows)| {
                let fp8 = kernel == "grouped_gemm_fp8";
                let case = Case::new(kernel)
                    .with("x", zeros(Bf16, &[n, HIDDEN]))
                    .with("w", zeros(if fp8 { E4m3 } else { Bf16 }, &[1, 256, HIDDEN]))
                    .with("order", zeros(DType::I32, &[n]))
                    .with("ends", zeros(DType::I32, &[1]))
                    .set("rows", rows)
                    .set("out", "bf16");
                let case = if rows == "tokens" { case.set("top_k", 1) } else { case };
                if fp8 { case.with("w_scale", zeros(F32, &[1, 2, blocks])) } else { case }
            })
            .into(),
        _ => return None,
    })
}
