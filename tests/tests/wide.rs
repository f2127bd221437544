//! Kernels whose addresses take 64 bits: the same answers, at what cost, and tensors that need them.

use crate::support::*;
use dsa_kernels::offline::{Artefact, Target};
use dsa_tests::kernels::ALL;
use dsa_tests::offline::{compile, compile_wide};
use std::sync::Arc;

/// Each kernel function of `target` in both forms, once.
fn both_forms(target: Target) -> Vec<(Arc<Artefact>, Arc<Artefact>)> {
    let mut pairs: Vec<(Arc<Artefact>, Arc<Artefact>)> = Vec::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    for kernel in ALL.iter().filter(|k| k.name.contains(&only)) {
        let (narrow, wide) =
            (compile(kernel, target).unwrap(), compile_wide(kernel, target).unwrap());
        assert_eq!(narrow.len(), wide.len(), "{}", kernel.name);
        for (narrow, wide) in narrow.into_iter().zip(wide) {
            assert_eq!(narrow.artefact.kernel, wide.artefact.kernel);
            if !pairs.iter().any(|(known, _)| Arc::ptr_eq(known, &narrow.artefact)) {
                pairs.push((narrow.artefact, wide.artefact));
            }
        }
    }
    pairs
}

#[test]
fn table() {
    for target in Target::ALL.into_iter().filter(|t| t.name().contains(&std::env::var("TARGET").unwrap_or_default())) {
        for (narrow, wide) in both_forms(target) {
            let (n, w) = (narrow.usage().unwrap(), wide.usage().unwrap());
            let lines = |a: &Artefact| a.assembly().unwrap().lines().count();
            println!(
                "{target} | {} | {} | {} | {} | {} | {} | {}",
                narrow.function(),
                n.registers,
                w.registers,
                n.spills,
                w.spills,
                lines(&narrow),
                lines(&wide)
            );
            let serialised: Vec<_> = w.serialised().collect();
            if !serialised.is_empty() {
                println!("   SERIAL {serialised:?}");
            }
            if let Ok(dir) = std::env::var("DUMP") {
                for (form, a) in [("n", &narrow), ("w", &wide)] {
                    let i = (0..)
                        .find(|i| {
                            !std::path::Path::new(&format!(
                                "{dir}/{target}-{}-{i}-{form}.s",
                                a.function()
                            ))
                            .exists()
                        })
                        .unwrap();
                    std::fs::write(
                        format!("{dir}/{target}-{}-{i}-{form}.s", a.function()),
                        a.assembly().unwrap(),
                    )
                    .unwrap();
                }
            }
        }
    }
}
