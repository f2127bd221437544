//! Dense attention of expanded heads.

use super::attention::{FILLS, download, named, of_reference, room_of_outputs};
use super::*;
use crate::generate::extreme;
use dsa_kernels::dense_attention::{self, dense_mha};
use dsa_kernels::seen::KeyRange;

pub(super) const KERNEL: Kernel = Kernel {
    name: dense_attention::DENSE_MHA.name,
    contract: dense_attention::DENSE_MHA,
    file: "dense_attention.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "s * h * s_kv * (d_qk + d_v)",
    tolerance: tolerance::attention,
    machine: |d| dense_attention::machine(d, DType::Bf16),
    launch: run,
    compute: reference,
    reference: ("dense_mha", "reference/src/dense_attention.rs"),
    forms,
    paths: Paths {
        all: |device| {
            let tiles = if paths::is_plain(device) { TILES } else { &[] };
            paths::joined(&[paths::FLOATS, paths::LOADS, tiles])
        },
        of: runs,
        first: "q",
    },
    production: || {
        let (d_qk, d_v) = v32::EXPANDED;
        let rows = |width| zeros(DType::Bf16, &[64, v32::HEADS, width]);
        let case = case([rows(d_qk), rows(d_qk), rows(d_v)], [ints(&[64]), ints(&[64])]);
        vec![case.set("softmax_scale", v32::SOFTMAX_SCALE)]
    },
    sample: || {
        let rows = [floats(1, &[2, 4, 24]), floats(2, &[9, 4, 24]), floats(3, &[9, 4, 16])];
        case(rows, [vector(&[0, 0]), vector(&[8, 9])]).set("softmax_scale", 0.2)
    },
    bench: &[Bench { stage: Stage::Prefill, room: Some(room), spec }],
};

const TILES: &[&str] = &["4 queries", "8 queries", "16 queries", "32 queries", "64 queries"];

fn runs(case: &Case, device: &Device) -> Vec<&'static str> {
    let dtype = paths::dtype(case, "q");
    let machine = dense_attention::machine(device, dtype);
    let mut runs = vec![dtype.name(), paths::loads(case, machine, &["q", "k", "v"])];
    let queries = paths::shape(case, "q")[0].next_power_of_two().clamp(4, 64);
    if paths::is_plain(device) {
        runs.push(TILES[queries.ilog2() as usize - 2]);
    }
    runs
}

