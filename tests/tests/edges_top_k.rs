//! Edge cases of the selection.

use crate::support::*;
use dsa_gate::Case;
use dsa_kernels::random::Rng;

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// `0..n` followed by -1 up to `k`.
fn first(n: i32, k: usize) -> Vec<i32> {
    (0..k as i32).map(|i| if i < n { i } else { -1 }).collect()
}

fn normals(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.normal()).collect()
}

#[test]
fn a_context_shorter_than_k_is_taken_whole_and_padded_with_minus_one() {
    let rows = [normals(1, 5)];
    assert_eq!(selected(&top_k(&rows, 2048)), [first(5, 2048)]);
}

#[test]
fn lengths_of_k_minus_one_k_and_k_plus_one_fill_k_minus_one_k_and_k_places() {
    for (length, taken) in [(63, 63), (64, 64), (65, 64)] {
        let list = &selected(&top_k(&[normals(length as u64, length)], 64))[0];
        assert_eq!(list.iter().filter(|i| **i >= 0).count(), taken, "of {length}");
    }
}

#[test]
fn future_keys_become_minus_one() {
    let rows = vec![normals(2, 6); 6];
    let causal: Vec<(i32, i32)> = (0..6).map(|t| (0, t + 1)).collect();
    let lists = selected(&top_k_in(&rows, &causal, 6));
    for (t, list) in lists.iter().enumerate() {
        assert_eq!(*list, first(t as i32 + 1, 6), "row {t}");
    }
}

#[test]
fn of_a_tie_at_rank_k_the_lowest_columns_are_taken() {
    let row = vec![1.0, 5.0, 3.0, 3.0, 9.0, 3.0, 3.0, 2.0];
    assert_eq!(selected(&top_k(&[row], 4)), [[1, 2, 3, 4]]);
}

#[test]
fn a_plateau_of_zeros_straddling_rank_k_is_cut_at_the_lowest_columns() {
    // 100 keys are above zero and 50 below; of the other 19,850, half of them -0, the first
    // 1,948 fill the list.
    let value = |i: usize| match i % 400 {
        7 | 207 => 1.0 + i as f32,
        9 => -1.0,
        n if n % 2 == 0 => 0.0,
        _ => -0.0,
    };
    let row: Vec<f32> = (0..20_000).map(value).collect();
    let zeros = (0..20_000).filter(|i| value(*i) == 0.0).take(1_948);
    let mut expected: Vec<i32> =
        zeros.chain((0..20_000).filter(|i| value(*i) > 0.0)).map(|i| i as i32).collect();
    expected.sort();
    assert_eq!(expected.len(), 2_048);
    assert_eq!(selected(&top_k(&[row], 2_048)), [expected]);
}

#[test]
fn equal_scores_everywhere_select_the_first_columns() {
    for value in [0.0, -0.0, 1.5, -2.5e30, f32::MIN_POSITIVE / 4.0] {
        assert_eq!(selected(&top_k(&[vec![value; 300]], 64)), [first(64, 64)], "all {value}");
    }
}

#[test]
fn minus_zero_and_plus_zero_are_one_score() {
    assert_eq!(selected(&top_k(&[vec![-0.0, 0.0, -0.0, 0.0]], 2)), [[0, 1]]);
    assert_eq!(selected(&top_k(&[vec![0.0, -0.0, 0.0, -0.0]], 2)), [[0, 1]]);
    assert_eq!(selected(&top_k(&[vec![-1e-45, -0.0, 1e-45, 0.0]], 2)), [[1, 2]]);
}

#[test]
fn scores_that_differ_in_their_last_ten_bits_are_told_apart() {
    let mut rng = Rng::new(3);
    let low: Vec<u32> = (0..3_000).map(|_| rng.below(1_024) as u32).collect();
    let row: Vec<f32> = low.iter().map(|b| f32::from_bits(0x3f80_0000 | b)).collect();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(low[*i]), *i));
    let mut best: Vec<i32> = order[..64].iter().map(|i| *i as i32).collect();
    best.sort();
    assert_eq!(selected(&top_k(&[row], 64)), [best]);
}

