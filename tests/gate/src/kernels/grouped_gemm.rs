//! The products of experts, of plain weights.

use super::gemm::out_dtype;
use super::linear_fp8::{
    activations, all_of_product, codes, of_product, outweigh, scales, scales_of, some_rows,
    without_outliers,
};
use super::*;
use dsa_kernels::dispatch::Dispatch;
use dsa_kernels::grouped_gemm::{self, GROUPED_GEMM, Rows, grouped_gemm};
use dsa_kernels::quant::{BLOCK, ScaleFmt};
use dsa_kernels::weight::Weight;

pub(super) const KERNEL: Kernel = Kernel {
    name: GROUPED_GEMM.name,
    contract: GROUPED_GEMM,
    file: "grouped_gemm.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * num_experts_per_tok * m * k",
    tolerance: tolerance::rounded,
    machine: |device| grouped_gemm::machine(device, DType::Bf16),
    launch: |device, case| {
        let weight = Weight::Plain(case.upload_rows(device, "w")?);
        run(device, case, &weight, ScaleFmt::Plain)
    },
    compute: reference,
    reference: ("grouped_gemm", "reference/src/grouped_gemm.rs"),
    forms: || forms(KERNEL.name, false),
    paths: Paths {
        all: |_| [all_of_product(), paths::words(ROWS)].concat(),
        of: runs,
        first: "order",
    },
    production: || production(KERNEL.name, DType::Bf16),
    sample: || sample(KERNEL.name, DType::F32, [5, 16]),
    bench: &[Bench {
        stage: Stage::Prefill,
        room: None,
        spec: |device, axes, _, seed| of_experts(device, axes, (KERNEL.name, false), seed),
    }],
};

/// Whether the rows of x are those of tokens; otherwise they are in the order of the pairs.
pub(super) const ROWS: &[(&str, bool)] = &[("tokens", true), ("pairs", false)];

pub(super) fn runs(case: &Case, device: &Device) -> Vec<&'static str> {
    let experts = paths::shape(case, "w")[0];
    let rows = paths::shape(case, "order")[0].div_ceil(experts);
    let machine = grouped_gemm::machine(device, paths::dtype(case, "w"));
    let mut runs = of_product(case, machine, rows);
    runs.push(paths::chosen(case, "rows", ROWS));
    runs
}

/// Experts of a token; none where x is in the order of the pairs.
fn top_k(case: &Case) -> Result<Option<usize>, CaseError> {
    if choice(case, "rows", ROWS)? {
        case.scalar("num_experts_per_tok").map(Some)
    } else {
        Ok(None)
    }
}

/// The run with the case's weights on the device.
pub(super) fn run(
    device: &Device,
    case: &Case,
    weight: &Weight,
    fmt: ScaleFmt,
) -> Result<Outputs, CaseError> {
    let rows = top_k(case)?.map_or(Rows::Pairs, |top_k| Rows::Tokens { top_k });
    let x = case.upload_rows(device, "x")?;
    let (order, ends) = (case.upload(device, "order")?, case.upload(device, "ends")?);
    let dispatch = Dispatch { order, ends };
    only("out", &grouped_gemm(&x, weight, &dispatch, rows, fmt, out_dtype(case)?)?)
}

