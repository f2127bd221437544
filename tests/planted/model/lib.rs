//! The layer, with the bugs of `bugs.rs` planted in it.

// What it is made of is linted where it stands.
#![allow(warnings, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/src/lib.rs"));

/// The bugs whose place was not found.
pub const MISSING: &[&str] = include!(concat!(env!("OUT_DIR"), "/missing.rs"));
