use super::*;
use proptest::prelude::*;

const LOGITS: [f32; 8] = [0.5, -1.0, 2.0, 0.5, f32::NEG_INFINITY, 1.5, -3.0, 2.0];

/// How often each id is drawn in `n` draws at as many positions.
fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    for position in 0..n {
        counts[sampling.sample(logits, 7, position).unwrap() as usize] += 1;
    }
    counts
}

/// Σ (drawn − expected)² / expected over the ids that may be drawn, and their number less one.
fn chi_square(counts: &[u32], probabilities: &[(u32, f32)]) -> (f64, usize) {
    let n = f64::from(counts.iter().sum::<u32>());
    let term = |(id, p): &(u32, f32)| {
        let expected = n * f64::from(*p);
        (f64::from(counts[*id as usize]) - expected).powi(2) / expected
    };
    (probabilities.iter().map(term).sum(), probabilities.len() - 1)
}

#[test]
fn a_hundred_thousand_draws_have_the_probabilities_of_the_softmax() {
    for (temperature, top_k, top_p, min_p) in
        [(1.0, 0, 1.0, 0.0), (0.6, 5, 1.0, 0.0), (1.5, 6, 0.95, 0.2)]
    {
        let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
        let probabilities = sampling.probabilities(&LOGITS).unwrap();
        // Computed here from the formula, over what is kept.
        let weight = |id: u32| (f64::from(LOGITS[id as usize]) / f64::from(temperature)).exp();
        let sum: f64 = probabilities.iter().map(|(id, _)| weight(*id)).sum();
        for (id, p) in &probabilities {
            assert!((weight(*id) / sum - f64::from(*p)).abs() < 1e-6, "{id} {p}");
        }
        let counts = draws(sampling, &LOGITS, 100_000);
        let kept: u32 = probabilities.iter().map(|(id, _)| counts[*id as usize]).sum();
        assert_eq!(kept, 100_000, "what was left out is never drawn");
        let (chi, freedom) = chi_square(&counts, &probabilities);
        // Beyond the 1e-6 quantile of χ² with up to 6 degrees of freedom; the draws are fixed by the seed.
        let bound = [0.0, 23.93, 27.63, 30.66, 33.38, 35.89, 38.26][freedom];
        assert!(chi < bound, "{chi} of {freedom} at temperature {temperature}: {counts:?}");
    }
}

/// The same test on draws that do not have the probabilities: it must see that.
#[test]
fn the_test_of_the_draws_sees_another_temperature() {
    let counts = draws(Sampling { temperature: 1.05, ..Sampling::default() }, &LOGITS, 100_000);
    let other = Sampling { temperature: 1.0, ..Sampling::default() };
    assert!(chi_square(&counts, &other.probabilities(&LOGITS).unwrap()).0 > 38.26);
}

#[test]
fn draws_of_other_positions_and_requests_are_independent() {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let logits = [0.0; 4];
    let mut pairs = [0u32; 16];
    for n in 0..20_000 {
        let first = sampling.sample(&logits, n, 3).unwrap();
        let second = sampling.sample(&logits, n, 4).unwrap();
        pairs[(first * 4 + second) as usize] += 1;
    }
    let uniform: Vec<_> = (0..16).map(|pair| (pair, 1.0 / 16.0)).collect();
    // The 1e-6 quantile of χ² with 15 degrees of freedom.
    assert!(chi_square(&pairs, &uniform).0 < 56.49, "{pairs:?}");
}

#[test]
fn the_lowest_of_equal_ids_comes_first() {
    let of = |sampling: Sampling| sampling.sample(&LOGITS, 0, 0).unwrap();
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    for temperature in [0.0, -1.0] {
        assert_eq!(of(Sampling { temperature, ..hot }), 2);
    }
    assert_eq!(of(Sampling { top_k: 1, ..hot }), 2);
    assert_eq!(of(Sampling { top_p: 0.0, ..hot }), 2);
    assert_eq!(Sampling::GREEDY.sample(&[f32::NEG_INFINITY, -7.0, -7.0], 0, 0).unwrap(), 1);
    // The two largest are equal, and the next two are: of these, one stays.
    let kept = |sampling: Sampling| -> Vec<u32> {
        sampling.probabilities(&LOGITS).unwrap().iter().map(|(id, _)| *id).collect()
    };
    assert_eq!(kept(Sampling { top_k: 2, ..hot }), [2, 7]);
    assert_eq!(kept(Sampling { top_k: 4, ..hot }), [0, 2, 5, 7]);
    assert_eq!(kept(Sampling { min_p: 1.0, ..hot }), [2, 7]);
    assert_eq!(of(Sampling { top_k: 1, ..Sampling { top_p: 0.5, min_p: 0.5, ..hot } }), 2);
}

