//! Runs that are killed, interrupted, or two at once: a test starts itself, with `DSA_TEST_ROWS`, as the run.

use crate::rows::row;
use dsa_figures::{Row, Run, What, read_all};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const CASES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Starts the test `kill::NAME` as a process of its own, which is the run.
fn start(name: &str, path: &Path, prefix: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("kill::{name}"), "--exact"])
        .env("DSA_TEST_ROWS", path)
        .env("DSA_TEST_PREFIX", prefix)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The file that this process is to write, if a test started it.
fn given() -> Option<PathBuf> {
    std::env::var_os("DSA_TEST_ROWS").map(PathBuf::from)
}

fn measure_again_and_again(path: &Path) {
    for round in 1..10_000 {
        let mut run = Run::open(path).unwrap();
        let rows: Vec<Row> = CASES.map(|case| row(case, f64::from(round))).into();
        let plan: Vec<What> = rows.iter().map(|row| row.what().clone()).collect();
        run.plan(&plan, round % 3 == 0).unwrap();
        for row in rows {
            if run.has(row.what()).is_none() {
                run.keep(row).unwrap();
            }
        }
        run.finish().unwrap();
    }
}

fn append_a_hundred_rows(path: &Path) {
    let prefix = std::env::var("DSA_TEST_PREFIX").unwrap();
    let mut run = Run::open(path).unwrap();
    for i in 0..100 {
        run.keep(row(&format!("{prefix}{i}"), 1.0)).unwrap();
        if i % 10 == 9 {
            run.finish().unwrap();
        }
    }
}

/// Every case that was ever measured is there, at whatever moment the run ended.
#[test]
fn a_killed_or_interrupted_run_loses_no_row() {
    if let Some(path) = given() {
        return measure_again_and_again(&path);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let mut known = BTreeSet::new();
    for turn in 0..24u64 {
        let mut child = start("a_killed_or_interrupted_run_loses_no_row", &path, "");
        // A different moment each turn, early and late.
        std::thread::sleep(Duration::from_millis(20 + turn * 37 % 150));
        if turn % 3 == 2 {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
            // Where the tests run in the background, Ctrl-C is ignored by all they start.
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        assert!(!child.wait().unwrap().success());
        let Ok(found) = read_all(&path) else {
            assert!(known.is_empty(), "the file cannot be read any more");
            continue;
        };
        let cases: BTreeSet<String> =
            found.rows.iter().map(|row| row.what().case.clone()).collect();
        assert!(known.is_subset(&cases), "turn {turn}: {known:?} became {cases:?}");
        assert!(found.rows.len() <= 2 * CASES.len(), "{} rows pile up", found.rows.len());
        known = cases;
    }
    assert_eq!(known.len(), CASES.len(), "no run came far enough to test anything");
}

#[test]
fn two_runs_on_one_file_keep_all_rows_of_both() {
    if let Some(path) = given() {
        return append_a_hundred_rows(&path);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let children =
        ["x", "y"].map(|prefix| start("two_runs_on_one_file_keep_all_rows_of_both", &path, prefix));
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let found = read_all(&path).unwrap();
    let cases: BTreeSet<&str> = found.rows.iter().map(|row| row.what().case.as_str()).collect();
    assert_eq!((found.rows.len(), cases.len(), found.torn), (200, 200, None));
}
