//! Edge cases of the indexer.

use crate::support::*;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;

const NO: f32 = f32::NEG_INFINITY;

/// Logits that agree with the reference, by row.
#[track_caller]
fn logits(case: &Case) -> Vec<Vec<f32>> {
    let logits = &holds(case)["logits"];
    logits.to_f32().chunks(logits.shape[1].max(1)).map(<[f32]>::to_vec).collect()
}

/// Every logit inside the ranges is finite and every one outside is -inf.
fn only_inside(rows: &[Vec<f32>], ranges: &[(i32, i32)]) {
    for (t, (row, (ks, ke))) in rows.iter().zip(ranges).enumerate() {
        for (n, logit) in row.iter().enumerate() {
            let inside = *ks <= n as i32 && (n as i32) < *ke;
            assert_eq!(logit.is_finite(), inside, "row {t}, key {n}: {logit}");
            assert!(inside || *logit == NO, "row {t}, key {n}: {logit}");
        }
    }
}

#[test]
fn the_union_of_the_ranges_of_a_tile_never_leaks() {
    // Neighbouring queries of one tile with ranges that do not meet.
    let ranges = [(0, 5), (70, 90), (33, 34), (10, 64), (89, 90), (0, 90), (31, 33)];
    only_inside(&logits(&indexer(1, 4, 90, &ranges)), &ranges);
}

#[test]
fn future_keys_of_a_causal_prefill_are_minus_infinity() {
    let ranges: Vec<(i32, i32)> = (0..40).map(|t| (0, t + 1)).collect();
    only_inside(&logits(&indexer(2, 4, 40, &ranges)), &ranges);
}

#[test]
fn empty_reversed_and_unbounded_ranges_are_taken_as_they_are() {
    let ranges = [(7, 7), (9, 3), (-5, 4), (36, 99), (i32::MIN, i32::MAX), (i32::MAX, i32::MIN)];
    let rows = logits(&indexer(3, 4, 40, &ranges));
    only_inside(&rows, &ranges);
    assert!(rows[4].iter().all(|v| v.is_finite()), "the whole row");
}

#[test]
fn nan_in_keys_that_no_query_sees_does_not_leak() {
    let ranges = [(20, 30), (25, 41)];
    let clean = indexer(4, 4, 80, &ranges);
    let (mut k, mut scale) = (clean.tensors["k"].clone(), clean.tensors["k_scale"].clone());
    poison(&mut k, (0..20).chain(41..80));
    poison(&mut scale, (0..20).chain(41..80));
    let got = logits(&clean.clone().with("k", k).with("k_scale", scale));
    only_inside(&got, &ranges);
    assert_eq!(got, logits(&clean));
}

#[test]
fn a_key_that_is_nan_scores_nan_and_is_not_selected() {
    let case = indexer(5, 4, 40, &[(0, 40)]);
    let mut scale = case.tensors["k_scale"].clone();
    poison(&mut scale, [11, 29]);
    let row = logits(&case.with("k_scale", scale)).remove(0);
    let nan: Vec<usize> = (0..40).filter(|n| row[*n].is_nan()).collect();
    assert_eq!(nan, [11, 29]);
    let mut all: Vec<i32> = (0..40).filter(|n| *n != 11 && *n != 29).collect();
    all.extend([-1, -1]);
    assert_eq!(selected(&top_k(&[row], 40)), [all]);
}

#[test]
fn with_every_relu_closed_a_score_is_exactly_zero() {
    let case = indexer(6, 4, 40, &[(0, 40)]);
    let q = HostTensor::new(DType::E4m3, &[1, 4, DIM], &vec![-1.0; 4 * DIM]);
    let k: Vec<f32> = case.tensors["k"].to_f32().iter().map(|v| v.abs()).collect();
    let case = case.with("q", q).with("k", HostTensor::new(DType::E4m3, &[40, DIM], &k));
    let row = logits(&case).remove(0);
    assert!(row.iter().all(|v| *v == 0.0), "{row:?}");
    let first: Vec<i32> = (0..16).collect();
    assert_eq!(selected(&top_k(&[row], 16)), [first], "a plateau of either sign of zero");
}

#[test]
fn any_number_of_heads_from_1_to_16_and_127_and_128_is_taken() {
    for heads in (1..=16).chain([127, 128]) {
        let rows = logits(&indexer(7, heads, 40, &[(0, 40), (3, 9)]));
        only_inside(&rows, &[(0, 40), (3, 9)]);
    }
}

