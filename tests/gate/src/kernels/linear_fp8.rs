//! The fp8 linear.

use super::gemm::{OUTS, out_dtype};
use super::*;
use dsa_kernels::linear::{self, LINEAR_FP8};
use dsa_kernels::quant::{BLOCK, ScaleFmt};

pub(super) const KERNEL: Kernel = Kernel {
    name: LINEAR_FP8.name,
    contract: LINEAR_FP8,
    file: "linear.rs",
    beside: || vec![ScalarLine::choice("fmt", ScaleFmt::ALL), strided()],
    made: &[],
    scratch: "n * (k + 4 * ceil(k / 128))",
    work: "n * m * k",
    tolerance: tolerance::fp8_products,
    machine: linear::machine,
    launch: run,
    compute: reference,
    reference: ("linear_fp8", "reference/src/linear.rs"),
    forms,
    paths: Paths {
        all: |_| [all_of_product(), paths::words(ScaleFmt::ALL)].concat(),
        of: |case, device| {
            let rows = paths::shape(case, "x")[0];
            let mut runs = of_product(case, linear::machine(device), rows);
            runs.push(paths::chosen(case, "fmt", ScaleFmt::ALL));
            runs
        },
        first: "x",
    },
    production: || {
        let case = |n| {
            Case::new(KERNEL.name)
                .with("x", zeros(DType::Bf16, &[n, v32::HIDDEN]))
                .with("w", zeros(DType::E4m3, &[256, v32::HIDDEN]))
                .with("w_scale", zeros(DType::F32, &[2, v32::HIDDEN / BLOCK]))
                .set("out", DType::Bf16)
        };
        vec![case(128), case(1)]
    },
    sample: || {
        Case::new(KERNEL.name)
            .with("x", floats(1, &[3, 140]))
            .with("w", floats(2, &[131, 140]).cast(DType::E4m3))
            .with("w_scale", HostTensor::new(DType::F32, &[2, 2], &[1.0, 0.5, 2.0, 0.25]))
            .set("fmt", "ue8m0")
    },
    bench: &[
        Bench { stage: Stage::Prefill, room: None, spec: wq_b },
        Bench { stage: Stage::Prefill, room: None, spec: gate_proj },
        Bench { stage: Stage::Decode, room: None, spec: one_row },
    ],
};

const TILES: &[&str] = &["to 4 rows", "to 8 rows", "to 16 rows", "to 64 rows", "more rows"];

/// The paths of a product of x with weights.
pub(super) fn all_of_product() -> Vec<&'static str> {
    paths::joined(&[paths::FLOATS, paths::LOADS, TILES, &paths::words(OUTS)])
}

/// Those that a case with about `rows` rows for each weight runs.
pub(super) fn of_product(case: &Case, machine: Machine, rows: usize) -> Vec<&'static str> {
    let out = out_dtype(case).unwrap_or(DType::F32);
    let to = OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path);
    let tile = TILES[[4, 8, 16, 64].iter().filter(|most| rows > **most).count()];
    // Rows of x are as long as those of w, and what is quantised of them has no gaps.
    [paths::type_of(case, "x"), paths::loads(case, machine, &["w"]), tile]
        .into_iter()
        .chain(to)
        .collect()
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let fmt = choice(case, "fmt", ScaleFmt::ALL)?;
    let (x, w) = (case.upload_rows(device, "x")?, case.upload_rows(device, "w")?);
    let w_scale = case.upload(device, "w_scale")?;
    only("out", &linear::linear_fp8(&x, &w, &w_scale, fmt, out_dtype(case)?)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, w_scale): (Matrix, Matrix) = (case.array("x")?, case.array("w_scale")?);
    let w = case.array_u8("w")?;
    let fmt = choice(case, "fmt", reference::quant::ScaleFmt::ALL)?;
    let out = reference::linear::linear_fp8(x.view(), w.view(), w_scale.view(), fmt)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

/// Rows of activations: of one kind, of all magnitudes, or with infinities and NaN strewn in.
pub(super) fn activations(rng: &mut Rng, dtype: DType, shape: &[usize]) -> HostTensor {
    const FILLS: [Fill; 6] =
        [Fill::Normal, Fill::Tenth, Fill::Ties, Fill::Zeros, Fill::Outliers, Fill::Special];
    let fill = rng.choose(&FILLS);
    tensor(rng, dtype, shape, fill)
}

