//! What every kernel compiles to for an H200 and an MI350, neither of which is here.

use dsa_gate::CaseError;
use dsa_gate::kernels::{ALL, find};
use dsa_gate::offline::{compile, device};
use dsa_kernels::DType;
use dsa_kernels::{bandwidth, peak};
use dsa_offline::{Artefact, Budget, Target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Random cases of each kernel that are compiled for each device.
const RANDOM_CASES: usize = 6;

/// Every compiled kernel for `target`, by the source file that defines it.
fn by_file(target: Target) -> BTreeMap<String, Vec<Arc<Artefact>>> {
    let mut files: BTreeMap<String, Vec<Arc<Artefact>>> = BTreeMap::new();
    let mut add = |artefact: Arc<Artefact>| {
        let list = files.entry(artefact.file()).or_default();
        if !list.iter().any(|other| Arc::ptr_eq(other, &artefact)) {
            list.push(artefact);
        }
    };
    for kernel in ALL {
        let compiled = compile(kernel, target);
        let compiled = compiled.unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
        assert!(!compiled.is_empty(), "{} launches nothing", kernel.name);
        compiled.into_iter().for_each(|compiled| add(compiled.artefact));
    }
    // The probes of the device's ceilings are kernels that the list does not name: of the memory,
    let walked = device(target).unwrap().compile(|device| {
        let of = |rows, cols, dtype| device.empty(&[rows, cols], dtype);
        let (x, out) = (of(64, 64, DType::F32)?, of(64, 64, DType::F32)?);
        for walk in bandwidth::walks(device) {
            bandwidth::copy(&x, &out, walk)?;
            let sums = of(1, bandwidth::sums(device, x.len(), walk), DType::I32)?;
            bandwidth::read(&x, &sums, walk)?;
        }
        Ok::<_, CaseError>(())
    });
    walked.unwrap().into_iter().for_each(&mut add);
    // of vector arithmetic,
    let counted = device(target).unwrap().compile(|device| {
        for shape in peak::chains(device) {
            let x = device.empty(&[2 + shape.chains, shape.width], DType::F32)?;
            let out = device.empty(&[peak::chain_rows(device, shape), shape.width], DType::F32)?;
            peak::chain(&x, &out, shape, 1)?;
        }
        Ok::<_, CaseError>(())
    });
    counted.unwrap().into_iter().for_each(&mut add);
    // and of the matrix unit, where there is one.
    let multiplied = device(target).unwrap().compile(|device| {
        let of = |rows, cols, dtype| device.empty(&[rows, cols], dtype);
        for dtype in [DType::E4m3, DType::Bf16, DType::F16] {
            let k = peak::peak_k(dtype);
            let (x, w, out) = (of(128, k, dtype)?, of(256, k, dtype)?, of(128, 256, DType::F32)?);
            peak::multiply_in_place(&x, &w, &out, 1, 1)?;
        }
        Ok::<_, CaseError>(())
    });
    multiplied.unwrap().into_iter().for_each(add);
    files
}

fn keeps_its_budgets(target: Target) {
    let mut wrong = Vec::new();
    for (file, artefacts) in by_file(target) {
        let usages: Vec<_> = artefacts.iter().map(|a| a.usage().unwrap()).collect();
        let taken = Budget::covering(usages);
        let stated = Budget::of(&file, target);
        if stated.as_ref().is_ok_and(|budget| budget.holds(&taken)) {
            continue;
        }
        let stated = stated.map_or_else(|e| e.to_string(), |budget| budget.line(target));
        let line = taken.line(target);
        wrong.push(format!("kernels/src/{file} takes, and if that is right its header says,\n{line}\nbut it says\n{stated}"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n\n"));
}

#[test]
fn every_kernel_keeps_the_budget_of_its_header_on_sm_90a() {
    keeps_its_budgets(Target::Sm90a);
}

#[test]
fn every_kernel_keeps_the_budget_of_its_header_on_gfx950() {
    keeps_its_budgets(Target::Gfx950);
}

#[test]
fn whatever_is_launched_compiles_for_devices_that_are_not_here() {
    let mut runner = TestRunner::deterministic();
    for kernel in ALL {
        for _ in 0..RANDOM_CASES {
            let case = kernel.cases().new_tree(&mut runner).unwrap().current();
            for target in Target::ALL {
                let compiled =
                    device(target).unwrap().compile(|device| kernel.run(device, &case).map(|_| ()));
                assert!(compiled.is_ok(), "{case:?}: {}", compiled.unwrap_err());
            }
        }
    }
}

#[test]
fn no_warpgroup_product_waits_for_another() {
    for artefact in by_file(Target::Sm90a).into_values().flatten() {
        let serialised: Vec<_> = artefact.usage().unwrap().serialised().collect();
        assert!(serialised.is_empty(), "{}: {serialised:?}", artefact.kernel);
    }
}

#[test]
fn the_assembly_of_gfx950_is_that_of_its_code_object() {
    for artefact in by_file(Target::Gfx950).into_values().flatten() {
        let assembly = artefact.assembly().unwrap();
        let usage = artefact.usage().unwrap();
        for (name, number) in
            [("vgpr_count", usage.registers), ("private_segment_fixed_size", usage.stack)]
        {
            let line = format!(".{name}:");
            let said = assembly.lines().find_map(|l| l.trim().strip_prefix(&line));
            assert_eq!(
                said.map(str::trim),
                Some(number.to_string().as_str()),
                "{}",
                artefact.kernel
            );
        }
        assert!(assembly.contains(".wavefront_size: 64"), "{}", artefact.kernel);
    }
}

fn kernels_src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src")
}

/// The source files of `folder` and of the modules below it. What `offline` and `tests.rs` launch is no kernel.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("offline") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|rs| rs == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files
}

/// The functions under `#[cube(launch...)]` in `text`.
fn launched_functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n#[cube(launch").skip(1).filter_map(|rest| {
        let name = rest.split_once("\nfn ").or_else(|| rest.split_once("\npub fn "))?.1;
        name.split(['<', '(']).next()
    })
}

