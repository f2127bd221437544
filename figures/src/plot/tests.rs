//! The pictures from made-up rows, written to a temporary folder and dropped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::*;

/// A made-up processor on which decode has a knee at `knee` tokens.
fn cost_row(stage: Stage, variant: Variant, context: u64, hash: char, device: &str) -> Row {
    let tokens = if stage == Stage::Prefill { 256 } else { 4 };
    let knee: u64 = if stage == Stage::Prefill { 3000 } else { 2048 };
    let sparse = variant == Variant::V32Exp;
    let us = |value: f64| value * tokens as f64 * 1e-6;
    let slow = if stage == Stage::Prefill { 0.01 } else { 0.03 };
    let attention = if sparse { context.min(knee) as f64 * 1.3 } else { context as f64 };
    let mut stages: BTreeMap<String, f64> = [
        ("projections".to_string(), us(95.0)),
        ("attention".to_string(), us(attention * slow)),
        ("experts".to_string(), us(60.0)),
    ]
    .into();
    if sparse {
        stages.insert("indexer".into(), us(22.0 + slow * 0.1 * context as f64));
        stages.insert("top_k".into(), us(6.0 + slow * 0.03 * context as f64));
    }
    let total: f64 = stages.values().sum::<f64>() * 1.02;
    let samples = [0.97, 0.99, 1.0, 1.01, 1.06].map(|f| f * total).to_vec();
    let shape = [("context".to_string(), context), ("tokens".to_string(), tokens)].into();
    build("cost_vs_context", stage, variant, shape, hash, device, samples, None)
        .with_stages(stages)
        .unwrap()
}

#[allow(clippy::too_many_arguments)]
fn build(
    bench: &str,
    stage: Stage,
    variant: Variant,
    shape: BTreeMap<String, u64>,
    hash: char,
    device: &str,
    samples: Vec<f64>,
    peak: Option<Peak>,
) -> Row {
    let device =
        Device { name: device.into(), kind: DeviceKind::Cpu, driver: "LLVM 20".into(), cores: 16 };
    let what = What {
        bench: bench.into(),
        stage,
        variant,
        case: "scaled".into(),
        shape,
        dtype: "bf16".into(),
        seed: 1,
        device,
        kernel_hash: hash.to_string().repeat(64),
    };
    let bytes = if bench == "top_k" { 8_000_000_000 } else { 1_000 };
    let work = Work { flop: 200_000_000_000, bytes, peak };
    let origin = Origin {
        commit: "0123abcdef0123".into(),
        dirty: true,
        created: "2026-01-31T12:00:00Z".into(),
        command: "cargo bench".into(),
        load_average: None,
    };
    let gate = Gate::judge("dense reference in f64", 1e-4, 1e-3, "[0, 1]", 3).unwrap();
    Row::new(what, gate, Timing::from_samples(samples).unwrap(), work, origin).unwrap()
}

fn cost_rows(device: &str, hash: char) -> Vec<Row> {
    let mut rows = Vec::new();
    for stage in Stage::ALL {
        for variant in Variant::MODELS {
            for context in [512, 1024, 2048, 4096, 8192, 16384, 24576, 32768, 49152, 65536] {
                rows.push(cost_row(stage, variant, context, hash, device));
            }
        }
    }
    rows
}

fn kernel_rows() -> Vec<Row> {
    let peak =
        || Some(Peak { flops: 1.2e12, bytes_per_s: 4e10, how: "largest of 20 probes".into() });
    let shape = || [("s_q".to_string(), 256), ("s_kv".into(), 65536), ("heads".into(), 64)].into();
    let kernels = [("indexer", 0.4), ("top_k", 0.3), ("sparse_attention", 0.2), ("gemm", 1.7)];
    kernels
        .iter()
        .map(|(bench, s)| {
            let samples = vec![*s; 5];
            let (stage, variant) = (Stage::Prefill, Variant::V32Exp);
            build(bench, stage, variant, shape(), 'a', "test processor", samples, peak())
        })
        .collect()
}

