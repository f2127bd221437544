//! The lines of a contract.

use super::expression::{Expression, Range, Sizes, is_name, value};
use crate::dtype::DType;

/// How the elements of a tensor may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strides {
    /// One after the other.
    Contiguous,
    /// One after the other within a row, the last axis.
    Rows,
}

/// `name: [axes] or [axes] types, strides (optional)`, or `(or NAME)`: there unless that one is.
#[derive(Clone, Debug)]
pub struct TensorLine {
    /// The tensor's name.
    pub name: &'static str,
    /// Its shapes, each a list of expressions.
    pub shapes: Vec<Vec<&'static str>>,
    /// The same, read.
    axes: Vec<Vec<Expression>>,
    /// Its types.
    pub types: Types,
    /// How its elements may lie.
    pub strides: Strides,
    /// Whether it may be left out.
    pub optional: bool,
    /// The tensor that stands instead of it: one of the two is there.
    pub instead: Option<&'static str>,
}

/// The types that a tensor may have.
#[derive(Clone, Debug)]
pub enum Types {
    /// One of these.
    Of(Vec<DType>),
    /// That of another tensor, or the one that a scalar names.
    As(&'static str),
}

impl TensorLine {
    /// The line; `None` if it cannot be read.
    pub fn parse(line: &'static str) -> Option<Self> {
        let (name, rest) = line.split_once(": ")?;
        let (rest, note) = match rest.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
            Some((rest, note)) => (rest, Some(note)),
            None => (rest, None),
        };
        let instead = note.and_then(|note| note.strip_prefix("or ")).filter(|name| is_name(name));
        let optional = note == Some("optional");
        if note.is_some() && !optional && instead.is_none() {
            return None;
        }
        let (rest, strides) = match rest.strip_suffix(", rows") {
            Some(rest) => (rest, Strides::Rows),
            None => (rest, Strides::Contiguous),
        };
        let (shapes, types) = rest.rsplit_once("] ")?;
        let shapes: Vec<Vec<_>> = shapes
            .split("] or [")
            .map(|axes| axes.trim_start_matches('[').split(", ").collect())
            .collect();
        let read =
            |axes: &Vec<&'static str>| axes.iter().map(|axis| Expression::parse(axis)).collect();
        let axes = shapes.iter().map(read).collect::<Option<_>>()?;
        let types = match types.strip_prefix("as ") {
            Some(other) => Types::As(is_name(other).then_some(other)?),
            None => Types::Of(types.split('|').map(DType::named).collect::<Option<_>>()?),
        };
        is_name(name).then_some(Self { name, shapes, axes, types, strides, optional, instead })
    }

    /// The shapes, with the sizes that are known: `[s_kv=9, d_qk=24]`.
    pub fn shapes_text(&self, sizes: &Sizes) -> String {
        let axis = |axis: &&'static str| match value(axis, sizes) {
            Some(size) if *axis != size.to_string() => format!("{axis}={size}"),
            _ => axis.to_string(),
        };
        let shape = |axes: &Vec<&'static str>| {
            format!("[{}]", axes.iter().map(axis).collect::<Vec<_>>().join(", "))
        };
        self.shapes.iter().map(shape).collect::<Vec<_>>().join(" or ")
    }

    /// Whether `shape` is one of its shapes.
    pub(super) fn is_shape(&self, shape: &[usize], sizes: &Sizes) -> bool {
        let is = |(axis, n): (&Expression, &usize)| axis.value(sizes) == Some(*n as u128);
        let of = |axes: &&Vec<Expression>| axes.len() == shape.len();
        self.axes.iter().filter(of).any(|axes| axes.iter().zip(shape).all(is))
    }

    /// Its first shape in numbers; `None` if a name stands for nothing.
    pub(super) fn first_shape(&self, sizes: &Sizes) -> Option<Vec<u128>> {
        self.axes.first()?.iter().map(|axis| axis.value(sizes)).collect()
    }

    /// Binds the names among the axes of the shape that has as many as `shape`; whether there is one.
    pub(super) fn bind(&self, shape: &[usize], sizes: &mut Sizes) -> bool {
        let Some(axes) = self.axes.iter().find(|axes| axes.len() == shape.len()) else {
            return false;
        };
        for (axis, size) in axes.iter().zip(shape) {
            if let Expression::Name(name) = axis {
                sizes.bind(name, *size as u128);
            }
        }
        true
    }

    /// Whether one of its axes is, or is computed from, `name`.
    pub(super) fn has_axis(&self, name: &str) -> bool {
        self.shapes.iter().flatten().any(|axis| *axis == name)
    }
}

/// `name: kind (what stands for it if it is left out)`.
#[derive(Clone, Debug)]
pub struct ScalarLine {
    /// The scalar's name.
    pub name: &'static str,
    /// What it must be.
    pub kind: Kind,
    /// The line without name and brackets.
    pub body: &'static str,
    /// What stands in brackets: what is taken if it is left out.
    pub default: Option<&'static str>,
    /// Another scalar and its word, with which alone this one is read.
    pub condition: Option<(&'static str, &'static str)>,
}

