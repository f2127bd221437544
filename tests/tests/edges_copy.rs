//! Edge cases of the copy that measures a device's bandwidth.

use crate::support::*;
use dsa_kernels::copy::copy;
use dsa_kernels::{DType, KernelError};

#[test]
fn a_copy_is_the_same_bits_whatever_the_number_of_vectors() {
    let device = device();
    for (rows, cols) in [(1, 8), (3, 8), (7, 1_000), (70_000, 8)] {
        let mut bytes = floats(1, &[rows, cols]).bytes;
        bytes[..16].fill(0xff);
        let x = device.upload(&bytes, &[rows, cols], DType::F32).unwrap();
        let out = device.upload(&vec![0; bytes.len()], &[rows, cols], DType::F32).unwrap();
        copy(&device, &x, &out).unwrap();
        assert!(device.download(&out).unwrap() == bytes, "{rows} x {cols}");
    }
}

#[test]
fn a_copy_that_is_no_whole_number_of_vectors_or_of_another_shape_is_refused() {
    let device = device();
    let tensor = |shape: &[usize], dtype| device.empty(shape, dtype).unwrap();
    let refusal = |x, out| -> KernelError { copy(&device, &x, &out).unwrap_err() };
    let f32 = DType::F32;
    let message = refusal(tensor(&[3, 7], f32), tensor(&[3, 7], f32)).to_string();
    assert_eq!(message, "x has shape [3, 7], expected rows of a multiple of 8 elements");
    let message = refusal(tensor(&[3, 8], f32), tensor(&[2, 8], f32)).to_string();
    assert!(message.starts_with("out has shape [2, 8], expected "), "{message}");
    let message = refusal(tensor(&[3, 8], f32), tensor(&[3, 8], DType::Bf16)).to_string();
    assert!(message.starts_with("out holds bf16, expected f32"), "{message}");
}
