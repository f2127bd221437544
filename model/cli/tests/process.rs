//! The binary `dsa` as a process: its exit status, and what reaches its two outputs.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// `dsa` in an environment that would show a backtrace if there were one.
fn dsa(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsa"));
    for name in ["DSA_DEVICE", "DSA_SEED", "DSA_CASES"] {
        command.env_remove(name);
    }
    command.args(args).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

/// Status and standard error.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_closed_pipe_ends_it_in_silence() {
    for args in [&["run", "--help"][..], &["doctor"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = dsa(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(said(&output), (Some(141), String::new()), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_one_line_and_no_success() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = dsa(&["run", "--help"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let text = "error: No space left on device (os error 28)\n".to_string();
    assert_eq!(said(&output), (Some(1), text));
}

#[test]
fn outputs_go_to_the_standard_output_where_it_is_a_pipe() {
    let kept =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/cases/sparse_mla_sink.safetensors");
    let args = ["run", "sparse_mla", "--reference", "--inputs", kept, "--out", "/dev/stdout"];
    let output = dsa(&args).output().unwrap();
    assert_eq!(said(&output), (Some(0), String::new()));
    assert!(output.stdout[8..].starts_with(b"{\"") && output.stdout.len() > 576, "{output:?}");
}

#[test]
fn what_the_user_got_wrong_is_said_without_a_backtrace() {
    let variables = [("DSA_DEVICE", "tpu"), ("DSA_SEED", "abc"), ("DSA_CASES", "0")];
    for (name, value) in variables {
        let output = dsa(&["doctor"]).env(name, value).output().unwrap();
        let (status, text) = said(&output);
        assert!(text.starts_with(&format!("error: {name} is {value:?}, expected ")), "{text}");
        assert_eq!((status, text.lines().count(), output.stdout.len()), (Some(2), 1, 0));
    }
    for (args, status, says) in [
        (&["verify", "--config", "/nowhere"][..], 1, "error: /nowhere: "),
        (
            &["run", "nothing", "--inputs", "a", "--out", "b"],
            1,
            "error: there is no kernel \"nothing\"",
        ),
        (&["run", "gemm", "--inputs", "/nowhere", "--out", "/dev/null"], 1, "error: /nowhere: "),
        (
            &["doctor", "--device", "cpu:7"],
            2,
            "error: invalid value 'cpu:7' for '--device <DEVICE>'",
        ),
        (&["no such command"], 2, "error: unrecognized subcommand 'no such command'"),
    ] {
        let (code, text) = said(&dsa(args).output().unwrap());
        assert!(text.starts_with(says), "{text}");
        assert_eq!(code, Some(status), "{text}");
        assert!(!text.contains("backtrace") && text.matches("error").count() <= 2, "{text}");
    }
}

#[test]
fn memory_that_is_not_there_is_one_error_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case");
    let header = r#"{"__metadata__":{"kernel":"act_quant"},"x":{"dtype":"F32","shape":[100000,256],"data_offsets":[0,102400000]}}"#;
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + 102_400_000).unwrap();
    let out = folder.path().join("out");
    // From too little for the file to too little for the device; what is enough is no error.
    for kib in [800_000, 1_000_000, 1_200_000, 1_600_000] {
        let command =
            format!("ulimit -v {kib}; exec \"$0\" run act_quant --inputs \"$1\" --out \"$2\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &command, env!("CARGO_BIN_EXE_dsa")]).args([&path, &out]);
        let output = shell.env("DSA_DEVICE", "cpu").env("RUST_BACKTRACE", "1").output().unwrap();
        let (status, text) = said(&output);
        if status != Some(0) {
            assert_eq!(status, Some(1), "{kib} KiB: {text}");
            assert!(text.starts_with("error: ") && text.lines().count() == 1, "{kib} KiB: {text}");
            assert!(!out.exists());
        }
        let _ = std::fs::remove_file(&out);
    }
}
