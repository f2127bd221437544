//! `dsa plan`, and that what it says is what is allocated.

use crate::cli::dsa;
use crate::support::device;
use dsa_kernels::DType;
use dsa_model::Model;
use dsa_model::config::Config;
use dsa_model::layers::Precision;
use dsa_model::plan::{Load, Plan};
use dsa_model::run::KvFormat;
use dsa_model::weights::{Checkpoint, Dtype};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

/// Bytes that this thread holds on the device.
fn in_use() -> u64 {
    dsa_kernels::memory::in_use(&device()).unwrap()
}

#[test]
fn a_plan_is_within_three_percent_of_what_is_allocated() {
    for (name, precision) in [
        ("demo", Precision::STORED),
        ("demo", Precision::dequantised(DType::Bf16)),
        ("glm", Precision::dequantised(DType::F32)),
    ] {
        let config = Config::read(&data(name)).unwrap();
        let weights = Checkpoint::open(&data(name)).unwrap();
        let fp8 = |name: &str| weights.form(name).is_ok_and(|(dtype, _)| dtype == Dtype::F8_E4M3);
        for format in [KvFormat::Elements, KvFormat::Fp8] {
            let load = Load {
                requests: 3,
                max_seq: 500,
                format,
                chunk: 64,
                logits_budget: 1 << 20,
                dense: false,
            };
            let plan = Plan::new(&config, precision, fp8, load);
            let before = in_use();
            let model = Model::new(&device(), &config, weights.root(), precision).unwrap();
            let loaded = in_use();
            let _cache = model.cache_of(load.requests, load.max_seq, format).unwrap();
            let held = in_use();
            for (what, said, found) in [
                ("weights", plan.all_weights(), loaded - before),
                ("cache", plan.cache, held - loaded),
            ] {
                let off = said as f64 / found as f64 - 1.0;
                assert!(off.abs() < 0.03, "{name}, {format:?}: {what} are {found}, not {said}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_said_with_what_would() {
    let config = data("configs/deepseek_v3_2_exp.json");
    let plan = |more: &[&str]| {
        let args = ["plan", "--config", config.to_str().unwrap(), "--max-seq", "131072"];
        dsa(&[&args, more].concat()).unwrap()
    };
    let (said, fits) = plan(&["--memory", "141000000000", "--kv-cache", "fp8"]);
    assert!(!fits && said.contains("\nweights                676."), "{said}");
    let would = "this would: 0 tokens a request, 0 requests, 1";
    assert!(said.contains("\ndoes not fit; ") && said.contains(would), "{said}");
    let (said, fits) = plan(&["--memory", "800000000000"]);
    assert!(fits && said.ends_with("\nfits\n"), "{said}");
    let checkpoint = data("tiny");
    let of = ["plan", "--ckpt", checkpoint.to_str().unwrap(), "--memory", "1000000"];
    let (said, fits) = dsa(&of).unwrap();
    assert!(!fits && said.contains("2560 tokens"), "{said}");
    let error = dsa(&["plan", "--memory", "1"]).unwrap_err();
    assert!(error.contains("--ckpt"), "{error}");
}
