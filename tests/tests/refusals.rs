//! What a launcher does not take, it refuses with the tensor's name and what it expects.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::{Case, CaseError, HostTensor};
use dsa_kernels::KernelError;

/// The launcher's own refusal of `case`, which the contract must refuse too, for kernel and reference
/// alike.
#[track_caller]
pub fn refusal(case: &Case) -> String {
    let kernel = kernel_of(case);
    let by_contract = kernel.check(case).expect_err("the contract takes it").to_string();
    assert_eq!(kernel.run(&device(), case).unwrap_err().to_string(), by_contract);
    assert_eq!(kernel.reference(case).unwrap_err().to_string(), by_contract);
    match (kernel.launch)(&device(), case) {
        Ok(outputs) => panic!("{case:?} was let through: {outputs:?}"),
        Err(CaseError::Kernel(KernelError::Launch { reason, .. })) => {
            panic!("{case:?} reached the device: {reason}")
        }
        Err(error) => error.to_string(),
    }
}

/// `case` with `tensor` in another shape, filled with zeros.
fn reshaped(case: Case, tensor: &str, shape: &[usize]) -> Case {
    let dtype = case.tensors[tensor].dtype;
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    case.with(tensor, HostTensor { dtype, shape: shape.to_vec(), bytes })
}

#[test]
fn a_product_of_nothing_is_refused_before_its_output_is_made() {
    // 2^40 outputs of no terms.
    let case = reshaped(sample("gemm"), "x", &[1, 1 << 20, 0]);
    let message = refusal(&reshaped(case, "w", &[1, 1 << 20, 0]));
    assert!(message.starts_with("x has shape [1, 1048576, 0], expected k at least 1"), "{message}");
}
