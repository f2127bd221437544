//! The fp8 linear and the products of experts at their edges: blocks that are cut, scales far apart, sums that cancel,
//! rows that must not depend on their company, experts without tokens, and lists that name nothing.

use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;
use dsa_reference::quant::{ScaleFmt, act_quant, e4m3_decode};
use ndarray::Array2;

/// Codes of weights that are no NaN.
fn codes(seed: u64, shape: &[usize]) -> HostTensor {
    let mut rng = Rng::new(seed);
    let any = (0..shape.iter().product()).map(|_| rng.below(256) as u8);
    let bytes = any.map(|byte: u8| if byte & 0x7f == 0x7f { byte ^ 1 } else { byte }).collect();
    HostTensor { dtype: DType::E4m3, shape: shape.to_vec(), bytes }
}

/// A linear layer of n rows, and its weight's scales from 2^-20 to 2^20.
fn linear(seed: u64, n: usize, m: usize, k: usize) -> Case {
    let mut rng = Rng::new(seed);
    let shape = [m.div_ceil(128), k.div_ceil(128)];
    let scales: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| 2f32.powi(rng.below(41) as i32 - 20) * (1.0 + rng.below(8) as f32 / 8.0))
        .collect();
    Case::new("linear_fp8")
        .with("x", floats(seed + 1, &[n, k]))
        .with("w", codes(seed + 2, &[m, k]))
        .with("w_scale", f32s(&shape, &scales))
        .set("fmt", "ue8m0")
}

/// Experts' weights of m x k, plain or fp8, for n tokens with two experts each.
fn experts(kernel: &str, n: usize, m: usize, k: usize, of_pairs: &[usize], count: usize) -> Case {
    let mut order: Vec<usize> = (0..2 * n).collect();
    order.sort_by_key(|pair| of_pairs[*pair]);
    let ends = (0..count).map(|e| of_pairs.iter().filter(|of| **of <= e).count() as i32);
    let case = Case::new(kernel)
        .with("x", floats(1, &[n, k]))
        .with("order", ints(&order.iter().map(|pair| *pair as i32).collect::<Vec<_>>()))
        .with("ends", ints(&ends.collect::<Vec<_>>()))
        .set("rows", "tokens")
        .set("num_experts_per_tok", 2);
    if kernel == "grouped_gemm" {
        return case.with("w", floats(2, &[count, m, k]));
    }
    let shape = [count, m.div_ceil(128), k.div_ceil(128)];
    let scales = floats(3, &shape).to_f32().iter().map(|s| s.abs()).collect::<Vec<_>>();
    case.with("w", codes(2, &[count, m, k])).with("w_scale", f32s(&shape, &scales))
}

const KERNELS: [&str; 2] = ["grouped_gemm", "grouped_gemm_fp8"];

/// Every element within what f32 sums of its terms may be off: products of codes are exact, a block's are added in at
/// most 16 + 8 steps (eight running sums of 16, then those), the scale is rounded once, and the sum of blocks once a
/// block. A matrix unit's sums within a block are shorter numbers: 13 bits after the point of the largest term, cut
/// off at each of 4 instructions of 32 terms, each at most as large as all terms together.
fn is_within_the_bound_of_its_terms(case: &Case) {
    let out = run(case)["out"].to_f32();
    let x: Array2<f32> = case.array("x").unwrap();
    let (w, w_scale) = (case.array_u8("w").unwrap(), case.array("w_scale").unwrap());
    let w_scale: Array2<f32> = w_scale;
    let x = act_quant(x.view(), 128, ScaleFmt::Ue8m0).unwrap();
    let unit = (kernel_of(case).machine)(&device()).matrix;
    let plain = unit == dsa_kernels::tile::MatrixUnit::Plain;
    let (m, k) = w.dim();
    let steps = 26 + k.div_ceil(128);
    let share = steps as f64 * 2f64.powi(-24) + if plain { 0.0 } else { 5.0 * 2f64.powi(-13) };
    for (at, got) in out.iter().enumerate() {
        let (t, j) = (at / m, at % m);
        let (mut sum, mut size) = (0.0, 0.0);
        for c in 0..k {
            let scale = f64::from(x.scale[(t, c / 128)]) * f64::from(w_scale[(j / 128, c / 128)]);
            let (q, w) = (e4m3_decode(x.codes[(t, c)]), e4m3_decode(w[(j, c)]));
            let term = f64::from(q) * f64::from(w) * scale;
            sum += term;
            size += term.abs();
        }
        let off = (f64::from(*got) - sum).abs();
        assert!(off <= share * size, "[{t}, {j}] is {got}, not {sum}: {off:e} of {size:e}");
    }
}