#[test]
fn nan_of_any_sign_and_payload_is_never_selected() {
    let nans = [0x7fc0_0000, 0xffc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xff80_0001];
    let mut row: Vec<f32> = nans.map(f32::from_bits).to_vec();
    row.extend([1.0, -1.0]);
    assert_eq!(selected(&top_k(&[row], 8)), [[6, 7, -1, -1, -1, -1, -1, -1]]);
    assert_eq!(selected(&top_k(&[vec![NAN; 4]], 2)), [[-1, -1]]);
}

#[test]
fn minus_infinity_is_never_selected() {
    assert_eq!(selected(&top_k(&[vec![-INF, f32::MIN, -INF, 0.0]], 4)), [[1, 3, -1, -1]]);
}

#[test]
fn plus_infinity_is_selected_first() {
    assert_eq!(selected(&top_k(&[vec![1.0, f32::MAX, INF, 2.0, INF]], 3)), [[1, 2, 4]]);
    assert_eq!(selected(&top_k(&[vec![1.0, f32::MAX, INF, 2.0, INF]], 1)), [[2]]);
}

#[test]
fn the_order_holds_from_the_lowest_to_the_highest_number() {
    let tiny = f32::from_bits(1);
    let ascending = [f32::MIN, -1.0, -f32::MIN_POSITIVE, -tiny, 0.0, tiny, 1.0, f32::MAX];
    for k in 1..=ascending.len() {
        let best: Vec<i32> = (ascending.len() - k..ascending.len()).map(|i| i as i32).collect();
        assert_eq!(selected(&top_k(&[ascending.to_vec()], k)), [best]);
    }
}

#[test]
fn k_of_one_takes_the_largest() {
    let mut row = normals(4, 1_000);
    row[617] = 50.0;
    assert_eq!(selected(&top_k(&[row], 1)), [[617]]);
}

#[test]
fn rows_of_different_lengths_are_each_held_to_their_own() {
    let rows = vec![vec![1.0; 40]; 6];
    let ranges = [(0, 40), (0, 3), (5, 5), (9, 2), (38, i32::MAX), (i32::MIN, 2)];
    let lists = selected(&top_k_in(&rows, &ranges, 4));
    let no = -1;
    let expected =
        [[0, 1, 2, 3], [0, 1, 2, no], [no; 4], [no; 4], [38, 39, no, no], [0, 1, no, no]];
    assert_eq!(lists, expected);
}

#[test]
fn columns_outside_a_range_are_not_looked_at() {
    let mut row = vec![NAN; 50];
    row[..10].fill(INF);
    row[40..].fill(f32::MAX);
    row[20..30].copy_from_slice(&normals(5, 10));
    let all: Vec<i32> = (20..30).collect();
    assert_eq!(selected(&top_k_in(&[row], &[(20, 30)], 10)), [all]);
}

#[test]
fn indices_of_a_request_in_a_batch_count_from_the_start_of_the_batch() {
    // Two requests of 30 and 70 keys side by side; the second alone starts at 0.
    let row = normals(6, 100);
    let together = selected(&top_k_in(&[row.clone(), row.clone()], &[(0, 30), (30, 100)], 8));
    let alone = selected(&top_k(&[row[30..].to_vec()], 8));
    let shifted: Vec<i32> = alone[0].iter().map(|i| i + 30).collect();
    assert_eq!(together[1], shifted);
    assert!(together[0].iter().all(|i| (0..30).contains(i)));
}

#[test]
fn gaps_between_strided_rows_are_not_looked_at() {
    let rows = [normals(7, 33), normals(8, 33)];
    let case = top_k(&rows, 16);
    assert_eq!(selected(&case.clone().set("strided", true)), selected(&case));
}

