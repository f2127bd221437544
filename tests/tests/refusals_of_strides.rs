//! Strides that a launcher does not take are refused with the tensor's name: those that no case of the gate reaches.

use crate::support::device;
use dsa_kernels::quant::Quantised;
use dsa_kernels::{DType, Device, KernelError, Tensor, bandwidth, cache_write, gemm, norm};

const F32: DType = DType::F32;

/// A tensor of `shape` whose last two axes lie in memory the other way round.
fn turned(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let axis = shape.len() - 1;
    let mut stored = shape.to_vec();
    stored.swap(axis - 1, axis);
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    device.upload(&bytes, &stored, dtype).unwrap().transpose(axis - 1, axis).unwrap()
}

fn empty(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
    device.empty(shape, dtype).unwrap()
}

/// `result` is a refusal of the strides of `tensor`.
#[track_caller]
fn refused<T>(tensor: &str, result: Result<T, KernelError>) {
    let Err(error) = result else { panic!("the strides of {tensor} were let through") };
    let message = error.to_string();
    assert!(message.starts_with(&format!("{tensor} has strides ")), "{tensor}: {message}");
    assert!(message.contains(", expected "), "{message}");
}

#[test]
fn launchers_of_no_kernel_of_the_gate_refuse_gaps_within_rows() {
    let device = &device();
    let (x, x_turned) = (empty(device, &[3, 8], F32), turned(device, F32, &[3, 8]));
    let weight = empty(device, &[8], F32);
    refused("out", norm::rms_norm_into(&x, &weight, &x_turned, 1e-6));
    let walk = bandwidth::walks(device)[0];
    refused("x", bandwidth::copy(&x_turned, &x, walk));
    refused("out", bandwidth::copy(&x, &x_turned, walk));
    let (x, w) = (empty(device, &[1, 3, 8], F32), empty(device, &[1, 4, 8], F32));
    refused("out", gemm::gemm_into(&x, &w, &turned(device, F32, &[1, 3, 4])));
}

#[test]
fn index_keys_that_act_quant_did_not_make_are_refused_by_name() {
    let device = &device();
    let cache = empty(device, &[2, 3 * 12], DType::U8);
    let slots = empty(device, &[5], DType::I32);
    let store = |codes: Tensor, scale: Tensor| {
        let keys = Quantised { codes, scale };
        cache_write::store_index_keys(&keys, &slots, &cache, 3).unwrap_err().to_string()
    };
    let codes = || empty(device, &[5, 8], DType::E4m3);
    let scale = || empty(device, &[5, 1], DType::F32);
    assert!(store(empty(device, &[5, 8], DType::F32), scale()).starts_with("codes holds f32"));
    assert!(store(turned(device, DType::E4m3, &[5, 8]), scale()).starts_with("codes has strides"));
    assert!(store(codes(), empty(device, &[5, 1], DType::Bf16)).starts_with("scale holds bf16"));
    assert!(store(codes(), empty(device, &[5, 2], DType::F32)).starts_with("scale has shape"));
    let gaps = empty(device, &[5, 2], DType::F32).narrow(1, 0, 1).unwrap();
    assert!(store(codes(), gaps).starts_with("scale has strides"));
}
