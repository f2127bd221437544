//! Hadamard transform, norms, matrix products.
use crate::random::{Random, worst};
use dsa_reference::hadamard::hadamard;
use dsa_reference::linear::{linear, linear_fp8};
use dsa_reference::norm::{layer_norm, rms_norm};
use dsa_reference::quant::{ScaleFmt, act_quant, e4m3_decode, e4m3_encode};
use ndarray::{Array1, Array2, array};

#[test]
fn hadamard_is_its_own_inverse_and_keeps_dot_products() {
    let mut random = Random::new(4);
    for n in [1, 2, 32, 128] {
        let (x, y) = (random.array2(3, n), random.array2(3, n));
        let (hx, hy) = (hadamard(x.view()).unwrap(), hadamard(y.view()).unwrap());
        assert!(worst(&hadamard(hx.view()).unwrap(), &x) < 1e-5);
        assert!(worst(&hx.dot(&hy.t()), &x.dot(&y.t())) < 1e-4);
        if n > 1 {
            assert!(worst(&hx.dot(&y.t()), &x.dot(&y.t())) > 0.1, "one side alone changes them");
        }
    }
    let unit = hadamard(array![[0.0, 1.0, 0.0, 0.0]].view()).unwrap();
    assert_eq!(unit, array![[0.5, -0.5, 0.5, -0.5]]);
    for n in [0, 3, 192] {
        let error = hadamard(Array2::zeros((1, n)).view()).unwrap_err().to_string();
        assert_eq!(error, format!("row length is {n}, expected a power of two"));
    }
}

#[test]
fn the_two_norms() {
    let x = array![[3.0, 4.0]];
    let rms = rms_norm(x.view(), array![1.0, 2.0].view(), 0.0).unwrap();
    assert!(worst(&rms, &array![[0.848_528_14, 2.262_741_7]]) < 1e-6);
    let ln = layer_norm(x.view(), array![1.0, 2.0].view(), array![0.5, 0.0].view(), 0.0).unwrap();
    assert_eq!(ln, array![[-0.5, 2.0]]);
    assert_eq!(rms_norm(array![[0.0]].view(), array![1.0].view(), 1e-6).unwrap(), array![[0.0]]);
    let error = rms_norm(x.view(), array![1.0].view(), 0.0).unwrap_err().to_string();
    assert_eq!(error, "weight has shape [1], expected [2]");
    assert!(layer_norm(x.view(), array![1.0, 1.0].view(), array![1.0].view(), 0.0).is_err());
}

#[test]
fn fp8_linear_is_the_product_of_what_is_dequantised() {
    let mut random = Random::new(5);
    let (m, n, k) = (3, 200, 300);
    let x = random.array2(m, k);
    let codes = random.array2(n, k).mapv(|w| e4m3_encode(w * 100.0));
    let w_scale = Array2::from_shape_fn((2, 3), |(i, j)| 0.01 * (1 + i + 2 * j) as f32);
    let w = Array2::from_shape_fn((n, k), |(i, j)| {
        e4m3_decode(codes[(i, j)]) * w_scale[(i / 128, j / 128)]
    });
    for fmt in [ScaleFmt::Plain, ScaleFmt::Ue8m0] {
        let y = linear_fp8(x.view(), codes.view(), w_scale.view(), fmt).unwrap();
        let dequantised = act_quant(x.view(), 128, fmt).unwrap().dequantise();
        let expected = linear(dequantised.view(), w.view());
        assert!(worst(&y, &expected) < 1e-3 * expected.iter().fold(0.0, |a, x| x.abs().max(a)));
    }
    assert!(linear_fp8(x.view(), codes.view(), w.view(), ScaleFmt::Plain).is_err());
}

#[test]
fn linear_multiplies_by_the_transpose() {
    let y = linear(array![[1.0, 2.0]].view(), array![[3.0, 4.0], [5.0, 6.0], [0.0, 1.0]].view());
    assert_eq!(y, array![[11.0, 17.0, 2.0]]);
    assert!(linear(array![[1.0, 2.0]].view(), array![[3.0]].view())[(0, 0)].is_nan());
    // Adding 1e8 and taking it away keeps the 1 between: the sum is f64.
    let ones = Array1::ones(3).insert_axis(ndarray::Axis(0));
    assert_eq!(linear(array![[1e8, 1.0, -1e8]].view(), ones.view()), array![[1.0]]);
}
