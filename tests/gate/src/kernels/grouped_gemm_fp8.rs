//! The products of experts, of fp8 weights.

use super::grouped_gemm::{ROWS, forms, of_experts, production, reference, run, runs, sample};
use super::linear_fp8::all_of_product;
use super::*;
use dsa_kernels::grouped_gemm::{self, GROUPED_GEMM_FP8};
use dsa_kernels::quant::{BLOCK, ScaleFmt};
use dsa_kernels::weight::Weight;

pub(super) const KERNEL: Kernel = Kernel {
    name: GROUPED_GEMM_FP8.name,
    contract: GROUPED_GEMM_FP8,
    file: "grouped_gemm.rs",
    beside: || vec![ScalarLine::choice("fmt", ScaleFmt::ALL), strided()],
    made: &[],
    scratch: "n * (k + 4 * ceil(k / 128))",
    work: "n * num_experts_per_tok * m * k",
    tolerance: tolerance::fp8_products,
    machine: |device| grouped_gemm::machine(device, DType::E4m3),
    launch: |device, case| {
        let codes = case.upload_rows(device, "w")?;
        let weight = Weight::Fp8 { codes, scale: case.upload(device, "w_scale")? };
        run(device, case, &weight, choice(case, "fmt", ScaleFmt::ALL)?)
    },
    compute: reference,
    reference: ("grouped_gemm", "reference/src/grouped_gemm.rs"),
    forms: || forms(KERNEL.name, true),
    paths: Paths {
        all: |_| [all_of_product(), paths::words(ROWS), paths::words(ScaleFmt::ALL)].concat(),
        of: |case, device| {
            let mut runs = runs(case, device);
            runs.push(paths::chosen(case, "fmt", ScaleFmt::ALL));
            runs
        },
        first: "order",
    },
    production: || {
        let blocks = v32::HIDDEN / BLOCK;
        let scaled = |case: Case| case.with("w_scale", zeros(DType::F32, &[1, 2, blocks]));
        production(KERNEL.name, DType::E4m3).into_iter().map(scaled).collect()
    },
    sample: || {
        let scales: Vec<f32> = (1..17).map(|i| 0.25 * i as f32).collect();
        sample(KERNEL.name, DType::E4m3, [131, 140])
            .with("w_scale", HostTensor::new(DType::F32, &[4, 2, 2], &scales))
            .set("fmt", "ue8m0")
    },
    bench: &[Bench {
        stage: Stage::Prefill,
        room: None,
        spec: |device, axes, _, seed| of_experts(device, axes, (KERNEL.name, true), seed),
    }],
};
