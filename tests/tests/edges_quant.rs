//! Edge cases of the fp8 quantisers, their caches, and the rotations before them.

use crate::support::*;
use dsa_gate::{Case, HostTensor, Outputs};
use dsa_kernels::DType;

/// `act_quant` of one row, exactly as the reference.
fn quantised(fmt: &str, row: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let case = Case::new("act_quant").with("x", f32s(&[1, row.len()], row)).set("fmt", fmt);
    let got: Outputs = holds(&case);
    (got["codes"].to_f32(), got["scale"].to_f32())
}

/// `store_kv` of latents into a cache of 0xa5, four slots a page; no rope part of note.
fn stored(latents: &[[f32; D_V]], slots: &[i32], n_pages: usize) -> HostTensor {
    let n = latents.len();
    let case = Case::new("store_kv")
        .with("c", f32s(&[n, D_V], &latents.concat()))
        .with("k_pe", floats(1, &[n, D_QK - D_V]))
        .with("slots", ints(slots))
        .with(
            "cache",
            HostTensor::u8(
                &[n_pages, 4 * RECORD.bytes()],
                vec![0xa5; n_pages * 4 * RECORD.bytes()],
            ),
        )
        .set("page_size", 4);
    holds(&case).remove("cache").unwrap()
}

/// The scale in the record at `slot`.
fn scale_of(cache: &HostTensor, slot: usize) -> f32 {
    let at = slot * RECORD.bytes() + D_V;
    f32::from_le_bytes(cache.bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn the_floor_of_a_tiny_block_lies_on_amax_for_activations_and_on_the_scale_in_the_cache() {
    let tiny = [1e-9; D_V];
    let (_, scale) = quantised("ue8m0", &tiny);
    assert_eq!(scale, [2f32.powi(-22)]);
    assert_eq!(scale_of(&stored(&[tiny], &[0], 1), 0), 2f32.powi(-13));
}

#[test]
fn a_block_of_zeros_has_a_positive_scale_and_codes_of_zero() {
    for fmt in ["plain", "ue8m0"] {
        let (codes, scale) = quantised(fmt, &[0.0, -0.0, 0.0, -0.0]);
        assert!(scale[0] > 0.0, "{fmt}");
        assert!(codes.iter().all(|c| *c == 0.0), "{fmt}: {codes:?}");
    }
}

#[test]
fn a_scale_that_is_a_power_of_two_stays_and_the_next_number_doubles_it() {
    for exponent in [-3, 0, 5] {
        let top = 448.0 * 2f32.powi(exponent);
        let above = f32::from_bits(top.to_bits() + 1);
        assert_eq!(quantised("ue8m0", &[top, 1.0]).1, [2f32.powi(exponent)]);
        assert_eq!(quantised("ue8m0", &[above, 1.0]).1, [2f32.powi(exponent + 1)]);
        let mut latent = [0.5; D_V];
        for (value, scale) in [(top, 2f32.powi(exponent)), (above, 2f32.powi(exponent + 1))] {
            latent[3] = -value;
            assert_eq!(scale_of(&stored(&[latent], &[2], 1), 2), scale, "{value}");
        }
    }
}

#[test]
fn finite_numbers_never_become_nan_and_the_largest_becomes_448() {
    for row in [[f32::MAX, 1.0, -3.0, 0.0], [-f32::MAX, f32::MAX, 1e-30, 5.0]] {
        let (codes, scale) = quantised("plain", &row);
        assert!(codes.iter().all(|c| c.is_finite()), "{codes:?}");
        assert_eq!(codes[0].abs(), 448.0);
        assert!(scale[0].is_finite());
    }
}

#[test]
fn a_nan_stays_a_nan_and_leaves_its_neighbours_alone() {
    let row = [1.0, f32::NAN, -7.0, 0.25];
    let (codes, scale) = quantised("ue8m0", &row);
    let (clean, clean_scale) = quantised("ue8m0", &[1.0, 0.0, -7.0, 0.25]);
    assert_eq!(scale, clean_scale);
    assert!(codes[1].is_nan());
    assert_eq!((codes[0], codes[2], codes[3]), (clean[0], clean[2], clean[3]));
}

#[test]
fn an_infinity_spoils_its_own_block_and_no_other() {
    let mut row = vec![1.0; 200];
    row[5] = f32::INFINITY;
    let (codes, scale) = quantised("ue8m0", &row);
    assert!(codes[5].is_nan() && scale[0] == f32::INFINITY);
    let (clean, clean_scale) = quantised("ue8m0", &vec![1.0; 200]);
    assert_eq!((&codes[128..], scale[1]), (&clean[128..], clean_scale[1]));
}

#[test]
fn a_block_that_is_not_full_has_a_scale_of_its_own() {
    let mut row = vec![1.0; 129];
    row[128] = 896.0;
    let (codes, scale) = quantised("ue8m0", &row);
    assert_eq!(scale, [2f32.powi(-8), 2.0]);
    assert_eq!((codes[0], codes[128]), (256.0, 448.0));
}

#[test]
fn rounding_ties_go_to_the_even_code() {
    // The scale is 1: between 16 and 32 codes are 2 apart.
    let (codes, _) = quantised("ue8m0", &[448.0, 17.0, 19.0, -17.0, 21.0]);
    assert_eq!(codes, [448.0, 16.0, 20.0, -16.0, 20.0]);
}

#[test]
fn a_slot_out_of_range_is_not_written() {
    let slots = [i32::MIN, -1, 8, i32::MAX, 5];
    let cache = stored(&[[1.0; D_V]; 5], &slots, 2);
    let (before, rest) = cache.bytes.split_at(5 * RECORD.bytes());
    let (written, after) = rest.split_at(RECORD.bytes());
    assert!(before.iter().chain(after).all(|b| *b == 0xa5), "the other slots are untouched");
    assert!(written.iter().take(D_V).all(|b| *b != 0xa5), "slot 5 is written");
}

#[test]
fn the_rope_part_is_rounded_to_the_nearest_bf16_ties_to_even() {
    // The bf16 numbers next to 1 are 1/128 apart; the ties lie between them.
    let step = 1.0f32 / 128.0;
    let below = f32::from_bits((1.0 + step / 2.0).to_bits() - 1);
    let above = f32::from_bits((1.0 + step / 2.0).to_bits() + 1);
    let rope = [1.0 + step / 2.0, 1.0 + 1.5 * step, below, above, f32::MAX, -0.0, f32::NAN, 1e-45];
    let case = Case::new("store_kv")
        .with("c", floats(7, &[1, D_V]))
        .with("k_pe", f32s(&[1, D_QK - D_V], &rope))
        .with("slots", ints(&[0]))
        .with("cache", HostTensor::u8(&[1, RECORD.bytes()], vec![0xa5; RECORD.bytes()]))
        .set("page_size", 1);
    let record = &holds(&case)["cache"].bytes;
    let stored = DType::Bf16.decode(&record[RECORD.bytes() - 2 * rope.len()..]);
    assert_eq!(stored[..6], [1.0, 1.0 + 2.0 * step, 1.0, 1.0 + step, f32::INFINITY, 0.0]);
    assert!(stored[5].is_sign_negative() && stored[6].is_nan() && stored[7] == 0.0);
}

#[test]
fn an_index_key_out_of_range_is_not_written() {
    let case = Case::new("store_index_keys")
        .with("k", floats(2, &[5, DIM]))
        .with("slots", ints(&[i32::MIN, -1, 6, i32::MAX, 4]))
        .with("cache", HostTensor::u8(&[2, 3 * (DIM + 4)], vec![0xa5; 6 * (DIM + 4)]))
        .set("page_size", 3);
    let cache = &holds(&case)["cache"];
    let (first, second) = cache.bytes.split_at(3 * (DIM + 4));
    assert!(first.iter().all(|b| *b == 0xa5), "the first page is untouched");
    // Slot 4 is the second of page 1: its codes and, behind all codes, its scale.
    let scale = 3 * DIM + 4;
    assert!(second[..DIM].iter().chain(&second[2 * DIM..scale]).all(|b| *b == 0xa5));
    assert!(second[scale + 4..].iter().all(|b| *b == 0xa5));
    assert!(second[DIM..2 * DIM].iter().any(|b| *b != 0xa5));
}

#[test]
fn caches_of_any_page_size_are_written_where_the_reference_writes_them() {
    for page_size in [1, 2, 53, 61, 64, 69, 576] {
        let n_pages = 3;
        let slots = some_of(3, n_pages * page_size, 3);
        let bytes = page_size * RECORD.bytes();
        let kv = Case::new("store_kv")
            .with("c", floats(4, &[3, D_V]))
            .with("k_pe", floats(5, &[3, D_QK - D_V]))
            .with("slots", ints(&slots))
            .with("cache", HostTensor::u8(&[n_pages, bytes], vec![0xa5; n_pages * bytes]))
            .set("page_size", page_size);
        let touched = holds(&kv)["cache"].bytes.iter().filter(|b| **b != 0xa5).count();
        assert!(touched > 2 * RECORD.bytes(), "page size {page_size}: {touched} bytes written");
        let bytes = page_size * (DIM + 4);
        let keys = Case::new("store_index_keys")
            .with("k", floats(6, &[3, DIM]))
            .with("slots", ints(&slots))
            .with("cache", HostTensor::u8(&[n_pages, bytes], vec![0xa5; n_pages * bytes]))
            .set("page_size", page_size);
        let touched = holds(&keys)["cache"].bytes.iter().filter(|b| **b != 0xa5).count();
        assert!(touched > 2 * DIM, "page size {page_size}: {touched} bytes written");
    }
}

#[test]
fn more_than_65535_rows_fit_the_grid() {
    let x: Vec<f32> = (0..70_000).flat_map(|t| [1.0 + (t % 5) as f32, 448.0]).collect();
    let case = Case::new("act_quant").with("x", f32s(&[70_000, 2], &x)).set("fmt", "ue8m0");
    let codes = holds(&case)["codes"].to_f32();
    assert_eq!(codes[2 * 65_536..2 * 65_536 + 4], [2.0, 448.0, 3.0, 448.0]);
}

/// Index logits of f32 queries and keys, each rotated or not.
fn products(rotate_q: bool, rotate_k: bool) -> Outputs {
    let rotated = |x: HostTensor, rotate: bool| {
        if !rotate {
            return x;
        }
        let shape = x.shape.clone();
        let flat = HostTensor { shape: vec![x.bytes.len() / 4 / DIM, DIM], ..x };
        let out = holds(&Case::new("hadamard").with("x", flat)).remove("out").unwrap();
        HostTensor { shape, ..out }
    };
    let case = indexer(21, 4, 40, &[(0, 40)]);
    let case = case
        .with("q", rotated(floats(22, &[1, 4, DIM]), rotate_q))
        .with("k", rotated(floats(23, &[40, DIM]), rotate_k));
    holds(&case)
}

#[test]
fn a_hadamard_rotation_of_both_sides_leaves_the_scores() {
    same("indexer_logits", &products(true, true), &products(false, false));
}

#[test]
fn a_hadamard_rotation_of_one_side_alone_ruins_the_scores() {
    use dsa_gate::compare::compare;
    let neither = products(false, false);
    for (q, k) in [(true, false), (false, true)] {
        let error = compare("indexer_logits", &products(q, k), &neither).unwrap_err();
        assert!(error.to_string().contains("logits"), "{error}");
    }
}

#[test]
fn a_hadamard_rotation_is_its_own_inverse() {
    let x = Case::new("hadamard").with("x", floats(24, &[3, DIM]));
    let once = holds(&x).remove("out").unwrap();
    assert_ne!(once, x.tensors["x"]);
    let twice = holds(&Case::new("hadamard").with("x", once));
    has("hadamard", &twice, "out", &x.tensors["x"].to_f32());
}

#[test]
fn a_rotation_by_the_angle_of_position_zero_changes_nothing() {
    for pairing in ["interleaved", "half_split"] {
        let case = Case::new("rope")
            .with("x", floats(25, &[2, 2, 8]))
            .with("cos", HostTensor::new(DType::F32, &[1, 4], &[1.0; 4]))
            .with("sin", HostTensor::new(DType::F32, &[1, 4], &[0.0; 4]))
            .with("positions", ints(&[0, 0]))
            .set("pairing", pairing);
        assert_eq!(holds(&case)["out"], case.tensors["x"]);
    }
}

#[test]
fn interleaved_and_half_split_pairs_are_not_the_same_rotation() {
    // A quarter turn: (a, b) becomes (-b, a).
    let case = Case::new("rope")
        .with("x", f32s(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]))
        .with("cos", f32s(&[1, 2], &[0.0; 2]))
        .with("sin", f32s(&[1, 2], &[1.0; 2]))
        .with("positions", ints(&[0]));
    let interleaved = holds(&case.clone().set("pairing", "interleaved"));
    assert_eq!(interleaved["out"].to_f32(), [-2.0, 1.0, -4.0, 3.0]);
    let half_split = holds(&case.set("pairing", "half_split"));
    assert_eq!(half_split["out"].to_f32(), [-3.0, -4.0, 1.0, 2.0]);
}
