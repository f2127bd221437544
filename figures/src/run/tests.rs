//! Which rows a run goes on from, and what is in its file at every moment.

use super::*;
use crate::store::tests::{row, row_of};
use crate::{append, read};
use std::fs;
use std::path::PathBuf;

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/rows.jsonl");
    (folder, path)
}

/// A row of a case; the samples tell the run that it is of.
fn made(case: &str, seconds: f64) -> Row {
    row(case, 'a', vec![seconds; 3])
}

fn plan() -> Vec<What> {
    ["a", "b", "c"].map(|case| made(case, 1.0).what().clone()).into()
}

/// Starts a run and measures up to `most` of what it has not; gives back what it measured.
fn run(path: &Path, seconds: f64, fresh: bool, most: usize) -> Vec<String> {
    let mut run = Run::open(path).unwrap();
    run.plan(&plan(), fresh).unwrap();
    let left: Vec<What> = plan().into_iter().filter(|what| run.has(what).is_none()).collect();
    let mut measured = Vec::new();
    for what in left.iter().take(most) {
        run.keep(made(&what.case, seconds)).unwrap();
        measured.push(what.case.clone());
    }
    if measured.len() == left.len() {
        run.finish().unwrap();
    }
    measured
}

fn found(path: &Path) -> Vec<(String, f64)> {
    let rows = read(path).unwrap();
    rows.iter().map(|row| (row.what().case.clone(), row.timing().median_s())).collect()
}

fn pairs(all: &[(&str, f64)]) -> Vec<(String, f64)> {
    all.iter().map(|(case, seconds)| (case.to_string(), *seconds)).collect()
}

#[test]
fn an_interrupted_first_run_is_gone_on_with() {
    let (_folder, path) = place();
    assert_eq!(run(&path, 1.0, false, 2), ["a", "b"]);
    assert_eq!(run(&path, 2.0, false, 9), ["c"]);
    assert_eq!(found(&path), pairs(&[("a", 1.0), ("b", 1.0), ("c", 2.0)]));
}

