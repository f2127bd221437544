//! Pictures of rows that a hand has changed: refused, or drawn as files that any viewer can take.

use crate::rows::{every_picture, file};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Draws the rows of `text`; the folder of pictures comes back with how it ended.
fn draw(text: &str) -> (tempfile::TempDir, PathBuf, Output) {
    let folder = tempfile::tempdir().unwrap();
    let (rows, out) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    fs::write(&rows, text).unwrap();
    let began = Instant::now();
    let ended = Command::new(env!("CARGO_BIN_EXE_dsa-figures"))
        .arg("draw")
        .args([&rows, Path::new("--out"), &out, Path::new("--allow-mixed")])
        .output()
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "no end");
    (folder, out, ended)
}

fn good() -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    file(&path, &every_picture());
    fs::read_to_string(path).unwrap()
}

fn stderr(ended: &Output) -> String {
    String::from_utf8(ended.stderr.clone()).unwrap()
}

/// What XML 1.0 asks of these files: characters it can hold, entities it knows, tags that close.
fn is_well_formed(svg: &str) -> bool {
    let legal = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    let entities = svg.split('&').skip(1).all(|rest| {
        ["amp;", "lt;", "gt;", "quot;", "apos;", "#"].iter().any(|name| rest.starts_with(name))
    });
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let Some((tag, text)) = tag.split_once('>') else { return false };
        if text.contains('>') || tag.matches('"').count() % 2 != 0 {
            return false;
        }
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or("");
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return false;
            }
        } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
            open.push(name);
        }
    }
    svg.chars().all(legal) && entities && open.is_empty()
}

#[test]
fn the_check_of_the_pictures_can_fail() {
    assert!(is_well_formed("<svg a=\"b\">\n<text>x &lt; y</text><line/></svg>"));
    for bad in
        ["<svg>", "<a></b>", "<a>\u{1b}</a>", "<a>\u{ffff}</a>", "<a>& b</a>", "<a b=\"></a>"]
    {
        assert!(!is_well_formed(bad), "{bad}");
    }
}

#[test]
fn pictures_stay_well_formed_whatever_the_rows_say() {
    let good = good();
    let nasty = "\\u001b]0;evil\\u0007\\n<script>&\\\"'\\ufffe\\uffff\\u202e=1+1";
    let long = "x".repeat(200_000);
    for text in [nasty, &long] {
        let rows = good
            .replace("\"case\":\"a\"", &format!("\"case\":\"{text}\""))
            .replace("\"attention\"", &format!("\"{text}\""))
            .replace("test device", text)
            .replace("\"driver\":\"none\"", &format!("\"driver\":\"{text}\""))
            .replace("\"s_kv\"", &format!("\"{text}\""))
            .replace("0123abc", text)
            .replace("\"how\":\"test\"", &format!("\"how\":\"{text}\""))
            .replace("\"against\":\"reference\"", &format!("\"against\":\"{text}\""))
            .replace("cargo bench", text);
        let (_folder, out, ended) = draw(&rows);
        assert!(ended.status.success(), "{}", stderr(&ended));
        for stem in ["cost_vs_context", "time_stack", "roofline"] {
            let svg = fs::read_to_string(out.join(format!("{stem}.svg"))).unwrap();
            assert!(is_well_formed(&svg), "{stem}");
            assert!(svg.len() < 400_000 && !svg.contains("NaN") && !svg.contains("inf"), "{stem}");
        }
        let said = [ended.stdout.clone(), ended.stderr.clone()].concat();
        assert!(said.len() < 10_000 && !said.contains(&0x1b) && !said.contains(&7));
    }
}

#[test]
fn a_cell_of_a_row_is_never_a_formula() {
    for start in ["=", "+", "-", "@", " =", "\\t="] {
        let cell = format!("\"{start}HYPERLINK(1)\"");
        let rows = good().replace("\"case\":\"a\"", &format!("\"case\":{cell}"));
        let (_folder, out, ended) = draw(&rows.replace("\"attention\"", &cell));
        assert!(ended.status.success(), "{}", stderr(&ended));
        for stem in ["time_stack", "roofline"] {
            let csv = fs::read_to_string(out.join(format!("{stem}.csv"))).unwrap();
            let cells: Vec<&str> = csv.split([',', '\n']).filter(|c| c.contains("HYPER")).collect();
            assert!(!cells.is_empty());
            // A tab is no character of a picture; behind its question mark nothing is a formula.
            let start = if start == "\\t=" { "\"?" } else { "\"'" };
            assert!(cells.iter().all(|cell| cell.starts_with(start)), "{cells:?}");
        }
    }
}

