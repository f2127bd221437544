//! `LICENSES` names what a binary carries along and under which licence. It is made from `cargo metadata`; this
//! test holds the file to what it would be made to now, and writes it where DSA_WRITE_LICENSES is set.

use crate::metadata::{list, metadata};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates whose binaries and libraries are given away.
const GIVEN: [&str; 2] = ["dsa-cli", "dsa-figures"];

/// Licences that ask for more than a copyright notice: the text of each such crate's licence files goes
/// into `LICENSES` whole.
const WITH_TEXT: [&str; 4] = ["OFL-1.1", "Ubuntu-font-1.0", "MPL-2.0", "CDLA-Permissive-2.0"];

/// The packages that [`GIVEN`] are made of, by name and version: dependencies of any depth, without what
/// only tests or build scripts need.
fn carried(metadata: &Value) -> BTreeMap<(&str, &str), &Value> {
    let packages: BTreeMap<_, _> =
        list(&metadata["packages"]).map(|package| (package["id"].as_str(), package)).collect();
    let nodes: BTreeMap<_, _> =
        list(&metadata["resolve"]["nodes"]).map(|node| (node["id"].as_str(), node)).collect();
    let given = |package: &&&Value| GIVEN.iter().any(|name| package["name"] == *name);
    let mut next: Vec<_> = packages.values().filter(given).map(|p| p["id"].as_str()).collect();
    assert_eq!(next.len(), GIVEN.len());
    let mut seen = BTreeSet::new();
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            let normal = |dep: &&Value| list(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null());
            next.extend(list(&nodes[&id]["deps"]).filter(normal).map(|dep| dep["pkg"].as_str()));
        }
    }
    seen.into_iter()
        .map(|id| packages[&id])
        .filter(|package| !package["source"].is_null() || package["name"] == "cubecl-ir")
        .map(|package| {
            let field = |name: &str| package[name].as_str().unwrap_or_default();
            ((field("name"), field("version")), package)
        })
        .collect()
}

/// The licence texts beside a crate's manifest or its fonts.
fn texts(package: &Value) -> Vec<PathBuf> {
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let root = manifest.parent().unwrap_or(Path::new(""));
    let mut found: Vec<PathBuf> = [root.to_path_buf(), root.join("fonts")]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            name.starts_with("LICEN") || name.starts_with("COPYING") || name.ends_with(".TXT")
        })
        .collect();
    found.sort();
    found
}

/// What `LICENSES` should hold.
fn licences() -> String {
    let metadata = metadata();
    let carried = carried(&metadata);
    let mut by_licence: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((name, version), package) in &carried {
        let licence = package["license"].as_str().unwrap_or("(see its licence file)");
        by_licence.entry(licence).or_default().push(format!("{name} {version}"));
    }
    let mut out = String::from(
        "What a binary of this workbench carries along, by licence. The workbench's own is in LICENSE.\n\
         Made from `cargo metadata` by `make licences`; a test holds this file to it.\n\n\
         Linked in from the machine it is built on: LLVM and lld (Apache-2.0 WITH LLVM-exception), zlib (Zlib),\n\
         zstd (BSD-3-Clause).\n",
    );
    for (licence, packages) in &by_licence {
        out += &format!("\n# {licence}\n\n");
        packages.iter().for_each(|package| out += &format!("{package}\n"));
    }
    for ((name, version), package) in &carried {
        let licence = package["license"].as_str().unwrap_or("unnamed");
        if licence != "unnamed" && !WITH_TEXT.iter().any(|asks| licence.contains(asks)) {
            continue;
        }
        let repository = package["repository"].as_str().unwrap_or("no repository named");
        out += &format!("\n# {name} {version} ({licence}), its source: {repository}\n");
        for path in texts(package) {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).replace('\r', "");
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let lines = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            out += &format!("\n## {name}\n\n{}\n", lines.trim_end());
        }
    }
    out
}

#[test]
fn the_licences_of_what_a_binary_carries_are_listed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSES");
    let expected = licences();
    if std::env::var_os("DSA_WRITE_LICENSES").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "LICENSES is not what the dependencies are: run `make licences`");
    for must in ["epaint_default_fonts", "MPL-2.0", "Ubuntu Font Licence", "SIL OPEN FONT LICENSE"]
    {
        assert!(found.to_uppercase().contains(&must.to_uppercase()), "LICENSES lacks {must:?}");
    }
}