#[test]
fn more_than_65535_rows_fit_the_grid() {
    let rows: Vec<Vec<f32>> = (0..70_000).map(|t| vec![0.0, (t % 3) as f32, 1.0]).collect();
    let lists = selected(&top_k(&rows, 1));
    for t in [0usize, 1, 2, 65_535, 65_536, 69_999] {
        assert_eq!(lists[t], [if t % 3 == 0 { 2 } else { 1 }], "row {t}");
    }
}

#[test]
fn the_window_policy_keeps_the_sinks_and_the_most_recent_keys() {
    let mut row = vec![-5.0; 100];
    row[50..60].fill(7.0);
    let case = top_k(&[row], 8).set("policy", "window").set("window", 3).set("sinks", 2);
    assert_eq!(selected(&case), [[0, 1, 50, 51, 52, 97, 98, 99]]);
}

#[test]
fn a_window_larger_than_k_gives_way_to_the_sinks_and_then_to_the_most_recent() {
    let case = top_k(&[vec![1.0; 20]], 5).set("policy", "window").set("window", 3).set("sinks", 2);
    assert_eq!(selected(&case), [[0, 1, 17, 18, 19]]);
    assert_eq!(selected(&case.clone().set("topk", 4)), [[0, 1, 18, 19]]);
    assert_eq!(selected(&case.clone().set("topk", 1)), [[0]]);
}

#[test]
fn the_window_policy_keeps_no_key_that_is_masked_or_nan() {
    let row = vec![NAN, 1.0, 2.0, 3.0, 4.0, 9.0, -INF, NAN];
    let case = top_k(&[row], 4).set("policy", "window").set("window", 3).set("sinks", 2);
    assert_eq!(selected(&case), [[1, 3, 4, 5]]);
}

#[test]
fn the_window_ends_with_the_rows_own_range() {
    let rows = vec![vec![1.0; 40]; 2];
    let case = top_k_in(&rows, &[(4, 20), (10, 40)], 5);
    let case = case.set("policy", "window").set("window", 3).set("sinks", 2);
    assert_eq!(selected(&case), [[4, 5, 17, 18, 19], [10, 11, 37, 38, 39]]);
}

#[test]
fn the_fraction_policy_takes_a_share_rounded_up_between_min_and_k() {
    let ranges = [(0, 1_000), (0, 201), (0, 3), (0, 0), (0, 12)];
    let rows = vec![vec![1.0; 1_000]; ranges.len()];
    let case = top_k_in(&rows, &ranges, 64);
    let case = case.set("policy", "fraction").set("per_mille", 50).set("min", 8);
    let counts: Vec<usize> =
        selected(&case).iter().map(|list| list.iter().filter(|i| **i >= 0).count()).collect();
    assert_eq!(counts, [50, 11, 3, 0, 8]);
}

#[test]
fn the_selected_scores_are_the_k_best_of_those_that_may_be_selected() {
    let mut rng = Rng::new(9);
    let mut row: Vec<f32> = (0..2_500).map(|_| (rng.below(9) as f32 - 4.0) / 2.0).collect();
    for _ in 0..200 {
        row[rng.below(2_500)] = [NAN, -INF, INF, -0.0][rng.below(4)];
    }
    for k in [1, 100, 1_700, 2_499] {
        let list = &selected(&top_k(&[row.clone()], k))[0];
        let mut best: Vec<f32> =
            row.iter().copied().filter(|v| !v.is_nan() && *v != -INF).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        best.truncate(k);
        let kept: Vec<usize> = list.iter().filter(|i| **i >= 0).map(|i| *i as usize).collect();
        let mut scores: Vec<f32> = kept.iter().map(|i| row[*i]).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(scores, best, "k {k}");
        assert!(kept.windows(2).all(|w| w[0] < w[1]), "ascending and without duplicates");
    }
}

/// A case in every way a row can be cut: as the device likes, not sifted, and sifted in some pieces.
#[track_caller]
fn selected_in_pieces(case: &Case) -> Vec<Vec<i32>> {
    let lists = selected(case);
    for pieces in [0, 1, 2, 7] {
        assert_eq!(selected(&case.clone().set("pieces", pieces)), lists, "in {pieces} pieces");
    }
    lists
}

