//! The selection of the best keys.

use super::*;
use dsa_kernels::seen::KeyRange;
use dsa_kernels::top_k::{self, Policy};
use dsa_reference::top_k as expected;

pub(super) const KERNEL: Kernel = Kernel {
    name: top_k::TOP_K.name,
    contract: top_k::TOP_K,
    file: "top_k.rs",
    beside,
    made: &[],
    scratch: "8 * rows * pieces * length",
    work: "rows * (length + topk)",
    tolerance: tolerance::exact,
    machine: top_k::machine,
    launch: run,
    compute: reference,
    reference: ("top_k", "reference/src/top_k.rs"),
    forms,
    paths: Paths {
        all: |_| {
            let sifted: &[&str] = &["sifted", "not sifted"];
            paths::joined(&[&paths::words(Policy::ALL), paths::LOADS, sifted])
        },
        of: runs,
        first: "logits",
    },
    production,
    sample: || {
        let logits = (0..120).map(|i| (i / 40 + 1) as f32).collect::<Vec<_>>();
        case(HostTensor::new(DType::F32, &[3, 40], &logits), [vector(&[0; 3]), vector(&[40; 3])], 8)
            .set("policy", "fixed")
    },
    bench: &[
        Bench {
            stage: Stage::Prefill,
            room: Some(|axes, context| room(axes, context, axes.s_q)),
            spec: |device, axes, context, seed| {
                spec(device, axes, context, Stage::Prefill, axes.s_q, seed)
            },
        },
        Bench {
            stage: Stage::Decode,
            room: Some(|axes, context| room(axes, context, axes.batch)),
            spec: |device, axes, context, seed| {
                spec(device, axes, context, Stage::Decode, axes.batch, seed)
            },
        },
    ],
};

fn case(logits: HostTensor, [ks, ke]: [HostTensor; 2], topk: usize) -> Case {
    let case = Case::new(KERNEL.name).with("logits", logits);
    case.with("ks", ks).with("ke", ke).set("topk", topk)
}

/// The policy's word, the numbers that are read only with it, and gaps.
fn beside() -> Vec<ScalarLine> {
    let mut lines = vec![ScalarLine::choice("policy", Policy::ALL)];
    for (word, numbers) in Policy::ALL {
        let numbers = numbers.iter().filter_map(|line| ScalarLine::parse(line));
        let with = |line| ScalarLine { condition: Some(("policy", *word)), ..line };
        lines.extend(numbers.map(with));
    }
    lines.push(strided());
    lines
}

/// The word of the case's policy, and its numbers.
fn policy(case: &Case) -> Result<(&'static str, Vec<u32>), CaseError> {
    let numbers = choice(case, "policy", Policy::ALL)?;
    let names = numbers.iter().filter_map(|line| line.split(':').next());
    let numbers = names.map(|name| case.scalar(name)).collect::<Result<_, _>>()?;
    Ok((paths::chosen(case, "policy", Policy::ALL), numbers))
}

/// What a side that does not know the policy's word says.
fn unknown(case: &Case, word: &str) -> CaseError {
    let (name, got) = ("policy".to_string(), Some(word.to_string()));
    let expected = "a policy that kernel and reference have".to_string();
    CaseError::Scalar { kernel: case.kernel.clone(), name, got, expected }
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (word, numbers) = policy(case)?;
    let policy = Policy::named(word, &numbers).ok_or_else(|| unknown(case, word))?;
    let logits = case.upload_rows(device, "logits")?;
    let seen = KeyRange { ks: &case.upload(device, "ks")?, ke: &case.upload(device, "ke")? };
    let pieces = case.scalars.contains_key("pieces").then(|| case.scalar("pieces")).transpose()?;
    let topk = case.scalar("topk")?;
    only("indices", &top_k::top_k_in_pieces(&logits, &seen, topk, policy, pieces)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let (word, numbers) = policy(case)?;
    let policy = expected::Policy::named(word, &numbers).ok_or_else(|| unknown(case, word))?;
    let logits: Matrix = case.array("logits")?;
    let (ks, ke) = (case.vec_i32("ks")?, case.vec_i32("ke")?);
    let indices = expected::top_k(logits.view(), &ks, &ke, case.scalar("topk")?, policy);
    let values: Vec<i32> = indices.iter().copied().collect();
    Ok(outputs([("indices", HostTensor::i32(indices.shape(), &values))]))
}

fn runs(case: &Case, _: &Device) -> Vec<&'static str> {
    let shape = paths::shape(case, "logits");
    let whole = (shape[0] * (shape[1] + paths::gap(case, DType::F32))).is_multiple_of(4);
    let pieces = paths::word(case, "pieces").map_or(shape[1] > 16_384, |pieces| pieces != "0");
    vec![
        paths::either(whole, "vectors", "elements"),
        paths::either(pieces, "sifted", "not sifted"),
        paths::chosen(case, "policy", Policy::ALL),
    ]
}

/// A policy's word and its numbers, which are compiled in: small, middling, and of a thousand.
fn policies() -> impl Strategy<Value = (&'static str, Vec<usize>)> {
    let number = || prop_oneof![0usize..20, 0usize..300, 0usize..=1000];
    // The first of them half of the time.
    (0..2 * Policy::ALL.len() - 2, number(), number()).prop_map(|(nth, a, b)| {
        let (word, numbers) = Policy::ALL[nth.saturating_sub(Policy::ALL.len() - 2)];
        let drawn = [a, b].into_iter().cycle();
        (word, numbers.iter().zip(drawn).map(|(_, number)| number).collect())
    })
}