#[test]
fn an_fp8_product_is_within_the_bound_of_its_terms_wherever_its_blocks_end() {
    for (n, m, k) in [(1, 1, 1), (3, 127, 129), (5, 128, 128), (9, 129, 127), (33, 257, 300)] {
        is_within_the_bound_of_its_terms(&linear(7, n, m, k));
    }
}

#[test]
fn sums_that_cancel_within_a_block_and_between_blocks_are_within_the_bound_of_their_terms() {
    // Blocks of 448 and -448 by turns, the second the first's negative, and little beside them.
    let (m, k) = (3, 390);
    let mut case = linear(8, 4, m, k).with("w_scale", f32s(&[1, 4], &[1.0, 1.0, 1e-6, 1.0]));
    let row = |j: usize| {
        (0..k).map(move |c| match (c / 128, c % 2) {
            (0, 0) | (1, 1) => 0x7eu8,
            (0, 1) | (1, 0) => 0xfe,
            _ => (j * 31 + c * 7) as u8 & 0x3f,
        })
    };
    let bytes = (0..m).flat_map(row).collect();
    case = case.with("w", HostTensor { dtype: DType::E4m3, shape: vec![m, k], bytes });
    is_within_the_bound_of_its_terms(&case);
    let same = vec![1.0; 4 * k];
    is_within_the_bound_of_its_terms(&case.with("x", f32s(&[4, k], &same)));
}

#[test]
fn a_scale_belongs_to_its_own_128_rows_and_columns() {
    // Ones everywhere: an element is the sum of its blocks' lengths times their scales.
    let (m, k) = (300, 260);
    let ones = HostTensor { dtype: DType::E4m3, shape: vec![m, k], bytes: vec![0x38; m * k] };
    let scales = [1.0, 10.0, 100.0, 2.0, 20.0, 200.0, 3.0, 30.0, 300.0];
    let case = Case::new("linear_fp8")
        .with("x", f32s(&[2, k], &vec![1.0; 2 * k]))
        .with("w", ones)
        .with("w_scale", f32s(&[3, 3], &scales))
        .set("fmt", "ue8m0");
    let row = (0..m).map(|j| {
        let of = &scales[j / 128 * 3..];
        128.0 * of[0] + 128.0 * of[1] + 4.0 * of[2]
    });
    let row: Vec<f32> = row.collect();
    assert_eq!(run(&case)["out"].to_f32(), [row.clone(), row].concat());
}

#[test]
fn nan_and_infinity_spoil_their_own_row_or_column_alone() {
    let (n, m, k) = (6, 140, 300);
    let mut case = linear(9, n, m, k);
    let mut x = case.tensors["x"].to_f32();
    (x[2 * k + 299], x[4 * k + 5]) = (f32::NAN, f32::INFINITY);
    let mut w = case.tensors["w"].clone();
    (w.bytes[7 * k + 128], w.bytes[139 * k]) = (0x7f, 0xff);
    case = case.with("x", f32s(&[n, k], &x)).with("w", w);
    let out = holds(&case)["out"].to_f32();
    for (at, value) in out.iter().enumerate() {
        let spoilt = [2, 4].contains(&(at / m)) || [7, 139].contains(&(at % m));
        assert_eq!(value.is_nan(), spoilt, "row {}, column {}: {value}", at / m, at % m);
    }
}

#[test]
fn a_scale_that_is_no_number_spoils_its_own_columns_alone() {
    let mut case = linear(10, 3, 140, 130);
    let mut scales = case.tensors["w_scale"].to_f32();
    scales[1] = f32::NAN;
    case = case.with("w_scale", f32s(&[2, 2], &scales));
    for (at, value) in holds(&case)["out"].to_f32().iter().enumerate() {
        assert_eq!(value.is_nan(), at % 140 < 128);
    }
}

#[test]
fn a_row_of_the_fp8_linear_has_the_same_bits_alone_and_among_any_others() {
    for (m, k) in [(70, 300), (130, 1024)] {
        let case = linear(11, 300, m, k);
        let whole = run(&case)["out"].clone();
        for n in [1, 2, 4, 5, 8, 9, 33, 64, 65, 129, 300] {
            let some = case.clone().with("x", rows(&case.tensors["x"], 300 - n..300));
            let got = run(&some);
            assert!(got["out"].bytes == rows(&whole, 300 - n..300).bytes, "{n} rows of {m} x {k}");
        }
    }
}

