//! The source of the kernels, as the build script found it: what tells measurements of different kernels apart.

use sha2::{Digest, Sha256};

/// A source file of this crate.
pub(crate) struct Source {
    /// Its path below `src`, as `top_k/columns.rs`.
    name: &'static str,
    /// Its text.
    text: &'static str,
    /// SHA-256 of its code: the text without tests and lines of comment.
    code: &'static str,
    /// If it launches a kernel, the files its code reaches, itself among them.
    reached: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// The text of a source file of the kernels, as `indexer.rs`; `None` if there is none of that name.
pub fn source_text(file: &str) -> Option<&'static str> {
    SOURCES.iter().find(|source| source.name == file).map(|source| source.text)
}

/// SHA-256 of what decides how fast the kernels in `file`, as `indexer.rs`, are; of all kernels if `file` is
/// `None`. 64 hex digits.
///
/// That is the code of the file and of every file of this crate that it reaches by `crate::` or `mod`, without
/// tests and lines of comment, and what compiles them: CubeCL as Cargo.lock pins it, its crates that the
/// set-up changes, and LLVM.
pub fn source_hash(file: Option<&str>) -> String {
    let mut hash = Sha256::new();
    hash.update(COMPILER);
    for source in parts(file) {
        hash.update(source.name);
        hash.update(source.code);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files that [`source_hash`] hashes.
fn parts(file: Option<&str>) -> impl Iterator<Item = &'static Source> {
    let reached = move |name: &str| {
        let kernels =
            SOURCES.iter().filter(move |source| file.is_none_or(|file| source.name == file));
        kernels.flat_map(|kernel| kernel.reached).any(|part| *part == name)
    };
    SOURCES.iter().filter(move |source| reached(source.name))
}

#[cfg(test)]
#[path = "../sources.rs"]
mod files;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::files::Files;

    fn names(file: Option<&str>) -> Vec<&'static str> {
        parts(file).map(|source| source.name).collect()
    }

    #[test]
    fn what_decides_the_time_of_every_kernel_is_in_its_hash() {
        let kernels: Vec<_> = SOURCES.iter().filter(|source| !source.reached.is_empty()).collect();
        assert!(kernels.len() >= 13, "{} files with kernels", kernels.len());
        for kernel in kernels {
            let names = names(Some(kernel.name));
            for part in ["tile/mod.rs", "tile/multiply.rs", "device.rs", "tensor.rs", kernel.name] {
                assert!(names.contains(&part), "{} lacks {part}: {names:?}", kernel.name);
            }
        }
    }

    #[test]
    fn a_kernel_is_its_parts_and_not_another_kernel() {
        let attention = names(Some("sparse_attention.rs"));
        for part in ["merge_splits.rs", "attention.rs", "keys.rs", "keys/record.rs", "pages.rs"] {
            assert!(attention.contains(&part), "{attention:?}");
        }
        let indexer = names(Some("indexer.rs"));
        for part in ["indexer/keys.rs", "indexer/logits.rs", "indexer/tiling.rs", "pages.rs"] {
            assert!(indexer.contains(&part), "{indexer:?}");
        }
        let top_k = names(Some("top_k.rs"));
        for part in ["top_k/columns.rs", "top_k/radix.rs", "top_k/policy.rs", "top_k/sift.rs"] {
            assert!(top_k.contains(&part), "{top_k:?}");
            assert!(!indexer.contains(&part), "{indexer:?}");
        }
    }

    #[test]
    fn two_files_have_the_same_hash_only_if_each_reaches_the_other() {
        let kernels: Vec<_> = SOURCES.iter().filter(|source| !source.reached.is_empty()).collect();
        for (i, a) in kernels.iter().enumerate() {
            assert_ne!(source_hash(Some(a.name)), source_hash(None), "{}", a.name);
            for b in &kernels[..i] {
                let same = source_hash(Some(a.name)) == source_hash(Some(b.name));
                let one = a.reached.contains(&b.name) && b.reached.contains(&a.name);
                assert_eq!(same, one, "{} and {}", a.name, b.name);
            }
        }
        assert_ne!(source_hash(Some("gemm.rs")), source_hash(Some("top_k.rs")));
    }

    #[test]
    fn every_kernel_counts_and_nothing_that_runs_on_the_host_alone() {
        let all = names(None);
        for kernel in ["gemm.rs", "top_k.rs", "indexer.rs", "sparse_attention.rs", "quant.rs"] {
            assert!(all.contains(&kernel), "{all:?}");
        }
        let host = |name: &&&str| ["lib.rs", "random.rs", "source.rs"].contains(name);
        assert_eq!(all.iter().find(host), None);
    }

    #[test]
    fn a_test_and_a_comment_are_no_code() {
        let text = "//! Text.\nfn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn t() {\n    }\n}\n    // Why.\nfn b() {}\n";
        assert_eq!(files::code(text), "fn a() {}\n\nfn b() {}\n");
        assert_eq!(files::code("#[cfg(test)]\nmod tests;\nfn a() {}\n"), "fn a() {}\n");
        assert!(!files::has_kernel("a.rs", "#[cfg(test)]\nmod tests {\n#[cube(launch)]\n}\n"));
        assert!(files::has_kernel("a.rs", "#[cube(launch_unchecked)]\nfn a() {}\n"));
        assert!(!files::has_kernel("a/tests.rs", "#[cube(launch_unchecked)]\nfn a() {}\n"));
    }

    #[test]
    fn a_file_is_reached_however_it_is_named() {
        let files: Files = [
            ("lib.rs", "pub mod a;\npub use shown::{Shown, Other};\n"),
            ("a.rs", "use crate::{b::{X, c}, Shown};\nfn f() { crate::d::g() }\nmod own;\n"),
            ("a/own.rs", "use super::f;\nuse crate::a;\n"),
            ("b/mod.rs", "mod inner;\npub mod open;\n"),
            ("b/inner.rs", ""),
            ("b/open.rs", ""),
            ("d.rs", ""),
            ("shown.rs", ""),
            ("unseen.rs", "use crate::a;"),
            ("c.rs", ""),
            ("X.rs", ""),
        ]
        .map(|(name, text)| (name.to_string(), text.to_string()))
        .into();
        let reached: Vec<_> = files::reached(&files, "a.rs").into_iter().collect();
        let expected =
            ["a.rs", "a/own.rs", "b/inner.rs", "b/mod.rs", "b/open.rs", "d.rs", "shown.rs"];
        assert_eq!(reached, expected);
    }

    #[test]
    fn the_compiler_is_its_pinned_packages_and_the_crates_put_in_their_place() {
        let lock = "version = 4\n\n[[package]]\nname = \"clap\"\nversion = \"4.5.0\"\n\n[[package]]\nname = \"cubecl-ir\"\n\
                    version = \"0.12.0\"\nchecksum = \"ab\"\ndependencies = [\n \"clap\",\n]\n\n[[package]]\nname = \"pliron\"\n\
                    version = \"0.20.0\"\n";
        let expected = "name = \"cubecl-ir\"\nversion = \"0.12.0\"\nchecksum = \"ab\"\nname = \"pliron\"\nversion = \"0.20.0\"\n";
        assert_eq!(files::compiler(lock), expected);
        let manifest = "[a]\nb = { path = \"no\" }\n\n[patch.crates-io]\nx = { path = \"one/x\" }\ny = { path = \"two\" }\n\n[c]\nz = { path = \"no\" }\n";
        assert_eq!(files::patched(manifest), ["one/x", "two"]);
        assert!(files::patched("[a]\n").is_empty());
    }
}