#[test]
fn what_keeps_everything_keeps_every_finite_logit_and_changes_no_draw() {
    let all = Sampling { temperature: 1.0, ..Sampling::default() };
    for keeps in [
        Sampling { top_k: LOGITS.len(), ..all },
        Sampling { top_k: usize::MAX, ..all },
        Sampling { top_p: 1.0, ..all },
        Sampling { min_p: 0.0, ..all },
    ] {
        assert_eq!(keeps.probabilities(&LOGITS).unwrap().len(), 7);
        assert_eq!(draws(keeps, &LOGITS, 200), draws(all, &LOGITS, 200));
    }
    // All equal: each with the same probability, and every one is drawn.
    let equal = all.probabilities(&[3.0; 5]).unwrap();
    assert!(equal.iter().all(|(_, p)| *p == 0.2), "{equal:?}");
    assert!(draws(all, &[3.0; 5], 200).iter().all(|count| *count > 0));
    // Of equal ids, as many stay as the share needs.
    let half = Sampling { top_p: 0.6, ..all }.probabilities(&[3.0; 5]).unwrap();
    assert_eq!(half.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
    // A temperature of nearly 0 is the least there is, and overflows nowhere.
    let cold = Sampling { temperature: 1e-30, ..all };
    assert_eq!(cold.sample(&[f32::MAX, -f32::MAX, f32::MAX], 0, 0).unwrap() % 2, 0);
}

/// What is kept is cut in the order top_k, top_p, min_p, each of what the one before left.
#[test]
fn each_cut_is_made_of_what_the_one_before_left() {
    let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
    let all = Sampling { temperature: 1.0, ..Sampling::default() };
    let kept = |sampling: Sampling| sampling.probabilities(&logits).unwrap().len();
    // 0.4 + 0.3 are 0.7 of all but 0.78 of the first three.
    assert_eq!(kept(Sampling { top_p: 0.75, ..all }), 3);
    assert_eq!(kept(Sampling { top_p: 0.75, top_k: 3, ..all }), 2);
    assert_eq!(kept(Sampling { min_p: 0.6, ..all }), 2);
    assert_eq!(kept(Sampling { min_p: 0.6, top_p: 0.3, ..all }), 1);
    // The temperature comes first: at 0.5 the probabilities are squared.
    assert_eq!(kept(Sampling { min_p: 0.6, temperature: 0.5, ..all }), 1);
}

#[test]
fn what_decides_nothing_is_refused() {
    let all = Sampling::default();
    for (logits, said) in [
        (&[][..], "logits is an empty list, expected one for each token"),
        (&[1.0, f32::NAN], "logits is NaN for token 1, expected numbers below infinity"),
        (&[f32::INFINITY, 1.0], "logits is inf for token 0"),
        (&[f32::NEG_INFINITY; 3], "logits is -inf for every token"),
    ] {
        for sampling in [all, Sampling::GREEDY] {
            let error = sampling.sample(logits, 0, 0).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
            assert_eq!(sampling.probabilities(logits).unwrap_err().to_string(), error);
        }
        assert!(log_softmax(logits).is_err());
    }
    for (sampling, said) in [
        (Sampling { temperature: f32::NAN, ..all }, "temperature is NaN"),
        (Sampling { temperature: f32::INFINITY, ..all }, "temperature is inf"),
        (Sampling { top_p: 1.01, ..all }, "top_p is 1.01, expected 0 to 1"),
        (Sampling { top_p: f32::NAN, ..all }, "top_p is NaN"),
        (Sampling { min_p: -0.5, ..all }, "min_p is -0.5, expected 0 to 1"),
    ] {
        let error = sampling.sample(&LOGITS, 0, 0).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
}

/// The generator and how its numbers are used are part of what a seed promises.
#[test]
fn a_seed_draws_the_same_ids_on_every_machine() {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let logits: Vec<f32> = (0..1000).map(|id| (id % 17) as f32 / 4.0).collect();
    let ids: Vec<u32> =
        (0..6).map(|position| sampling.sample(&logits, 5, position).unwrap()).collect();
    assert_eq!(ids, [506, 733, 678, 117, 900, 882]);
}

#[test]
fn logarithms_of_probabilities_sum_to_one() {
    let logs = log_softmax(&LOGITS).unwrap();
    let sum: f64 = logs.iter().map(|log| f64::from(*log).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6 && logs[4] == f32::NEG_INFINITY, "{logs:?}");
    assert!((logs[2] - logs[5] - 0.5).abs() < 1e-6);
}

proptest! {
    /// The noise of an id is its own: leaving other ids out changes the winner only if the winner is left out.
    #[test]
    fn leaving_ids_out_changes_no_noise(
        logits in proptest::collection::vec(-4f32..4.0, 2..200), request: u64, position in 0usize..1 << 40, top_k in 1usize..50,
    ) {
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        let few = Sampling { top_k, ..all };
        let kept = few.probabilities(&logits).unwrap();
        let winner = all.sample(&logits, request, position).unwrap();
        let drawn = few.sample(&logits, request, position).unwrap();
        prop_assert!(kept.iter().any(|(id, _)| *id == drawn));
        if kept.iter().any(|(id, _)| *id == winner) {
            prop_assert_eq!(drawn, winner);
        }
        // The same draw again, and another seed's is another one for a long list of equals.
        prop_assert_eq!(all.sample(&logits, request, position).unwrap(), winner);
    }
}
