//! What the benches share: their command line ([`args`]), the device's measured ceilings ([`peaks`]), one
//! kernel's measurement from its gate to its row ([`session`]), the lists of measurements ([`specs`], [`curves`]), and
//! what judges the outputs that were timed ([`timed`]).
//! Which rows a run keeps, goes on from and draws is in `dsa_figures::run`, where it is tested without
//! measuring anything.
//!
//! Nothing is timed before it has passed its gate: `dsa_figures::Row` cannot be built without one.
#![forbid(unsafe_code)]

pub mod args;
pub mod curves;
pub mod peaks;
pub mod session;
pub mod specs;
pub mod timed;

/// An error and its causes in one line; a cause that the error has said already is not said again.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Bytes of the machine's memory that are free or can be made so; none where Linux does not say.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn the_free_memory_is_less_than_a_machine_has() {
        let free = super::free_memory().unwrap();
        assert!((1 << 20..1 << 46).contains(&free), "{free}");
    }

    #[test]
    fn an_error_says_a_thing_once() {
        let cause = || std::io::Error::other("the disk is full");
        let twice = Err::<(), _>(cause()).context("rows.jsonl: the disk is full").unwrap_err();
        assert_eq!(super::sentence(&twice), "rows.jsonl: the disk is full");
        let once = Err::<(), _>(cause()).context("rows.jsonl").unwrap_err();
        assert_eq!(super::sentence(&once), "rows.jsonl: the disk is full");
    }
}
