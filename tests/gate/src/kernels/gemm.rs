//! The product of a linear layer, and of every head.

use super::*;
use dsa_kernels::gemm;

pub(super) const KERNEL: Kernel = Kernel {
    name: gemm::GEMM.name,
    contract: gemm::GEMM,
    file: "gemm.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "b * m * n * k",
    tolerance: tolerance::rounded,
    machine: |d| gemm::machine(d, DType::Bf16),
    launch: run,
    compute: reference,
    reference: ("linear", "reference/src/linear.rs"),
    forms,
    paths: Paths {
        all: |_| paths::joined(&[paths::FLOATS, paths::LOADS, TILES, &paths::words(OUTS)]),
        of: runs,
        first: "x",
    },
    production,
    sample: || {
        let (x, w) = (floats(1, &[2, 3, 16]), floats(2, &[2, 5, 16]));
        Case::new(KERNEL.name).with("x", x).with("w", w)
    },
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

/// The types of the output, by what the path to them is called: f32, or what a linear layer of that type rounds to.
pub(super) const OUTS: &[(&str, DType)] =
    &[("to f32", DType::F32), ("to bf16", DType::Bf16), ("to f16", DType::F16)];
const TILES: &[&str] = &["to 4 rows", "to 8 rows", "to 64 rows", "to 128 columns", "more columns"];

fn runs(case: &Case, device: &Device) -> Vec<&'static str> {
    let dtype = paths::dtype(case, "x");
    let (m, n) = (paths::shape(case, "x")[1], paths::shape(case, "w")[1]);
    let out = out_dtype(case).unwrap_or(DType::F32);
    let to = OUTS.iter().filter(|(_, dtype)| *dtype == out).map(|(path, _)| *path);
    let tile = match m {
        0..=4 => TILES[0],
        5..=8 => TILES[1],
        9..=64 => TILES[2],
        _ => paths::either(n <= 128, TILES[3], TILES[4]),
    };
    let loads = paths::loads(case, gemm::machine(device, dtype), &["x", "w"]);
    [dtype.name(), loads, tile].into_iter().chain(to).collect()
}

/// The type of the output, f32 if the case names none.
pub(super) fn out_dtype(case: &Case) -> Result<DType, CaseError> {
    choice(case, "out", &DType::FLOATS.map(|dtype| (dtype.name(), dtype)))
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, w) = (case.upload_rows(device, "x")?, case.upload_rows(device, "w")?);
    let out = gemm::gemm(&x, &w, out_dtype(case)?)?;
    only("out", &out)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (x, w): (Cuboid, Cuboid) = (case.array("x")?, case.array("w")?);
    let mut out = Cuboid::zeros((x.dim().0, x.dim().1, w.dim().1));
    for b in 0..x.dim().0 {
        let product = reference::linear::linear(x.index_axis(Axis(0), b), w.index_axis(Axis(0), b));
        out.index_axis_mut(Axis(0), b).assign(&product);
    }
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
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

fn forms() -> Forms {
    let form = |((b, m, n, k), dtype, out, strided)| Gemm { b, m, n, k, dtype, out, strided };
    // Low tiles, high ones, and wide ones.
    let m = prop_oneof![0usize..40, 65usize..80];
    let random = ((1usize..4, m, 1usize..140, 1usize..200), float(), float(), gap()).prop_map(form);
    // A projection, and the absorbed product of some heads.
    let production = move |model: Model| {
        let projection = (Just(1usize), 1usize..5, 1usize..70, Exactly(model.hidden()));
        let (nope, _) = model.expanded();
        let absorbed =
            (1usize..9, 1usize..5, Exactly(v32::KV_LORA_RANK), Exactly(nope - v32::ROPE_DIM));
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
            x = crate::generate::extreme::rows_within(rng, form.dtype, &[b, m, k], 40);
            w = crate::generate::extreme::rows_within(rng, form.dtype, &[b, n, k], 40);
        }
        Case::new(KERNEL.name)
            .with("x", x)
            .with("w", w)
            .set("out", form.out)
            .set("strided", form.strided)
    })
}

/// A projection in prefill and in decode, and the absorbed product of every head.
fn production() -> Vec<Case> {
    [(1, 128, v32::HIDDEN, 256), (1, 1, v32::HIDDEN, 256), (8, v32::FEW, 128, v32::KV_LORA_RANK)]
        .map(|(b, m, k, n)| {
            let (x, w) = (zeros(DType::Bf16, &[b, m, k]), zeros(DType::Bf16, &[b, n, k]));
            Case::new(KERNEL.name).with("x", x).with("w", w)
        })
        .into()
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let rng = &mut Rng::new(seed);
    // The latent's projection to index heads: 1536 x 8192 in V3.2.
    let (m, k, n) = (axes.s_q, 24 * axes.index_heads, axes.index_heads * v32::INDEX_DIM);
    let dtype = axes.dtype;
    let x = random(device, dtype, &[1, m, k], seed)?;
    let w = random(device, dtype, &[1, n, k], seed + 1)?;
    let gate = Case::new(KERNEL.name)
        .with("x", tensor(rng, dtype, &[1, m.min(40), k], Fill::Normal))
        .with("w", tensor(rng, dtype, &[1, 70, k], Fill::Tenth));
    let inputs = [x.clone(), w.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: "wq_b".to_string(),
        shape: sizes([("m", m), ("n", n), ("k", k)]),
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
                let rows = |tensor: &Tensor, cols| -> Result<HostTensor, CaseError> {
                    let some = at.rows(&tensor.reshape(&[m, cols])?)?;
                    Ok(HostTensor { shape: vec![1, at.rows.len(), cols], ..some })
                };
                let case = Case::new(KERNEL.name).with("x", rows(x, k)?).with("w", at.whole(w)?);
                let got = out.iter().map(|(name, out)| Ok((*name, rows(out, n)?)));
                Ok((case, got.collect::<Result<_, CaseError>>()?))
            }),
        },
    })
}
