//! Each kernel against the reference on random cases.

use crate::support::device;
use dsa_gate::gate::{cases, gate, regressions, replay, seed};
use dsa_gate::kernels::{ALL, find};
use std::io::Write;
use std::sync::Once;

/// Prints the seed once: on the stream itself, since the harness keeps what a passing test prints.
fn say_seed(cases: u32, seed: u64) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let _ = writeln!(
            std::io::stderr(),
            "properties: seed {seed}, {cases} cases a kernel (DSA_SEED, DSA_CASES)"
        );
    });
}

fn holds(kernel: &str) {
    let (cases, seed) = (cases().unwrap(), seed().unwrap());
    say_seed(cases, seed);
    match gate(find(kernel).unwrap(), &device(), cases, seed) {
        Ok(report) => println!("{report}"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn what_fell_once_and_was_kept_falls_no_more() {
    let mut files = std::fs::read_dir(regressions())
        .unwrap()
        .filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "safetensors")
        })
        .count();
    for kernel in ALL {
        let replayed = replay(kernel, &device(), &regressions()).unwrap();
        assert!(replayed.fallen.is_empty(), "{:?}", replayed.fallen);
        assert!(replayed.unread.is_empty(), "{:?}", replayed.unread);
        files -= replayed.cases;
    }
    assert_eq!(files, 0, "cases that are of no kernel");
}

macro_rules! properties {
    ($($kernel:ident)*) => {
        $(#[test] fn $kernel() { holds(stringify!($kernel)); })*

        #[test]
        fn every_kernel_has_a_property() {
            let tested = [$(stringify!($kernel)),*];
            for kernel in ALL {
                assert!(tested.contains(&kernel.name), "{} has no property test", kernel.name);
            }
        }
    };
}

properties! {
    act_quant round_trip store_kv store_index_keys hadamard rope rms_norm layer_norm gemm fold_scales
    indexer_logits indexer_logits_paged top_k shift_indices place_rows sparse_mla sparse_mla_paged dense_mha dense_mla
    embedding add_rms_norm router dispatch swiglu combine
    linear_fp8 grouped_gemm grouped_gemm_fp8
}
