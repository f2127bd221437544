//! Which source files a kernel is made of: read by the build script, and by the tests of what it finds.
//!
//! A kernel is the file that launches it and every file of this crate that the compiler reaches from there:
//! what follows `crate::`, and what `mod name;` declares. Tests and lines of comment are left out, since they
//! decide no timing. Nothing is listed by hand.

use std::collections::{BTreeMap, BTreeSet};

/// Source files by their path below `src`, as `top_k/columns.rs`.
pub type Files = BTreeMap<String, String>;

/// `text` without its tests and its lines of comment.
pub fn code(text: &str) -> String {
    let mut code = String::new();
    // rustfmt puts the end of an item where the item began: at the start of a line.
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            let mut item = lines.by_ref().skip_while(|line| line.starts_with("#["));
            let one_line = item.next().is_none_or(|line| line.ends_with(';'));
            let _ = one_line || lines.by_ref().any(|line| line == "}");
        } else if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// Whether the file `name` launches a kernel. What a `tests.rs` launches is no kernel of the crate.
pub fn has_kernel(name: &str, text: &str) -> bool {
    !name.ends_with("tests.rs") && code(text).lines().any(|line| line.starts_with("#[cube(launch"))
}

/// `start` and every file that it reaches.
pub fn reached(files: &Files, start: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![start.to_string()];
    while let Some(file) = next.pop() {
        if let Some(text) = files.get(&file)
            && reached.insert(file.clone())
        {
            next.extend(named(files, &file, &code(text)));
        }
    }
    reached
}

/// The files that `code`, of `file`, names.
fn named(files: &Files, file: &str, code: &str) -> Vec<String> {
    let exported = exported(files.get("lib.rs").map_or("", String::as_str));
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        for name in first_names(&code[at + "crate::".len()..]) {
            let module = exported.get(name).map_or(name, String::as_str);
            found.extend(file_of(files, "", module));
        }
    }
    let folder = match file.strip_suffix("mod.rs") {
        Some(folder) => folder.to_string(),
        None => format!("{}/", file.trim_end_matches(".rs")),
    };
    for line in code.lines() {
        let declared = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        if let Some(name) = declared.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            found.extend(file_of(files, &folder, name));
        }
    }
    found
}

/// The file of the module `name` whose parent's folder is `folder`.
fn file_of(files: &Files, folder: &str, name: &str) -> Option<String> {
    [format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")]
        .into_iter()
        .find(|file| files.contains_key(file))
}

/// The first name of a path, or of each path of a group: `a` of `a::b`, `a` and `c` of `{a::b, c}`.
fn first_names(path: &str) -> Vec<&str> {
    let name =
        |path: &str| path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    let Some(group) = path.strip_prefix('{') else { return vec![&path[..name(path)]] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            _ if start && !c.is_whitespace() => {
                names.push(&group[at..at + name(&group[at..])]);
                start = false;
            }
            _ => {}
        }
    }
    names
}

/// The module of each name that lib.rs exports by `pub use module::{names};`.
fn exported(lib: &str) -> BTreeMap<&str, String> {
    let mut exported = BTreeMap::new();
    for line in lib.lines() {
        let Some((module, names)) =
            line.strip_prefix("pub use ").and_then(|path| path.split_once("::"))
        else {
            continue;
        };
        for name in names.split(|c: char| !c.is_alphanumeric() && c != '_') {
            exported.insert(name, module.to_string());
        }
    }
    exported
}

/// The lines of `lock`, a Cargo.lock, that say which CubeCL compiles the kernels: name, version and checksum
/// of its packages and of pliron's, its IR.
pub fn compiler(lock: &str) -> String {
    let of_compiler = |package: &&str| {
        ["cubecl", "pliron"].iter().any(|name| package.starts_with(&format!("\nname = \"{name}")))
    };
    let kept = |line: &&str| {
        ["name", "version", "checksum"].iter().any(|key| line.starts_with(&format!("{key} = ")))
    };
    let packages = lock.split("[[package]]").filter(of_compiler);
    packages
        .flat_map(|package| package.lines().filter(kept))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The folders of crates that `manifest`, the workspace's Cargo.toml, puts in the place of published ones.
pub fn patched(manifest: &str) -> Vec<&str> {
    let Some((_, patches)) = manifest.split_once("\n[patch.crates-io]\n") else {
        return Vec::new();
    };
    let lines = patches.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split_once("path = \"")?.1.split('"').next()).collect()
}