/// Codes `[.., k]` of weights: numbers of one kind, any bytes but NaN, pairs that cancel, or with NaN strewn in.
pub(super) fn codes(rng: &mut Rng, shape: &[usize]) -> HostTensor {
    let (kind, k) = (rng.below(5), shape.last().copied().unwrap_or(1).max(1));
    let mut bytes = Vec::with_capacity(shape.iter().product());
    for i in 0..shape.iter().product() {
        let byte = rng.below(256) as u8;
        let any = if byte & 0x7f == 0x7f { byte ^ 1 } else { byte };
        bytes.push(match kind {
            0 => any,
            // 448 and -28 by turns, and little beside them; not the same turns in all rows, of which a row of x that
            // makes them cancel would leave nothing. (448 and -448, which leave next to nothing of most rows, are held
            // against the bound of their terms in `edges_linear`.)
            1 => [0x7e, 0xde, any & 0x9f][(i % k + i / k) % 3],
            2 if rng.one_in(300) => byte | 0x7f,
            _ => DType::E4m3.encode(&[rng.normal() * 30.0])[0],
        });
    }
    HostTensor { dtype: DType::E4m3, shape: shape.to_vec(), bytes }
}

/// Scales of weights, of one size or of very different ones. Times that of any activation they are normal numbers,
/// and so are they times any product; for results of f16 they are near 1 and not far above it, so that a row's largest
/// is a normal f16.
pub(super) fn scales(rng: &mut Rng, shape: &[usize], out: DType) -> HostTensor {
    let kind = rng.below(4);
    let (least, most, usual) = if out == DType::F16 { (-8, 0, 0.1) } else { (-20, 20, 1e-3) };
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| match kind {
            0 => 1.0,
            1 => {
                2f32.powi(rng.below((most - least + 1) as usize) as i32 + least)
                    * (1.0 + rng.below(8) as f32 / 8.0)
            }
            2 if rng.one_in(9) => 0.0,
            _ => (0.1 + rng.normal().abs()) * usual,
        })
        .collect();
    HostTensor::new(DType::F32, shape, &values)
}

/// Makes one product of every element outweigh the others, where there are few: what is left of a row when they cancel
/// would be held against itself. The first block's scale becomes the largest of its row, where there are scales.
pub(super) fn outweigh(
    x: &mut HostTensor,
    w: &mut HostTensor,
    w_scale: Option<&mut HostTensor>,
    cols: usize,
) {
    if cols > FEW_COLUMNS {
        return;
    }
    for tensor in [x, w] {
        let mut values = tensor.to_f32();
        for row in values.chunks_mut(last_axis(tensor)) {
            let largest = row.iter().filter(|v| v.is_finite()).fold(1.0f32, |a, v| a.max(v.abs()));
            row[0] = largest * if row[0] < 0.0 { -1.0 } else { 1.0 };
        }
        *tensor = HostTensor::new(tensor.dtype, &tensor.shape.clone(), &values);
    }
    if let Some(tensor) = w_scale {
        let mut values = tensor.to_f32();
        for row in values.chunks_mut(last_axis(tensor)) {
            row[0] = row.iter().fold(row[0], |a, v| a.max(*v));
        }
        *tensor = HostTensor::new(tensor.dtype, &tensor.shape.clone(), &values);
    }
}

fn last_axis(tensor: &HostTensor) -> usize {
    tensor.shape[tensor.shape.len() - 1]
}

/// Activations for results of f16 that no outlier carries beyond f16: of a row whose sums are infinite but for those
/// that cancel, what is left would be held against itself.
pub(super) fn without_outliers(x: HostTensor, out: DType) -> HostTensor {
    if out != DType::F16 {
        return x;
    }
    let near = |v: &f32| if v.is_finite() { v.clamp(-8.0, 8.0) } else { *v };
    HostTensor::new(x.dtype, &x.shape, &x.to_f32().iter().map(near).collect::<Vec<_>>())
}

/// Rows: few, some, many.
pub(super) fn some_rows() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..5, 5usize..9, 9usize..17, 17usize..65, 65usize..300]
}

