//! A case is held against its kernel's own list, once, for kernel and reference alike: what nobody reads is
//! refused by name, and so is what no memory holds or nobody waits for.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::kernels::ALL;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// What kernel and reference say, which is the same.
#[track_caller]
fn refused(case: &Case) -> String {
    let by_kernel = kernel_of(case).run(&device(), case).unwrap_err().to_string();
    let by_reference = kernel_of(case).reference(case).unwrap_err().to_string();
    // What memory is free is another number a moment later.
    let lasting = |message: &str| {
        let free = message.ends_with("of the memory that is free)");
        let end = message.find(", expected at most").filter(|_| free);
        message[..end.unwrap_or(message.len())].to_string()
    };
    assert_eq!(lasting(&by_kernel), lasting(&by_reference));
    by_kernel
}

/// Zeros, or nothing where an axis is 0.
fn zeros(dtype: DType, shape: &[usize]) -> HostTensor {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    HostTensor { dtype, shape: shape.to_vec(), bytes }
}

#[test]
fn every_generated_case_keeps_its_contract() {
    for kernel in ALL {
        let mut runner = TestRunner::deterministic();
        for _ in 0..64 {
            let case = kernel.cases().new_tree(&mut runner).unwrap().current();
            if let Err(error) = kernel.check(&case) {
                panic!("{case:?}: {error}");
            }
        }
    }
}

#[test]
fn a_tensor_that_nobody_reads_is_refused_with_the_name_most_like_it() {
    let case = sample("sparse_mla").with("attn_sinks", f32s(&[4], &[0.0; 4]));
    assert_eq!(
        refused(&case),
        "sparse_mla reads no tensor named \"attn_sinks\"; did you mean attn_sink? It reads q, kv, \
         attn_sink, indices, topk_length"
    );
    for kernel in ALL {
        let message = refused(&sample(kernel.name).with("bystander", ints(&[1])));
        let reads = format!("{} reads no tensor named \"bystander\"; it reads ", kernel.name);
        assert!(message.starts_with(&reads), "{message}");
    }
}

#[test]
fn a_scalar_that_nobody_reads_is_refused() {
    let message = refused(&sample("sparse_mla").set("softmax_scaling", 2));
    assert!(message.contains("\"softmax_scaling\"; did you mean softmax_scale?"), "{message}");
    let message = refused(&sample("sparse_mla").set("causal", true));
    assert!(message.starts_with("sparse_mla reads no scalar named \"causal\"; it"), "{message}");
    let message = refused(&sample("shift_indices").set("strided", true));
    assert!(message.ends_with("it reads none"), "{message}");
}

#[test]
fn what_belongs_to_another_policy_is_refused() {
    let message = refused(&sample("top_k").set("window", 4));
    assert!(message.contains("it is read only with policy=window"), "{message}");
    let message = refused(&sample("top_k").set("policy", "fraction").set("per_mille", 4));
    assert!(message.starts_with("scalar min of top_k is missing"), "{message}");
}

#[test]
fn integers_in_the_form_of_floats_are_refused_by_both_sides() {
    let case = sample("top_k").with("ke", f32s(&[3], &[50.0, 5.0, 40.0]));
    assert_eq!(refused(&case), "ke holds f32, expected i32");
    let case = sample("indexer_logits_paged").with("context_lens", f32s(&[2], &[5.0, 6.0]));
    assert_eq!(refused(&case), "context_lens holds f32, expected i32");
    let case = sample("sparse_mla").with("kv", zeros(DType::Bf16, &[9, D_QK]));
    assert_eq!(refused(&case), "kv holds bf16, expected f32");
}

#[test]
fn axes_of_one_name_are_of_one_size() {
    let case = sample("top_k").with("ks", ints(&[0, 0]));
    assert_eq!(refused(&case), "ks has shape [2], expected [rows=3]");
    // The pages of a cache are as many bytes as page_size says, for the reference too.
    let case = sample("sparse_mla_paged").set("page_size", 4);
    assert!(
        refused(&case).starts_with("cache has shape [3, 108], expected [n_pages=3, page_size *")
    );
}

#[test]
fn scalars_that_only_a_device_reads_are_held_to_their_range_by_the_reference_too() {
    for (kernel, scalar, wrong) in
        [("sparse_mla", "splits", "0"), ("sparse_mla", "splits", "x"), ("top_k", "pieces", "1025")]
    {
        let message = refused(&sample(kernel).set(scalar, wrong));
        assert!(message.contains(scalar) && message.contains(wrong), "{message}");
    }
    let message = refused(&sample("sparse_mla").set("softmax_scale", 0));
    assert!(message.contains("expected a finite number above 0"), "{message}");
    for number in ["NaN", "inf", "1e400", "", "0x7"] {
        let message = refused(&sample("fold_scales").set("factor", number));
        assert!(message.contains("expected a finite number"), "{message}");
    }
}