#[test]
fn a_pair_has_the_same_bits_alone_and_among_any_others() {
    let (n, m, k, count) = (90, 70, 300, 5);
    let mut rng = Rng::new(12);
    let of_pairs: Vec<usize> = (0..2 * n).map(|_| rng.below(count)).collect();
    for kernel in KERNELS {
        let case = experts(kernel, n, m, k, &of_pairs, count);
        let (order, out) = (case.tensors["order"].to_i32(), run(&case)["out"].clone());
        // A token's own two pairs, and those of the first few.
        for (first, tokens) in [(17, 1), (0, 2), (3, 9), (0, 60)] {
            let own = &of_pairs[2 * first..2 * (first + tokens)];
            let some = experts(kernel, tokens, m, k, own, count)
                .with("x", rows(&case.tensors["x"], first..first + tokens))
                .with("w", case.tensors["w"].clone());
            let got = run(&some)["out"].clone();
            for (i, pair) in some.tensors["order"].to_i32().into_iter().enumerate() {
                let there = order.iter().position(|p| *p == pair + 2 * first as i32).unwrap();
                let (alone, among) = (rows(&got, i..i + 1), rows(&out, there..there + 1));
                assert!(alone.bytes == among.bytes, "{kernel}: pair {pair} of {tokens} tokens");
            }
        }
    }
}

#[test]
fn one_expert_for_all_pairs_and_many_experts_without_any_are_products_like_others() {
    for kernel in KERNELS {
        for n in [1, 5, 40, 150] {
            for expert in [0, 3, 511] {
                holds(&experts(kernel, n, 9, 40, &vec![expert; 2 * n], 512));
            }
        }
        // Two experts, each token both.
        let both: Vec<usize> = (0..80).map(|pair| pair % 2).collect();
        holds(&experts(kernel, 40, 130, 140, &both, 2));
    }
}

#[test]
fn one_expert_is_the_linear_layer_bit_for_bit() {
    let (n, m, k) = (37, 140, 300);
    let layer = linear(13, n, m, k);
    let tensor = |name: &str, shape: &[usize]| HostTensor {
        shape: shape.to_vec(),
        ..layer.tensors[name].clone()
    };
    let order: Vec<i32> = (0..n as i32).collect();
    let grouped = Case::new("grouped_gemm_fp8")
        .with("x", layer.tensors["x"].clone())
        .with("w", tensor("w", &[1, m, k]))
        .with("w_scale", tensor("w_scale", &[1, 2, 3]))
        .with("order", ints(&order))
        .with("ends", ints(&[n as i32]))
        .set("rows", "pairs");
    assert!(run(&layer)["out"].bytes == run(&grouped)["out"].bytes);
}

#[test]
fn pairs_of_no_expert_and_of_no_token_are_rows_of_zeros() {
    for kernel in KERNELS {
        let case = experts(kernel, 4, 5, 16, &[0, 1, 1, 1, 2, 2, 2, 0], 3);
        // The last expert's pairs end before all do; a weight of NaN would show.
        let order = [0, 7, 1, -1, i32::MAX, 8, 4, i32::MIN];
        let case = case.with("order", ints(&order)).with("ends", ints(&[2, 5, 7]));
        let mut w = case.tensors["w"].clone();
        poison(&mut w, [1]);
        let out = holds(&case.with("w", w))["out"].to_f32();
        for i in [3, 4, 5, 7] {
            assert_eq!(out[5 * i..5 * (i + 1)], [0.0; 5], "{kernel}: row {i}");
        }
        assert!(out[5 * 2..5 * 3].iter().all(|y| y.is_nan()), "{kernel}: an expert's own NaN");
    }
}

#[test]
fn ends_out_of_range_or_order_are_taken_as_the_nearest_that_are_not() {
    for kernel in KERNELS {
        for ends in [[-5, 3, 99], [i32::MIN, 8, i32::MAX], [8, 8, 8], [0, 0, 0], [0, 0, 8]] {
            holds(&experts(kernel, 4, 5, 16, &[0; 8], 3).with("ends", ints(&ends)));
        }
    }
}
