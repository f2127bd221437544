//! Numbers at the ends of f32's range, infinities and NaN outside of attention: what is right, and that it comes out.

use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;
use std::path::PathBuf;

const INF: f32 = f32::INFINITY;

/// A case of `tests/data/numbers` gives the outputs that are stored beside it, and so does its reference.
#[track_caller]
fn gives_what_is_stored(name: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/numbers");
    let case = Case::load(&folder.join(format!("{name}.safetensors"))).unwrap();
    let stored = Case::load(&folder.join(format!("{name}.expected.safetensors"))).unwrap();
    for (output, tensor) in holds(&case) {
        let only = |tensor: &HostTensor| [(output, tensor.clone())].into();
        same(&case.kernel, &only(&tensor), &only(&stored.tensors[output]));
    }
}

#[test]
fn a_row_whose_squares_overflow_is_normalised() {
    gives_what_is_stored("rms_norm_large");
}

#[test]
fn an_infinite_key_gives_an_infinite_score_and_padded_heads_nothing() {
    gives_what_is_stored("indexer_infinite_key");
}

fn norm(kernel: &str, x: &[f32]) -> Case {
    let mut rng = Rng::new(7);
    let mut of_cols = || (0..x.len()).map(|_| rng.normal()).collect::<Vec<f32>>();
    let case = Case::new(kernel)
        .with("x", f32s(&[1, x.len()], x))
        .with("weight", f32s(&[x.len()], &of_cols()))
        .set("eps", 0.0);
    match kernel {
        "layer_norm" => case.with("bias", f32s(&[x.len()], &of_cols())),
        _ => case,
    }
}

#[test]
fn a_row_times_a_power_of_two_is_normalised_to_the_same_bits() {
    let mut rng = Rng::new(8);
    let x: Vec<f32> = (0..300).map(|_| rng.normal() + 0.25).collect();
    for kernel in ["rms_norm", "layer_norm"] {
        let once = holds(&norm(kernel, &x));
        for exponent in (-110..=125).step_by(5) {
            let scaled: Vec<f32> = x.iter().map(|x| x * 2f32.powi(exponent)).collect();
            assert!(scaled.iter().all(|x| x.is_normal()));
            let got = run(&norm(kernel, &scaled));
            assert_eq!(got["out"].bytes, once["out"].bytes, "{kernel} of 2^{exponent}");
        }
    }
}

#[test]
fn a_mean_of_numbers_whose_sum_overflows_is_subtracted() {
    let x = [3.0e38, 3.2e38, 3.0e38, 3.4e38, -3.0e38, 1.0];
    holds(&norm("layer_norm", &x));
    // The product with the weight overflows, the sum with the bias does not.
    let case = Case::new("layer_norm")
        .with("x", f32s(&[1, 2], &[1.0, -1.0]))
        .with("weight", f32s(&[2], &[3.3e38, 1.0]))
        .with("bias", f32s(&[2], &[-3.0e38, 1.0]))
        .set("eps", 0.0);
    has("layer_norm", &holds(&case), "out", &[3.0e37, 0.0]);
    let case = case.with("x", f32s(&[1, 2], &[1.0, -0.5])).with("weight", f32s(&[2], &[3.4e38; 2]));
    has("layer_norm", &holds(&case), "out", &[4.0e37, -3.4e38]);
}

#[test]
fn an_eps_below_all_squares_does_not_spoil_a_row_of_equal_numbers() {
    for value in [0.0, 1e-30, 1.0, 1e10, 3e38] {
        let case = norm("layer_norm", &[value; 4]).set("eps", 1e-31);
        let bias = case.tensors["bias"].to_f32();
        has("layer_norm", &holds(&case), "out", &bias);
    }
}

#[test]
fn sums_of_a_rotated_row_leave_the_range_only_if_the_result_does() {
    let of = |x: &[f32]| Case::new("hadamard").with("x", f32s(&[1, x.len()], x));
    // The sums are 4e38 and 0: divided by the root of 2 both are in range.
    has("hadamard", &holds(&of(&[2e38, 2e38])), "out", &[2.828_427e38, 0.0]);
    // A sum of all of them leaves it, and the others must not become NaN.
    has("hadamard", &holds(&of(&[3e38; 4])), "out", &[INF, 0.0, 0.0, 0.0]);
    let mut alternating = vec![3e38; 128];
    alternating.iter_mut().skip(1).step_by(2).for_each(|x| *x = -3e38);
    let got = holds(&of(&alternating))["out"].to_f32();
    assert_eq!((got[1], got.iter().filter(|y| **y == 0.0).count()), (INF, 127));
    // Tiny rows keep their bits.
    let tiny: Vec<f32> = (1..=8).map(|i| i as f32 * 1e-37).collect();
    holds(&of(&tiny));
}

