//! Guessing which name was meant.

use std::cmp::Reverse;

/// The name that shares most with `name` at its two ends; none if that is less than half of it.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let same = |(a, b): &(u8, u8)| a == b;
    let likeness = |other: &&str| {
        let (a, b) = (name.bytes(), other.bytes());
        let start = a.clone().zip(b.clone()).take_while(same).count();
        let end = a.rev().zip(b.rev()).take_while(same).count();
        // The shorter other name wins among equals, then the alphabetically last.
        ((start + end).min(name.len()), Reverse(other.len()))
    };
    let best = names.max_by_key(likeness)?;
    (likeness(&best).0 * 2 >= name.len()).then(|| best.to_string())
}
