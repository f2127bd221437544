//! Writes a package's sources with the planted bugs in them: shared by the build scripts.

use std::path::{Path, PathBuf};

// What is planted where is for the test to know.
#[allow(dead_code)]
mod table {
    include!("bugs.rs");
}

use table::{BUGS, Bug};

/// The repository's root.
pub fn root() -> Result<PathBuf, String> {
    let package = variable("CARGO_MANIFEST_DIR")?;
    let root = package.ancestors().nth(3).ok_or("tests/planted/NAME is not where it was")?;
    Ok(root.to_path_buf())
}

/// Writes what a package needs of `source`, as `kernels/src`, to where cargo has its build script write.
///
/// # Errors
/// What cannot be read or written.
pub fn splice_package(source: &str, condition: &str) -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    for shared in ["splice.rs", "bugs.rs"] {
        println!("cargo::rerun-if-changed=../{shared}");
    }
    splice(&root()?, source, &variable("OUT_DIR")?, condition)
}

/// Copies `source`, a folder of the repository's `root` such as `kernels/src`, to `src` in `out` with the bugs
/// that are planted there, each behind `condition` with `NAME` for its name. The
/// crate's root loses its inner attributes; the names of the bugs whose place was not found go to `missing.rs`.
fn splice(root: &Path, source: &str, out: &Path, condition: &str) -> Result<(), String> {
    let mut missing = Vec::new();
    for path in files_below(&root.join(source))? {
        let name = path.strip_prefix(root).map_err(|error| error.to_string())?;
        let name = name.to_string_lossy().replace('\\', "/");
        let mut text = read(&path)?;
        for bug in BUGS.iter().filter(|bug| bug.file == name) {
            if text.matches(bug.right).count() == 1 {
                text = text.replace(bug.right, &branch(bug, condition));
            } else {
                missing.push(bug.name);
            }
        }
        let to = out.join("src").join(name.trim_start_matches(source).trim_start_matches('/'));
        if to.ends_with("src/lib.rs") {
            text = without_inner_attributes(&text);
        }
        write(&to, &text)?;
    }
    write(&out.join("missing.rs"), &format!("&{missing:?}"))
}

/// `right`, or `wrong` if the bug is planted.
fn branch(bug: &Bug, condition: &str) -> String {
    let Bug { name, right, wrong, .. } = bug;
    let condition = condition.replace("NAME", &format!("{name:?}"));
    if right.ends_with(';') {
        format!("if {condition} {{ {wrong} }} else {{ {right} }}")
    } else {
        format!("(if {condition} {{ {wrong} }} else {{ {right} }})")
    }
}

/// The root of a crate as it can be included: its attributes and its documentation are the including file's.
fn without_inner_attributes(text: &str) -> String {
    let inner = |line: &&str| !line.starts_with("//!") && !line.starts_with("#![");
    text.lines().filter(inner).collect::<Vec<_>>().join("\n")
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes `text` unless it is there: cargo compiles again what was written.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}

fn variable(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo has not set {name}"))
}