/// Numbers that are valid JSON and no measurement: each is refused by its line, at once.
#[test]
fn absurd_numbers_are_refused_by_their_line() {
    let good = good();
    let first = good.lines().next().unwrap();
    let samples = &first[first.find("\"samples\"").unwrap()..first.find(",\"flop\"").unwrap()];
    let timing = |s: &str| {
        let new = format!("\"samples\":[{s},{s},{s}],\"median_s\":{s},\"mad_s\":0.0");
        good.replacen(samples, &new, 1)
    };
    let stages = good.find("\"stages_s\"").unwrap();
    let stage = |s: &str| {
        let (head, tail) = good.split_at(stages);
        let old = &tail[tail.find(':').unwrap()..=tail.find('}').unwrap()];
        format!("{head}{}", tail.replacen(old, &format!(":{{\"attention\":{s}}}"), 1))
    };
    for (rows, said) in [
        (good.replacen("\"flops\":1000000000.0", "\"flops\":1e-300", 1), "line 1: peak.flops is"),
        (
            good.replacen("\"bytes_per_s\":1000000000.0", "\"bytes_per_s\":1e300", 1),
            "line 1: peak.b",
        ),
        (timing("5e-324"), "line 1: samples is 0.0000"),
        (timing("1e300"), "line 1: samples is 1000"),
        (stage("1e308"), "line 3: stages_s is 1000"),
        (stage("0.0052"), "line 3: stages_s is 0.0052 s of calls of 0.00256 s"),
        (stage("-1.0"), "line 3: stages_s is -1 for attention"),
    ] {
        assert_ne!(rows, good);
        let (_folder, _, ended) = draw(&rows);
        assert_eq!(ended.status.code(), Some(1));
        assert!(stderr(&ended).contains(said), "{}", stderr(&ended));
    }
    assert!(draw(&stage("0.005")).2.status.success());
}

#[test]
fn the_largest_and_smallest_numbers_a_row_can_hold_are_drawn_as_numbers() {
    let good = good();
    let most = u64::MAX.to_string();
    let first = good.lines().next().unwrap();
    let samples = &first[first.find("\"samples\"").unwrap()..first.find(",\"flop\"").unwrap()];
    for seconds in ["1e-12", "1e9"] {
        let timing = format!("\"samples\":[{seconds}],\"median_s\":{seconds},\"mad_s\":0.0");
        let rows = good
            .replacen(samples, &timing, 1)
            .replace("\"flop\":1000000", &format!("\"flop\":{most}"))
            .replace("\"flops\":1000000000.0", "\"flops\":1.0")
            .replace("\"context\":2048", &format!("\"context\":{most}"))
            .replace("\"tokens\":4", &format!("\"tokens\":{most}"));
        let (_folder, out, ended) = draw(&rows);
        assert!(ended.status.success(), "{}", stderr(&ended));
        for file in fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|ending| ending != "png") {
                let text = fs::read_to_string(&file).unwrap();
                assert!(!text.contains("NaN") && !text.contains(",inf"), "{}", file.display());
            }
        }
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(!said.contains("NaN") && !said.contains(" inf"), "{said}");
    }
}

#[test]
fn a_picture_of_too_many_bars_is_refused_before_it_fills_the_memory() {
    let good = good();
    let line = good.lines().next().unwrap();
    let rows: String =
        (0..2000).map(|i| line.replace("\"s_q\":4", &format!("\"s_q\":{i}")) + "\n").collect();
    let (_folder, out, ended) = draw(&rows);
    assert_eq!(ended.status.code(), Some(1));
    assert!(stderr(&ended).contains("the number of rows is 2000; expected at most 300"));
    assert!(!out.exists(), "nothing is written before everything is drawn");
}

#[test]
fn a_noisy_run_says_so_in_every_picture_and_on_the_terminal() {
    let good = good();
    let (_folder, out, ended) = draw(&good);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(!said.contains("NOISY"), "{said}");
    for stem in ["cost_vs_context", "time_stack", "roofline"] {
        let svg = fs::read_to_string(out.join(format!("{stem}.svg"))).unwrap();
        assert!(!svg.contains("NOISY"), "{stem}");
    }
    // The fastest sample of each point becomes half of what it was; the median stays.
    let mut noisy = String::new();
    for line in good.lines() {
        let start = line.find("\"samples\":[").unwrap() + 11;
        let end = start + line[start..].find(',').unwrap();
        let fastest: f64 = line[start..end].parse().unwrap();
        noisy += &format!("{}{}{}\n", &line[..start], 0.5 * fastest, &line[end..]);
    }
    let (_folder, out, ended) = draw(&noisy);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(said.contains("NOISY RUN: 8 of 8 points spread by more than 20 %"), "{said}");
    assert!(said.contains("load average up to 1.5 (2 cores)"), "{said}");
    assert!(said.contains(": cargo bench --bench cost_vs_context -- --fresh"), "{said}");
    for stem in ["cost_vs_context", "time_stack", "roofline"] {
        let svg = fs::read_to_string(out.join(format!("{stem}.svg"))).unwrap();
        assert!(svg.contains("NOISY RUN: "), "{stem}");
    }
}