#[test]
fn a_product_of_three_is_in_range_if_it_is_in_any_order() {
    for (weight, scale, factor) in [
        (1e30f32, 1e30, 1e-30f32),
        (1e-30, 1e-30, 1e30),
        (1e38, 10.0, 0.01),
        (1e-30, 1e30, 1e-20),
        (-1e20, 1e-38, 1e25),
    ] {
        let case = Case::new("fold_scales")
            .with("weights", f32s(&[1, 2], &[weight, scale]))
            .with("q_scale", f32s(&[1, 2], &[scale, weight]))
            .set("factor", factor);
        let product = (f64::from(weight) * f64::from(scale) * f64::from(factor)) as f32;
        assert!(product.is_normal());
        has("fold_scales", &holds(&case), "out", &[product; 2]);
    }
}

#[test]
fn a_position_that_the_tables_do_not_have_makes_its_row_nan() {
    let case = Case::new("rope")
        .with("x", f32s(&[5, 1, 2], &[1.0; 10]))
        .with("cos", f32s(&[2, 1], &[1.0, 0.5]))
        .with("sin", f32s(&[2, 1], &[0.0, 0.25]))
        .with("positions", ints(&[-1, 0, 1, 2, i32::MIN]))
        .set("pairing", "interleaved");
    let nan = f32::NAN;
    let out = [nan, nan, 1.0, 1.0, 0.25, 0.75, nan, nan, nan, nan];
    has("rope", &holds(&case), "out", &out);
}

#[test]
fn a_rotation_by_a_stretched_table_stays_in_range_if_its_result_does() {
    let case = Case::new("rope")
        .with("x", f32s(&[1, 1, 2], &[3e38, 3e38]))
        .with("cos", f32s(&[1, 1], &[1.2]))
        .with("sin", f32s(&[1, 1], &[1.25]))
        .with("positions", ints(&[0]))
        .set("pairing", "half_split");
    has("rope", &holds(&case), "out", &[3e38 * (1.2 - 1.25), INF]);
}

#[test]
fn nan_is_one_code_in_every_cache() {
    let of = |x: f32| HostTensor::new(DType::F32, &[1, 8], &[x, 1.0, x, -1.0, 0.5, -x, 2.0, 3.0]);
    for x in [f32::NAN, -f32::NAN, INF, -INF] {
        let case = Case::new("act_quant").with("x", of(x)).set("fmt", "ue8m0");
        let codes = &holds(&case)["codes"].bytes;
        assert_eq!([codes[0], codes[2], codes[5]], [0x7f; 3], "{x}");
        let case = Case::new("store_kv")
            .with("c", of(x))
            .with("k_pe", f32s(&[1, 0], &[]))
            .with("slots", ints(&[0]))
            .with("cache", HostTensor::u8(&[1, 12], vec![0; 12]))
            .set("page_size", 1);
        let cache = &holds(&case)["cache"].bytes;
        assert_eq!([cache[0], cache[2], cache[5]], [0x7f; 3], "{x}");
    }
}

#[test]
fn padded_heads_take_no_part_for_any_number_of_heads() {
    // Every head's product with the key is +inf: its score is +inf for heads that count alone.
    for heads in [1, 2, 3, 5, 7, 8, 9, 12, 15, 17, 31, 33, 63, 127] {
        let mut case = indexer(3, heads, 5, &[(0, 5), (1, 3)]);
        let (q, weights) = (vec![1.0; 2 * heads * DIM], vec![0.5; 2 * heads]);
        let mut k = vec![1.0; 5 * DIM];
        (k[2 * DIM], k[4 * DIM + 3]) = (INF, -INF);
        case = case
            .with("q", f32s(&[2, heads, DIM], &q))
            .with("k", f32s(&[5, DIM], &k))
            .with("k_scale", f32s(&[5], &[1.0; 5]))
            .with("weights", f32s(&[2, heads], &weights));
        let score = 0.5 * (heads * DIM) as f32;
        let first = [score, score, INF, score, 0.0];
        let second = [-INF, score, INF, -INF, -INF];
        has("indexer_logits", &holds(&case), "logits", &[first, second].concat());
    }
}