fn check(files: &[std::path::PathBuf]) {
    for path in files {
        assert!(fs::metadata(path).unwrap().len() > 200, "{path:?}");
    }
}

#[test]
fn all_pictures_are_written() {
    let folder = tempfile::tempdir().unwrap();
    // Set it to a folder to look at the pictures.
    let kept = std::env::var_os("DSA_FIGURES_KEEP");
    let out = kept.as_deref().map_or(folder.path(), Path::new);
    let mut rows = cost_rows("test processor", 'a');
    rows.extend(kernel_rows());
    let file = out.join("rows.jsonl");
    rows.iter().for_each(|row| append(&file, row).unwrap());
    let keys = |rows: &[Row]| rows.iter().map(Row::key).collect::<Vec<_>>();
    assert_eq!(keys(&latest(&read(&file).unwrap())), keys(&rows));
    let files = draw(&rows, out, &Options::default()).unwrap();
    assert_eq!(files.len(), 9);
    check(&files);
    let svg = fs::read_to_string(out.join("cost_vs_context.svg")).unwrap();
    for words in [
        "MI355X (projection)",
        "crossover at 4871; sparse 1.35x dearer at 0",
        "0123abcdef+dirty",
        "2026-01-31",
        "decode, 4 requests",
        "prefill, chunks of 256 tokens",
        "What sparse attention saves",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    let csv = fs::read_to_string(out.join("cost_vs_context.csv")).unwrap();
    assert!(csv.contains("decode,V3.2-Exp measured,2048,"));
    assert!(csv.contains("decode,crossover official,487"));
    assert!(csv.contains("decode,dense over sparse measured,65536,"));
    assert!(csv.contains("decode,dense over sparse official,131071,8.6"), "{csv}");
}

#[test]
fn the_measured_knee_is_found() {
    let figure = CostFigure::new(&cost_rows("test processor", 'a'), 2.0).unwrap();
    let found = figure.findings(Stage::Decode);
    assert!((found.knee.unwrap().x - 2048.0).abs() < 30.0, "{found}");
    assert!(found.slope_ratio.unwrap() > 5.0);
    assert!(found.dense_r2.unwrap() > 0.999);
}

#[test]
fn mixed_rows_are_refused_or_confessed() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = cost_rows("one", 'a');
    rows[3] = cost_row(Stage::Prefill, Variant::V31Terminus, 4096, 'b', "two");
    let error = draw(&rows, folder.path(), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("2 devices (one, two)"), "{error}");
    let options = Options { allow_mixed: true, ..Options::default() };
    check(&draw(&rows, folder.path(), &options).unwrap());
    let svg = fs::read_to_string(folder.path().join("cost_vs_context.svg")).unwrap();
    assert!(svg.contains("MIXED: 2 devices (one, two); 2 versions of the kernel"));
    rows[3] = cost_row(Stage::Prefill, Variant::V31Terminus, 4096, 'b', "one");
    let error = draw(&rows, folder.path(), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("versions of the kernel of cost_vs_context"), "{error}");
}

#[test]
fn two_rows_for_one_point_are_refused() {
    let mut rows = cost_rows("one", 'a');
    rows.push(rows[0].clone());
    let error = CostFigure::new(&rows, 2.0).unwrap_err().to_string();
    assert!(error.contains("two rows for prefill V3.1-Terminus at context 512"), "{error}");
}

#[test]
fn little_or_nothing_to_draw() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = draw(&[], folder.path(), &Options::default());
    assert!(matches!(nothing, Err(Error::Nothing { .. })));
    let decode: Vec<Row> = cost_rows("one", 'a')
        .into_iter()
        .filter(|row| row.what().stage == Stage::Decode)
        .filter(|row| row.what().variant == Variant::V32Exp)
        .collect();
    assert_eq!(draw(&decode, folder.path(), &Options::default()).unwrap().len(), 6);
    let free = Options { price_per_hour: 0.0, ..Options::default() };
    assert!(matches!(draw(&decode, folder.path(), &free), Err(Error::Value { .. })));
}
