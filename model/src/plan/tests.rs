use super::*;
use crate::config::Config;
use std::path::Path;

const GIB: f64 = (1u64 << 30) as f64;

fn v32() -> Config {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/configs");
    Config::read(&data.join("deepseek_v3_2_exp.json")).unwrap()
}

fn load(format: KvFormat) -> Load {
    let (chunk, logits_budget) = (4096, 512 << 20);
    Load { requests: 1, max_seq: 128 << 10, format, chunk, logits_budget, dense: false }
}

fn plan(config: &Config, load: Load) -> Plan {
    Plan::new(config, Precision::STORED, |name| published_fp8(config, name), load)
}

#[track_caller]
fn near(got: f64, want: f64, off: f64) {
    assert!((got / want - 1.0).abs() < off, "{got}, not {want}");
}

#[test]
fn deepseek_v3_2_takes_what_is_known_of_it() {
    let config = v32();
    let plan = plan(&config, load(KvFormat::Elements));
    // A dense layer, one with experts, and all with a head that is f32, as it is counted elsewhere.
    near(plan.layers[0] as f64 / 1e9, 0.63, 0.01);
    near(plan.layers[3] as f64 / 1e9, 11.56, 0.001);
    let head = plan.weights["head"];
    near((plan.all_weights() + head) as f64 / 1e9, 677.9, 0.001);
    let rotary = 4.0 * 64.0 * 131_072.0;
    near((plan.cache as f64 - rotary) / GIB, 9.56, 0.001);
    let records = super::cache(&config, DType::Bf16, load(KvFormat::Fp8));
    near((records as f64 - rotary) / GIB, 5.87, 0.001);
    // Dequantised, each code is two bytes.
    let wide = Precision::dequantised(DType::Bf16);
    let wide = Plan::new(&config, wide, |_| true, load(KvFormat::Fp8));
    near(wide.layers[3] as f64 / 1e9, 23.04, 0.002);
}

#[test]
fn what_is_said_to_fit_fits_and_one_more_does_not() {
    let config = v32();
    let (load, dtype) = (load(KvFormat::Fp8), DType::Bf16);
    let plan = plan(&config, load);
    let memory = plan.total() + (3 << 30);
    let (context, requests, layers) = plan.largest(&config, dtype, load, memory);
    assert!(context > load.max_seq && context < 3 * load.max_seq, "{context}");
    assert_eq!((requests, layers), (1, 61));
    let total = |load: Load| self::plan(&config, load).total();
    assert!(total(Load { max_seq: context, ..load }) <= memory);
    assert!(total(Load { max_seq: context + PAGE_SIZE, ..load }) > memory);
    // One H200 holds the first layers.
    let memory = 141_000_000_000;
    let (context, requests, layers) = plan.largest(&config, dtype, load, memory);
    assert_eq!((context, requests), (0, 0));
    assert!((12..=15).contains(&layers), "{layers}");
    let fewer = |n| Config { num_hidden_layers: n, ..config.clone() };
    assert!(self::plan(&fewer(layers), load).total() <= memory);
    assert!(self::plan(&fewer(layers + 1), load).total() > memory);
    // A context whose bytes no number holds does not fit, and nothing overflows.
    let huge = Load { requests: usize::MAX >> 20, ..load };
    assert_eq!(plan.largest(&config, dtype, huge, memory).2, 0);
}
