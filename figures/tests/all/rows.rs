//! Rows for the tests.

use dsa_figures::{
    Device, DeviceKind, Gate, Origin, Peak, Row, Stage, Timing, Variant, What, Work, append,
};
use std::path::Path;

/// A row of a kernel; `case` names it.
pub fn row(case: &str, seconds: f64) -> Row {
    build("indexer", case, Variant::V32Exp, [("s_q", 4), ("s_kv", 8)], seconds)
}

/// A row of the cost curve.
pub fn cost(variant: Variant, context: u64, seconds: f64) -> Row {
    build("cost_vs_context", "layer", variant, [("context", context), ("tokens", 4)], seconds)
}

fn build(bench: &str, case: &str, variant: Variant, shape: [(&str, u64); 2], seconds: f64) -> Row {
    let what = What {
        bench: bench.into(),
        stage: Stage::Prefill,
        variant,
        case: case.into(),
        shape: shape.into_iter().map(|(name, n)| (name.to_string(), n)).collect(),
        dtype: "bf16".into(),
        seed: 1,
        device: Device {
            name: "test device".into(),
            kind: DeviceKind::Cpu,
            driver: "none".into(),
            cores: 2,
        },
        kernel_hash: "a".repeat(64),
    };
    let peak = Some(Peak { flops: 1e9, bytes_per_s: 1e9, how: "test".into() });
    let work = Work { flop: 1_000_000, bytes: 500_000, peak };
    let origin = Origin {
        commit: "0123abc".into(),
        dirty: false,
        created: "2026-01-31T12:00:00Z".into(),
        command: "cargo bench --bench cost_vs_context --".into(),
        load_average: Some(1.5),
    };
    let gate = Gate::judge("reference", 1e-4, 1e-3, "[0, 1]", 3).unwrap();
    let samples = [0.99, 1.0, 1.0, 1.0, 1.01].map(|share| share * seconds).to_vec();
    Row::new(what, gate, Timing::from_samples(samples).unwrap(), work, origin).unwrap()
}

/// Writes rows into a file.
pub fn file(path: &Path, rows: &[Row]) {
    rows.iter().for_each(|row| append(path, row).unwrap());
}

/// Rows from which every picture can be drawn.
pub fn every_picture() -> Vec<Row> {
    let mut rows = vec![row("a", 0.01), row("b", 0.02)];
    for context in [256u64, 512, 1024, 2048] {
        let dense = cost(Variant::V31Terminus, context, 1e-5 * context as f64);
        let stages = [("attention".to_string(), 0.5e-5 * context as f64)];
        rows.push(dense.with_stages(stages.into()).unwrap());
        rows.push(cost(Variant::V32Exp, context, 4e-3 + 1e-6 * context as f64));
    }
    rows
}
