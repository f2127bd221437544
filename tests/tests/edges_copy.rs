//! Edge cases of the kernels that measure a device's bandwidth and arithmetic.

use crate::support::*;
use dsa_kernels::bandwidth::{Walk, copy, read, sums, walks};
use dsa_kernels::{DType, Device, KernelError, peak};

/// The walks of this device, and some that a GPU has: teams of one turn, and blocks that the buffer ends in.
fn all_walks(device: &Device) -> Vec<Walk> {
    let walk = |width, in_flight, team, programs| Walk { width, in_flight, team, programs };
    let mut all = walks(device);
    all.extend([walk(4, 3, 32, None), walk(4, 8, 64, Some(1)), walk(4, 2, 32, Some(3))]);
    all
}

#[test]
fn a_copy_is_the_same_bits_however_and_whatever_is_walked() {
    let device = device();
    for walk in all_walks(&device) {
        for (rows, cols) in [(1, 16), (3, 16), (7, 1_008), (7_001, 16)] {
            let mut bytes = floats(1, &[rows, cols]).bytes;
            bytes[..16].fill(0xff);
            let x = device.upload(&bytes, &[rows, cols], DType::F32).unwrap();
            let out = device.upload(&vec![0; bytes.len()], &[rows, cols], DType::F32).unwrap();
            copy(&x, &out, walk).unwrap();
            assert!(out.download().unwrap() == bytes, "{rows} x {cols}, {walk}");
        }
    }
}

#[test]
fn a_read_sums_every_element_once_however_it_walks() {
    let device = device();
    for walk in all_walks(&device) {
        for (rows, cols) in [(1, 16), (7, 1_008), (7_001, 16)] {
            let bytes = floats(2, &[rows, cols]).bytes;
            let x = device.upload(&bytes, &[rows, cols], DType::F32).unwrap();
            let out = device.empty(&[1, sums(&device, rows * cols, walk)], DType::I32).unwrap();
            read(&x, &out, walk).unwrap();
            let words = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()));
            let want = words.fold(0, i32::wrapping_add);
            let got = out.download_i32().unwrap().into_iter().fold(0, i32::wrapping_add);
            assert_eq!(got, want, "{rows} x {cols}, {walk}");
        }
    }
}

#[test]
fn every_chain_takes_every_step() {
    let device = device();
    for shape in peak::chains(&device) {
        let (rows, width) = (2 + shape.chains, shape.width);
        // s <- 2 s + 1, from 0: after n steps 2^n - 1. Of the sixteen steps of a round, in f32, all bits are kept.
        let mut values = vec![0.0; rows * width];
        values[..width].fill(2.0);
        values[width..2 * width].fill(1.0);
        let x = device.upload_f32(&values, &[rows, width], DType::F32).unwrap();
        let out = device.empty(&[peak::chain_rows(&device, shape), width], DType::F32).unwrap();
        peak::chain(&x, &out, shape, 1).unwrap();
        let want = shape.chains as f32 * 65_535.0;
        assert!(out.download_f32().unwrap().iter().all(|sum| *sum == want), "{shape}");
    }
}

#[test]
fn a_copy_that_is_no_whole_number_of_vectors_or_of_another_shape_is_refused() {
    let device = device();
    let walk = Walk { width: 8, in_flight: 1, team: 1, programs: None };
    let tensor = |shape: &[usize], dtype| device.empty(shape, dtype).unwrap();
    let refusal = |x, out| -> KernelError { copy(&x, &out, walk).unwrap_err() };
    let f32 = DType::F32;
    let message = refusal(tensor(&[3, 7], f32), tensor(&[3, 7], f32)).to_string();
    assert_eq!(message, "x has shape [3, 7], expected rows of a multiple of 8 elements");
    let message = refusal(tensor(&[3, 8], f32), tensor(&[2, 8], f32)).to_string();
    assert!(message.starts_with("out has shape [2, 8], expected "), "{message}");
    let message = refusal(tensor(&[3, 8], f32), tensor(&[3, 8], DType::Bf16)).to_string();
    assert!(message.starts_with("out holds bf16, expected f32"), "{message}");
}