#[derive(Clone, Debug)]
struct Linear {
    n: usize,
    m: usize,
    k: usize,
    dtype: DType,
    fmt: &'static str,
    out: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |((n, m, k), dtype, fmt, out, strided)| Linear { n, m, k, dtype, fmt, out, strided };
    let k = || prop_oneof![1usize..400, (1usize..25).prop_map(|k| 16 * k)];
    let random = ((some_rows(), 1usize..300, k()), float(), word_of(ScaleFmt::ALL), float(), gap());
    let production = move |model: Model| {
        let sizes = (1usize..5, 1usize..140, Exactly(model.hidden()));
        (sizes, float(), word_of(ScaleFmt::ALL), float(), gap()).prop_map(form)
    };
    Forms::new(random.prop_map(form), production, |form: &Linear, rng| {
        let (n, m, k) = (form.n, form.m, form.k);
        let mut x = without_outliers(activations(rng, form.dtype, &[n, k]), form.out);
        let mut w = codes(rng, &[m, k]);
        let mut w_scale = scales(rng, &[m.div_ceil(BLOCK), k.div_ceil(BLOCK)], form.out);
        outweigh(&mut x, &mut w, Some(&mut w_scale), m);
        Case::new(KERNEL.name)
            .with("x", x)
            .with("w", w)
            .with("w_scale", w_scale)
            .set("fmt", form.fmt)
            .set("out", form.out)
            .set("strided", form.strided)
    })
}

/// Positive scales.
pub(super) fn scales_of(device: &Device, shape: &[usize]) -> dsa_kernels::Result<Tensor> {
    let mut rng = Rng::new(6);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| 0.01 + rng.normal().abs() / 100.0).collect();
    device.upload(&DType::F32.encode(&values), shape, DType::F32)
}

/// The latent's projection to index heads, 1536 x 8192 in V3.2, of fp8 weights.
/// The indexer's queries, of a chunk.
fn wq_b(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (k, m) = (24 * axes.index_heads, axes.index_heads * v32::INDEX_DIM);
    spec(device, (Stage::Prefill, "wq_b"), axes.dtype, [axes.s_q, m, k], seed)
}

/// A dense layer's 7168 to 18432, of a chunk.
fn gate_proj(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (k, m) = (56 * axes.heads, 144 * axes.heads);
    spec(device, (Stage::Prefill, "gate_proj"), axes.dtype, [axes.s_q, m, k], seed)
}

/// The same of one token.
fn one_row(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (k, m) = (56 * axes.heads, 144 * axes.heads);
    spec(device, (Stage::Decode, "gate_proj"), axes.dtype, [1, m, k], seed)
}

/// `[n, k]` times `[m, k]`, both as normal values.
fn spec(
    device: &Device,
    (stage, name): (Stage, &str),
    dtype: DType,
    [n, m, k]: [usize; 3],
    seed: u64,
) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    let x = random(device, dtype, &[n, k], seed)?;
    let w = random(device, DType::E4m3, &[m, k], seed + 1)?;
    let scale = scales_of(device, &[m.div_ceil(BLOCK), k.div_ceil(BLOCK)])?;
    let gate = Case::new(KERNEL.name)
        .with("x", tensor(rng, dtype, &[n.min(40), k], Fill::Normal))
        .with("w", tensor(rng, DType::E4m3, &[70, k], Fill::Normal))
        .with("w_scale", tensor(rng, DType::F32, &[1, k.div_ceil(BLOCK)], Fill::Tenth));
    let inputs = [x.clone(), w.clone(), scale.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage,
        case: name.to_string(),
        shape: sizes([("n", n), ("m", m), ("k", k)]),
        dtype: DType::E4m3.to_string(),
        flop: (2 * n * m * k) as u64,
        bytes: (m * k + n * (k + m) * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            Ok(one("out", linear::linear_fp8(&x, &w, &scale, ScaleFmt::Ue8m0, dtype)?))
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: m * k,
            cut: Box::new(move |at, out| {
                let [x, w, scale] = &inputs;
                let case = Case::new(KERNEL.name).with("x", at.rows(x)?).with("w", at.whole(w)?);
                let case = case.with("w_scale", at.whole(scale)?).set("out", dtype);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