#[test]
fn heads_of_weight_zero_change_nothing() {
    let (few, many) = (indexer(8, 5, 40, &[(0, 40)]), indexer(8, 8, 40, &[(0, 40)]));
    let mut q = few.tensors["q"].clone();
    q.bytes.extend_from_slice(&many.tensors["q"].bytes[5 * DIM..]);
    q.shape[1] = 8;
    let mut w = few.tensors["weights"].to_f32();
    w.extend([0.0; 3]);
    let padded = few.clone().with("q", q).with("weights", f32s(&[1, 8], &w));
    same("indexer_logits", &holds(&padded), &holds(&few));
}

#[test]
fn more_than_65535_queries_fit_the_grid() {
    let ranges: Vec<(i32, i32)> = (0..70_000).map(|t| (t % 3, 3)).collect();
    let case = indexer(9, 4, 3, &ranges);
    let got = run(&case)["logits"].to_f32();
    let whole: Vec<Vec<f32>> = got.chunks(3).map(<[f32]>::to_vec).collect();
    only_inside(&whole, &ranges);
    // The last ones are right too, not only written.
    let mut last = case.clone();
    for name in ["q", "weights", "ks", "ke"] {
        last = last.with(name, rows(&case.tensors[name], 69_990..70_000));
    }
    has("indexer_logits", &holds(&last), "logits", &got[69_990 * 3..]);
}

#[test]
fn requests_of_a_batched_prefill_see_their_own_keys_alone() {
    // Three requests of 10, 1 and 25 keys, side by side, each causal.
    let mut ranges = Vec::new();
    for (start, len) in [(0, 10), (10, 1), (11, 25)] {
        ranges.extend((0..len).map(|t| (start, start + t + 1)));
    }
    let batch = indexer(10, 4, 36, &ranges);
    let got = logits(&batch);
    only_inside(&got, &ranges);
    let mut alone = batch.clone();
    for name in ["q", "k", "k_scale", "weights"] {
        alone = alone.with(name, rows(&batch.tensors[name], 11..36));
    }
    let (ks, ke): (Vec<i32>, Vec<i32>) = (0..25).map(|t| (0, t + 1)).unzip();
    let alone = logits(&alone.with("ks", ints(&ks)).with("ke", ints(&ke)));
    for (together, alone) in got[11..].iter().zip(&alone) {
        assert_eq!(together[11..], *alone);
    }
}

#[test]
fn pages_of_any_size_hold_the_same_keys() {
    for page_size in [1, 2, 53, 61, 64, 69, 576] {
        let max_pages = 80usize.div_ceil(page_size);
        let lens = [80.min((max_pages * page_size) as i32), 1, 37];
        let rows = logits(&indexer_paged(11, page_size, max_pages, &lens));
        only_inside(&rows, &lens.map(|len| (0, len)));
    }
}

#[test]
fn a_context_of_length_zero_reads_no_page() {
    let case = indexer_paged(12, 5, 4, &[0, -3, i32::MIN, 20]);
    let mut table = case.tensors["block_table"].to_i32();
    table[..12].copy_from_slice(&[i32::MAX, i32::MIN, -1, 16].repeat(3));
    let mut cache = case.tensors["cache"].clone();
    // The last request's pages are the first ones; nobody else may read theirs.
    poison(&mut cache, 4..16);
    let case = case.with("block_table", HostTensor::i32(&[4, 4], &table)).with("cache", cache);
    let rows = logits(&case);
    only_inside(&rows, &[(0, 0), (0, 0), (0, 0), (0, 20)]);
}

#[test]
fn slots_of_a_page_beyond_the_context_do_not_leak() {
    let clean = indexer_paged(13, 7, 2, &[9]);
    let mut cache = clean.tensors["cache"].clone();
    // Pages are in reverse: page 0 holds keys 7..14, of which 7 and 8 belong to the context.
    cache.bytes[2 * DIM..7 * DIM].fill(0xff);
    cache.bytes[7 * DIM + 2 * 4..7 * (DIM + 4)].fill(0xff);
    let got = logits(&clean.clone().with("cache", cache));
    only_inside(&got, &[(0, 9)]);
    assert_eq!(got, logits(&clean));
}

