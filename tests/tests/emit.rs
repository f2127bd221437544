//! `dsa emit`, and the table under `dsa check`.

use crate::cli::dsa;

#[test]
fn emit_writes_the_code_of_either_target_in_every_form() {
    for (args, starts, holds) in [
        (["sm_90a", "--ptx"], "//", ".target sm_90a"),
        (["sm_90a", "--asm"], "//", ".visible .entry hadamard_kernel"),
        (["sm_90a", "--ir"], ";", "define ptx_kernel void @hadamard_kernel"),
        (["gfx950", "--asm"], ";", "amdgcn-amd-amdhsa--gfx950"),
        (["gfx950", "--ir"], ";", "\"target-cpu\"=\"gfx950\""),
    ] {
        let (text, ok) = dsa(&["emit", "hadamard", "--target", args[0], args[1]]).unwrap();
        assert!(ok && text.contains(holds), "{args:?}: {text}");
        let first = format!("{starts} 1 of 1: hadamard_kernel of kernels/src/hadamard.rs");
        assert!(text.starts_with(&first), "{args:?}: {text}");
    }
}

#[test]
fn emit_writes_every_kernel_of_a_launcher_or_one_of_them() {
    let emit = |only: &[&str]| {
        let args = [&["emit", "sparse_mla", "--target", "gfx950", "--ir"], only].concat();
        dsa(&args)
    };
    let (all, _) = emit(&[]).unwrap();
    let merge = all.lines().find(|line| line.contains(": merge_kernel of")).unwrap();
    let number = merge.split_whitespace().nth(1).unwrap();
    let (one, _) = emit(&["--only", number]).unwrap();
    assert!(one.starts_with(merge) && one.matches("define amdgpu_kernel").count() == 1, "{one}");
    let error = emit(&["--only", "99"]).unwrap_err();
    assert!(error.contains("99") && error.contains("sparse_mla"), "{error}");
}

#[test]
fn emit_to_a_file_leaves_that_file_alone_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hadamard.s");
    let to = path.to_str().unwrap();
    let (text, ok) = dsa(&["emit", "hadamard", "--target", "gfx950", "--out", to]).unwrap();
    assert!(ok && text.contains(to), "{text}");
    assert!(std::fs::read_to_string(&path).unwrap().contains("s_endpgm"));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    // A mistyped folder is not made; what is wrong is said once.
    for (place, why) in [
        ("hadamard.s/x", "lies in no folder"),
        ("new/hadamard.s", "No such file or directory (os error 2)"),
        ("", "is a folder, expected a file's name"),
    ] {
        let to = folder.path().join(place);
        let to = to.to_str().unwrap();
        let error = dsa(&["emit", "hadamard", "--target", "gfx950", "--out", to]).unwrap_err();
        assert_eq!(error, format!("error: {to}: {why}\n"));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn emit_refuses_an_unknown_kernel_or_target_and_forms_that_do_not_go_together() {
    let error = dsa(&["emit", "no_such_kernel", "--target", "sm_90a"]).unwrap_err();
    assert!(error.contains("no_such_kernel"), "{error}");
    let error = dsa(&["emit", "hadamard", "--target", "gfx950", "--ptx"]).unwrap_err();
    assert!(error.contains("--ptx") && error.contains("sm_90a"), "{error}");
    for args in [
        &["emit", "hadamard", "--target", "sm_75"][..],
        &["emit", "hadamard"],
        &["emit", "hadamard", "--target", "sm_90a", "--ptx", "--ir"],
    ] {
        let text = dsa(args).unwrap_err();
        assert!(text.contains("--"), "{args:?}: {text}");
    }
    let text = dsa(&["emit", "hadamard", "--target", "sm_75"]).unwrap_err();
    assert!(text.contains("sm_75") && text.contains("gfx950"), "{text}");
}

#[test]
fn check_says_what_the_kernel_takes_of_either_target() {
    let (text, ok) = dsa(&["check", "indexer_logits", "--cases", "1"]).unwrap();
    assert!(ok, "{text}");
    let table: Vec<_> = text.lines().skip_while(|line| !line.contains("registers")).collect();
    for (target, matrix) in [("sm_90a", "wgmma e4m3"), ("gfx950", "vector arithmetic")] {
        let row = table.iter().find(|line| line.trim_start().starts_with(target)).unwrap();
        assert!(row.contains("indexer_kernel") && row.contains("KB"), "{row}");
        assert!(row.contains(matrix), "{row}");
    }
}
