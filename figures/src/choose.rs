//! Which rows of a file make a picture: one device, and each kernel as it was last.

use std::collections::BTreeMap;

use dsa_files::printable;

use crate::{Error, Row, latest};

/// The rows to draw and what was left out for their sake.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Of one device and of one version of each kernel, the newest row of each place.
    pub rows: Vec<Row>,
    /// What else the file has, one sentence each.
    pub left_out: Vec<String>,
}

/// Takes the rows of the device of this name, or of the device that was measured last. A part of a name will
/// do if one device only has it. Of each kernel the version that was measured last is taken.
///
/// Later in the file is newer.
pub fn choose(rows: &[Row], device: Option<&str>) -> Result<Chosen, Error> {
    let mut devices: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *devices.entry(&row.what().device.name).or_default() += 1);
    let name = match device {
        Some(wanted) => named(&devices, wanted)?,
        None => match rows.last() {
            Some(row) => row.what().device.name.as_str(),
            None => return Ok(Chosen { rows: Vec::new(), left_out: Vec::new() }),
        },
    };
    let mut left_out = Vec::new();
    for (other, count) in devices.iter().filter(|(other, _)| **other != name) {
        let (other, name) = (printable(other, 100), printable(name, 100));
        left_out.push(format!("{count} rows of {other} (drawn: {name}; --device NAME chooses)"));
    }
    let mut rows: Vec<Row> =
        rows.iter().filter(|row| row.what().device.name == name).cloned().collect();
    let versions: BTreeMap<String, String> =
        rows.iter().map(|row| (row.what().bench.clone(), row.what().kernel_hash.clone())).collect();
    let newest = |row: &Row| versions.get(&row.what().bench) == Some(&row.what().kernel_hash);
    let mine = rows.len();
    rows.retain(newest);
    if rows.len() < mine {
        let count = mine - rows.len();
        left_out.push(format!(
            "{count} rows of older versions of the kernels (--allow-mixed draws them too)"
        ));
    }
    Ok(Chosen { rows: latest(&rows), left_out })
}

fn named<'a>(devices: &BTreeMap<&'a str, usize>, wanted: &str) -> Result<&'a str, Error> {
    if let Some((name, _)) = devices.get_key_value(wanted) {
        return Ok(name);
    }
    let wanted_low = wanted.to_lowercase();
    let like: Vec<&str> =
        devices.keys().copied().filter(|n| n.to_lowercase().contains(&wanted_low)).collect();
    match like[..] {
        [one] if !wanted.is_empty() => Ok(one),
        _ => {
            let all: Vec<String> = devices.keys().take(10).map(|n| printable(n, 60)).collect();
            let expected = format!("one of the devices in the file: {}", all.join(", "));
            Err(Error::Device { wanted: printable(wanted, 60), expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::row_of;

    #[test]
    fn the_newest_device_is_drawn_and_the_others_are_named() {
        let rows = [row_of("one", "a", 'a'), row_of("two", "a", 'a'), row_of("two", "b", 'a')];
        let found = choose(&rows, None).unwrap();
        assert_eq!(found.rows, rows[1..]);
        assert_eq!(found.left_out, ["1 rows of one (drawn: two; --device NAME chooses)"]);
        for name in ["one", "ON"] {
            assert_eq!(choose(&rows, Some(name)).unwrap().rows, rows[..1]);
        }
        for wrong in ["three", "o", ""] {
            let error = choose(&rows, Some(wrong)).unwrap_err().to_string();
            let expected = "expected one of the devices in the file: one, two";
            assert_eq!(error, format!("--device is {wrong:?}; {expected}"));
        }
        assert_eq!(choose(&[], None).unwrap().rows, []);
    }

    #[test]
    fn the_newest_version_of_a_kernel_is_drawn() {
        let rows = [row_of("one", "a", 'a'), row_of("one", "a", 'b'), row_of("one", "b", 'a')];
        let found = choose(&rows, None).unwrap();
        assert_eq!(found.rows, [rows[0].clone(), rows[2].clone()]);
        let said = "1 rows of older versions of the kernels (--allow-mixed draws them too)";
        assert_eq!(found.left_out, [said]);
    }
}
