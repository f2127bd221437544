//! Holding tensors and scalars against a contract.

use super::expression::Sizes;
use super::line::{Kind, ScalarLine, SizeLine, Strides, TensorLine, Types};
use super::{Contract, Form};
use crate::device::Device;
use crate::dtype::DType;
use crate::tensor::{Tensor, expect_indexable, has_whole_rows, is_contiguous};
use crate::{KernelError, Result};

/// A scalar argument.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// An integer.
    Integer(u128),
    /// A number.
    Number(f32),
    /// A word.
    Word(&'a str),
    /// Left out.
    Nothing,
}

impl From<usize> for Given<'_> {
    fn from(value: usize) -> Self {
        Self::Integer(value as u128)
    }
}

impl From<Option<usize>> for Given<'_> {
    fn from(value: Option<usize>) -> Self {
        value.map_or(Self::Nothing, Self::from)
    }
}

impl From<f32> for Given<'_> {
    fn from(value: f32) -> Self {
        Self::Number(value)
    }
}

impl From<DType> for Given<'_> {
    fn from(value: DType) -> Self {
        Self::Word(value.name())
    }
}

impl std::fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Word(word) => word.fmt(f),
            Self::Nothing => f.write_str("left out"),
        }
    }
}

/// A contract's names with what they stand for in one launch.
#[derive(Clone, Debug)]
pub struct Bound<'a> {
    contract: &'a Contract,
    sizes: Sizes,
    /// The types of the tensors and scalars by which others are described.
    types: Vec<(&'static str, DType)>,
    device: Option<&'a Device>,
}

impl Contract {
    /// [`Contract::check`] for tensors that need not be on a device.
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, tensors: &[Option<Form>], scalars: &[Given]) -> Result<Bound<'_>> {
        self.bind_lines(&self.lines()?.tensors, tensors, scalars)
    }

    /// [`Contract::bind`] by `tensor_lines` in place of the contract's own: for who makes a tensor later.
    ///
    /// # Errors
    /// As there.
    pub fn bind_lines(
        &self,
        tensor_lines: &[TensorLine],
        tensors: &[Option<Form>],
        scalars: &[Given],
    ) -> Result<Bound<'_>> {
        let lines = self.lines()?;
        if tensor_lines.len() != tensors.len() || lines.scalars.len() != scalars.len() {
            let got = format!("{} tensors, {} scalars", tensors.len(), scalars.len());
            return Err(self.unreadable(&format!("as many lines as there are arguments: {got}")));
        }
        let mut bound =
            Bound { contract: self, sizes: Sizes::default(), types: Vec::new(), device: None };
        for (line, given) in lines.scalars.iter().zip(scalars) {
            bound.bind_scalar(line, given)?;
        }
        let given = || tensor_lines.iter().zip(tensors);
        let is_given = |name: &str| given().any(|(line, form)| line.name == name && form.is_some());
        for (line, form) in given() {
            let replaced = line.instead.is_some_and(is_given);
            bound.bind_axes(line, form.as_ref(), replaced)?;
        }
        for SizeLine { name, of, range } in &lines.sizes {
            let holds = of.value(&bound.sizes).and_then(|n| range.holds(n, &bound.sizes));
            if !holds.ok_or_else(|| self.unreadable(name))? {
                let from = if range.text.contains(" to ") { "from " } else { "" };
                let expected = format!("{name} {from}{}", range.text);
                // An expression is told of the tensor that has the first of its names.
                let first = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
                let of = given().find(|(line, _)| first.is_some_and(|name| line.has_axis(name)));
                return Err(match of {
                    Some((line, Some(form))) => {
                        let (tensor, got) = (line.name, form.shape.to_vec());
                        KernelError::Shape { tensor, got, expected }
                    }
                    _ => self.unreadable(name),
                });
            }
        }
        for (line, given) in lines.scalars.iter().zip(scalars) {
            let Kind::Integer(range) = &line.kind else { continue };
            let holds = bound.sizes.get(line.name).and_then(|n| range.holds(n, &bound.sizes));
            if !holds.ok_or_else(|| self.unreadable(line.body))? {
                return Err(wrong_scalar(line, given));
            }
        }
        for (line, form) in given() {
            if let Some(form) = form {
                bound.expect_form(line, form)?;
            }
        }
        Ok(bound)
    }
}

impl<'a> Bound<'a> {
    fn bind_scalar(&mut self, line: &ScalarLine, given: &Given) -> Result<()> {
        let right = match (&line.kind, given) {
            (_, Given::Nothing) => {
                if let (Kind::Words(_), Some(dtype)) =
                    (&line.kind, line.default.and_then(DType::named))
                {
                    self.types.push((line.name, dtype));
                }
                self.sizes.bind(line.name, 1);
                line.is_optional() || line.condition.is_some()
            }
            (Kind::Integer(range), Given::Integer(n)) => {
                self.sizes.bind(line.name, *n);
                // A range of sizes is for later, when they are known.
                range.holds(*n, &Sizes::default()).unwrap_or(true)
            }
            (Kind::Number(range), Given::Number(x)) => x.is_finite() && range.holds_number(*x),
            (Kind::Words(words), Given::Word(word)) => {
                self.types.extend(DType::named(word).map(|dtype| (line.name, dtype)));
                words.contains(word)
            }
            _ => false,
        };
        if right { Ok(()) } else { Err(wrong_scalar(line, given)) }
    }

