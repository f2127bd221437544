//! Asks the LLVM that CubeCL links for its version, so that `dsa doctor` can say it.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = tracel_llvm_bundler::config::llvm_path()
        .ok()
        .and_then(|path| Command::new(path.join("bin/llvm-config")).arg("--version").output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| "of unknown version".to_string());
    println!("cargo::rustc-env=DSA_LLVM_VERSION={version}");
}