#[test]
fn outputs_that_no_memory_holds_are_refused_before_either_side_runs() {
    let axis = (1 << 31) - 1;
    let huge = [
        sample("top_k")
            .with("logits", zeros(DType::F32, &[1 << 15, 0]))
            .with("ks", zeros(DType::I32, &[1 << 15]))
            .with("ke", zeros(DType::I32, &[1 << 15]))
            .set("topk", 1 << 20),
        // What the splits leave to be merged.
        Case::new("dense_mla")
            .with("q", zeros(DType::Bf16, &[1 << 16, 128, 8]))
            .with("kv", zeros(DType::Bf16, &[0, 8]))
            .with("ks", zeros(DType::I32, &[1 << 16]))
            .with("ke", zeros(DType::I32, &[1 << 16]))
            .set("softmax_scale", 1)
            .set("d_v", 1)
            .set("splits", 1024),
        Case::new("gemm")
            .with("x", zeros(DType::F32, &[1, 1 << 18, 1]))
            .with("w", zeros(DType::F32, &[1, 1 << 18, 1])),
        Case::new("indexer_logits")
            .with("q", zeros(DType::E4m3, &[1 << 18, 1, 1]))
            .with("k", zeros(DType::E4m3, &[1 << 18, 1]))
            .with("k_scale", zeros(DType::F32, &[1 << 18]))
            .with("weights", zeros(DType::F32, &[1 << 18, 1]))
            .with("ks", zeros(DType::I32, &[1 << 18]))
            .with("ke", zeros(DType::I32, &[1 << 18])),
        Case::new("indexer_logits_paged")
            .with("q", zeros(DType::E4m3, &[1 << 15, 1, 1, 1]))
            .with("cache", zeros(DType::U8, &[0, 5 << 20]))
            .with("weights", zeros(DType::F32, &[1 << 15, 1]))
            .with("context_lens", zeros(DType::I32, &[1 << 15]))
            .with("block_table", zeros(DType::I32, &[1 << 15, 1]))
            .set("page_size", 1 << 20)
            .set("max_context", 1 << 20),
    ];
    for case in huge {
        let message = refused(&case);
        let start = format!("the outputs of {} take ", case.kernel);
        assert!(
            message.starts_with(&start) && message.contains(" bytes, expected at"),
            "{message}"
        );
    }
    // The width of the outputs of dense_mha is that of a tensor without elements.
    let wide = Case::new("dense_mha")
        .with("q", zeros(DType::F32, &[10, 1, 8]))
        .with("k", zeros(DType::F32, &[0, 1, 8]))
        .with("v", zeros(DType::F32, &[0, 1, axis]))
        .with("ks", ints(&[0; 10]))
        .with("ke", ints(&[0; 10]))
        .set("softmax_scale", 1);
    assert_eq!(refused(&wide), "v has shape [0, 1, 2147483647], expected d_v from 1 to 1024");
}

#[test]
fn rows_without_columns_end_at_once_on_both_sides() {
    let axis = (1 << 31) - 1;
    let none = |shape: &[usize]| zeros(DType::F32, shape);
    for case in [
        Case::new("act_quant").with("x", none(&[axis, 0])),
        Case::new("round_trip").with("x", none(&[axis, 0])).set("strided", true),
        Case::new("rms_norm").with("x", none(&[axis, 0])).with("weight", none(&[0])).set("eps", 0),
        Case::new("layer_norm")
            .with("x", none(&[axis, 0]))
            .with("weight", none(&[0]))
            .with("bias", none(&[0]))
            .set("eps", 0)
            .set("strided", true),
        Case::new("gemm").with("x", none(&[axis, 0, 1])).with("w", none(&[axis, 0, 1])),
        Case::new("fold_scales")
            .with("weights", none(&[axis, 0]))
            .with("q_scale", none(&[axis, 0]))
            .set("factor", 1),
    ] {
        let start = std::time::Instant::now();
        holds(&case);
        assert!(start.elapsed().as_secs() < 5, "{case:?} took {:?}", start.elapsed());
    }
    // No heads are refused, no rows of width 0 are.
    let case = sample("sparse_mla").with("q", none(&[axis, 0, D_QK]));
    assert_eq!(refused(&case), "q has shape [2147483647, 0, 24], expected h from 1 to 128");
    let case = sample("hadamard").with("x", none(&[axis, 0]));
    assert_eq!(
        refused(&case),
        "x has shape [2147483647, 0], expected n from 1 to 1024, a power of two"
    );
}

#[test]
fn a_reference_of_hours_is_refused() {
    // 2^42 products of a megabyte, whose result would be 16 KB.
    let rows = 1 << 17;
    let case = Case::new("dense_mha")
        .with("q", zeros(DType::F32, &[rows, 1, 1]))
        .with("k", zeros(DType::F32, &[rows, 1, 1]))
        .with("v", zeros(DType::F32, &[rows, 1, 128]))
        .with("ks", zeros(DType::I32, &[rows]))
        .with("ke", zeros(DType::I32, &[rows]))
        .set("softmax_scale", 1);
    let message = kernel_of(&case).reference(&case).unwrap_err().to_string();
    let start = "the reference of dense_mha takes s * h * s_kv * (d_qk + d_v) = 2216203124736 oper";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn messages_about_names_and_values_of_a_file_are_short_and_printable() {
    let evil = format!("\u{1b}[2J\u{202e}PASS\n{}", "x".repeat(200_000));
    for case in [
        sample("gemm").with(&evil, ints(&[1])),
        sample("gemm").set(&evil, "1"),
        sample("gemm").set("strided", &evil),
        sample("top_k").set("topk", &evil),
        Case::new("gemm").with(&evil, ints(&[1])),
        sample("gemm").with("x", zeros(DType::F32, &[0; 8])),
    ] {
        let message = refused(&case);
        assert!(message.len() < 1_000, "{} bytes", message.len());
        assert!(message.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{message}");
    }
    let unknown = dsa_gate::kernels::find(&evil).unwrap_err().to_string();
    assert!(unknown.len() < 300 && unknown.chars().all(|c| !c.is_control()), "{unknown}");
}
