//! What selection is compiled to.

use crate::{Artefact, Offline, Target};
use dsa_kernels::seen::KeyRange;
use dsa_kernels::top_k::{Policy, top_k};
use dsa_kernels::{DType, Device};
use std::sync::Arc;

/// What a row that is sifted is compiled to on `target`: `sift`'s kernel, then `choose_kernel`.
fn compiled(target: Target) -> Vec<Arc<Artefact>> {
    let work = |device: &Device| {
        let logits = device.empty(&[1, 1 << 17], DType::F32)?;
        let (ks, ke) = (device.empty(&[1], DType::I32)?, device.empty(&[1], DType::I32)?);
        top_k(&logits, &KeyRange { ks: &ks, ke: &ke }, 2048, Policy::Fixed).map(|_| ())
    };
    let artefacts = Offline::open(target).unwrap().compile(work).unwrap();
    let names: Vec<_> = artefacts.iter().map(|artefact| artefact.function()).collect();
    assert_eq!(names, ["sift_kernel", "choose_kernel"], "{target}");
    artefacts
}

#[test]
fn rows_are_read_in_vectors() {
    for (target, load, width) in
        [(Target::Sm90a, "ld.global", "v4"), (Target::Gfx950, "global_load", "dwordx4")]
    {
        for artefact in compiled(target) {
            let assembly = artefact.assembly().unwrap();
            let mut lines = assembly.lines().filter(|line| line.contains(load));
            assert!(
                lines.any(|line| line.contains(width)),
                "{target} {}: {assembly}",
                artefact.function()
            );
        }
    }
}

/// Adding +0, which makes one zero of two, is neither folded away nor flushes the smallest numbers.
#[test]
fn zeros_are_equal_and_small_numbers_are_not_zero() {
    for artefact in compiled(Target::Sm90a) {
        let (name, ptx) = (artefact.function(), artefact.assembly().unwrap());
        assert!(ptx.contains("add.f32") || ptx.contains("add.rn.f32"), "{name}: {ptx}");
        assert!(!ptx.contains("ftz"), "{name}: {ptx}");
    }
    for artefact in compiled(Target::Gfx950) {
        let (name, assembly) = (artefact.function(), artefact.assembly().unwrap());
        // One at a time, or two.
        let adds = ["v_add_f32", "v_pk_add_f32"];
        assert!(adds.iter().any(|add| assembly.contains(add)), "{name}: {assembly}");
        // 3: denormals go in and come out.
        assert!(assembly.contains(".amdhsa_float_denorm_mode_32 3"), "{name}: {assembly}");
    }
}