#[derive(Clone, Debug)]
struct TopK {
    rows: usize,
    length: usize,
    topk: usize,
    policy: (&'static str, Vec<usize>),
    /// As the launcher chooses if there is none; short rows are only sifted if they are told to be.
    pieces: Option<usize>,
    strided: &'static str,
}

fn forms() -> Forms {
    let pieces = prop_oneof![Just(None), (0usize..5).prop_map(Some)];
    let random = (1usize..4, 0usize..3000, 1usize..2500, policies(), pieces, gap()).prop_map(
        |(rows, length, topk, policy, pieces, strided)| TopK {
            rows,
            length,
            topk,
            policy,
            pieces,
            strided,
        },
    );
    // Rows that are read as they are, and rows that are sifted first.
    let length = || prop_oneof![v32::TOPK..9000usize, 16_385..20_000usize];
    let production = move |_: Model| {
        (1usize..3, length(), Exactly(v32::TOPK), policies(), gap()).prop_map(
            |(rows, length, topk, policy, strided)| TopK {
                rows,
                length,
                topk,
                policy,
                pieces: None,
                strided,
            },
        )
    };
    Forms::new(random, production, |form: &TopK, rng| {
        const FILLS: [Fill; 7] = [
            Fill::Normal,
            Fill::Ties,
            Fill::Zeros,
            Fill::Wide,
            Fill::Special,
            Fill::Tenth,
            Fill::Extreme,
        ];
        let (rows, length) = (form.rows, form.length);
        let (ks, ke) = ranges(rng, rows, length);
        let fill = rng.choose(&FILLS);
        let mut logits = tensor(rng, DType::F32, &[rows, length], fill).to_f32();
        match rng.below(6) {
            // One value everywhere: the order of indices alone decides.
            0 => logits.fill(1.5),
            // "10 LSB": the upper 22 bits are the same, only the last ones differ.
            1 => {
                for v in logits.iter_mut() {
                    *v = f32::from_bits(0x3f80_0000 | rng.below(1024) as u32);
                }
            }
            _ => {}
        }
        let logits = HostTensor::new(DType::F32, &[rows, length], &logits);
        let case = case(logits, [ks, ke], form.topk).set("strided", form.strided);
        let case = match form.pieces {
            Some(pieces) => case.set("pieces", pieces),
            None => case,
        };
        let (word, numbers) = &form.policy;
        let lines = Policy::ALL.iter().filter(|(known, _)| known == word).flat_map(|(_, l)| *l);
        let names = lines.filter_map(|line| line.split(':').next());
        let case = case.set("policy", word);
        names.zip(numbers).fold(case, |case, (name, number)| case.set(name, number))
    })
}

/// Many short rows, and one long one.
fn production() -> Vec<Case> {
    [(v32::FEW, 8192), (1, 131_072)]
        .map(|(rows, length)| {
            let logits = zeros(DType::F32, &[rows, length]);
            case(logits, [ints(&[rows]), ints(&[rows])], v32::TOPK)
        })
        .into()
}

fn room(axes: &Axes, context: usize, rows: usize) -> (u128, u128) {
    (bytes_of(&[4, rows, context]), bytes_of(&[4, rows, axes.topk]))
}

/// The selection of `rows` tokens.
fn spec(
    device: &Device,
    axes: &Axes,
    context: usize,
    stage: Stage,
    rows: usize,
    seed: u64,
) -> dsa_kernels::Result<Spec> {
    let topk = axes.topk;
    let logits = random(device, DType::F32, &[rows, context], seed)?;
    let (ks, ke) =
        (vec_i32(device, &vec![0; rows])?, vec_i32(device, &vec![context as i32; rows])?);
    let mut rng = Rng::new(seed);
    let length = 2 * topk + 77;
    let gate = Case::new(KERNEL.name)
        .with("logits", tensor(&mut rng, DType::F32, &[2, length], Fill::Zeros))
        .with("ks", HostTensor::i32(&[2], &[0, 5]))
        .with("ke", HostTensor::i32(&[2], &[length as i32, 70]))
        .set("topk", topk);
    let inputs = [&logits, &ks, &ke].map(Tensor::clone);
    Ok(Spec {
        kernel: KERNEL.name,
        stage,
        case: String::new(),
        shape: sizes([("rows", rows), ("context", context), ("topk", topk)]),
        dtype: DType::F32.to_string(),
        flop: 0,
        bytes: (4 * rows * (context + topk)) as u64,
        gate,
        work: Box::new(move || {
            Ok(one(
                "indices",
                top_k::top_k(&logits, &KeyRange { ks: &ks, ke: &ke }, topk, Policy::Fixed)?,
            ))
        }),
        timed: Timed {
            rows,
            heads: 1,
            // A row is sorted: some twenty comparisons a column.
            cost: 20 * context,
            cut: Box::new(move |at, out| {
                let [logits, ks, ke] = &inputs;
                let case = Case::new(KERNEL.name)
                    .with("logits", at.rows(logits)?)
                    .with("ks", at.rows(ks)?)
                    .with("ke", at.rows(ke)?)
                    .set("topk", topk);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
