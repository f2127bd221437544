//! The grammar of a contract's lines.

use super::Sizes;
use crate::case::Case;
use dsa_kernels::DType;

const TYPES: [DType; 6] = [DType::F32, DType::Bf16, DType::F16, DType::E4m3, DType::I32, DType::U8];

/// `name: [axes] or [axes] types (optional)`.
pub(super) struct TensorLine {
    pub name: &'static str,
    pub shapes: Vec<Vec<&'static str>>,
    types: &'static str,
    pub optional: bool,
}

impl TensorLine {
    pub fn parse(line: &'static str) -> Option<Self> {
        let (name, rest) = line.split_once(": ")?;
        let (rest, optional) =
            rest.strip_suffix(" (optional)").map_or((rest, false), |rest| (rest, true));
        let (shapes, types) = rest.rsplit_once("] ")?;
        let shapes = shapes
            .split("] or [")
            .map(|axes| axes.trim_start_matches('[').split(", ").collect())
            .collect();
        let of = types.strip_prefix("as ").is_some_and(is_name);
        let known = types.split('|').all(|word| named(word).is_some());
        (is_name(name) && (of || known)).then_some(Self { name, shapes, types, optional })
    }

    /// The types that the tensor may have in `case`. `as NAME` is the type of the tensor NAME, or the one that the
    /// scalar NAME names: f32 where that is left out.
    pub fn types(&self, case: &Case) -> Vec<DType> {
        match self.types.strip_prefix("as ") {
            Some(other) => {
                let tensor = case.tensors.get(other).map(|tensor| tensor.dtype);
                let scalar =
                    || case.scalars.get(other).map_or(Some(DType::F32), |word| named(word));
                tensor.or_else(scalar).into_iter().collect()
            }
            None => self.types.split('|').filter_map(named).collect(),
        }
    }

    /// The shapes, with the sizes that are known.
    pub fn shapes_text(&self, sizes: &Sizes) -> String {
        let shapes: Vec<_> = self.shapes.iter().map(|axes| sizes.describe(axes)).collect();
        shapes.join(" or ")
    }
}

fn named(word: &str) -> Option<DType> {
    TYPES.into_iter().find(|dtype| dtype.to_string() == word)
}

/// `name: kind (what stands for it if it is left out)`.
pub(super) struct ScalarLine {
    pub name: &'static str,
    pub kind: Kind,
    /// The line without name and brackets.
    pub body: &'static str,
    pub optional: bool,
    /// Another scalar and its word, with which alone this one is read.
    pub condition: Option<(&'static str, &'static str)>,
}

/// What a scalar's text must be.
pub(super) enum Kind {
    Words(Vec<&'static str>),
    Integer(Range),
    Number(Range),
}

impl ScalarLine {
    pub fn parse(line: &'static str) -> Option<Self> {
        let (name, rest) = line.split_once(": ")?;
        let (body, note) = match rest.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
            Some((body, note)) => (body, Some(note)),
            None => (rest, None),
        };
        let condition = match note.and_then(|note| note.strip_prefix("with ")) {
            Some(condition) => Some(condition.split_once('=')?),
            None => None,
        };
        let optional = note.is_some() && condition.is_none();
        let kind = if let Some(range) = body.strip_prefix("integer") {
            Kind::Integer(Range::parse(range.trim_start())?)
        } else if let Some(range) = body.strip_prefix("number") {
            Kind::Number(Range::parse(range.trim_start())?)
        } else {
            let words: Vec<_> = body.split('|').collect();
            words.iter().all(|word| is_name(word)).then_some(Kind::Words(words))?
        };
        is_name(name).then_some(Self { name, kind, body, optional, condition })
    }
}

impl Kind {
    /// What is expected, in an error.
    pub fn expected(&self, body: &str) -> String {
        match self {
            Self::Words(words) => words.join(" or "),
            Self::Number(_) => format!("a finite {body}"),
            Self::Integer(_) => format!("an {body}"),
        }
    }
}

/// How a divisor begins in a range; an expression follows.
const DIVISOR_OF: &str = "a divisor of ";

/// `1 to 128`, `at least 1`, `above 0`, and after it `, even`, `, a power of two` or `, a divisor of n`; nothing: any.
pub(super) struct Range {
    pub text: &'static str,
    least: Option<&'static str>,
    most: Option<&'static str>,
    above: bool,
    also: Option<&'static str>,
}

impl Range {
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
pub(super) fn value(text: &str, sizes: &Sizes) -> Option<u128> {
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