/// `expression: range`.
#[derive(Clone, Debug)]
pub struct SizeLine {
    /// The expression of sizes, often a name.
    pub name: &'static str,
    /// The same, read.
    pub(super) of: Expression,
    /// What its value must be.
    pub range: Range,
}

impl SizeLine {
    /// The line; `None` if it cannot be read.
    pub fn parse(line: &'static str) -> Option<Self> {
        let (name, range) = line.split_once(": ")?;
        Some(Self { name, of: Expression::parse(name)?, range: Range::parse(range)? })
    }
}

/// What a scalar must be.
#[derive(Clone, Debug)]
pub enum Kind {
    /// One of these words.
    Words(Vec<&'static str>),
    /// An integer in this range.
    Integer(Range),
    /// A finite number in this range.
    Number(Range),
}

impl ScalarLine {
    /// The line; `None` if it cannot be read.
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
        let default = note.filter(|_| condition.is_none());
        let kind = if let Some(range) = body.strip_prefix("integer") {
            Kind::Integer(Range::parse(range.trim_start())?)
        } else if let Some(range) = body.strip_prefix("number") {
            Kind::Number(Range::parse(range.trim_start())?)
        } else {
            let words: Vec<_> = body.split('|').collect();
            words.iter().all(|word| is_name(word)).then_some(Kind::Words(words))?
        };
        is_name(name).then_some(Self { name, kind, body, default, condition })
    }

    /// One of the words of `choices`, the first if it is left out.
    pub fn choice<T>(name: &'static str, choices: &[(&'static str, T)]) -> Self {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let default = words.first().copied();
        Self { name, kind: Kind::Words(words), body: "", default, condition: None }
    }

    /// Whether it is an integer in whose range `got` lies, or one whose range names sizes.
    pub fn holds(&self, got: u128) -> bool {
        match &self.kind {
            Kind::Integer(range) => range.holds(got, &Sizes::default()).unwrap_or(true),
            _ => false,
        }
    }

    /// Whether it may be left out.
    pub fn is_optional(&self) -> bool {
        self.default.is_some()
    }

    /// What is expected, in an error.
    pub fn expected(&self) -> String {
        match &self.kind {
            Kind::Words(words) => words.join(" or "),
            Kind::Number(_) => format!("a finite {}", self.body),
            Kind::Integer(_) => format!("an {}", self.body),
        }
    }
}

impl std::fmt::Display for ScalarLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Words(words) => write!(f, "{}: {}", self.name, words.join("|"))?,
            _ => write!(f, "{}: {}", self.name, self.body)?,
        }
        match (self.default, self.condition) {
            (Some(default), _) => write!(f, " ({default})"),
            (None, Some((other, word))) => write!(f, " (with {other}={word})"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensors_line_says_shapes_types_and_strides() {
        let line =
            TensorLine::parse("kv: [s_kv, d] or [n, p * 2, d] as q, rows (optional)").unwrap();
        assert_eq!(line.shapes, [vec!["s_kv", "d"], vec!["n", "p * 2", "d"]]);
        assert!(matches!(line.types, Types::As("q")) && line.optional);
        assert_eq!(line.strides, Strides::Rows);
        let line = TensorLine::parse("x: [n] f32|e4m3").unwrap();
        assert!(matches!(line.types, Types::Of(types) if types == [DType::F32, DType::E4m3]));
        assert_eq!(line.strides, Strides::Contiguous);
        let line = TensorLine::parse("ks: [s] i32 (or lens)").unwrap();
        assert!(line.instead == Some("lens") && !line.optional);
        let wrong = ["x [n] f32", "x: n f32", "x: [n] f64", "x: [n]", "x y: [n] f32", "x: [n] as"];
        for wrong in wrong.into_iter().chain(["x: [n] f32 (some)", "x: [n] f32 (or )"]) {
            assert!(TensorLine::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_scalars_line_says_its_kind_and_when_it_is_read() {
        let line = ScalarLine::parse("page_size: integer 1 to 64").unwrap();
        assert!(matches!(line.kind, Kind::Integer(_)) && !line.is_optional());
        let line = ScalarLine::parse("fmt: ue8m0|plain (ue8m0)").unwrap();
        assert!(matches!(line.kind, Kind::Words(words) if words == ["ue8m0", "plain"]));
        assert_eq!(line.default, Some("ue8m0"));
        let line = ScalarLine::parse("min: integer (with policy=fraction)").unwrap();
        assert!(line.default.is_none() && line.condition == Some(("policy", "fraction")));
        for text in
            ["fmt: ue8m0|plain (ue8m0)", "min: integer 0 to 9 (with policy=fraction)", "x: number"]
        {
            assert_eq!(ScalarLine::parse(text).unwrap().to_string(), text);
        }
        let choice = ScalarLine::choice("fmt", &[("ue8m0", 0), ("plain", 1)]);
        assert_eq!(choice.to_string(), "fmt: ue8m0|plain (ue8m0)");
        for wrong in
            ["x integer", "x: integer some", "x: a b", "x y: number", "x: integer (with y)"]
        {
            assert!(ScalarLine::parse(wrong).is_none(), "{wrong}");
        }
    }
}