#[test]
fn a_page_that_does_not_exist_scores_minus_infinity() {
    for page in [-1, 3, i32::MIN, i32::MAX, 1 << 30] {
        let case = indexer_paged(14, 5, 3, &[15]);
        let table = HostTensor::i32(&[1, 3], &[2, page, 0]);
        let row = logits(&case.with("block_table", table)).remove(0);
        assert!(row[5..10].iter().all(|v| *v == NO), "page {page}: {row:?}");
        assert!(row[..5].iter().chain(&row[10..]).all(|v| v.is_finite()), "page {page}: {row:?}");
    }
}

#[test]
fn each_new_token_of_a_request_sees_one_key_more_than_the_one_before() {
    let case = indexer_paged(15, 5, 3, &[12, 2]);
    let case = case
        .with("q", HostTensor::new(DType::E4m3, &[2, 3, 4, DIM], &vec![0.5; 6 * 4 * DIM]))
        .with("weights", floats(15, &[6, 4]));
    let ranges = [(0, 10), (0, 11), (0, 12), (0, 0), (0, 1), (0, 2)];
    only_inside(&logits(&case), &ranges);
}

#[test]
fn a_negative_context_is_empty_for_every_new_token() {
    let case = indexer_paged(17, 5, 3, &[i32::MIN, i32::MIN + 1, -1]);
    let case = case
        .with("q", HostTensor::new(DType::E4m3, &[3, 3, 4, DIM], &vec![0.5; 9 * 4 * DIM]))
        .with("weights", floats(17, &[9, 4]));
    only_inside(&logits(&case), &[(0, 0); 9]);
}

#[test]
fn a_context_longer_than_the_output_is_cut_at_its_width() {
    let case = indexer_paged(16, 5, 3, &[15, i32::MAX]).set("max_context", 8);
    let rows = logits(&case);
    assert!(rows.iter().all(|row| row.len() == 8 && row.iter().all(|v| v.is_finite())));
}

/// The bits of the logits of `case`, row by row.
fn bits(case: &Case) -> Vec<Vec<u32>> {
    let row = |row: Vec<f32>| row.into_iter().map(f32::to_bits).collect();
    logits(case).into_iter().map(row).collect()
}

#[test]
fn a_row_has_the_same_bits_however_many_rows_there_are() {
    const NAMES: [&str; 4] = ["q", "weights", "ks", "ke"];
    // As many heads as fit a tile of one, two, four and more rows.
    for heads in [1, 8, 30, 32, 64, 128] {
        let ranges: Vec<(i32, i32)> = (0..23).map(|t| (t % 3, 300 - 7 * t)).collect();
        for dtype in [DType::E4m3, DType::Bf16] {
            let case = indexer(17, heads, 300, &ranges);
            let (q, k) = (case.tensors["q"].cast(dtype), case.tensors["k"].cast(dtype));
            let case = case.with("q", q).with("k", k);
            let whole = bits(&case);
            for chunk in [1, 2, 3, 8, 16] {
                for (first, expected) in (0..23).step_by(chunk).zip(whole.chunks(chunk)) {
                    let part = NAMES.iter().fold(case.clone(), |part, name| {
                        let range = first..(first + chunk).min(23);
                        part.with(name, rows(&case.tensors[*name], range))
                    });
                    assert!(
                        bits(&part) == expected,
                        "{heads} heads, {dtype}, {chunk} rows from {first}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_request_has_the_same_bits_alone_and_beside_others_and_with_a_drafted_token() {
    let lens = [150, 64, 192, 1, 0, 77];
    let case = indexer_paged(18, 64, 3, &lens);
    let whole = bits(&case);
    for (r, expected) in whole.iter().enumerate() {
        let part = ["q", "weights", "block_table", "context_lens"]
            .iter()
            .fold(case.clone(), |part, name| part.with(name, rows(&case.tensors[*name], r..r + 1)));
        assert!(bits(&part)[0] == *expected, "request {r} alone");
        // The same token, and another that sees one key more.
        let (q, w) = (&part.tensors["q"], &part.tensors["weights"]);
        let twice = |t: &HostTensor, shape: &[usize]| HostTensor {
            shape: shape.to_vec(),
            bytes: t.bytes.repeat(2),
            dtype: t.dtype,
        };
        let drafted = part
            .clone()
            .with("q", twice(q, &[1, 2, q.shape[2], q.shape[3]]))
            .with("weights", twice(w, &[2, w.shape[1]]))
            .with("context_lens", ints(&[lens[r] + 1]));
        let first = &bits(&drafted)[0];
        assert!(first[..191] == expected[..191], "request {r} with a drafted token");
    }
}
