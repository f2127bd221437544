//! The gate of the experts.

use super::*;
use dsa_kernels::router::{self, ROUTER, RouterConfig};

pub(super) const KERNEL: Kernel = Kernel {
    name: ROUTER.name,
    contract: ROUTER,
    file: "router.rs",
    beside: || vec![strided()],
    made: &[],
    scratch: "0",
    work: "n * E * 16",
    tolerance,
    machine: router::machine,
    launch: run,
    compute: reference,
    reference: ("router", "reference/src/router.rs"),
    forms,
    paths: Paths { all: |_| paths::joined(&[NORMS, GROUPS]), of: runs, first: "logits" },
    production,
    sample,
    bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
};

const NORMS: &[&str] = &["normalised", "as they are"];
const GROUPS: &[&str] = &["groups", "one group"];

fn runs(case: &Case, _: &Device) -> Vec<&'static str> {
    let normalised = paths::word(case, "norm_topk_prob") != Some("false");
    let one_group = paths::word(case, "n_group") == Some("1");
    vec![
        paths::either(normalised, NORMS[0], NORMS[1]),
        paths::either(one_group, GROUPS[1], GROUPS[0]),
    ]
}

/// The choice is exact.
fn tolerance(unit: MatrixUnit, output: &str, dtype: DType) -> Tolerance {
    let kind = if output == "indices" { tolerance::exact } else { tolerance::rounded };
    kind(unit, output, dtype)
}

fn norm_topk_prob(case: &Case) -> Result<bool, CaseError> {
    choice(case, "norm_topk_prob", &[("true", true), ("false", false)])
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (logits, bias) = (case.upload_rows(device, "logits")?, case.upload(device, "bias")?);
    let config = RouterConfig {
        num_experts_per_tok: case.scalar("num_experts_per_tok")?,
        n_group: case.scalar("n_group")?,
        topk_group: case.scalar("topk_group")?,
        norm_topk_prob: norm_topk_prob(case)?,
        routed_scaling_factor: case.scalar("routed_scaling_factor")?,
    };
    let routing = router::router(&logits, &bias, &config)?;
    Ok(outputs([
        ("indices", HostTensor::download(&routing.indices)?),
        ("weights", HostTensor::download(&routing.weights)?),
    ]))
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (logits, bias): (Matrix, Vector) = (case.array("logits")?, case.array("bias")?);
    let config = reference::router::RouterConfig {
        num_experts_per_tok: case.scalar("num_experts_per_tok")?,
        n_group: case.scalar("n_group")?,
        topk_group: case.scalar("topk_group")?,
        norm_topk_prob: norm_topk_prob(case)?,
        routed_scaling_factor: case.scalar("routed_scaling_factor")?,
    };
    let routing = reference::router::router(logits.view(), bias.view(), &config)?;
    let indices: Vec<i32> = routing.indices.iter().copied().collect();
    Ok(outputs([
        ("indices", HostTensor::i32(routing.indices.shape(), &indices)),
        ("weights", HostTensor::of(&routing.weights)),
    ]))
}

#[derive(Clone, Debug)]
struct Router {
    n: usize,
    n_group: usize,
    group_size: usize,
    topk_group: usize,
    top_k: usize,
    normalised: bool,
    strided: &'static str,
}