#[test]
fn rows_of_300000_equal_scores_select_the_first_columns() {
    // No list of candidates has room for as many, and there are more than there are marks.
    for value in [0.0, -3.5] {
        let case = top_k(&[vec![value; 300_000]], 2_048);
        assert_eq!(selected_in_pieces(&case), [first(2_048, 2_048)]);
    }
}

#[test]
fn a_plateau_at_rank_k_longer_than_any_list_of_candidates_is_cut_at_the_lowest_columns() {
    // 1,000 keys are above the plateau, a third of the other 139,000 are below it.
    let value = |i: usize| match i {
        i if i % 140 == 3 => 2.0 + i as f32,
        i if i % 3 == 0 => -1.0,
        _ => 1.25,
    };
    let row: Vec<f32> = (0..140_000).map(value).collect();
    let plateau = (0..140_000).filter(|i| value(*i) == 1.25).take(1_048);
    let mut expected: Vec<i32> =
        plateau.chain((0..140_000).filter(|i| value(*i) > 1.25)).map(|i| i as i32).collect();
    expected.sort();
    assert_eq!(expected.len(), 2_048);
    assert_eq!(selected_in_pieces(&top_k(&[row], 2_048)), [expected]);
}

#[test]
fn the_best_columns_are_found_wherever_in_a_long_row_they_are() {
    // Rising, falling, all in one place, and hidden from every sample that steps by a power of two.
    let rising = (0..140_000).map(|i| i as f32).collect();
    let falling = (0..140_000).map(|i| -(i as f32)).collect();
    let mut heap = normals(21, 140_000);
    heap[70_001..73_000].iter_mut().for_each(|v| *v += 50.0);
    let comb = (0..140_000).map(|i| if i % 64 < 4 { 9.0 + i as f32 } else { -1.0 }).collect();
    selected_in_pieces(&top_k(&[rising, falling, heap, comb], 2_048));
}

#[test]
fn zeros_of_both_signs_at_the_end_of_a_list_are_listed() {
    // 250 keys are above zero, and so few are zero that the sample would list them all: the comparison that lists them
    // must not tell one zero from the other, nor take the largest number below them for one.
    let value = |i: usize| match i % 80 {
        3 => 1.0 + i as f32,
        17 => [0.0, -0.0, -0.0][i / 80 % 3],
        40 => -1e-45,
        _ => -1.0 - i as f32,
    };
    let row: Vec<f32> = (0..20_000).map(value).collect();
    let zeros = (0..20_000).filter(|i| value(*i) == 0.0).take(50);
    let mut expected: Vec<i32> =
        zeros.chain((0..20_000).filter(|i| value(*i) > 0.0)).map(|i| i as i32).collect();
    expected.sort();
    assert_eq!(expected.len(), 300);
    assert_eq!(selected_in_pieces(&top_k(&[row], 300)), [expected]);
}

#[test]
fn more_columns_than_a_team_keeps_are_chosen_from_lists_and_from_plateaus() {
    let plateau = (0..140_000).map(|i| if i % 9 == 2 { -(i as f32) } else { 1.0 }).collect();
    let late = (0..140_000).map(|i| if i < 130_000 { 0.0 } else { 1.0 }).collect();
    selected_in_pieces(&top_k(&[normals(22, 140_000), plateau, late], 8_192));
}

#[test]
fn a_row_whose_sample_misleads_is_chosen_from_all_the_same() {
    // Every 35th vector of 140,000 columns is sampled, from the 17th on: what it holds is nowhere else in one row, and
    // everywhere else in the other.
    let sampled = |i: usize| i / 4 % 35 == 17;
    let high = (0..140_000).map(|i| if sampled(i) { 9.0 } else { 0.0 } + (i % 1_000) as f32 / 1e4);
    let low = (0..140_000).map(|i| if sampled(i) { -9.0 } else { 0.0 } + (i % 1_000) as f32 / 1e4);
    selected_in_pieces(&top_k(&[high.collect(), low.collect()], 2_048));
    selected_in_pieces(&top_k(&[(0..140_000).map(|i| f32::from(!sampled(i))).collect()], 2_048));
}

