//! What a launcher does not take, it refuses with the tensor's name and what it expects.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::kernels::ALL;
use dsa_gate::{Case, CaseError, HostTensor};
use dsa_kernels::{DType, KernelError};

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

/// The name a launcher has for a case's tensor, if it is another.
fn launcher_name<'a>(kernel: &str, tensor: &'a str) -> &'a str {
    if (kernel, tensor) == ("store_index_keys", "k") { "x" } else { tensor }
}

#[test]
fn a_missing_tensor_is_refused_by_its_name() {
    for kernel in ALL {
        let whole = sample(kernel.name);
        for name in whole.tensors.keys() {
            let mut case = whole.clone();
            case.tensors.remove(name);
            let message = refusal(&case);
            assert!(message.contains(&format!("has no tensor {name:?}")), "{message}");
        }
    }
}

#[test]
fn a_tensor_of_a_wrong_type_is_refused_by_its_name() {
    for kernel in ALL {
        let whole = sample(kernel.name);
        for (name, tensor) in &whole.tensors {
            let wrong = if tensor.dtype == DType::U8 { DType::F32 } else { DType::U8 };
            let message = refusal(&whole.clone().with(name, tensor.cast(wrong)));
            let name = launcher_name(kernel.name, name);
            assert!(
                message.starts_with(&format!("{name} holds {wrong}, expected ")),
                "{name} of {}: {message}",
                kernel.name
            );
        }
    }
}

#[test]
fn a_tensor_of_a_wrong_rank_is_refused_by_its_name() {
    for kernel in ALL {
        let whole = sample(kernel.name);
        for (name, tensor) in &whole.tensors {
            let mut shape = vec![1, 1];
            shape.extend(&tensor.shape);
            for shape in [shape, vec![]] {
                let message = refusal(&reshaped(whole.clone(), name, &shape));
                let name = launcher_name(kernel.name, name);
                assert!(
                    message.starts_with(&format!("{name} has shape {shape:?}, expected ")),
                    "{name} of {}: {message}",
                    kernel.name
                );
            }
        }
    }
}

#[test]
fn a_tensor_of_a_wrong_size_is_refused_by_its_name() {
    // The samples' shapes with one number changed.
    let wrong: &[(&str, &str, &[usize])] = &[
        ("store_kv", "k_pe", &[4, 8]),
        ("store_kv", "slots", &[4]),
        ("store_kv", "cache", &[2, 107]),
        ("store_index_keys", "slots", &[6]),
        ("store_index_keys", "cache", &[2, 107]),
        ("hadamard", "x", &[3, 24]),
        ("hadamard", "x", &[3, 0]),
        ("hadamard", "x", &[3, 2048]),
        ("rope", "x", &[3, 2, 7]),
        ("rope", "x", &[3, 2, 0]),
        ("rope", "cos", &[5, 3]),
        ("rope", "sin", &[4, 4]),
        ("rope", "positions", &[2]),
        ("rms_norm", "weight", &[19]),
        ("layer_norm", "weight", &[21]),
        ("layer_norm", "bias", &[19]),
        ("gemm", "w", &[1, 5, 16]),
        ("gemm", "w", &[2, 5, 15]),
        ("linear_fp8", "w", &[131, 139]),
        ("linear_fp8", "w_scale", &[1, 2]),
        ("linear_fp8", "w_scale", &[2, 3]),
        ("grouped_gemm", "w", &[4, 5, 15]),
        ("grouped_gemm", "order", &[5]),
        ("grouped_gemm", "ends", &[3]),
        ("grouped_gemm_fp8", "w_scale", &[3, 1, 1]),
        ("grouped_gemm_fp8", "w_scale", &[4, 2, 1]),
        ("fold_scales", "q_scale", &[3, 5]),
        ("fold_scales", "q_scale", &[2, 4]),
        ("indexer_logits", "k", &[9, 31]),
        ("indexer_logits", "k_scale", &[8]),
        ("indexer_logits", "weights", &[3, 5]),
        ("indexer_logits", "weights", &[2, 4]),
        ("indexer_logits", "ks", &[2]),
        ("indexer_logits", "ke", &[4]),
        ("indexer_logits_paged", "cache", &[4, 107]),
        ("indexer_logits_paged", "weights", &[2, 3]),
        ("indexer_logits_paged", "context_lens", &[3]),
        ("indexer_logits_paged", "block_table", &[1, 2]),
        ("top_k", "ks", &[2]),
        ("top_k", "ke", &[4]),
        ("sparse_mla", "kv", &[9, 23]),
        ("sparse_mla", "kv", &[3, 3, 25]),
        ("sparse_mla", "indices", &[3, 5]),
        ("sparse_mla_paged", "cache", &[3, 107]),
        ("sparse_mla_paged", "indices", &[1, 5]),
        ("dense_mha", "k", &[9, 3, 24]),
        ("dense_mha", "k", &[9, 4, 23]),
        ("dense_mha", "v", &[8, 4, 16]),
        ("dense_mha", "v", &[9, 5, 16]),
        ("dense_mha", "ks", &[1]),
        ("dense_mha", "ke", &[3]),
        ("dense_mla", "kv", &[9, 25]),
        ("dense_mla", "ks", &[1]),
        ("dense_mla", "ke", &[3]),
    ];
    for (kernel, tensor, shape) in wrong {
        let case = reshaped(sample(kernel), tensor, shape);
        let message = refusal(&case);
        assert!(
            message.starts_with(&format!("{tensor} has shape {shape:?}, expected ")),
            "{tensor} of {kernel}: {message}"
        );
    }
}

