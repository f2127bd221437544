//! Kernels that cheat or err, and must be caught for it.

use crate::harness::{caught, honest, misled, spoiled, with_floats};
use dsa_gate::{Case, HostTensor};

/// `case` with each number of its i32 tensor `name` changed.
fn with_ints(case: &Case, name: &str, f: impl Fn(i32) -> i32) -> Case {
    let tensor = &case.tensors[name];
    let values: Vec<i32> = tensor.to_i32().into_iter().map(f).collect();
    case.clone().with(name, HostTensor::i32(&tensor.shape, &values))
}

#[test]
fn zeros_are_caught() {
    let kernels = ["act_quant", "hadamard", "rope", "layer_norm", "gemm", "indexer_logits"];
    let attention = ["top_k", "sparse_mla", "sparse_mla_paged", "dense_mha", "dense_mla"];
    for kernel in kernels.into_iter().chain(attention) {
        spoiled(kernel, |_, outputs| {
            outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0));
        });
    }
}

#[test]
fn outputs_that_were_never_written_are_caught() {
    for kernel in ["store_kv", "store_index_keys", "round_trip", "rms_norm", "fold_scales"] {
        spoiled(kernel, |_, outputs| {
            outputs.values_mut().for_each(|tensor| tensor.bytes.fill(0xa5));
        });
    }
}

#[test]
fn a_last_row_that_is_skipped_is_caught() {
    for kernel in ["act_quant", "gemm", "indexer_logits", "top_k", "sparse_mla", "dense_mha"] {
        spoiled(kernel, |_, outputs| {
            for tensor in outputs.values_mut().filter(|t| t.shape[0] > 0) {
                let row = tensor.bytes.len() / tensor.shape[0];
                let at = tensor.bytes.len() - row;
                tensor.bytes[at..].fill(0);
            }
        });
    }
}

#[test]
fn last_columns_that_are_skipped_are_caught() {
    for kernel in ["hadamard", "rms_norm", "gemm", "indexer_logits", "sparse_mla_paged"] {
        spoiled(kernel, |_, outputs| {
            for tensor in outputs.values_mut() {
                let (row, size) = (*tensor.shape.last().unwrap_or(&0), tensor.dtype.size());
                for row in tensor.bytes.chunks_mut((row * size).max(1)) {
                    let tail = row.len() / size / 4 * size;
                    let at = row.len() - tail;
                    row[at..].fill(0);
                }
            }
        });
    }
}

#[test]
fn a_tie_that_the_highest_index_wins_is_caught() {
    let failure = caught("top_k", &|case| {
        // The honest selection on mirrored columns, mirrored back.
        let logits = case.tensor("logits")?;
        let (rows, length) = (logits.shape[0], logits.shape[1] as i32);
        let mut mirrored = logits.to_f32();
        mirrored.chunks_mut(length.max(1) as usize).for_each(<[f32]>::reverse);
        let fixed = case.scalars.get("policy").is_none_or(|policy| policy == "fixed");
        if !fixed {
            return honest(case);
        }
        let mirror = |name: &str| with_ints(case, name, |n| length - n.clamp(0, length));
        let case = case
            .clone()
            .with("logits", HostTensor::new(logits.dtype, &logits.shape, &mirrored))
            .with("ks", mirror("ke").tensors["ke"].clone())
            .with("ke", mirror("ks").tensors["ks"].clone());
        let mut outputs = honest(&case)?;
        let indices = outputs.get_mut("indices").unwrap();
        let topk = indices.shape[1];
        let mut all = indices.to_i32();
        for list in all.chunks_mut(topk) {
            let taken = list.iter().filter(|n| **n >= 0).count();
            list[..taken].iter_mut().for_each(|n| *n = length - 1 - *n);
            list[..taken].reverse();
        }
        *indices = HostTensor::i32(&[rows, topk], &all);
        Ok(outputs)
    });
    assert!(failure.reason.contains("indices["), "{failure}");
}

#[test]
fn indices_in_descending_order_are_caught() {
    spoiled("top_k", |_, outputs| {
        let indices = outputs.get_mut("indices").unwrap();
        let (shape, mut all) = (indices.shape.clone(), indices.to_i32());
        for list in all.chunks_mut(shape[1]) {
            let taken = list.iter().filter(|n| **n >= 0).count();
            list[..taken].reverse();
        }
        *indices = HostTensor::i32(&shape, &all);
    });
}