#[test]
fn a_second_run_leaves_the_finished_rows_until_its_own_last_row_is_there() {
    for fresh in [false, true] {
        let (_folder, path) = place();
        run(&path, 1.0, false, 9);
        let finished = pairs(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
        for done in 0..3 {
            // Ctrl-C after so many rows: nothing measured so far is missing.
            let (_folder, copy) = place();
            Run::open(&copy).unwrap();
            fs::copy(&path, &copy).unwrap();
            assert_eq!(run(&copy, 2.0, fresh, done).len(), done);
            assert_eq!(found(&copy)[..3], finished);
            assert_eq!(found(&copy).len(), 3 + done);
            // The next run goes on behind them, or from the start if there was no new row.
            let left = run(&copy, 3.0, false, 9);
            assert_eq!(left, ["a", "b", "c"][done..]);
            let of = |place: usize| if place < done { 2.0 } else { 3.0 };
            assert_eq!(found(&copy), pairs(&[("a", of(0)), ("b", of(1)), ("c", of(2))]));
        }
        assert_eq!(run(&path, 2.0, fresh, 9).len(), 3);
        assert_eq!(found(&path), pairs(&[("a", 2.0), ("b", 2.0), ("c", 2.0)]));
    }
}

#[test]
fn a_fresh_run_takes_nothing_from_an_interrupted_one_and_is_gone_on_with_itself() {
    let (_folder, path) = place();
    run(&path, 1.0, false, 2);
    assert_eq!(run(&path, 2.0, true, 1), ["a"]);
    assert_eq!(run(&path, 3.0, false, 9), ["b", "c"]);
    assert_eq!(found(&path), pairs(&[("a", 2.0), ("b", 3.0), ("c", 3.0)]));
}

#[test]
fn a_run_killed_before_its_last_step_counts_as_finished() {
    let (_folder, path) = place();
    for seconds in [1.0, 2.0] {
        for case in ["a", "b", "c"] {
            Run::open(&path).unwrap().keep(made(case, seconds)).unwrap();
        }
    }
    let (_folder, copy) = place();
    Run::open(&copy).unwrap();
    fs::copy(&path, &copy).unwrap();
    assert_eq!(run(&copy, 3.0, false, 1), ["a"]);
    assert_eq!(found(&copy), pairs(&[("a", 2.0), ("b", 2.0), ("c", 2.0), ("a", 3.0)]));
    assert_eq!(run(&path, 3.0, false, 9), ["a", "b", "c"]);
    assert_eq!(found(&path), pairs(&[("a", 3.0), ("b", 3.0), ("c", 3.0)]));
}

#[test]
fn rows_of_others_stay_to_the_byte() {
    let (_folder, path) = place();
    run(&path, 1.0, false, 9);
    let others =
        [row_of("other device", "a", 'a'), row("a", 'b', vec![1.0]), row("z", 'a', vec![1.0])];
    others.iter().for_each(|row| append(&path, row).unwrap());
    // Spaces that no row of ours has.
    let text = fs::read_to_string(&path).unwrap().replace("\"case\":\"z\"", "\"case\" : \"z\"");
    fs::write(&path, &text).unwrap();
    run(&path, 2.0, false, 9);
    let new = fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().skip(3).collect();
    assert_eq!(new.lines().take(3).collect::<Vec<_>>(), kept);
    assert_eq!(new.lines().count(), 6);
}

#[test]
fn a_processor_of_the_same_name_with_other_cores_is_another_machine() {
    let (_folder, path) = place();
    run(&path, 1.0, false, 9);
    let text = fs::read_to_string(&path).unwrap().replace("\"cores\":2", "\"cores\":64");
    fs::write(&path, text).unwrap();
    assert_eq!(run(&path, 2.0, false, 9), ["a", "b", "c"]);
    assert_eq!(found(&path).len(), 6);
}

#[test]
fn a_torn_line_is_told_when_the_run_starts_and_gone_with_its_first_row() {
    let (_folder, path) = place();
    run(&path, 1.0, false, 2);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{}", &whole[..100])).unwrap();
    let opened = Run::open(&path).unwrap();
    assert_eq!(opened.torn().map(|torn| torn.line), Some(3));
    assert_eq!(run(&path, 2.0, false, 9), ["c"]);
    assert_eq!(found(&path), pairs(&[("a", 1.0), ("b", 1.0), ("c", 2.0)]));
}

#[test]
fn a_file_that_cannot_take_rows_stops_the_run_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "no row\n").unwrap();
    for bad in [folder.path().to_owned(), folder.path().join("file/rows.jsonl"), "/dev/null".into()]
    {
        assert!(Run::open(&bad).is_err(), "{}", bad.display());
    }
    let error = Run::open(&folder.path().join("file")).unwrap_err().to_string();
    assert!(error.contains("file, line 1: "), "{error}");
}

#[test]
fn rows_of_unknown_kernels_are_passed_over_and_named() {
    let (_folder, path) = place();
    let mut opened = Run::open(&path).unwrap();
    for row in [row_of("mine", "a", 'a'), row_of("mine", "a", 'b'), row_of("other", "a", 'a')] {
        opened.keep(row).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let foreign = text.lines().next().unwrap().replace("\"indexer\"", "\"my_old\\u001bkernel\"");
    fs::write(&path, format!("{text}{foreign}\n")).unwrap();
    let opened = Run::open(&path).unwrap();
    let hash = |bench: &str| (bench == "indexer").then(|| "a".repeat(64));
    let device = row_of("mine", "a", 'a').what().device.clone();
    let current = opened.current(&device, hash);
    assert_eq!(current.rows, [row_of("mine", "a", 'a')], "an older row of this version is drawn");
    assert_eq!(current.unknown, ["my_old?kernel".to_string()].into());
    assert_eq!(read(&path).unwrap().len(), 4);
}
