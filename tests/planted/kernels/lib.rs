//! The kernels, with the bugs of `bugs.rs` planted in them.

// What it is made of is linted where it stands.
#![allow(warnings, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/src/lib.rs"));

/// Whether the bug `name` is planted: `DSA_PLANTED` names it.
pub fn planted(name: &str) -> bool {
    static PLANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("DSA_PLANTED").ok()).as_deref() == Some(name)
}

/// The bugs whose place was not found.
pub const MISSING: &[&str] = include!(concat!(env!("OUT_DIR"), "/missing.rs"));