#[test]
fn ranges_that_begin_and_end_inside_vectors_are_kept_to() {
    let rows: Vec<Vec<f32>> = (0..8).map(|t| normals(30 + t, 20_003)).collect();
    let ranges: Vec<(i32, i32)> = (0..8).map(|t| (t * 3 + t / 4, 20_003 - t * 5 / 3)).collect();
    for strided in [false, true] {
        let case = top_k_in(&rows, &ranges, 300).set("strided", strided);
        let lists = selected_in_pieces(&case);
        for (list, (start, end)) in lists.iter().zip(&ranges) {
            assert!(list.iter().all(|i| (*start..*end).contains(i)));
        }
    }
    // An even number of elements, so that rows are read in vectors, though each begins elsewhere in one.
    let rows: Vec<Vec<f32>> = (0..4).map(|t| normals(40 + t, 5_001)).collect();
    selected_in_pieces(&top_k_in(&rows, &[(0, 5_001), (1, 5_000), (2, 4_999), (3, 5)], 77));
}

#[test]
fn a_long_row_with_fewer_numbers_than_k_is_padded() {
    let mut rng = Rng::new(11);
    let mut row = vec![NAN; 30_000];
    row.iter_mut().step_by(2).for_each(|v| *v = -INF);
    let mut numbers: Vec<usize> = (0..500).map(|_| rng.below(30_000)).collect();
    numbers.sort();
    numbers.dedup();
    for (i, at) in numbers.iter().enumerate() {
        row[*at] = [INF, 0.0, -0.0, f32::MIN, 1.0][i % 5];
    }
    let lists = selected_in_pieces(&top_k(&[row], 2_048));
    let taken: Vec<usize> = lists[0].iter().filter(|i| **i >= 0).map(|i| *i as usize).collect();
    assert_eq!(taken, numbers);
}

#[test]
fn a_long_row_shorter_than_k_is_taken_whole() {
    let case = top_k(&[normals(12, 17_000)], 20_000);
    assert_eq!(selected_in_pieces(&case), [first(17_000, 20_000)]);
}

#[test]
fn nan_and_infinities_across_pieces_keep_their_places() {
    let mut rng = Rng::new(13);
    let mut row = normals(14, 50_000);
    for _ in 0..20_000 {
        row[rng.below(50_000)] = [NAN, -INF, INF, -NAN, -0.0][rng.below(5)];
    }
    for k in [1, 2_048, 4_500, 40_000] {
        selected_in_pieces(&top_k_in(&[row.clone(), row.clone()], &[(0, 50_000), (7, 49_999)], k));
    }
}

#[test]
fn policies_hold_in_long_rows_and_in_pieces() {
    let rows = [normals(15, 40_000), vec![0.5; 40_000]];
    let case = top_k(&rows, 2_048);
    let window = case.clone().set("policy", "window").set("window", 1_000).set("sinks", 9);
    for list in selected_in_pieces(&window) {
        assert_eq!(list[..9], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(list[1_048..], (39_000..40_000).collect::<Vec<i32>>());
    }
    let fraction = case.set("policy", "fraction").set("per_mille", 20).set("min", 5);
    for list in selected_in_pieces(&fraction) {
        assert_eq!(list.iter().filter(|i| **i >= 0).count(), 800);
    }
}

#[test]
fn a_share_of_nothing_selects_nothing() {
    let case = top_k(&[normals(16, 20_000)], 64).set("policy", "fraction");
    let case = case.set("per_mille", 0).set("min", 0);
    assert_eq!(selected_in_pieces(&case), [[-1; 64]]);
}
