//! Each kernel against the reference on random cases.

use crate::support::device;
use dsa_gate::gate::{cases, gate, regressions, replay, seed};
use dsa_gate::kernels::ALL;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Prints to the stream itself, since the harness keeps what a passing test prints.
fn say(line: String) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn what_fell_once_and_was_kept_falls_no_more() {
    let mut files = std::fs::read_dir(regressions())
        .unwrap()
        .filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "safetensors")
        })
        .count();
    for kernel in ALL {
        let replayed = replay(kernel, &device(), &regressions()).unwrap();
        assert!(replayed.fallen.is_empty(), "{:?}", replayed.fallen);
        assert!(replayed.unread.is_empty(), "{:?}", replayed.unread);
        files -= replayed.cases;
    }
    assert_eq!(files, 0, "cases that are of no kernel");
}

#[test]
fn every_kernel_agrees_with_its_reference_on_random_cases() {
    let (cases, seed) = (cases().unwrap(), seed().unwrap());
    say(format!("properties: seed {seed}, {cases} cases a kernel (DSA_SEED, DSA_CASES)"));
    let (next, fallen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(|| {
                while let Some(kernel) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match gate(kernel, &device(), cases, seed) {
                        Ok(report) => println!("{report}"),
                        Err(failure) => fallen.lock().unwrap().push(failure.to_string()),
                    }
                }
            });
        }
    });
    let fallen = fallen.into_inner().unwrap();
    assert!(fallen.is_empty(), "{}", fallen.join("\n"));
}
