//! A full disk and a folder that takes nothing. A limit on the size of files stands for the full disk: a write
//! stops part of the way, as on a full one, and needs no rights to set.

use crate::rows::{every_picture, file, row};
use dsa_figures::{append, read_all};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a program whose files can be no larger than so many KiB, and which is told instead of ended.
fn limited(kib: usize, program: &Path, arguments: &[&str], path: &Path) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\"");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script, "bash"]).arg(program).args(arguments);
    bash.env("DSA_TEST_ROWS", path).output().unwrap()
}

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_dsa-figures").into()
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// Appends rows until one does not fit, and prints why.
fn append_until_full(path: &Path) {
    let error = (0..100).find_map(|i| append(path, &row(&format!("{i}"), 1.0)).err());
    println!("said: {}", error.unwrap());
}

/// Starts itself, with `DSA_TEST_ROWS`, as the process whose disk is full.
#[test]
fn a_row_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was() {
    if let Some(path) = std::env::var_os("DSA_TEST_ROWS") {
        return append_until_full(path.as_ref());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let name = "disk::a_row_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was";
    let child = [name, "--exact", "--nocapture"];
    // Limits at which the last row is cut at different places.
    for kib in [1, 2, 3, 5] {
        let _ = fs::remove_file(&path);
        let out = limited(kib, &std::env::current_exe().unwrap(), &child, &path);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        assert!(said.contains("rows.jsonl: File too large"), "{said}");
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "part of a line stayed behind");
        let found = read_all(&path).unwrap();
        assert_eq!(found.torn, None);
        // With room again the next row follows.
        append(&path, &row("next", 1.0)).unwrap();
        assert_eq!(read_all(&path).unwrap().rows.len(), found.rows.len() + 1);
    }
}

#[test]
fn pictures_that_do_not_fit_leave_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    file(&rows, &every_picture());
    let draw = ["draw", rows.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert!(Command::new(program()).args(draw).output().unwrap().status.success());
    let old = contents(&out);
    assert_eq!(old.len(), 9);
    file(&rows, &[row("c", 0.03)]);
    let refused = limited(20, &program(), &draw, &rows);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let expected = "cost_vs_context.svg: File too large (os error 27); written before it: none; the \
                    other pictures are as they were\n";
    assert!(said.ends_with(expected), "{said}");
    assert!(contents(&out) == old, "a picture changed, or something was left behind");
}

#[test]
fn a_picture_that_cannot_be_replaced_is_named_with_those_that_were() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    file(&rows, &every_picture());
    fs::create_dir_all(out.join("cost_vs_context.png")).unwrap();
    let ready = dsa_figures::plot::ready(&out).unwrap_err().to_string();
    assert!(ready.ends_with("cost_vs_context.png: is a folder, expected room for a picture"));
    let run = Command::new(program())
        .args(["draw", rows.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1));
    let expected = "cost_vs_context.png: is a folder; written before it: cost_vs_context.svg; the \
                    other pictures are as they were\n";
    assert!(said.ends_with(expected), "{said}");
}

/// Root may write into a folder of any mode; below a file, and in /proc, nobody can.
#[test]
fn a_folder_that_takes_nothing_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("file/below");
    fs::write(folder.path().join("file"), "").unwrap();
    for out in [below.as_path(), Path::new("/proc/self")] {
        let error = dsa_figures::plot::ready(out).unwrap_err().to_string();
        assert!(error.starts_with(out.to_str().unwrap()), "{error}");
        assert!(dsa_figures::Run::open(&out.join("rows.jsonl")).is_err());
    }
    let file = folder.path().join("file");
    let error = dsa_figures::plot::ready(&file).unwrap_err().to_string();
    assert!(error.ends_with("file: is a file, expected a folder"), "{error}");
    let error = dsa_figures::Run::open(&file.join("rows.jsonl")).unwrap_err().to_string();
    assert!(error.ends_with("file: is a file, expected a folder"), "{error}");
}