    /// Binds the names among a tensor's axes to its sizes. Whether it is `replaced`: the one that may stand instead
    /// of it is there.
    fn bind_axes(&mut self, line: &TensorLine, form: Option<&Form>, replaced: bool) -> Result<()> {
        let Some(form) = form else {
            let (name, got) = (line.name, "left out".to_string());
            let or = line.instead.map_or(String::new(), |other| format!(", or {other}"));
            let expected = line.shapes_text(&self.sizes) + &or;
            return match line.optional || replaced {
                true => Ok(()),
                false => Err(KernelError::Value { name, got, expected }),
            };
        };
        if let (true, Some(other)) = (replaced, line.instead) {
            let (name, got) = (line.name, format!("there beside {other}"));
            return Err(KernelError::Value { name, got, expected: "one of the two".to_string() });
        }
        if !line.bind(form.shape, &mut self.sizes) {
            return Err(self.wrong_shape(line, form));
        }
        self.types.push((line.name, form.dtype));
        Ok(())
    }

    fn wrong_shape(&self, line: &TensorLine, form: &Form) -> KernelError {
        let (tensor, got) = (line.name, form.shape.to_vec());
        KernelError::Shape { tensor, got, expected: line.shapes_text(&self.sizes) }
    }

    /// Refuses a tensor of another type or shape, with gaps where there may be none, or of more rows than an
    /// i32 numbers.
    fn expect_form(&self, line: &TensorLine, form: &Form) -> Result<()> {
        if !self.may_be(line, form.dtype) {
            let names: Vec<_> = self.types_of(line).iter().map(DType::to_string).collect();
            let (got, expected) = (form.dtype.to_string(), names.join(" or "));
            return Err(KernelError::DType { tensor: line.name, got, expected });
        }
        if !line.is_shape(form.shape, &self.sizes) {
            return Err(self.wrong_shape(line, form));
        }
        expect_indexable(line.name, form.shape)?;
        let Some(strides) = form.strides else { return Ok(()) };
        let (ok, expected) = match line.strides {
            Strides::Contiguous => (is_contiguous(form.shape, strides), "contiguous"),
            Strides::Rows => (has_whole_rows(form.shape, strides), "a last stride of 1"),
        };
        if ok {
            return Ok(());
        }
        let (got, expected) = (strides.to_vec(), expected.to_string());
        Err(KernelError::Strides { tensor: line.name, got, expected })
    }

    fn may_be(&self, line: &TensorLine, dtype: DType) -> bool {
        match &line.types {
            Types::Of(types) => types.contains(&dtype),
            Types::As(other) => self.types.contains(&(other, dtype)),
        }
    }

    /// The types that the tensor of `line` may have.
    pub fn types_of(&self, line: &TensorLine) -> Vec<DType> {
        match &line.types {
            Types::Of(types) => types.clone(),
            Types::As(other) => {
                self.types.iter().filter(|(name, _)| name == other).map(|(_, t)| *t).collect()
            }
        }
    }

    /// Refuses tensors of several devices.
    pub(super) fn on_one_device(
        mut self,
        tensors: impl Iterator<Item = (&'a &'static str, &'a Tensor)>,
    ) -> Result<Self> {
        for (line, tensor) in tensors {
            let first = *self.device.get_or_insert(tensor.device());
            if !first.is(tensor.device()) {
                return Err(KernelError::Value {
                    name: line.split(':').next().unwrap_or(line),
                    got: format!("on {:?}", tensor.device()),
                    expected: format!("on {first:?}, where the other tensors are"),
                });
            }
        }
        Ok(self)
    }

    /// What the names stand for.
    pub fn named(&self) -> &Sizes {
        &self.sizes
    }

    /// The sizes that `names` stand for.
    ///
    /// # Errors
    /// [`KernelError::Contract`] with a name that the contract does not have.
    pub fn sizes<const N: usize>(&self, names: [&'static str; N]) -> Result<[usize; N]> {
        let mut sizes = [0; N];
        for (size, name) in sizes.iter_mut().zip(names) {
            let known = self.sizes.get(name).and_then(|size| usize::try_from(size).ok());
            *size = known.ok_or_else(|| self.contract.unreadable(name))?;
        }
        Ok(sizes)
    }

    /// Room on the launch's device for the output `name`, of the shape and type that the contract says.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if kernels could not index it, or the device has no memory of this size.
    pub fn output(&self, name: &str) -> Result<Tensor> {
        let unknown = || self.contract.unreadable(name);
        let lines = self.contract.lines()?;
        let line = lines.outputs.iter().find(|line| line.name == name).ok_or_else(unknown)?;
        let axes = line.first_shape(&self.sizes).ok_or_else(unknown)?;
        // What no usize counts, no device has.
        let shape: Vec<_> =
            axes.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect();
        let dtype = *self.types_of(line).first().ok_or_else(unknown)?;
        self.device.ok_or_else(unknown)?.output(line.name, &shape, dtype)
    }
}

fn wrong_scalar(line: &ScalarLine, given: &Given) -> KernelError {
    KernelError::Value { name: line.name, got: given.to_string(), expected: line.expected() }
}