#[test]
fn a_range_that_ends_one_key_late_or_early_is_caught() {
    for kernel in ["indexer_logits", "top_k", "dense_mha", "dense_mla"] {
        misled(kernel, |case| with_ints(case, "ke", |ke| ke.saturating_add(1)));
        misled(kernel, |case| with_ints(case, "ke", |ke| ke.saturating_sub(1)));
        misled(kernel, |case| with_ints(case, "ks", |ks| ks.saturating_add(1)));
    }
    misled("indexer_logits_paged", |case| with_ints(case, "context_lens", |len| len - 1));
}

#[test]
fn a_last_listed_key_that_is_dropped_is_caught() {
    for kernel in ["sparse_mla", "sparse_mla_paged"] {
        misled(kernel, |case| {
            let (s, topk) = (case.tensors["indices"].shape[0], case.tensors["indices"].shape[1]);
            let all = HostTensor::i32(&[s], &vec![topk as i32; s]);
            let lengths = case.tensors.get("topk_length").cloned().unwrap_or(all);
            let case = case.clone().with("topk_length", lengths);
            with_ints(&case, "topk_length", |n| n.clamp(0, topk as i32) - 1)
        });
    }
}

#[test]
fn an_index_of_minus_one_taken_for_row_zero_is_caught() {
    misled("sparse_mla", |case| with_ints(case, "indices", |n| if n == -1 { 0 } else { n }));
}

#[test]
fn a_rotation_the_wrong_way_is_caught() {
    misled("rope", |case| case.clone().with("sin", with_floats(&case.tensors["sin"], |sin| -sin)));
    misled("rope", |case| {
        let other =
            if case.scalars["pairing"] == "interleaved" { "half_split" } else { "interleaved" };
        case.clone().set("pairing", other)
    });
}

#[test]
fn an_lse_in_base_two_is_caught() {
    for kernel in ["sparse_mla", "dense_mha", "dense_mla"] {
        let failure = spoiled(kernel, |_, outputs| {
            let lse = outputs.get_mut("lse").unwrap();
            *lse = with_floats(lse, |lse| lse / std::f32::consts::LN_2);
        });
        assert!(failure.reason.starts_with("lse["), "{failure}");
    }
}

#[test]
fn a_nan_in_place_of_zero_for_a_row_without_a_key_is_caught() {
    for kernel in ["sparse_mla", "sparse_mla_paged", "dense_mha", "dense_mla"] {
        let failure = spoiled(kernel, |_, outputs| {
            let lse = outputs["lse"].to_f32();
            let out = outputs.get_mut("out").unwrap();
            let d_v = *out.shape.last().unwrap();
            let mut values = out.to_f32();
            for (row, _) in lse.iter().enumerate().filter(|(_, lse)| **lse == f32::INFINITY) {
                values[row * d_v..(row + 1) * d_v].fill(f32::NAN);
            }
            *out = HostTensor::new(out.dtype, &out.shape, &values);
        });
        assert!(failure.reason.contains("is NaN where 0 is expected"), "{failure}");
    }
}

#[test]
fn an_lse_of_minus_infinity_for_a_row_without_a_key_is_caught() {
    let failure = spoiled("sparse_mla", |_, outputs| {
        let lse = outputs.get_mut("lse").unwrap();
        *lse = with_floats(lse, |lse| if lse == f32::INFINITY { -lse } else { lse });
    });
    assert!(failure.reason.contains("is -inf where inf is expected"), "{failure}");
}

#[test]
fn a_softmax_scale_or_a_weight_off_by_a_hundredth_is_caught() {
    for kernel in ["sparse_mla", "dense_mha"] {
        misled(kernel, |case| {
            let scale: f32 = case.scalar("softmax_scale").unwrap();
            case.clone().set("softmax_scale", scale * 1.01)
        });
    }
    misled("indexer_logits", |case| {
        case.clone().with("weights", with_floats(&case.tensors["weights"], |w| w * 1.01))
    });
}
