//! Weights that are made up, and weights in another type.
use dsa_reference::dequantise::dequantise;
use dsa_reference::random_weights::random_weights;
use ndarray::{Array2, array};

#[test]
fn the_numbers_of_a_key_never_change() {
    // Checkpoints that were made once are functions of their seed.
    assert_eq!(random_weights(0, 0, 0, 1.0, 4).to_vec(), [-65535.0, -23957.0, 13876.0, 25048.0]);
    let of = |first| random_weights(0x1234_5678_9abc_def0, first, 1 << 18, 0.5, 1)[0];
    assert_eq!(
        [0, 1, u32::MAX].map(of),
        [-13_014.0, -33_969.0, -3_966.0].map(|t| (262_144.0 + t) * 0.5)
    );
}

#[test]
fn a_block_of_either_axis_has_one_scale_and_the_last_may_be_partial() {
    let (x, scale) = (Array2::from_elem((130, 129), 3.0), array![[1.0, 2.0], [4.0, 8.0]]);
    let out = dequantise(x.view(), Some(scale.view())).unwrap();
    let at = [(0, 0), (127, 127), (0, 128), (128, 0), (129, 128)];
    assert_eq!(at.map(|at| out[at]), [3.0, 3.0, 6.0, 12.0, 24.0]);
    assert_eq!(dequantise(x.view(), None).unwrap(), x);
    let error = dequantise(x.view(), Some(array![[1.0, 2.0]].view())).unwrap_err().to_string();
    assert!(error.starts_with("scale "), "{error}");
}