fn forms() -> Forms {
    // Shares of what there is, so that a smaller form is one that there is, too.
    let form = |(n, (n_group, group_size), (groups, experts), normalised, strided)| {
        let share = |of: usize, nth: usize| 1 + nth % of;
        let topk_group = share(n_group, groups);
        let top_k = share(topk_group * group_size, experts);
        Router { n, n_group, group_size, topk_group, top_k, normalised, strided }
    };
    let sizes = prop_oneof![
        (Just(1usize), 2usize..80),
        (1usize..9, 2usize..20),
        Just((1, 512)),
        Just((256, 2)),
        Just((8, 64)),
    ];
    let shares = (0usize..9, prop_oneof![0usize..9, 0usize..512]);
    let random = (0usize..9, sizes, shares, any::<bool>(), gap()).prop_map(form);
    let production = move |model: Model| {
        let (groups, taken) = if model == Model::DeepSeekV32 { (8, 4) } else { (1, 1) };
        let sizes = Just((groups, v32::EXPERTS / groups));
        let shares = Just((taken - 1, v32::EXPERTS_PER_TOKEN - 1));
        (1usize..5, sizes, shares, Just(true), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Router, rng| {
        let experts = form.n_group * form.group_size;
        let logits: Vec<f32> = (0..form.n).flat_map(|_| row(rng, experts)).collect();
        Case::new(KERNEL.name)
            .with("logits", HostTensor::new(DType::F32, &[form.n, experts], &logits))
            .with("bias", HostTensor::new(DType::F32, &[experts], &bias(rng, experts)))
            .set("n_group", form.n_group)
            .set("topk_group", form.topk_group)
            .set("num_experts_per_tok", form.top_k)
            .set("norm_topk_prob", form.normalised)
            .set("routed_scaling_factor", rng.choose(&[1.0, 2.5]))
            .set("strided", form.strided)
    })
}

/// The logits of a token: ordinary; all equal, or of few values; with NaN and infinities; all NaN, or all −inf; so low
/// that every gate is 0.
fn row(rng: &mut Rng, experts: usize) -> Vec<f32> {
    let kind = rng.below(9);
    let strewn = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, -100.0];
    let mut one = || match kind {
        0 => 0.5,
        1 | 2 => rng.below(5) as f32 - 2.0,
        3 | 4 if rng.one_in(4) => rng.choose(&strewn),
        5 => rng.choose(&[f32::NAN, f32::NEG_INFINITY]),
        6 => -200.0 - rng.unit(),
        _ => rng.normal() * 2.0,
    };
    (0..experts).map(|_| one()).collect()
}

/// A bias: none, small, one that makes every score negative, one of few values, or with NaN and infinities.
fn bias(rng: &mut Rng, experts: usize) -> Vec<f32> {
    let kind = rng.below(6);
    let strewn = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let mut one = || match kind {
        0 => 0.0,
        1 | 2 => rng.normal() * 0.1 - 2.0,
        3 => rng.below(3) as f32 * 0.5 - 0.5,
        4 if rng.one_in(4) => rng.choose(&strewn),
        _ => rng.normal() * 0.1,
    };
    (0..experts).map(|_| one()).collect()
}

fn case(logits: HostTensor, bias: HostTensor, sizes: [usize; 3]) -> Case {
    Case::new(KERNEL.name)
        .with("logits", logits)
        .with("bias", bias)
        .set("n_group", sizes[0])
        .set("topk_group", sizes[1])
        .set("num_experts_per_tok", sizes[2])
        .set("routed_scaling_factor", 2.5)
}

fn production() -> Vec<Case> {
    let case = |sizes| {
        case(
            zeros(DType::F32, &[v32::FEW, v32::EXPERTS]),
            zeros(DType::F32, &[v32::EXPERTS]),
            sizes,
        )
    };
    vec![
        case([8, 4, v32::EXPERTS_PER_TOKEN]),
        case([1, 1, v32::EXPERTS_PER_TOKEN]).set("norm_topk_prob", false),
    ]
}

fn sample() -> Case {
    case(floats(1, &[3, 12]), floats(2, &[12]), [4, 2, 5]).set("norm_topk_prob", true)
}

fn spec(device: &Device, axes: &Axes, _: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (n, experts) = (axes.s_q, v32::EXPERTS);
    let logits = random(device, DType::F32, &[n, experts], seed)?;
    let bias = random(device, DType::F32, &[experts], seed + 1)?;
    let sizes_of = [8, 4, v32::EXPERTS_PER_TOKEN];
    let config = RouterConfig {
        num_experts_per_tok: sizes_of[2],
        n_group: sizes_of[0],
        topk_group: sizes_of[1],
        norm_topk_prob: true,
        routed_scaling_factor: 2.5,
    };
    let gate = case(floats(seed, &[3, experts]), floats(seed + 1, &[experts]), sizes_of);
    let inputs = [logits.clone(), bias.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Prefill,
        case: String::new(),
        shape: sizes([("n", n), ("experts", experts)]),
        dtype: DType::F32.to_string(),
        flop: (n * experts * (experts + 50)) as u64,
        bytes: (n * (4 * experts + 8 * v32::EXPERTS_PER_TOKEN)) as u64,
        gate,
        work: Box::new(move || {
            let routing = router::router(&logits, &bias, &config)?;
            Ok(vec![("indices", routing.indices), ("weights", routing.weights)])
        }),
        timed: Timed {
            rows: n,
            heads: 1,
            cost: 16 * experts,
            cut: Box::new(move |at, out| {
                let [logits, bias] = &inputs;
                let case = case(at.rows(logits)?, at.whole(bias)?, sizes_of);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
