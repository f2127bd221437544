//! The file of rows: one JSON object a line, only ever appended to.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::{Error, Key, Row};

/// Appends one row. The whole line goes out in one write, so that a run that is cut short leaves
/// whole lines behind; if the file does not end in a newline, the row starts on a fresh line.
pub fn append(path: &Path, row: &Row) -> Result<(), Error> {
    let failed = |source| Error::io(path, source);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(path).map_err(failed)?;
    let json = serde_json::to_string(row).map_err(|e| failed(e.into()))?;
    let start = if ends_a_line(&mut file).map_err(failed)? { "" } else { "\n" };
    file.write_all(format!("{start}{json}\n").as_bytes()).map_err(failed)?;
    file.flush().map_err(failed)
}

fn ends_a_line(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Reads every row of a file. A line that is no row stops it, and the error names the line.
/// Empty lines are passed over. serde_json reads a float to within its last bit, so a row read back
/// has the same key as the one written, but not always the same last digit of a time.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| parse(path, number + 1, line)).collect()
}

/// Like [`read`], but a file that does not exist holds no rows: the start of a run.
pub fn read_or_empty(path: &Path) -> Result<Vec<Row>, Error> {
    if path.exists() { read(path) } else { Ok(Vec::new()) }
}

fn parse(path: &Path, line: usize, text: &str) -> Result<Row, Error> {
    serde_json::from_str(text).map_err(|error| Error::Line {
        path: path.to_owned(),
        line,
        reason: error.to_string(),
    })
}

/// The newest row with this key, if there is one: a run that resumes skips it.
pub fn find<'a>(rows: &'a [Row], key: &Key) -> Option<&'a Row> {
    rows.iter().rev().find(|row| row.key() == *key)
}

/// For each place (the key without the kernel's hash) its newest row, the order otherwise kept.
/// Later in the file is newer.
pub fn latest(rows: &[Row]) -> Vec<Row> {
    let newest: BTreeMap<_, usize> =
        rows.iter().enumerate().map(|(i, row)| (row.what().place(), i)).collect();
    let mut order: Vec<usize> = newest.into_values().collect();
    order.sort_unstable();
    order.into_iter().map(|i| rows[i].clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::*;

    /// A row that passes every check, for the tests of the crate.
    pub(crate) fn row(case: &str, hash: char, samples: Vec<f64>) -> Row {
        let device = Device {
            name: "test device".into(),
            kind: DeviceKind::Cpu,
            driver: "none".into(),
            cores: 2,
        };
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
        };
        let gate = Gate::judge("reference", 1e-4, 1e-3, "[0, 1]", 3).unwrap();
        Row::new(what, gate, Timing::from_samples(samples).unwrap(), work, origin).unwrap()
    }

    #[test]
    fn a_row_survives_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        assert!(read(&path).is_err());
        assert!(read_or_empty(&path).unwrap().is_empty());
        let stages = [("indexer".to_string(), 0.001), ("moe_op_count".to_string(), 0.0)];
        let first = row("a", 'a', vec![0.002, 0.004]).with_stages(stages.into()).unwrap();
        let second = row("b", 'a', vec![0.25]);
        append(&path, &first).unwrap();
        append(&path, &second).unwrap();
        let rows = read(&path).unwrap();
        assert_eq!(rows, [first.clone(), second.clone()]);
        assert_eq!(find(&rows, &second.key()), Some(&second));
        assert_eq!(find(&rows, &row("c", 'a', vec![0.25]).key()), None);
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
            good[..good.len() / 2].to_string(),
        ];
        for bad in bad {
            assert_ne!(good, bad);
            fs::write(&path, format!("{good}{bad}")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("line 2: "), "{error}");
        }
    }

    #[test]
    fn a_row_is_not_glued_to_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        fs::write(&path, "{\"schema\":1,").unwrap();
        append(&path, &row("a", 'a', vec![0.5])).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn the_newest_row_of_a_place_stays() {
        let rows = [row("a", 'a', vec![1.0]), row("b", 'a', vec![1.0]), row("a", 'b', vec![2.0])];
        assert_eq!(latest(&rows), [rows[1].clone(), rows[2].clone()]);
    }
}