#[test]
fn more_heads_or_wider_rows_than_the_kernels_hold_are_refused() {
    for heads in [0, 129] {
        for (kernel, dim) in [("sparse_mla", D_QK), ("sparse_mla_paged", D_QK), ("dense_mla", D_QK)]
        {
            let message = refusal(&reshaped(sample(kernel), "q", &[2, heads, dim]));
            assert!(message.contains("expected h from 1 to 128"), "{kernel}: {message}");
        }
        let mha = reshaped(sample("dense_mha"), "k", &[9, heads, D_QK]);
        let mha = reshaped(reshaped(mha, "v", &[9, heads, D_V]), "q", &[2, heads, D_QK]);
        assert!(refusal(&mha).contains("expected h from 1 to 128"));
        let index = reshaped(sample("indexer_logits"), "q", &[3, heads, DIM]);
        assert!(refusal(&reshaped(index, "weights", &[3, heads])).contains("H from 1 to 128"));
        let paged = reshaped(sample("indexer_logits_paged"), "q", &[2, 1, heads, DIM]);
        assert!(refusal(&reshaped(paged, "weights", &[2, heads])).contains("H from 1 to 128"));
    }
    for dim in [0, 257] {
        let index = reshaped(sample("indexer_logits"), "q", &[3, 4, dim]);
        assert!(refusal(&reshaped(index, "k", &[9, dim])).contains("D from 1 to 256"));
    }
    for d_qk in [0, 1025] {
        let wide = reshaped(sample("sparse_mla"), "q", &[2, 4, d_qk]);
        let wide = reshaped(wide, "kv", &[9, d_qk]);
        assert!(refusal(&wide).contains("d_qk from 1 to 1024"));
    }
    let wide = reshaped(sample("store_index_keys"), "k", &[5, 129]);
    assert!(refusal(&reshaped(wide, "cache", &[2, 3 * 133])).contains("D from 1 to 128"));
}

#[test]
fn a_rotation_without_a_position_is_refused() {
    let case = reshaped(sample("rope"), "cos", &[0, 4]);
    let message = refusal(&reshaped(case, "sin", &[0, 4]));
    assert!(
        message.starts_with("cos has shape [0, 4], expected positions at least 1"),
        "{message}"
    );
}

#[test]
fn a_product_of_nothing_is_refused_before_its_output_is_made() {
    // 2^40 outputs of no terms.
    let case = reshaped(sample("gemm"), "x", &[1, 1 << 20, 0]);
    let message = refusal(&reshaped(case, "w", &[1, 1 << 20, 0]));
    assert!(message.starts_with("x has shape [1, 1048576, 0], expected k at least 1"), "{message}");
}

#[test]
fn an_optional_tensor_that_does_not_fit_is_refused_by_its_name() {
    for kernel in ["sparse_mla", "sparse_mla_paged"] {
        for (tensor, wrong) in [
            ("topk_length", ints(&[1, 2, 3])),
            ("topk_length", f32s(&[2], &[1.0, 2.0])),
            ("attn_sink", f32s(&[3], &[0.0; 3])),
            ("attn_sink", ints(&[0; 4])),
        ] {
            let message = refusal(&sample(kernel).with(tensor, wrong));
            assert!(message.starts_with(tensor) && message.contains(", expected "), "{message}");
        }
    }
}
