//! Addresses of 64 bits: what they compute, and what they cost. Tensors that need them: `big.rs`.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::kernels::ALL;
use dsa_gate::offline::{compile, compile_wide};
use dsa_gate::{Case, HostTensor};
use dsa_offline::{Artefact, Code, Target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::path::Path;
use std::sync::Arc;

/// Random cases of each kernel that run with both widths.
const RANDOM_CASES: usize = 4;

/// Every kernel function compiled for `target`, with addresses of 32 bits and of 64, and the kernel that launches it.
fn both_widths(target: Target) -> Vec<(&'static str, Arc<Artefact>, Arc<Artefact>)> {
    let mut pairs: Vec<(&str, Arc<Artefact>, Arc<Artefact>)> = Vec::new();
    for kernel in ALL {
        let narrow = compile(kernel, target).unwrap();
        let wide = compile_wide(kernel, target).unwrap();
        assert_eq!(narrow.len(), wide.len(), "{}", kernel.name);
        for (narrow, wide) in narrow.into_iter().zip(wide) {
            assert_eq!(narrow.artefact.function(), wide.artefact.function());
            if !pairs.iter().any(|(_, known, _)| Arc::ptr_eq(known, &narrow.artefact)) {
                pairs.push((kernel.name, narrow.artefact, wide.artefact));
            }
        }
    }
    pairs
}

#[test]
fn the_width_of_addresses_changes_no_bit_of_any_result() {
    let (narrow, wide) = (device(), device().wide());
    let mut runner = TestRunner::deterministic();
    for kernel in ALL {
        let random =
            (0..RANDOM_CASES).map(|_| kernel.cases().new_tree(&mut runner).unwrap().current());
        for case in random.chain([sample(kernel.name)]) {
            let run = |device| kernel.run(device, &case).unwrap();
            let (expected, got) = (run(&narrow), run(&wide));
            for (name, tensor) in &expected {
                assert!(tensor.bytes == got[name].bytes, "{name} of {case:?}");
            }
        }
    }
}

#[test]
fn wide_kernels_read_more_numbers_in_64_bits_and_those_with_wgmma_divide_in_32() {
    for (_, narrow, wide) in both_widths(Target::Sm90a) {
        let (Code::Ptx(narrow_ptx), Code::Ptx(wide_ptx)) = (&narrow.code, &wide.code) else {
            panic!("{} is no PTX", narrow.kernel)
        };
        let function = wide.function();
        // Counts that are only compared or divided may be read in 32 bits in both.
        let numbers =
            |ptx: &str| ptx.lines().filter(|l| l.contains("ld.param") && l.contains("b64")).count();
        let (in_wide, in_narrow) = (numbers(wide_ptx), numbers(narrow_ptx));
        assert!(in_wide > in_narrow, "{function}: {in_wide} and {in_narrow} in 64 bits");
        // A division of 64 bits would be a call, around which products wait for each other.
        if wide_ptx.contains("wgmma") {
            assert!(!wide_ptx.contains("div.u64") && !wide_ptx.contains("rem.u64"), "{function}");
        }
    }
}

#[test]
fn wide_kernels_spill_to_no_more_memory_and_make_no_products_wait() {
    for target in Target::ALL {
        for (kernel, narrow, wide) in both_widths(target) {
            let (taken, usual) = (wide.usage().unwrap(), narrow.usage().unwrap());
            let function = wide.function();
            println!(
                "{target} {function}: {} registers, {} with 64-bit addresses",
                usual.registers, taken.registers
            );
            // On gfx950 the scalar registers are all in use already: the upper halves of some addresses wait in lanes
            // of a vector register, which counts as spilled but takes no memory.
            // On sm_90a the units of absorbed attention are 384, of 168 registers each, and leave none for the upper halves:
            // some wait in memory.
            let (lanes, memory) = match (target, kernel) {
                (Target::Gfx950, _) => (64, 0),
                (Target::Sm90a, "sparse_mla" | "dense_mla") => (8, 8),
                (Target::Sm90a, "sparse_mla_paged" | "dense_mla_paged") => (108, 40),
                (Target::Sm90a, _) => (0, 0),
            };
            let what = format!("{target} {kernel} {function}: {taken:?}, usually {usual:?}");
            assert!(taken.spills <= usual.spills + lanes, "{what}");
            assert!(taken.stack <= usual.stack + memory, "{what}");
            assert_eq!(taken.shared_memory, usual.shared_memory, "{target} {function}");
            assert_eq!(taken.matrix, usual.matrix, "{target} {function}");
            let waits: Vec<_> = taken.serialised().collect();
            assert!(waits.is_empty(), "{target} {function}: {waits:?}");
            // Half as many again at most, and 16 where they are few, so that about two thirds of the teams find room.
            let most = (usual.registers * 3).div_ceil(2).max(usual.registers + 16);
            assert!(taken.registers <= most, "{target} {function}: {taken:?}, usually {usual:?}");
        }
    }
}

/// `n` rows for 23 slots, some of none.
fn crowded(n: usize) -> Vec<i32> {
    (0..n).map(|t| (t * 7919 % 29) as i32 - 3).collect()
}

fn last_row_wins(case: &Case) {
    let first = holds(case);
    for again in 1..20 {
        for (name, tensor) in &run(case) {
            assert!(tensor.bytes == first[name].bytes, "{name} of run {again} of {case:?}");
        }
    }
}

#[test]
fn of_rows_with_one_slot_the_last_is_stored_in_twenty_runs() {
    // In one launch, and in several.
    for n in [400, 9000] {
        last_row_wins(
            &Case::new("store_kv")
                .with("c", floats(1, &[n, D_V]))
                .with("k_pe", floats(2, &[n, D_QK - D_V]))
                .with("slots", ints(&crowded(n)))
                .with(
                    "cache",
                    HostTensor::u8(&[6, 4 * RECORD.bytes()], vec![0xa5; 24 * RECORD.bytes()]),
                )
                .set("page_size", 4),
        );
        last_row_wins(
            &Case::new("store_index_keys")
                .with("k", floats(3, &[n, 8]))
                .with("slots", ints(&crowded(n)))
                .with("cache", HostTensor::u8(&[6, 4 * 12], vec![0x5a; 24 * 12]))
                .set("page_size", 4),
        );
        for heads in [1, 3] {
            last_row_wins(
                &Case::new("place_rows")
                    .with("x", floats(4, &[n, heads, 5]))
                    .with("slots", ints(&crowded(n)))
                    .with("out", floats(5, &[24, heads, 5])),
            );
        }
    }
}

#[test]
fn four_hundred_rows_for_eight_slots_are_stored_as_when_written_one_by_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cases");
    let case = Case::load(&folder.join("store_kv_repeated_slots.safetensors")).unwrap();
    let expected = std::fs::read(folder.join("store_kv_repeated_slots.cache")).unwrap();
    for again in 0..20 {
        assert!(run(&case)["cache"].bytes == expected, "run {again}");
    }
}
