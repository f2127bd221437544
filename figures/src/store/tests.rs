//! The file of rows under everything that happens to files.

use std::fs;

use super::*;
use crate::append::{append, writable};
use crate::*;

/// A row that passes every check, for the tests of the crate.
pub(crate) fn row(case: &str, hash: char, samples: Vec<f64>) -> Row {
    build("test device", case, hash, samples)
}

/// A row of a device.
pub(crate) fn row_of(device: &str, case: &str, hash: char) -> Row {
    build(device, case, hash, vec![1.0; 3])
}

fn build(device: &str, case: &str, hash: char, samples: Vec<f64>) -> Row {
    let device =
        Device { name: device.into(), kind: DeviceKind::Cpu, driver: "none".into(), cores: 2 };
    let what = What {
        bench: "indexer".into(),
        stage: Stage::Prefill,
        variant: Variant::V32Exp,
        case: case.into(),
        shape: [("s_q".to_string(), 4), ("s_kv".to_string(), 8)].into(),
        dtype: "e4m3".into(),
        seed: u64::MAX,
        device,
        kernel_hash: hash.to_string().repeat(64),
    };
    let how = "test".into();
    let peak = Some(Peak { flops: 1e9, bytes_per_s: 1e9, how });
    let work = Work { flop: 1_000_000, bytes: 500_000, peak };
    let origin = Origin {
        commit: "0123abc".into(),
        dirty: true,
        created: "2026-01-31T12:00:00Z".into(),
        command: "cargo bench".into(),
        load_average: None,
    };
    let gate = Gate::judge("reference", 1e-4, 1e-3, "[0, 1]", 3).unwrap();
    Row::new(what, gate, Timing::from_samples(samples).unwrap(), work, origin).unwrap()
}

#[test]
fn a_row_survives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    assert!(read(&path).is_err());
    writable(&path).unwrap();
    assert!(read(&path).unwrap().is_empty());
    let stages = [("indexer".to_string(), 0.001), ("experts".to_string(), 0.0)];
    let first = row("a", 'a', vec![0.002, 0.004]).with_stages(stages.into()).unwrap();
    let second = row("b", 'a', vec![0.25]);
    append(&path, &first).unwrap();
    append(&path, &second).unwrap();
    let rows = read(&path).unwrap();
    assert_eq!(rows, [first.clone(), second.clone()]);
    let fraction = first.fraction_of_peak().unwrap();
    assert!((fraction - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn a_bad_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    append(&path, &row("a", 'a', vec![0.5])).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let bad = [
        good.replace("\"worst_error\":0.0001", "\"worst_error\":0.1"),
        good.replace("\"schema\":1", "\"schema\":2"),
        good.replace("aaaa", "AAAA"),
        good.replace("2026-01-31T", "yesterday "),
        good.replace("\"gate\"", "\"no_gate\""),
        good.replace("[0.5]", "[5e-324]"),
        good.replace("\"flops\":1000000000.0", "\"flops\":1e-300"),
        format!("{}\n", &good[..good.len() / 2]),
        // Whole, without a newline, and no row: not torn.
        "{\"schema\":2}".to_string(),
    ];
    for bad in bad {
        assert_ne!(good, bad);
        fs::write(&path, format!("{good}{bad}")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2: "), "{error}");
        assert!(append(&path, &row("b", 'a', vec![0.5])).is_err() || bad.ends_with('\n'));
    }
}

#[test]
fn what_is_no_text_is_named_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    append(&path, &row("a", 'a', vec![0.5])).unwrap();
    let good = fs::read(&path).unwrap();
    fs::write(&path, [&good[..], b"\"\xff\"\n", &good[..]].concat()).unwrap();
    let error = read(&path).unwrap_err().to_string();
    assert!(error.ends_with("rows.jsonl, line 2: not UTF-8"), "{error}");
    fs::write(&path, [b"\xef\xbb\xbf", &good[..]].concat()).unwrap();
    assert_eq!(read(&path).unwrap().len(), 1, "a byte order mark is no part of the row");
}

#[test]
fn what_a_bad_line_says_is_fit_for_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    append(&path, &row("a", 'a', vec![0.5])).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let forged = "\\u001b[31m\\nPASS: all";
    let long = "x".repeat(1 << 20);
    for bad in [
        good.replace(&"a".repeat(64), forged),
        good.replace("[0, 1]", forged).replace("0.0001", "0.5"),
        good.replace("2026-01-31T12:00:00Z", &long),
        format!("{long}\n"),
    ] {
        fs::write(&path, bad).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.len() < 1000 && !error.contains(['\u{1b}', '\n']), "{error:?}");
    }
}

#[test]
fn a_torn_last_line_is_dropped_and_told_and_gives_way_to_the_next_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let (a, b) = (row("ä", 'a', vec![0.5]), row("b", 'a', vec![0.5]));
    append(&path, &a).unwrap();
    let good = fs::read(&path).unwrap();
    for cut in 1..good.len() - 1 {
        fs::write(&path, [&good[..], &good[..cut]].concat()).unwrap();
        let found = read_all(&path).unwrap();
        assert_eq!(found.rows, std::slice::from_ref(&a));
        let torn = found.torn.unwrap();
        assert_eq!((torn.line, torn.start, torn.bytes), (2, good.len(), cut));
    }
    let torn = read_all(&path).unwrap().torn.unwrap().to_string();
    let cut = good.len() - 2;
    let said =
        format!("rows.jsonl, line 2: torn after {cut} bytes and dropped; it is no whole row");
    assert!(torn.ends_with(&said), "{torn}");
    append(&path, &b).unwrap();
    assert_eq!(read_all(&path).unwrap(), Rows { rows: vec![a.clone(), b.clone()], torn: None });
    // After a power cut the end of a file can be zeros.
    fs::write(&path, [&good[..], &[0; 100]].concat()).unwrap();
    assert!(read_all(&path).unwrap().torn.is_some());
    append(&path, &b).unwrap();
    assert_eq!(read(&path).unwrap(), [a.clone(), b.clone()]);
    // Only the newline is missing: that row is whole.
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    append(&path, &b).unwrap();
    assert_eq!(read_all(&path).unwrap(), Rows { rows: vec![a, b], torn: None });
}

#[test]
fn what_cannot_hold_rows_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("file/rows.jsonl");
    fs::write(folder.path().join("file"), "").unwrap();
    for path in [Path::new("/dev/zero"), folder.path(), &below] {
        for error in [read(path).unwrap_err(), append(path, &row("a", 'a', vec![0.5])).unwrap_err()]
        {
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
    }
    let device = append(Path::new("/dev/null"), &row("a", 'a', vec![0.5])).unwrap_err().to_string();
    assert_eq!(device, "/dev/null: not a regular file");
}

#[test]
fn the_newest_row_of_a_place_stays() {
    let rows = [row("a", 'a', vec![1.0]), row("b", 'a', vec![1.0]), row("a", 'b', vec![2.0])];
    assert_eq!(latest(&rows), [rows[1].clone(), rows[2].clone()]);
}
