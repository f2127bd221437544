//! Which columns are taken: how many of them, and in what order.

use super::TOP_K;
use crate::contract::ScalarLine;
use crate::{KernelError, Result};
use cubecl::prelude::*;

/// Which keys are taken. **[`budget`], [`rank`] and [`exceeds`] are the functions to change to try another policy.**
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The k best: as published.
    #[default]
    Fixed,
    /// The best `per_mille` of a thousand keys (rounded up), at least `min` and at most k.
    Fraction {
        /// Keys taken of a thousand.
        per_mille: u32,
        /// Least number of keys taken.
        min: u32,
    },
    /// The first `sinks` and the last `window` keys of the range always, the rest by score; if these
    /// alone are more than k, the sinks first and then the most recent.
    Window {
        /// Most recent keys always kept.
        window: u32,
        /// First keys always kept.
        sinks: u32,
    },
}

impl Policy {
    /// All of them by their words in cases and on command lines, with their numbers as lines of a
    /// [contract](crate::contract); the first is taken if none is named.
    pub const ALL: &'static [(&'static str, &'static [&'static str])] = &[
        ("fixed", &[]),
        ("fraction", &["per_mille: integer 0 to 1000", "min: integer 0 to 4294967295"]),
        // The keys above +inf's are 2^23 - 1: as many positions can be told apart.
        ("window", &["window: integer 0 to 4194303", "sinks: integer 0 to 4294967295"]),
    ];

    /// The policy that `word` stands for, with its numbers in the order of [`ALL`](Self::ALL).
    pub fn named(word: &str, numbers: &[u32]) -> Option<Self> {
        match (word, numbers) {
            ("fixed", []) => Some(Self::Fixed),
            ("fraction", &[per_mille, min]) => Some(Self::Fraction { per_mille, min }),
            ("window", &[window, sinks]) => Some(Self::Window { window, sinks }),
            _ => None,
        }
    }

    /// Its word and its numbers.
    fn numbers(self) -> (&'static str, Vec<u32>) {
        match self {
            Self::Fixed => ("fixed", vec![]),
            Self::Fraction { per_mille, min } => ("fraction", vec![per_mille, min]),
            Self::Window { window, sinks } => ("window", vec![window, sinks]),
        }
    }

    /// Refuses a number out of the range that [`ALL`](Self::ALL) gives it.
    pub(super) fn expect_numbers(self) -> Result<()> {
        let (word, numbers) = self.numbers();
        let lines =
            Self::ALL.iter().filter(|(name, _)| *name == word).flat_map(|(_, lines)| *lines);
        for (line, number) in lines.zip(numbers) {
            let unreadable =
                || KernelError::Contract { kernel: TOP_K.name, line: line.to_string() };
            let line = ScalarLine::parse(line).ok_or_else(unreadable)?;
            if !line.holds(number.into()) {
                let (name, got, expected) = (line.name, number.to_string(), line.expected());
                return Err(KernelError::Value { name, got, expected });
            }
        }
        Ok(())
    }
}

/// How many keys are taken of a range of `len`.
#[cube]
pub(crate) fn budget(len: u32, topk: u32, #[comptime] policy: Policy) -> u32 {
    match comptime![policy] {
        Policy::Fixed => topk,
        Policy::Fraction { per_mille, min: least } => {
            // In two parts, so that the product stays below 2^32.
            let share = len / 1000 * per_mille + (len % 1000 * per_mille).div_ceil(1000u32);
            min(max(share, least), topk)
        }
        Policy::Window { .. } => topk,
    }
}

/// The rank key of the logit at `position` of `start .. end`: larger is taken first, 0 is never taken.
#[cube]
pub(crate) fn rank(
    logit: f32,
    position: u32,
    start: u32,
    end: u32,
    #[comptime] policy: Policy,
) -> u32 {
    let key = ordered_key(logit);
    match comptime![policy] {
        Policy::Window { window, sinks } => {
            // The key of +inf is 0xff80_0000: the keys above it are free for what is always kept.
            let age = end - 1 - position;
            let mut kept = key;
            if key != 0 {
                if position - start < sinks {
                    kept = 0xffff_ffffu32;
                } else if age < window {
                    kept = 0xffff_fffeu32 - age;
                }
            }
            kept
        }
        _ => key,
    }
}

/// Whether the logit at `position` of `start .. end` has a [`rank`] of more than `floor`. `number` is [`number_of`] it:
/// where ranks order as the logits do, a row is searched by comparing with a number, and no rank is computed.
#[cube]
pub(crate) fn exceeds(
    logit: f32,
    position: u32,
    start: u32,
    end: u32,
    floor: u32,
    number: f32,
    #[comptime] policy: Policy,
) -> bool {
    match comptime![policy] {
        Policy::Window { .. } => rank(logit, position, start, end, policy) > floor,
        _ => logit > number,
    }
}

/// The number that a logit exceeds if its key is more than `floor`, and not otherwise.
#[cube]
pub(crate) fn number_of(floor: u32) -> f32 {
    // No logit has the key between those of -1e-45 and of 0, of which a comparison would make a zero.
    let key = select(floor == 0x7fff_ffffu32, 0x7fff_fffeu32, floor);
    let negative = (key >> 31) == 0u32;
    let number = f32::reinterpret(select(negative, !key, key & 0x7fff_ffffu32));
    // Below the lowest finite number come -inf and the NaNs, which are never taken.
    select(key < 0x0080_0000u32, f32::NEG_INFINITY, number)
}

/// An unsigned integer that orders as the logits do: NaN and -inf give 0, -0 and +0 the same key.
#[cube]
fn ordered_key(logit: f32) -> u32 {
    // Adding +0 makes a -0 positive and changes no other number.
    let bits = u32::reinterpret(logit + 0.0f32);
    let negative = (bits >> 31) == 1u32;
    let key = select(negative, !bits, bits | 0x8000_0000u32);
    // From the lowest finite number, 0x0080_0000, to +inf, 0xff80_0000. -inf and the NaNs are outside.
    select(key - 0x0080_0000u32 <= 0xff00_0000u32, key, 0u32)
}
