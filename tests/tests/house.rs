//! Which crate may stand on which. Arrows only point down.

use crate::metadata::{list, metadata};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The crates from top to bottom, and the crates of ours that each stands on, whatever for: to be built, to be
/// tested or by its build script.
const HOUSE: [(&str, &[&str]); 11] = [
    ("tests", &["cli", "figures", "gate", "kernels", "model", "offline", "reference", "serve"]),
    ("cli", &["figures", "files", "gate", "kernels", "model", "offline", "serve"]),
    ("serve", &["files", "model"]),
    ("benches", &["figures", "files", "gate", "kernels", "model"]),
    ("gate", &["figures", "files", "kernels", "model", "offline", "reference"]),
    ("figures", &["files"]),
    ("model", &["files", "kernels"]),
    ("files", &[]),
    ("offline", &["kernels"]),
    ("kernels", &[]),
    ("reference", &[]),
];

/// What the test of the planted bugs stands on. Each is the crate of that name once more, with the bugs.
const PLANTED: &[&str] = &["gate", "kernels", "model"];

/// What a crate must not be made of, by the first letters of its name.
const STRANGERS: [(&str, &str); 9] = [
    ("model", "ndarray"),
    ("cli", "ndarray"),
    ("serve", "ndarray"),
    ("serve", "cubecl"),
    ("kernels", "ndarray"),
    ("offline", "ndarray"),
    ("reference", "cubecl"),
    ("files", "cubecl"),
    ("figures", "cubecl"),
];

/// What each crate of ours stands on and whether only to be tested or by its build script, by names without
/// `dsa-`: `dsa-planted-gate` is `planted-gate`.
struct Crates(BTreeMap<String, Vec<(String, bool)>>);

impl Crates {
    fn read() -> Self {
        let name = |package: &Value| {
            let name = package["name"].as_str().unwrap();
            name.strip_prefix("dsa-").unwrap_or(name).to_string()
        };
        let metadata = metadata();
        let members: Vec<_> = list(&metadata["workspace_members"]).collect();
        let ours = list(&metadata["packages"]).filter(|package| members.contains(&&package["id"]));
        let stands_on = |package: &Value| {
            let all = list(&package["dependencies"]);
            all.map(|dependency| (name(dependency), !dependency["kind"].is_null())).collect()
        };
        Self(ours.map(|package| (name(package), stands_on(package))).collect())
    }

    /// The crates of ours that `name` stands on, whatever for.
    fn ours(&self, name: &str) -> BTreeSet<String> {
        let all = self.0[name].iter().map(|(dependency, _)| dependency);
        all.filter(|dependency| self.0.contains_key(*dependency)).cloned().collect()
    }

    /// All that `name` is built of.
    fn built_of(&self, name: &str) -> BTreeSet<String> {
        let normal = self.0[name].iter().filter(|(_, aside)| !aside);
        normal.map(|(dependency, _)| dependency.clone()).collect()
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn every_arrow_between_our_crates_is_in_the_table_and_every_entry_is_an_arrow() {
    let crates = Crates::read();
    for (name, allowed) in HOUSE {
        assert_eq!(crates.ours(name), set(allowed), "what dsa-{name} stands on");
    }
    let others = crates.0.keys().filter(|name| HOUSE.iter().all(|(house, _)| house != name));
    let others: Vec<_> = others.filter(|name| !name.starts_with("planted")).collect();
    assert!(others.is_empty(), "crates that the house does not have: {others:?}");
}

#[test]
fn arrows_point_down() {
    for (at, (name, allowed)) in HOUSE.iter().enumerate() {
        let below = |other: &str| HOUSE[at + 1..].iter().any(|(house, _)| *house == other);
        let up: Vec<_> = allowed.iter().filter(|other| !below(other)).collect();
        assert!(up.is_empty(), "{name} stands on {up:?}, which the table does not have below it");
    }
}

#[test]
fn a_crate_with_planted_bugs_is_made_of_what_the_crate_itself_is_made_of() {
    let crates = Crates::read();
    let planted: Vec<_> =
        crates.0.keys().filter_map(|name| Some((name, name.strip_prefix("planted-")?))).collect();
    assert!(!planted.is_empty());
    for (name, original) in &planted {
        let with_bugs = |dependency: String| {
            let planted = format!("planted-{dependency}");
            if crates.0.contains_key(&planted) { planted } else { dependency }
        };
        let expected: BTreeSet<_> = crates.built_of(original).into_iter().map(with_bugs).collect();
        assert_eq!(crates.built_of(name), expected, "what dsa-{name} is built of");
    }
    let stands_on: BTreeSet<_> = PLANTED.iter().map(|name| format!("planted-{name}")).collect();
    assert_eq!(crates.ours("planted"), stands_on);
}

#[test]
fn no_crate_is_made_of_what_belongs_in_another() {
    let crates = Crates::read();
    for (name, stranger) in STRANGERS {
        let built_of = crates.built_of(name);
        let found: Vec<_> = built_of.iter().filter(|name| name.starts_with(stranger)).collect();
        assert!(!built_of.is_empty() && found.is_empty(), "dsa-{name} stands on {found:?}");
    }
}
