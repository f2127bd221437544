//! Frequencies, scales and pairings.
#![allow(clippy::excessive_precision)] // nine digits name an f32 without doubt
use crate::random::{Random, worst};
use dsa_reference::rope::*;
use ndarray::{Array3, array};

const YARN: Yarn = Yarn {
    factor: 40.0,
    original_max_position_embeddings: 4096,
    beta_fast: 32.0,
    beta_slow: 1.0,
    mscale: 1.0,
    mscale_all_dim: 1.0,
};

#[test]
fn the_frequencies_of_deepseek_v32() {
    #[rustfmt::skip]
    let expected: [f32; 32] = [
        1.0, 0.749894202, 0.562341332, 0.421696514, 0.316227764, 0.237137362, 0.177827939,
        0.133352146, 0.100000001, 0.0749894157, 0.0562341288, 0.0390069261, 0.0268793609,
        0.0183781441, 0.012447956, 0.0083345091, 0.00550000044, 0.00356199732, 0.00224936521,
        0.00137051346, 0.000790569407, 0.000414990413, 0.00017782794, 3.33380376e-5,
        2.50000012e-5, 1.87473543e-5, 1.40585325e-5, 1.05424124e-5, 7.90569447e-6, 5.9284348e-6,
        4.44569832e-6, 3.33380376e-6,
    ];
    assert_eq!(frequencies(64, 10000.0, Some(&YARN)), expected);
}

#[test]
fn without_yarn_the_frequencies_are_a_power_of_theta() {
    let freqs = frequencies(64, 10000.0, None);
    assert_eq!((freqs[0], freqs[8], freqs[16], freqs[24]), (1.0, 0.1, 0.01, 0.001));
    assert_eq!(frequencies(0, 10000.0, Some(&YARN)), [0.0f32; 0]);
    // Where the ramp has no width it is a step, not a division by zero.
    let step = Yarn { beta_fast: 1.0, beta_slow: 1.0, original_max_position_embeddings: 6, ..YARN };
    assert!(frequencies(64, 10000.0, Some(&step)).iter().all(|f| f.is_finite()));
}

#[test]
fn softmax_scales() {
    assert!((softmax_scale(192, Some(&YARN)) - 0.1352337789).abs() < 5e-11);
    assert_eq!(softmax_scale(64, None), 0.125);
    assert_eq!(softmax_scale(64, Some(&Yarn { factor: 1.0, ..YARN })), 0.125);
    assert_eq!(YARN.attention_factor(), 1.0);
    assert!(Yarn { mscale: 2.0, ..YARN }.attention_factor() > 1.2);
}

#[test]
fn the_angle_is_formed_in_f32() {
    let f = 0.749894202f32;
    let (cos, sin) = cos_sin(&[f], &[0, 131071]);
    assert_eq!((cos[(0, 0)], sin[(0, 0)]), (1.0, 0.0));
    let angle = 131071.0f32 * f;
    assert_eq!(cos[(1, 0)], f64::from(angle).cos() as f32);
    let exact = (131071.0 * f64::from(f)).cos() as f32;
    assert!((cos[(1, 0)] - exact).abs() > 1e-5, "an f64 angle is another one");
}

#[test]
fn which_dimensions_turn_together() {
    let quarter = (array![[0.0f32, 1.0]], array![[1.0f32, 0.0]]); // pair 0 by 90°, pair 1 not
    let x = Array3::from_shape_vec((1, 1, 4), vec![1.0, 2.0, 3.0, 4.0]).unwrap();
    let turn = |pairing| rope(x.view(), quarter.0.view(), quarter.1.view(), pairing);
    assert_eq!(turn(Pairing::Interleaved).into_raw_vec_and_offset().0, [-2.0, 1.0, 3.0, 4.0]);
    assert_eq!(turn(Pairing::HalfSplit).into_raw_vec_and_offset().0, [-3.0, 2.0, 1.0, 4.0]);
}

#[test]
fn only_the_distance_counts() {
    let mut random = Random::new(1);
    let (q, k) = (random.array3(1, 1, 64), random.array3(1, 1, 64));
    let freqs = frequencies(64, 10000.0, Some(&YARN));
    for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
        let at = |x: &Array3<f32>, position| {
            let (cos, sin) = cos_sin(&freqs, &[position]);
            rope(x.view(), cos.view(), sin.view(), pairing)
        };
        let dot = |a, b| (at(&q, a) * at(&k, b)).sum();
        assert!((dot(107, 100) - dot(7, 0)).abs() < 1e-3);
        assert!((dot(107, 100) - dot(107, 0)).abs() > 1e-2);
    }
    let both = [Pairing::Interleaved, Pairing::HalfSplit].map(|pairing| {
        let (cos, sin) = cos_sin(&freqs, &[5]);
        rope(q.view(), cos.view(), sin.view(), pairing)
    });
    assert!(worst(&both[0], &both[1]) > 0.1);
}

#[test]
fn what_the_tables_lack_is_nan() {
    let x = Array3::ones((2, 1, 5));
    let y = rope(x.view(), array![[1.0]].view(), array![[0.0]].view(), Pairing::Interleaved);
    let nan: Vec<bool> = y.iter().map(|y| y.is_nan()).collect();
    let row = |pair0| [pair0, pair0, true, true, false];
    assert_eq!(nan, [row(false), row(true)].concat());
}
