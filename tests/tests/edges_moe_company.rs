//! What a row, or a token, gets from the kernels of the other half of a layer is the same bits alone, among others, and
//! in every run.

use crate::edges_moe::indices;
use crate::edges_router::router;
use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;

/// Rows of different content for each kernel whose rows are tokens, and the tensors that have a row a token.
fn of_tokens(n: usize) -> Vec<(Case, Vec<&'static str>)> {
    let rows = |seed, cols| floats(seed, &[n, cols]).cast(DType::Bf16);
    let norm = Case::new("add_rms_norm")
        .with("x", rows(1, 520))
        .with("residual", rows(2, 520))
        .with("weight", floats(3, &[520]))
        .set("eps", 1e-6);
    let swiglu = Case::new("swiglu").with("gate", rows(4, 520)).with("up", rows(5, 520));
    let bias = floats(7, &[32]).to_f32();
    vec![
        (norm, vec!["x", "residual"]),
        (swiglu, vec!["gate", "up"]),
        (router(floats(6, &[n, 32]), &bias, [8, 4, 6]), vec!["logits"]),
    ]
}

#[test]
fn a_rows_bits_do_not_depend_on_its_company() {
    for (case, names) in of_tokens(37) {
        let whole = run(&case);
        for size in [1, 3, 36] {
            let chunks: Vec<_> = (0..37)
                .step_by(size)
                .map(|first| {
                    let range = first..37.min(first + size);
                    let part = names.iter().fold(case.clone(), |part, name| {
                        part.with(name, rows(&case.tensors[*name], range.clone()))
                    });
                    run(&part)
                })
                .collect();
            assert!(stack(&chunks) == whole, "{} in parts of {size}", case.kernel);
        }
    }
}

/// A sum over the experts of `tokens` of 16 whose rows of y are functions of token and expert.
fn combine_of(tokens: std::ops::Range<usize>) -> Case {
    let (top_k, d) = (4, 40);
    let expert = |pair: usize| ((pair * 7 + pair / top_k) % 9) as i32;
    let mut pairs: Vec<usize> = (tokens.start * top_k..tokens.end * top_k).collect();
    let of: Vec<i32> = pairs.iter().map(|pair| expert(*pair)).collect();
    let weights = rows(&floats(20, &[16, top_k]), tokens.clone());
    pairs.sort_by_key(|pair| (expert(*pair), *pair));
    let rows_of_y = pairs.iter().flat_map(|pair| floats(100 + *pair as u64, &[1, d]).to_f32());
    let y: Vec<f32> = rows_of_y.collect();
    Case::new("combine")
        .with("y", f32s(&[pairs.len(), d], &y))
        .with("indices", HostTensor::i32(&[tokens.len(), top_k], &of))
        .with("weights", weights)
        .with("shared", rows(&floats(21, &[16, d]), tokens))
        .set("experts", 9)
}

#[test]
fn a_tokens_sum_does_not_depend_on_its_company_and_repeats() {
    let whole = holds(&combine_of(0..16));
    let alone: Vec<_> = (0..16).map(|t| run(&combine_of(t..t + 1))).collect();
    assert!(stack(&alone) == whole);
    let chunks = [run(&combine_of(0..5)), run(&combine_of(5..16))];
    assert!(stack(&chunks) == whole);
    let mut rng = Rng::new(22);
    let dispatch = Case::new("dispatch")
        .with("indices", indices(700, 8, |_| rng.below(64) as i32))
        .set("experts", 64);
    let cases = of_tokens(37).into_iter().map(|(case, _)| case);
    for case in cases.chain([combine_of(0..16), dispatch]) {
        let first = run(&case);
        assert!((1..20).all(|_| run(&case) == first), "{} differs from run to run", case.kernel);
    }
}
