//! What `dsa-figures` says and how it ends.

use crate::rows::{every_picture, file, row};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsa-figures"));
    command.args(arguments).env("RUST_BACKTRACE", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    fn rows(&self, name: &str, rows: &[dsa_figures::Row]) -> String {
        file(self.path(name).as_ref(), rows);
        self.path(name)
    }
}

#[test]
fn an_error_is_one_line_without_a_backtrace() {
    let files = Files::new();
    let bad = files.path("bad");
    fs::write(&bad, "no row\n").unwrap();
    for (arguments, said) in [
        (vec!["compare", &bad, &bad], "bad, line 1: expected ident at line 1 column 2"),
        (
            vec!["draw", "/nowhere", "--out", "x"],
            "/nowhere: No such file or directory (os error 2)",
        ),
        (vec!["draw", "/dev/zero", "--out", "x"], "/dev/zero: not a regular file"),
    ] {
        let out = run(&arguments);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && error.ends_with(&format!("{said}\n")), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    for wrong in [vec!["draw"], vec!["draw", &bad, "--out", "x", "--price=-1"], vec!["paint"]] {
        assert_eq!(run(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_verdict_needs_something_to_judge() {
    let files = Files::new();
    let (one, other) = (files.rows("one", &[row("a", 1.0)]), files.rows("other", &[row("b", 1.0)]));
    let empty = files.path("empty");
    fs::write(&empty, "").unwrap();
    for (base, new) in [(&one, &other), (&one, &empty), (&empty, &one), (&empty, &empty)] {
        for flags in [&["--fail-on-slower"][..], &[]] {
            let out = run(&[&["compare", base, new][..], flags].concat());
            assert_eq!(out.status.code(), Some(1));
            assert!(
                text(&out.stderr).starts_with("error: nothing was compared: the baseline has ")
            );
        }
    }
    let slow = files.rows("slow", &[row("a", 2.0)]);
    assert_eq!(run(&["compare", &one, &slow]).status.code(), Some(0));
    assert_eq!(run(&["compare", &one, &slow, "--fail-on-slower"]).status.code(), Some(3));
    assert_eq!(run(&["compare", &slow, &one, "--fail-on-slower"]).status.code(), Some(0));
}

#[test]
fn a_closed_pipe_is_silent_and_leaves_the_verdict() {
    let files = Files::new();
    let (one, slow) = (files.rows("one", &[row("a", 1.0)]), files.rows("slow", &[row("a", 2.0)]));
    let all = files.rows("all", &every_picture());
    let out = files.path("out");
    for (arguments, status) in [
        (vec!["compare", &one, &slow], 0),
        (vec!["compare", &one, &slow, "--fail-on-slower"], 3),
        (vec!["draw", &all, "--out", &out], 0),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = program(&arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(text(&ended.stderr), "");
        assert_eq!(ended.status.code(), Some(status), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 9, "all pictures are there");
}

#[test]
fn a_full_disk_behind_the_output_is_an_error() {
    let files = Files::new();
    let one = files.rows("one", &[row("a", 1.0)]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = program(&["compare", &one, &one]).stdout(full).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = "error: standard output: No space left on device (os error 28)\n";
    assert_eq!(text(&ended.stderr), said);
}

#[test]
fn a_torn_line_is_a_warning() {
    let files = Files::new();
    let one = files.rows("one", &[row("a", 1.0)]);
    let whole = fs::read_to_string(&one).unwrap();
    fs::write(&one, format!("{whole}{}", &whole[..700])).unwrap();
    let out = run(&["compare", &one, &one]);
    assert_eq!(out.status.code(), Some(0));
    let said =
        format!("warning: {one}, line 2: torn after 700 bytes and dropped; it is no whole row");
    assert_eq!(text(&out.stderr), format!("{said}\n{said}\n"));
}

#[test]
fn the_committed_rows_are_drawn_by_the_documented_command() {
    let files = Files::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rows");
    let mut rows: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    rows.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    assert!(rows.len() >= 4, "{rows:?}");
    for path in rows {
        let rows = dsa_figures::read(&path).unwrap();
        let names: std::collections::BTreeSet<String> =
            rows.iter().map(|row| row.what().device.name.clone()).collect();
        let out = files.path("out");
        let draw = ["draw", path.to_str().unwrap(), "--out", &out];
        let newest = run(&draw);
        assert!(newest.status.success(), "{}", text(&newest.stderr));
        let last = rows.last().unwrap().what().device.name.clone();
        let csv = ["roofline.svg", "cost_vs_context.svg"]
            .iter()
            .find_map(|name| fs::read_to_string(Path::new(&out).join(name)).ok());
        assert!(csv.unwrap().contains(&last), "{last}");
        for name in names {
            let chosen = run(&[&draw[..], &["--device", &name]].concat());
            assert!(chosen.status.success(), "{name}: {}", text(&chosen.stderr));
        }
        let wrong = run(&[&draw[..], &["--device", "abacus"]].concat());
        assert!(
            text(&wrong.stderr).contains("--device is \"abacus\"; expected one of the devices")
        );
        fs::remove_dir_all(&out).unwrap();
    }
}
