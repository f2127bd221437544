//! What the command lines of the benches take and refuse.

use super::*;

fn refused<A: Parser>(arguments: &[&str]) -> String {
    let all = std::iter::once("bench").chain(arguments.iter().copied());
    match A::try_parse_from(all) {
        Ok(_) => panic!("{arguments:?} is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_cannot_be_meant_is_refused_at_the_start() {
    for bad in ["--price=-1", "--price=0", "--price=nan", "--price=inf", "--price=1e-300"] {
        assert!(refused::<CostArgs>(&[bad]).contains("US$ per hour"));
        assert!(refused::<KernelArgs>(&[bad]).contains("US$ per hour"));
    }
    for bad in ["--seconds=-1", "--seconds=nan", "--seconds=0", "--seconds=inf", "--seconds=x"] {
        assert!(refused::<KernelArgs>(&[bad]).contains("expected seconds from"));
    }
    for bad in ["--budget=-1", "--budget=nan", "--budget=inf"] {
        assert!(refused::<CostArgs>(&[bad]).contains("expected seconds from"));
    }
    for bad in ["0", "4294967296", "18446744073709551616", "-1", "4096,", "4096;8192", "4K", ""] {
        let said = refused::<CostArgs>(&[&format!("--contexts={bad}")]);
        assert!(said.contains("expected a whole number from 1 to 2^31 - 1"), "{said}");
    }
    for flag in ["--s-q", "--batch", "--topk", "--scale"] {
        assert!(refused::<CostArgs>(&[flag, "0"]).contains("expected a whole number from 1"));
    }
    for flag in ["--heads", "--index-heads"] {
        assert!(refused::<KernelArgs>(&[flag, "0"]).contains("expected a whole number from 1"));
    }
    assert!(refused::<CostArgs>(&["--topk", "1048577"]).contains("from 1 to 2^20"));
    assert!(refused::<KernelArgs>(&["--gate-cases", "0"]).contains("0 is not in 1.."));
    assert!(refused::<KernelArgs>(&["--dtype", "fp8"]).contains("expected f32, bf16 or f16"));
    assert!(refused::<KernelArgs>(&["--seed", "abc"]).contains("invalid digit"));
    assert!(refused::<KernelArgs>(&["--fail-on-slower"]).contains("--baseline"));
}

#[test]
fn a_flag_that_does_nothing_is_unknown() {
    for flag in ["--heads=8", "--index-heads=8", "--dtype=f32", "--seconds=1"] {
        assert!(refused::<CostArgs>(&[flag]).contains("unexpected argument"));
    }
    assert!(refused::<CostArgs>(&["--gate-cases=1"]).contains("unexpected argument"));
    for flag in ["--budget=1", "--scale=4"] {
        assert!(refused::<KernelArgs>(&[flag]).contains("unexpected argument"));
    }
}

#[test]
fn a_filter_is_for_the_bench_that_has_it_and_none_is_mistyped() {
    let concerns = |arguments: &[&str]| {
        let all = std::iter::once("bench").chain(arguments.iter().copied());
        CostArgs::try_parse_from(all).unwrap().common.concerns(&[COST_BENCH])
    };
    assert!(concerns(&[]).unwrap() && concerns(&["cost"]).unwrap());
    assert!(!concerns(&["indexer"]).unwrap() && !concerns(&["--only", "indexer"]).unwrap());
    let error = concerns(&["topk"]).unwrap_err().to_string();
    assert!(error.contains("did you mean top_k?") && error.contains(COST_BENCH), "{error}");
    assert!(refused::<KernelArgs>(&["top_k", "--only", "top_k"]).contains("cannot be used"));
    assert!(refused::<KernelArgs>(&["--once", "--list"]).contains("cannot be used"));
}

#[test]
fn a_variable_that_nobody_reads_is_named() {
    let set = ["DSA_CONTEXT", "DSA_CONTEXTS", "DSA_HEADS", "DSA_COMMIT", "PATH"];
    let said = unread::<CostArgs>(set.iter().map(ToString::to_string));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("DSA_CONTEXT is set, and nothing reads it; there are DSA_DEVICE"));
    assert_eq!(said[1], "DSA_HEADS is set, and this bench does not read it");
}

#[test]
fn contexts_are_measured_from_the_shortest_up_and_once() {
    let args = CostArgs::try_parse_from(["bench", "--contexts", "512,256,512"]).unwrap();
    assert_eq!(args.common.ladder(vec![1]), [256, 512]);
    let mut args = CostArgs::try_parse_from(["bench"]).unwrap();
    args.common.contexts = None;
    assert_eq!(args.common.ladder(vec![1]), [1]);
}
