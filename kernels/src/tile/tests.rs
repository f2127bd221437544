//! The floors of the vocabulary.

use std::collections::BTreeMap;
use std::path::Path;

/// The files of the table in this module's header, by their floor.
fn floors(header: &str) -> BTreeMap<&str, usize> {
    let mut floors = BTreeMap::new();
    for line in header.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split(" | ");
        let (Some(Ok(floor)), Some(files)) = (cells.next().map(str::parse), cells.next()) else {
            continue;
        };
        for file in files.split(", ") {
            let before = floors.insert(file.trim_matches('`'), floor);
            assert_eq!(before, None, "{file} stands on two floors");
        }
    }
    floors
}

#[test]
fn each_file_imports_from_floors_below_its_own_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tile");
    let header = std::fs::read_to_string(folder.join("mod.rs")).unwrap();
    let floors = floors(&header);
    let modules = header.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    let modules: Vec<_> = modules.filter(|module| *module != "tests").collect();
    assert_eq!(modules, floors.keys().copied().collect::<Vec<_>>(), "the table names every file");
    let mut arrows = 0;
    for (file, floor) in &floors {
        let text = std::fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap();
        assert!(!text.contains("use crate::tile"), "{file}: which file of the vocabulary?");
        for path in text.lines().filter_map(|line| line.strip_prefix("use super::")) {
            let from = path.split("::").next().unwrap_or_default();
            let below = floors.get(from).is_some_and(|other| other < floor);
            assert!(below, "{file}, on floor {floor}, imports from {from}");
            arrows += 1;
        }
    }
    assert!(arrows > 20, "{arrows} imports found");
}
