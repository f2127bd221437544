//! What `dsa` does with the files it is given, and what it says of a command line that cannot be obeyed.

use crate::cli::dsa;
use crate::samples::sample;
use dsa_gate::Case;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, Permissions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with a case of `kernel`.
fn folder(kernel: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("case.safetensors");
    sample(kernel).save(&inputs).unwrap();
    (folder, inputs)
}

/// `dsa run KERNEL --reference` from `inputs` to `out`, with more arguments.
fn run(kernel: &str, inputs: &Path, out: &Path, more: &[&str]) -> Result<(String, bool), String> {
    let (inputs, out) = (inputs.to_str().unwrap(), out.to_str().unwrap());
    let args = ["run", kernel, "--reference", "--inputs", inputs, "--out", out];
    dsa(&[&args, more].concat())
}

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn outputs_go_through_links_and_into_pipes_and_keep_a_files_mode() {
    let (folder, inputs) = folder("gemm");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("old"), "old").unwrap();
    fs::set_permissions(at("old"), Permissions::from_mode(0o600)).unwrap();
    symlink("old", at("link")).unwrap();
    run("gemm", &inputs, &at("link"), &[]).unwrap();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert!(Case::load(&at("old")).unwrap().tensors.contains_key("out"));
    assert_eq!(fs::metadata(at("old")).unwrap().permissions().mode() & 0o777, 0o600);

    pipe(&at("pipe"));
    let reader = std::thread::spawn({
        let pipe = at("pipe");
        move || fs::read(pipe).unwrap()
    });
    run("gemm", &inputs, &at("pipe"), &[]).unwrap();
    assert_eq!(reader.join().unwrap(), fs::read(at("old")).unwrap());
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());

    run("gemm", &inputs, Path::new("/dev/null"), &[]).unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let full = run("gemm", &inputs, Path::new("/dev/full"), &[]).unwrap_err();
    assert_eq!(full, "error: /dev/full: No space left on device (os error 28)\n");
}

#[test]
fn a_case_is_not_replaced_by_its_own_outputs() {
    let (folder, inputs) = folder("gemm");
    let link = folder.path().join("link");
    symlink(&inputs, &link).unwrap();
    for out in [&inputs, &link, &folder.path().join("./case.safetensors")] {
        let error = run("gemm", &inputs, out, &[]).unwrap_err();
        assert!(error.ends_with(": is the file of --inputs, which would be lost\n"), "{error}");
    }
    assert!(Case::load(&inputs).unwrap() == sample("gemm"));
}

#[test]
fn a_place_where_no_file_can_be_made_is_refused_before_anything_is_read() {
    let nothing = Path::new("/nowhere/case");
    let error = run("gemm", nothing, Path::new("/nowhere/out"), &[]).unwrap_err();
    assert_eq!(error, "error: /nowhere/out: No such file or directory (os error 2)\n");
    let error = run("gemm", nothing, Path::new("/"), &[]).unwrap_err();
    assert!(error.contains("/: "), "{error}");
}

#[test]
fn what_never_ends_is_not_read() {
    let (folder, _) = folder("gemm");
    let at = |name: &str| folder.path().join(name);
    pipe(&at("pipe"));
    fs::File::create(at("sparse")).unwrap().set_len(20 << 30).unwrap();
    for (inputs, why) in [
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (at("pipe"), "not a regular file"),
        (folder.path().to_path_buf(), "not a regular file"),
        (at("sparse"), "header: EOF while parsing a value at line 1 column 0"),
    ] {
        let error = run("gemm", &inputs, &at("out"), &[]).unwrap_err();
        assert_eq!(error, format!("error: {}: {why}\n", inputs.display()));
    }
    assert!(!at("out").exists());
}

#[test]
fn a_scalar_on_the_command_line_is_one_of_the_kernels_and_named_once() {
    let (folder, inputs) = folder("top_k");
    let out = folder.path().join("out");
    for (set, says) in [
        (&["--set", "=x"][..], "error: --set \"=x\", expected NAME=VALUE\n"),
        (&["--set", "x"], "error: --set \"x\", expected NAME=VALUE\n"),
        (&["--set", "kernel=gemm"], "error: --set kernel: the kernel is the first argument\n"),
        (&["--set", "topk=4", "--set", "topk=5"], "error: --set topk: is there twice\n"),
        (
            &["--set", "top_k=4"],
            "error: top_k reads no scalar named \"top_k\"; did you mean topk? It reads topk, pieces, \
             policy, per_mille, min, window, sinks, strided\n",
        ),
        (
            &["--set", "policy=bogus"],
            "error: scalar policy of top_k is \"bogus\", expected fixed or fraction or window\n",
        ),
    ] {
        assert_eq!(run("top_k", &inputs, &out, set).unwrap_err(), says);
    }
    run("top_k", &inputs, &out, &["--set", "topk=4"]).unwrap();
    assert_eq!(Case::load(&out).unwrap().tensors["indices"].shape, [3, 4]);
}

#[test]
fn flags_that_would_be_ignored_are_refused() {
    let (folder, inputs) = folder("gemm");
    let error = run("gemm", &inputs, &folder.path().join("out"), &["--device", "cpu"]).unwrap_err();
    assert_eq!(error, "error: --device with --reference: it runs on no device\n");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny");
    for flag in ["--tokens", "--seed"] {
        let error = dsa(&["verify", "--checkpoint", golden, flag, "7"]).unwrap_err();
        let says = format!("error: {flag}: the text is that of {golden}/expected.safetensors\n");
        assert_eq!(error, says);
    }
    for command in [&["doctor"][..], &["check", "gemm"], &["verify"]] {
        let error = dsa(&[command, &["--device", "cpu:7"]].concat()).unwrap_err();
        assert!(error.contains("cpu:7: expected cpu: there is one"), "{error}");
    }
}

#[test]
fn a_reader_that_closed_its_pipe_is_left_in_peace() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(Error::from(ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for args in [&["dsa", "doctor"][..], &["dsa", "run", "--help"], &["dsa", "--version"]] {
        let error = dsa_cli::run(args.iter().map(Into::into), &mut Closed).unwrap_err();
        assert_eq!(dsa_cli::report(&error), (String::new(), 141), "{args:?}");
    }
}
