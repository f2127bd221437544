//! Forms and inputs of the selection.

use super::form::{Exactly, Forms, Model, TOPK};
use super::{Fill, Rng, gap, ranges, tensor};
use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use proptest::prelude::*;

/// Which keys are taken, with the numbers of each policy, which are compiled in.
#[derive(Clone, Copy, Debug)]
enum Policy {
    Fixed,
    Fraction { per_mille: usize, min: usize },
    Window { window: usize, sinks: usize },
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        2 => Just(Policy::Fixed),
        1 => (0usize..=1000, 0usize..100)
            .prop_map(|(per_mille, min)| Policy::Fraction { per_mille, min }),
        1 => (0usize..300, 0usize..20).prop_map(|(window, sinks)| Policy::Window { window, sinks }),
    ]
}

#[derive(Clone, Debug)]
struct TopK {
    rows: usize,
    length: usize,
    topk: usize,
    policy: Policy,
    /// As the launcher chooses if there is none; short rows are only sifted if they are told to be.
    pieces: Option<usize>,
    strided: &'static str,
}

pub(super) fn top_k() -> Forms {
    let pieces = prop_oneof![Just(None), (0usize..5).prop_map(Some)];
    let random = (1usize..4, 0usize..3000, 1usize..2500, policy(), pieces, gap()).prop_map(
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
    let length = || prop_oneof![TOPK..9000usize, 16_385..20_000usize];
    let production = move |_: Model| {
        (1usize..3, length(), Exactly(TOPK), policy(), gap()).prop_map(
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
        let case = Case::new("top_k")
            .with("logits", HostTensor::new(DType::F32, &[rows, length], &logits))
            .with("ks", ks)
            .with("ke", ke)
            .set("topk", form.topk)
            .set("strided", form.strided);
        let case = match form.pieces {
            Some(pieces) => case.set("pieces", pieces),
            None => case,
        };
        match form.policy {
            Policy::Fixed => case.set("policy", "fixed"),
            Policy::Fraction { per_mille, min } => {
                case.set("policy", "fraction").set("per_mille", per_mille).set("min", min)
            }
            Policy::Window { window, sinks } => {
                case.set("policy", "window").set("window", window).set("sinks", sinks)
            }
        }
    })
}

pub(super) fn shift_indices() -> Forms {
    let production = |_: Model| (1usize..9, Exactly(TOPK));
    Forms::new((1usize..9, 1usize..70), production, |(n, topk): &(usize, usize), rng: &mut Rng| {
        let indices: Vec<i32> = (0..n * topk)
            .map(|_| if rng.one_in(4) { -1 } else { rng.below(1 << 20) as i32 })
            .collect();
        let first: Vec<i32> = (0..*n).map(|_| rng.below(1 << 20) as i32).collect();
        Case::new("shift_indices")
            .with("indices", HostTensor::i32(&[*n, *topk], &indices))
            .with("first", HostTensor::i32(&[*n], &first))
    })
}
