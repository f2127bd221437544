//! The seed and the number of cases.

use std::hash::{BuildHasher, Hasher};

/// The seed of the tests if `DSA_SEED` is not set. `dsa check` draws a new one each time.
pub const DEFAULT_SEED: u64 = 33377335;

/// Cases of each kernel if `DSA_CASES` is not set: enough to run all code of every kernel.
pub const DEFAULT_CASES: u32 = 128;

/// A setting of the environment that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {got:?}, expected {expected}")]
pub struct Setting {
    name: &'static str,
    got: String,
    expected: &'static str,
}

/// The seed of a run of the tests: `DSA_SEED`, or the default.
///
/// # Errors
/// [`Setting`] if it is no number: another seed than the one asked for must not pass for it.
pub fn seed() -> Result<u64, Setting> {
    read("DSA_SEED", std::env::var_os("DSA_SEED"), "a number below 2^64", DEFAULT_SEED, |_| true)
}

/// The cases of each kernel: `DSA_CASES`, or the default.
///
/// # Errors
/// [`Setting`] if it is no number from 1 on: nothing checked is no pass.
pub fn cases() -> Result<u32, Setting> {
    read("DSA_CASES", std::env::var_os("DSA_CASES"), "a number from 1", DEFAULT_CASES, |n| *n > 0)
}

fn read<T: std::str::FromStr>(
    name: &'static str,
    value: Option<std::ffi::OsString>,
    expected: &'static str,
    default: T,
    right: impl Fn(&T) -> bool,
) -> Result<T, Setting> {
    let Some(value) = value else { return Ok(default) };
    let got = value.to_string_lossy().into_owned();
    got.parse().ok().filter(right).ok_or(Setting { name, got, expected })
}

/// A seed that was not drawn before: below 2^32, so that it is short to type.
pub fn new_seed() -> u64 {
    // The keys of a hash map's hasher are random.
    u64::from(std::collections::hash_map::RandomState::new().build_hasher().finish() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_parse_is_refused_and_not_the_default() {
        let seed = |value: &str| read("DSA_SEED", Some(value.into()), "a number", 7u64, |_| true);
        assert_eq!(seed("12").unwrap(), 12);
        assert_eq!(seed("abc").unwrap_err().to_string(), r#"DSA_SEED is "abc", expected a number"#);
        for wrong in ["", "0x7", "-1", "1.5", "18446744073709551616"] {
            assert!(seed(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(read("DSA_SEED", None, "a number", 7u64, |_| true).unwrap(), 7);
        let cases = |value: &str| read("DSA_CASES", Some(value.into()), "1", 7u32, |n| *n > 0);
        assert!(cases("0").is_err());
        assert_eq!(cases("1").unwrap(), 1);
    }

    #[test]
    fn a_new_seed_is_another_one() {
        let seeds: std::collections::BTreeSet<_> = (0..8).map(|_| new_seed()).collect();
        assert!(seeds.len() > 4, "{seeds:?}");
    }
}
