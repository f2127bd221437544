//! The experts of a layer in one tensor of more than 2^32 elements: 384 matrices of 3072 x 4096, of which a few are
//! written and read. Memory is given when it is touched (`sparse_memory.rs`).
//!
//! What an expert beyond 2^32 elements gives is held against the same expert in a small stack, which other tests hold
//! against the reference.

use crate::support::*;
use dsa_kernels::dequantise::{dequantise, dequantise_into};
use dsa_kernels::dispatch::dispatch;
use dsa_kernels::grouped_gemm::{Rows, grouped_gemm};
use dsa_kernels::quant::ScaleFmt;
use dsa_kernels::random_weights::{RandomWeights, random_weights};
use dsa_kernels::upload::Upload;
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Device, Tensor};

const EXPERTS: usize = 384;
const OUT: usize = 3072;
const INTO: usize = 4096;
/// The first, one whose elements begin below 2^32 and end above, and the last.
const FAR: [usize; 3] = [0, 341, EXPERTS - 1];

/// A tensor of `shape`, or why this device cannot have it, on stderr.
fn room(device: &Device, shape: &[usize], dtype: DType) -> Option<Tensor> {
    let made = device.empty(shape, dtype);
    made.map_err(|error| eprintln!("not run on {}: {error}", device.name())).ok()
}

/// Made-up numbers in expert `at` of a stack, those of `key`.
fn fill(stack: &Tensor, at: usize, key: u64, offset: u32, step: f32) {
    let expert = stack.narrow(0, at, 1).unwrap();
    let expert = expert.reshape(&[expert.len()]).unwrap();
    random_weights(&expert, RandomWeights { key, first: 0, offset, step }).unwrap();
}

/// A stack of `n` experts in which `filled` are written, the same numbers whatever their places.
fn fp8(device: &Device, n: usize, filled: &[usize]) -> Option<Weight> {
    let codes = room(device, &[n, OUT, INTO], DType::E4m3)?;
    let scale = device.empty(&[n, OUT / 128, INTO / 128], DType::F32).unwrap();
    for (key, at) in filled.iter().enumerate() {
        fill(&codes, *at, key as u64, 0, 1.0 / 256.0);
        fill(&scale, *at, 10 + key as u64, 1 << 18, 1e-9);
    }
    Some(Weight::fp8(codes, scale).unwrap())
}

#[test]
fn experts_beyond_two_to_the_thirty_two_elements_are_multiplied_as_near_ones() {
    let device = device();
    assert!(FAR[1] * OUT * INTO < 1 << 32 && (FAR[1] + 1) * OUT * INTO > 1 << 32);
    let Some(far) = fp8(&device, EXPERTS, &FAR) else { return };
    let near = fp8(&device, FAR.len(), &[0, 1, 2]).unwrap();
    let x = device.upload_f32(&floats(1, &[3, INTO]).to_f32(), &[3, INTO], DType::Bf16).unwrap();
    let product = |w: &Weight, experts: &[usize]| {
        // Each token goes to two of the three experts.
        let chosen = [0, 1, 1, 2, 0, 2].map(|nth| experts[nth] as i32);
        let indices = device.upload_i32(&chosen, &[3, 2]).unwrap();
        let pairs = dispatch(&indices, w.shape()[0]).unwrap();
        let tokens = Rows::Tokens { top_k: 2 };
        let y = grouped_gemm(&x, w, &pairs, tokens, ScaleFmt::Ue8m0, DType::Bf16).unwrap();
        y.download().unwrap()
    };
    let expected = product(&near, &[0, 1, 2]);
    assert!(expected.iter().any(|byte| *byte != 0));
    assert!(product(&far, &FAR) == expected);
}

#[test]
fn what_is_written_and_dequantised_beyond_two_to_the_thirty_two_elements_is_what_it_is_near() {
    let device = device();
    let (Some(Weight::Fp8 { codes, scale }), Some(numbers)) =
        (fp8(&device, EXPERTS, &FAR), room(&device, &[EXPERTS * OUT, INTO], DType::Bf16))
    else {
        return;
    };
    let one = |stack: &Tensor, at: usize| {
        let shape = stack.shape()[1..].to_vec();
        stack.narrow(0, at, 1).unwrap().reshape(&shape).unwrap()
    };
    for at in FAR {
        let (codes, scale) = (one(&codes, at), one(&scale, at));
        let to = numbers.narrow(0, at * OUT, OUT).unwrap();
        dequantise_into(&codes, Some(&scale), &to).unwrap();
        let near = dequantise(&codes, Some(&scale), DType::Bf16).unwrap();
        assert!(to.download().unwrap() == near.download().unwrap(), "expert {at}");
    }
    drop((codes, numbers));
    // The last expert comes from the host; what is before it is left as it is.
    let mut upload = Upload::new(&device, &[EXPERTS, OUT, INTO], DType::E4m3).unwrap();
    upload.take((EXPERTS - 1) * OUT * INTO).unwrap();
    let bytes: Vec<u8> = (0..OUT * INTO).map(|i| (i % 251) as u8).collect();
    upload.write(bytes[..1000].to_vec()).unwrap();
    upload.write(bytes[1000..].to_vec()).unwrap();
    let whole = upload.finish().unwrap();
    assert!(one(&whole, EXPERTS - 1).download().unwrap() == bytes);
}
