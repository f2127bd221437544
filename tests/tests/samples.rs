//! One small case of every kernel, whose shapes are all different.

use crate::support::*;
use dsa_gate::kernels::{ALL, sample_of};
use dsa_gate::{Case, HostTensor};

/// A cache of zeros.
fn cache(n_pages: usize, page_bytes: usize) -> HostTensor {
    HostTensor::u8(&[n_pages, page_bytes], vec![0; n_pages * page_bytes])
}

/// A small case of `kernel` that every device takes.
pub fn sample(kernel: &str) -> Case {
    match kernel {
        "act_quant" | "round_trip" => {
            Case::new(kernel).with("x", floats(1, &[3, 130])).set("fmt", "ue8m0")
        }
        "store_kv" => Case::new(kernel)
            .with("c", floats(1, &[5, D_V]))
            .with("k_pe", floats(2, &[5, D_QK - D_V]))
            .with("slots", ints(&[4, 0, -1, 5, 2]))
            .with("cache", cache(2, 3 * RECORD.bytes()))
            .set("page_size", 3),
        "store_index_keys" => Case::new(kernel)
            .with("k", floats(1, &[5, DIM]))
            .with("slots", ints(&[4, 0, -1, 5, 2]))
            .with("cache", cache(2, 3 * (DIM + 4)))
            .set("page_size", 3),
        "hadamard" => Case::new(kernel).with("x", floats(1, &[3, DIM])),
        "rope" => Case::new(kernel)
            .with("x", floats(1, &[3, 2, 8]))
            .with("cos", floats(2, &[5, 4]))
            .with("sin", floats(3, &[5, 4]))
            .with("positions", ints(&[4, 0, 2]))
            .set("pairing", "interleaved"),
        "rms_norm" | "layer_norm" => {
            let case = Case::new(kernel)
                .with("x", floats(1, &[3, 20]))
                .with("weight", floats(2, &[20]))
                .set("eps", 1e-6);
            if kernel == "rms_norm" { case } else { case.with("bias", floats(3, &[20])) }
        }
        "gemm" => {
            Case::new(kernel).with("x", floats(1, &[2, 3, 16])).with("w", floats(2, &[2, 5, 16]))
        }
        "fold_scales" => Case::new(kernel)
            .with("weights", floats(1, &[3, 4]))
            .with("q_scale", floats(2, &[3, 4]))
            .set("factor", 0.25),
        "indexer_logits" => indexer(1, 4, 9, &[(0, 9), (2, 5), (3, 3)]).set("score_fn", "relu"),
        "indexer_logits_paged" => indexer_paged(1, 3, 2, &[5, 6]).set("score_fn", "relu"),
        "top_k" => top_k(&[vec![1.0; 40], vec![2.0; 40], vec![3.0; 40]], 8).set("policy", "fixed"),
        "shift_indices" => Case::new(kernel)
            .with("indices", HostTensor::i32(&[2, 3], &[4, 0, -1, 7, -1, -1]))
            .with("first", ints(&[10, 20])),
        "place_rows" => Case::new(kernel)
            .with("x", floats(1, &[3, 2, 5]))
            .with("slots", ints(&[3, -1, 0]))
            .with("out", floats(2, &[4, 2, 5])),
        "sparse_mla" => sparse(1, 9, &[vec![0, 5, 8, -1, 2], vec![1, 2, 3, 4, 9]]).set("splits", 1),
        "sparse_mla_paged" => {
            sparse_paged(1, 3, 3, &[vec![0, 5, 8, -1, 2], vec![1, 2, 3, 4, 9]]).set("splits", 1)
        }
        "dense_mha" => dense_mha(1, 9, &[(0, 8), (0, 9)]),
        "dense_mla" => dense_mla(1, 9, &[(0, 8), (0, 9)]).set("splits", 1),
        other => sample_of(other).unwrap_or_else(|| panic!("{other} has no sample")),
    }
}

#[test]
fn the_sample_of_every_kernel_agrees_with_the_reference() {
    for kernel in ALL {
        let outputs = holds(&sample(kernel.name));
        let promised: Vec<&str> =
            kernel.outputs.iter().map(|o| o.split(':').next().unwrap_or(o)).collect();
        let mut given: Vec<&str> = outputs.keys().copied().collect();
        given.sort_by_key(|name| promised.iter().position(|p| p == name));
        assert_eq!(given, promised, "outputs of {}", kernel.name);
    }
}