fn case([q, k, v]: [HostTensor; 3], [ks, ke]: [HostTensor; 2]) -> Case {
    let case = Case::new(KERNEL.name).with("q", q).with("k", k).with("v", v);
    case.with("ks", ks).with("ke", ke)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (q, k) = (case.upload_rows(device, "q")?, case.upload_rows(device, "k")?);
    let v = case.upload_rows(device, "v")?;
    let (ks, ke) = (case.upload(device, "ks")?, case.upload(device, "ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = dense_mha(&q, &k, &v, &KeyRange { ks: &ks, ke: &ke }, scale)?;
    download(&a)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (q, k): (Cuboid, Cuboid) = (case.array("q")?, case.array("k")?);
    let v: Cuboid = case.array("v")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let scale = case.scalar("softmax_scale")?;
    let a = reference::dense_attention::dense_mha(q.view(), k.view(), v.view(), &ks, &ke, scale)?;
    of_reference(case, a)
}

#[derive(Clone, Debug)]
struct Mha {
    s: usize,
    s_kv: usize,
    heads: usize,
    d_qk: usize,
    d_v: usize,
    dtype: DType,
    strided: &'static str,
}

fn forms() -> Forms {
    let form = |((s, s_kv), heads, d_qk, d_v, dtype, strided)| Mha {
        s,
        s_kv,
        heads,
        d_qk,
        d_v,
        dtype,
        strided,
    };
    let sizes = (0usize..40, 0usize..100);
    let random = (sizes, 1usize..6, 1usize..70, 1usize..70, float(), gap()).prop_map(form);
    let production = move |model: Model| {
        let (d_qk, d_v) = model.expanded();
        let sizes = (1usize..5, 1usize..60);
        (sizes, Exactly(model.heads()), Exactly(d_qk), Exactly(d_v), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Mha, rng| {
        let (s, s_kv, heads, d_qk) = (form.s, form.s_kv, form.heads, form.d_qk);
        let fill = rng.choose(&FILLS);
        let (ks, ke) = ranges(rng, s, s_kv);
        let mut q = tensor(rng, form.dtype, &[s, heads, d_qk], fill);
        let mut k = tensor(rng, form.dtype, &[s_kv, heads, d_qk], fill);
        let mut v = tensor(rng, form.dtype, &[s_kv, heads, form.d_v], fill);
        if rng.one_in(4) {
            // An infinite value times a probability too small for f32 is 0 or inf by the order of keys: where
            // values are infinite, scores are not far apart.
            let scaled = rng.one_in(2);
            let values = extreme::Rows { scaled, special: !scaled };
            q = extreme::queries(rng, form.dtype, &[s, heads, d_qk], 1.0);
            let keys = extreme::Rows { scaled, special: true };
            k = extreme::keys(rng, form.dtype, &[s_kv, heads, d_qk], keys);
            v = extreme::keys(rng, form.dtype, &[s_kv, heads, form.d_v], values);
        }
        if form.d_v < FEW_COLUMNS {
            make_positive(&mut v, form.d_v);
        }
        Case::new(KERNEL.name)
            .with("q", q)
            .with("k", k)
            .with("v", v)
            .with("ks", ks)
            .with("ke", ke)
            .set("softmax_scale", 1.0 / (d_qk as f32).sqrt())
            .set("strided", form.strided)
    })
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let (d_qk, d_v) = v32::EXPANDED;
    let (s, heads, size) = (axes.s_q.min(context), axes.heads, axes.dtype.size());
    let kv = bytes_of(&[context, heads, d_qk + d_v, size]);
    (bytes_of(&[s, heads, d_qk, size]) + kv, room_of_outputs(axes, s, d_v))
}

/// A chunk at the end of its context.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (s, heads, dtype) = (axes.s_q.min(context), axes.heads, axes.dtype);
    let q = random(device, dtype, &[s, heads, v32::EXPANDED.0], seed)?;
    let k = random(device, dtype, &[context, heads, v32::EXPANDED.0], seed + 1)?;
    let v = random(device, dtype, &[context, heads, v32::EXPANDED.1], seed + 2)?;
    let ends: Vec<i32> = (0..s).map(|t| (context - s + t + 1) as i32).collect();
    let (ks, ke) = (vec_i32(device, &vec![0; s])?, vec_i32(device, &ends)?);
    let pairs: usize = ends.iter().map(|end| *end as usize).sum();
    let mut rng = Rng::new(seed);
    let gate = Case::new(KERNEL.name)
        .with("q", tensor(&mut rng, dtype, &[s.min(20), 2, v32::EXPANDED.0], Fill::Normal))
        .with("k", tensor(&mut rng, dtype, &[90, 2, v32::EXPANDED.0], Fill::Normal))
        .with("v", tensor(&mut rng, dtype, &[90, 2, v32::EXPANDED.1], Fill::Normal))
        .with("ks", HostTensor::i32(&[s.min(20)], &vec![0; s.min(20)]))
        .with("ke", HostTensor::i32(&[s.min(20)], &vec![77; s.min(20)]))
        .set("softmax_scale", v32::SOFTMAX_SCALE);
    let inputs = [&q, &k, &v, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: "causal".to_string(),
        shape: sizes([("s_q", s), ("context", context), ("heads", heads)]),
        dtype: dtype.to_string(),
        flop: (2 * pairs * heads * (v32::EXPANDED.0 + v32::EXPANDED.1)) as u64,
        bytes: ((s + context) * heads * (v32::EXPANDED.0 + v32::EXPANDED.1) * dtype.size()) as u64,
        gate,
        work: Box::new(move || {
            let seen = KeyRange { ks: &ks, ke: &ke };
            Ok(named(dense_mha(&q, &k, &v, &seen, v32::SOFTMAX_SCALE)?))
        }),
        timed: Timed {
            rows: s,
            heads,
            cost: context * (v32::EXPANDED.0 + v32::EXPANDED.1),
            cut: Box::new(move |at, out| {
                let [q, k, v, ks, ke] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("q", at.rows_and_heads(q)?)
                    .with("k", at.heads(k)?)
                    .with("v", at.heads(v)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("softmax_scale", v32::SOFTMAX_SCALE);
                Ok((case, at.outputs_of_heads(out)?))
            }),
        },
    })
}
