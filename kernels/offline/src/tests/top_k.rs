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

/// The lines of the innermost loop of `ptx` with `count` times `wanted`: from its label to the branch back to it.
fn loop_with<'a>(ptx: &'a str, wanted: &str, count: usize) -> Vec<&'a str> {
    let lines: Vec<&str> = ptx.lines().map(str::trim).collect();
    let label = |line: &str| line.strip_suffix(':').map(str::to_string);
    let loops = lines.iter().enumerate().filter_map(|(first, line)| {
        let label = label(line)?;
        let back = |line: &&str| line.contains("bra") && line.ends_with(&format!("{label};"));
        let last = lines.iter().skip(first).rposition(back)? + first;
        Some(&lines[first..=last])
    });
    let found = loops.filter(|body| body.iter().filter(|l| l.contains(wanted)).count() == count);
    found.min_by_key(|body| body.len()).expect("there is such a loop").to_vec()
}

/// What sifting costs: four loads of four columns are under way together, and a column takes few instructions.
#[test]
fn a_column_is_sifted_in_few_instructions() {
    let sift = &compiled(Target::Sm90a)[0];
    let ptx = sift.assembly().unwrap();
    let body = loop_with(&ptx, "setp.gt.f32", 16).into_iter();
    let body: Vec<_> = body.filter(|line| line.ends_with(';') && !line.starts_with('.')).collect();
    let loads =
        body.iter().filter(|line| line.contains("ld.global") && line.contains("v4")).count();
    assert_eq!(loads, 4, "{body:#?}");
    assert!(body.len() <= 16 * 20, "{} instructions for 16 columns: {body:#?}", body.len());
}