#[test]
fn the_code_of_every_kernel_function_is_judged() {
    for target in Target::ALL {
        let files = by_file(target);
        let judged: BTreeSet<_> = files.values().flatten().map(|a| a.function()).collect();
        let mut seen = 0;
        for path in sources(&kernels_src()) {
            for function in launched_functions(&std::fs::read_to_string(&path).unwrap()) {
                seen += 1;
                assert!(
                    judged.contains(function)
                        || function == "peak_kernel" && target == Target::Gfx950,
                    "{function} of {} is in no production case of tests/gate/src/kernels",
                    path.display()
                );
            }
        }
        assert!(seen >= 17, "{seen} kernel functions found");
    }
}

#[test]
fn fp8_codes_of_the_cache_are_converted_in_pairs_by_the_hardware() {
    let kernel = find("sparse_mla_paged").unwrap();
    let mut seen = 0;
    for compiled in compile(kernel, Target::Sm90a).unwrap() {
        if compiled.artefact.function() == "attend_kernel" {
            let ptx = compiled.artefact.assembly().unwrap();
            assert!(ptx.contains("cvt.rn.f16x2.e4m3x2"), "{ptx}");
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// The PTX of the attention kernels of absorbed attention, in production's forms.
fn absorbed_attention() -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for name in ["sparse_mla", "sparse_mla_paged", "dense_mla", "dense_mla_paged"] {
        for compiled in compile(find(name).unwrap(), Target::Sm90a).unwrap() {
            if compiled.artefact.function() == "attend_kernel" {
                found.push((name, compiled.artefact.assembly().unwrap()));
            }
        }
    }
    assert!(found.len() >= 8, "{} kernels", found.len());
    found
}

#[test]
fn a_tile_of_absorbed_attention_is_forty_whole_products_and_three_waits() {
    for (name, ptx) in absorbed_attention() {
        // q · kᵀ of 64 keys at 576 columns, and p · v of half of the columns, in two parts.
        for (instruction, count) in [
            ("wgmma.mma_async.sync.aligned.m64n64k16.", 36),
            ("wgmma.mma_async.sync.aligned.m64n256k16.", 4),
            ("wgmma.mma_async.", 40),
            ("wgmma.wait_group", 3),
        ] {
            assert_eq!(ptx.matches(instruction).count(), count, "{instruction} in {name}");
        }
    }
}

#[test]
fn no_product_of_attention_is_of_so_few_columns_that_memory_cannot_feed_it() {
    let mut seen = 0;
    for name in ["sparse_mla", "sparse_mla_paged", "dense_mla", "dense_mla_paged", "dense_mha"] {
        for compiled in compile(find(name).unwrap(), Target::Sm90a).unwrap() {
            let ptx = compiled.artefact.assembly().unwrap();
            seen += ptx.matches("wgmma.mma_async.").count();
            assert!(!ptx.contains("m64n32k16"), "{name}: {}", compiled.artefact.kernel);
        }
    }
    assert!(seen > 0);
}
