//! Sizes by name, expressions of them, and their ranges.

/// The sizes that the names of a contract stand for.
#[derive(Clone, Debug, Default)]
pub struct Sizes(Vec<(&'static str, u128)>);

impl Sizes {
    /// The size that `name` stands for.
    pub fn get(&self, name: &str) -> Option<u128> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, size)| *size)
    }

    /// Binds `name`, unless it is bound already.
    pub fn bind(&mut self, name: &'static str, size: u128) {
        if self.get(name).is_none() {
            self.0.push((name, size));
        }
    }

    /// The axes of a shape, in numbers.
    pub fn shape(&self, axes: &[&str]) -> Option<Vec<u128>> {
        axes.iter().map(|axis| value(axis, self)).collect()
    }
}

/// How a divisor begins in a range; an expression follows.
const DIVISOR_OF: &str = "a divisor of ";

/// `1 to 128`, `at least 1`, `above 0`, and after it `, even`, `, a power of two` or `, a divisor of n`; nothing: any.
#[derive(Clone, Debug)]
pub struct Range {
    /// The range as it stands in the contract.
    pub text: &'static str,
    least: Option<&'static str>,
    most: Option<&'static str>,
    above: bool,
    also: Option<&'static str>,
}

impl Range {
    /// The range; `None` if it cannot be read.
    pub fn parse(text: &'static str) -> Option<Self> {
        let (bounds, also) = match text.split_once(", ") {
            Some((bounds, also)) => (bounds, Some(also)),
            None => (text, None),
        };
        let known =
            |also: &str| matches!(also, "even" | "a power of two") || also.starts_with(DIVISOR_OF);
        if !also.is_none_or(known) {
            return None;
        }
        let (least, most, above) = if let Some(least) = bounds.strip_prefix("at least ") {
            (Some(least), None, false)
        } else if let Some(least) = bounds.strip_prefix("above ") {
            (Some(least), None, true)
        } else if let Some((least, most)) = bounds.split_once(" to ") {
            (Some(least), Some(most), false)
        } else if bounds.is_empty() {
            (None, None, false)
        } else {
            return None;
        };
        Some(Self { text, least, most, above, also })
    }

    /// Whether an integer is in the range; `None` if a bound has a name that stands for nothing.
    pub fn holds(&self, got: u128, sizes: &Sizes) -> Option<bool> {
        let bound = |text: Option<&str>, any: u128| match text {
            Some(text) => value(text, sizes),
            None => Some(any),
        };
        let (least, most) = (bound(self.least, 0)?, bound(self.most, u128::MAX)?);
        let also = match self.also {
            Some("even") => got.is_multiple_of(2),
            Some("a power of two") => got.is_power_of_two(),
            Some(divisor) => {
                let of = value(divisor.trim_start_matches(DIVISOR_OF), sizes)?;
                got > 0 && of.is_multiple_of(got)
            }
            None => true,
        };
        Some((least..=most).contains(&got) && (!self.above || got > least) && also)
    }

    /// Whether a number is in the range, whose bounds are numbers.
    pub fn holds_number(&self, got: f32) -> bool {
        let bound = |text: Option<&str>, any: f32| {
            text.map_or(any, |text| text.parse().unwrap_or(f32::NAN))
        };
        let (least, most) = (bound(self.least, f32::MIN), bound(self.most, f32::MAX));
        (least..=most).contains(&got) && (!self.above || got > least)
    }
}

/// Whether the text is one name.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The value of an expression of names and numbers with `+ - * /`, brackets and `ceil( )`; `None` if a
/// name stands for nothing, or it cannot be read.
pub fn value(text: &str, sizes: &Sizes) -> Option<u128> {
    let mut expression = Expression { rest: text.trim(), sizes, up: false };
    let value = expression.sum()?;
    expression.rest.is_empty().then_some(value)
}

struct Expression<'a> {
    rest: &'a str,
    sizes: &'a Sizes,
    /// Whether a quotient is rounded up.
    up: bool,
}

impl Expression<'_> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest).trim_start();
        rest.is_some()
    }

    fn sum(&mut self) -> Option<u128> {
        let mut value = self.product()?;
        loop {
            if self.take("+") {
                value = value.saturating_add(self.product()?);
            } else if self.take("-") {
                value = value.saturating_sub(self.product()?);
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<u128> {
        let mut value = self.factor()?;
        loop {
            if self.take("*") {
                value = value.saturating_mul(self.factor()?);
            } else if self.take("/") {
                let by = self.factor()?;
                value = if self.up { value.checked_add(by.checked_sub(1)?)? } else { value };
                value = value.checked_div(by)?;
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self) -> Option<u128> {
        let up = self.take("ceil(");
        if up || self.take("(") {
            let outer = std::mem::replace(&mut self.up, up);
            let value = self.sum()?;
            self.up = outer;
            return self.take(")").then_some(value);
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word.parse().ok().or_else(|| self.sizes.get(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_has_the_value_that_arithmetic_gives_it() {
        let mut sizes = Sizes::default();
        sizes.bind("page_size", 64);
        sizes.bind("D", 129);
        for (text, expected) in [
            ("page_size * (D + 4)", Some(64 * 133)),
            ("D + 4 * ceil(D/128) + 2 * (D - 100)", Some(129 + 8 + 58)),
            ("D / 2", Some(64)),
            ("100 - D", Some(0)),
            ("7", Some(7)),
            ("D * E", None),
            ("D +", None),
            ("D / 0", None),
            ("", None),
            ("(D", None),
            ("D D", None),
        ] {
            assert_eq!(value(text, &sizes), expected, "{text}");
        }
    }

    #[test]
    fn a_range_holds_its_bounds_and_nothing_beyond() {
        let mut sizes = Sizes::default();
        sizes.bind("n", 9);
        let holds = |text, got| Range::parse(text).unwrap().holds(got, &sizes).unwrap();
        assert!(holds("1 to n", 1) && holds("1 to n", 9));
        assert!(!holds("1 to n", 0) && !holds("1 to n", 10));
        assert!(holds("1 to 64, a power of two", 32) && !holds("1 to 64, a power of two", 33));
        assert!(holds("at least 2, even", 2) && !holds("at least 2, even", 3));
        assert!([1, 3, 9].iter().all(|got| holds("1 to n, a divisor of n", *got)));
        assert!([0, 2, 8, 18].iter().all(|got| !holds(", a divisor of n", *got)));
        assert!(holds("", 0) && holds("", u128::MAX));
        let number = |text, got| Range::parse(text).unwrap().holds_number(got);
        assert!(number("above 0", 1e-30) && !number("above 0", 0.0));
        assert!(number("at least 0", 0.0) && !number("at least 0", -1.0));
        assert!(number("", -3.0) && !number("", f32::NAN));
        assert!(Range::parse("some").is_none() && Range::parse("1 to 2, odd").is_none());
    }
}
