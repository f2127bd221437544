//! Each kernel against the reference on random cases.

use dsa_kernels::Device;
use dsa_tests::gate::{gate, seed};
use dsa_tests::kernels::find;

/// Cases of each kernel; `DSA_CASES` overrides it.
fn cases() -> u32 {
    std::env::var("DSA_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

fn holds(kernel: &str) {
    let device = Device::best().unwrap();
    match gate(find(kernel).unwrap(), &device, cases(), seed()) {
        Ok(report) => println!("{report}"),
        Err(failure) => panic!("{failure}"),
    }
}

macro_rules! properties {
    ($($kernel:ident)*) => {
        $(#[test] fn $kernel() { holds(stringify!($kernel)); })*

        #[test]
        fn every_kernel_has_a_property() {
            let tested = [$(stringify!($kernel)),*];
            for kernel in dsa_tests::kernels::ALL {
                assert!(tested.contains(&kernel.name), "{} has no property test", kernel.name);
            }
        }
    };
}

properties! {
    act_quant round_trip store_kv store_index_keys hadamard rope rms_norm layer_norm gemm fold_scales
    indexer_logits indexer_logits_paged top_k shift_indices place_rows sparse_mla sparse_mla_paged dense_mha dense_mla
}
