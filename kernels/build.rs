//! Finds out what the kernels are made of, so that measurements of different ones are told apart, and asks the
//! LLVM that CubeCL links for its version, so that `dsa doctor` can say it.

mod sources;

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Called by the build script of the kernels with planted bugs too.
///
/// # Errors
/// What cannot be read or written.
pub fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=sources.rs");
    let version = llvm_version();
    println!("cargo::rustc-env=DSA_LLVM_VERSION={version}");
    let table = table(&version)?;
    let out = variable("OUT_DIR")?.join("sources.rs");
    std::fs::write(&out, table).map_err(|error| format!("{}: {error}", out.display()))
}

fn llvm_version() -> String {
    tracel_llvm_bundler::config::llvm_path()
        .ok()
        .and_then(|path| Command::new(path.join("bin/llvm-config")).arg("--version").output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| "of unknown version".to_string())
}

/// The tables that `src/source.rs` includes: every file with its text, the hash of its code and, if it launches a
/// kernel, the files it reaches; and the hash of the compiler behind them.
fn table(llvm_version: &str) -> Result<String, String> {
    let package = variable("CARGO_MANIFEST_DIR")?;
    let src = package.join("src");
    println!("cargo::rerun-if-changed={}", src.display());
    let files = files_below(&src)?;
    let mut table = "pub(crate) const SOURCES: &[Source] = &[\n".to_string();
    for (name, text) in &files {
        let code = sources::code(text);
        let reached = if sources::has_kernel(name, text) {
            sources::reached(&files, name)
        } else {
            Default::default()
        };
        let (path, code) = (src.join(name), hex(&Sha256::digest(&code)));
        let _ = writeln!(
            table,
            "Source {{ name: {name:?}, text: include_str!({path:?}), code: {code:?}, reached: &{:?} }},",
            reached.iter().collect::<Vec<_>>()
        );
    }
    let _ = writeln!(
        table,
        "];\npub(crate) const COMPILER: &str = {:?};",
        compiler(&package, llvm_version)?
    );
    Ok(table)
}

/// Every `.rs` file below `folder`.
fn files_below(folder: &Path) -> Result<sources::Files, String> {
    let mut files = sources::Files::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let failed = |error| format!("{}: {error}", next.display());
        for entry in std::fs::read_dir(&next).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).map_err(failed)?;
                let below = path.strip_prefix(folder).unwrap_or(&path);
                let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
                files.insert(parts.join("/"), text);
            }
        }
    }
    Ok(files)
}

/// The hash of what compiles the kernels: CubeCL as Cargo.lock pins it, the sources of its crates that the set-up has
/// changed, and LLVM.
fn compiler(package: &Path, llvm_version: &str) -> Result<String, String> {
    let root = package.parent().unwrap_or(package);
    let read = |name: &str| {
        let path = root.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let mut hash = Sha256::new();
    hash.update(llvm_version);
    hash.update(sources::compiler(&read("Cargo.lock")?));
    for folder in sources::patched(&read("Cargo.toml")?) {
        let folder = root.join(folder).join("src");
        println!("cargo::rerun-if-changed={}", folder.display());
        for (name, text) in files_below(&folder)? {
            hash.update(name);
            hash.update(text);
        }
    }
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn variable(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo has not set {name}"))
}