/// The reference, of weights of both kinds.
pub(super) fn reference(case: &Case) -> Result<Outputs, CaseError> {
    use reference::grouped_gemm::{Rows, grouped_gemm};
    use reference::weight::Weight;
    let x: Matrix = case.array("x")?;
    let w = case.tensor("w")?;
    let (m, k) = (w.shape[1], w.shape[2]);
    let of_expert = |numbers: &[f32]| Matrix::from_shape_fn((m, k), |(i, j)| numbers[i * k + j]);
    let (w, fmt): (Vec<Weight>, _) = if w.dtype == DType::E4m3 {
        let scale: Cuboid = case.array("w_scale")?;
        let codes = w.bytes.chunks((m * k).max(1)).zip(scale.outer_iter());
        let weight = |(codes, scale): (&[u8], ndarray::ArrayView2<f32>)| Weight::Fp8 {
            codes: ndarray::Array2::from_shape_fn((m, k), |(i, j)| codes[i * k + j]),
            scale: scale.to_owned(),
        };
        (codes.map(weight).collect(), choice(case, "fmt", reference::quant::ScaleFmt::ALL)?)
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
    out: DType,
    strided: &'static str,
}

pub(super) fn forms(kernel: &'static str, scaled: bool) -> Forms {
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
    let random = (sizes, top_k(), float(), word_of(ScaleFmt::ALL), float(), gap());
    let production = move |model: Model| {
        let sizes = (1usize..5, 1usize..9, 1usize..20, Exactly(model.hidden()));
        (sizes, top_k(), float(), word_of(ScaleFmt::ALL), float(), gap()).prop_map(form)
    };
    Forms::new(random.prop_map(form), production, move |form: &Grouped, rng| {
        let (n, experts, m, k) = (form.n, form.experts, form.m, form.k);
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
        let mut w_scale =
            scaled.then(|| scales(rng, &[experts, m.div_ceil(BLOCK), k.div_ceil(BLOCK)], form.out));
        if scaled {
            x = without_outliers(x, form.out);
        }
        outweigh(&mut x, &mut w, w_scale.as_mut(), m);
        let case = Case::new(kernel)
            .with("x", x)
            .with("w", w)
            .with("order", order)
            .with("ends", ends)
            .set("out", form.out)
            .set("strided", form.strided);
        let case = match form.top_k {
            Some(top_k) => case.set("rows", "tokens").set("num_experts_per_tok", top_k),
            None => case.set("rows", "pairs"),
        };
        match w_scale {
            Some(w_scale) => case.with("w_scale", w_scale).set("fmt", form.fmt),
            None => case,
        }
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
    (vector(&order), vector(&ends))
}

/// Prefill and decode of one expert, whose code is that of all.
pub(super) fn production(kernel: &str, stored: DType) -> Vec<Case> {
    [(128, "tokens"), (1, "tokens"), (128, "pairs")]
        .map(|(n, rows)| {
            let case = Case::new(kernel)
                .with("x", zeros(DType::Bf16, &[n, v32::HIDDEN]))
                .with("w", zeros(stored, &[1, 256, v32::HIDDEN]))
                .with("order", ints(&[n]))
                .with("ends", ints(&[1]))
                .set("rows", rows)
                .set("out", DType::Bf16);
            if rows == "tokens" { case.set("num_experts_per_tok", 1) } else { case }
        })
        .into()
}

/// Six pairs of four experts, of which the second has none, with weights `[m, k]`.
pub(super) fn sample(kernel: &str, stored: DType, [m, k]: [usize; 2]) -> Case {
    Case::new(kernel)
        .with("x", floats(1, &[6, k]))
        .with("w", floats(2, &[4, m, k]).cast(stored))
        .with("order", vector(&[0, 3, 1, 4, 2, 5]))
        .with("ends", vector(&[2, 2, 4, 6]))
        .set("rows", "pairs")
}

/// Experts that are timed, and those of a token.
const BENCH_EXPERTS: usize = 16;
/// See [`BENCH_EXPERTS`].
const BENCH_TOP_K: usize = 2;

/// Tokens with the weights of two of sixteen experts each, of fp8 or of the type of the tokens.
pub(super) fn of_experts(
    device: &Device,
    axes: &Axes,
    (kernel, fp8): (&'static str, bool),
    seed: u64,
) -> dsa_kernels::Result<Spec> {
    let (n, k, m) = (axes.s_q, 24 * axes.index_heads, 32 * axes.index_heads);
    let (dtype, rng) = (axes.dtype, &mut Rng::new(seed));
    let stored = if fp8 { DType::E4m3 } else { dtype };
    let x = random(device, dtype, &[n, k], seed)?;
    let w = random(device, stored, &[BENCH_EXPERTS, m, k], seed + 1)?;
    let blocks = [m.div_ceil(BLOCK), k.div_ceil(BLOCK)];
    let scale = scales_of(device, &[BENCH_EXPERTS, blocks[0], blocks[1]])?;
    // Two of the experts have no token.
    let mut pairs: Vec<(usize, i32)> =
        (0..n * BENCH_TOP_K).map(|pair| (rng.below(BENCH_EXPERTS - 2), pair as i32)).collect();
    pairs.sort_unstable();
    let order: Vec<i32> = pairs.iter().map(|(_, pair)| *pair).collect();
    let ends: Vec<i32> =
        (0..BENCH_EXPERTS).map(|e| pairs.partition_point(|pair| pair.0 <= e) as i32).collect();
    let dispatch = Dispatch { order: vec_i32(device, &order)?, ends: vec_i32(device, &ends)? };
    let gate = Case::new(kernel)
        .with("x", tensor(rng, dtype, &[4, k], Fill::Normal))
        .with("w", tensor(rng, stored, &[2, 70, k], Fill::Normal))
        .with("order", vector(&[3, 0, 2, 1]))
        .with("ends", vector(&[1, 4]))
        .set("rows", "tokens")
        .set("num_experts_per_tok", 1);
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
        shape: sizes([
            ("n", n),
            ("num_experts_per_tok", BENCH_TOP_K),
            ("experts", BENCH_EXPERTS),
            ("m", m),
            ("k", k),
        ]),
        dtype: stored.to_string(),
        flop: (2 * n * BENCH_TOP_K * m * k) as u64,
        bytes: (BENCH_EXPERTS * m * k * stored.size() + n * (k + BENCH_TOP_K * m) * dtype.size())
            as u64,
        gate,
        work: Box::new(move || {
            let rows = Rows::Tokens { top_k: BENCH_TOP_K };
            let out = grouped_gemm(&x, &weight, &dispatch, rows, ScaleFmt::Ue8m0, dtype)?;
            Ok(one("out", out))
        }),
        timed: Timed {
            rows: n * BENCH_TOP_K,
            heads: 1,
            cost: BENCH_EXPERTS * m * k,
            cut: Box::new(move |at, out| {
                let [x, w, scale] = &inputs;
                // The rows of the drawn places, each its own pair.
                let tokens = at.rows.iter().map(|i| order[*i] as usize / BENCH_TOP_K).collect();
                let x =
                    Drawn { device: at.device, rows: tokens, heads: at.heads.clone() }.rows(x)?;
                let before = |end: &i32| at.rows.partition_point(|i| *i < *end as usize) as i32;
                let case = Case::new(kernel)
                    .with("x", x)
                    .with("w", at.whole(w)?)
                    .with("order", vector(&vec![0; at.rows.len()]))
                    .with("ends", vector(&ends.iter().map(before).collect::<Vec<_>>()))
                    .set("rows", "pairs")
                    .set("out", dtype);
                let case = if fp8 { case.with("w_scale", at.whole(scale)?) } else { case };
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
