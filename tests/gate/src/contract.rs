//! A case held against its kernel's contract: names, types, shapes, scalars, and what the run would take of memory
//! and time. The grammar is that of [`dsa_kernels::contract`].

use crate::case::{Case, CaseError, HostTensor, Outputs};
use crate::kernels::Kernel;
use dsa_files::printable;
use dsa_kernels::contract::{Bound, Form, Given, Kind, ScalarLine, TensorLine, value};
use dsa_kernels::{KernelError, Result as KernelResult};

mod memory;

use memory::COPIES_OF_OUTPUTS;
pub use memory::MOST_BYTES;
pub(crate) use memory::{COPIES_OF_INPUTS, expect_room};

/// More operations than this are not begun by a reference: hours of them, whatever the file's size.
pub const MOST_WORK: u128 = 1 << 40;

impl<'a> From<&'a HostTensor> for Form<'a> {
    fn from(tensor: &'a HostTensor) -> Self {
        Self { dtype: tensor.dtype, shape: &tensor.shape, strides: None }
    }
}

impl Kernel {
    /// The tensors of a case: the launcher's, of which those that the run makes may be left out.
    ///
    /// # Errors
    /// [`KernelError::Contract`] with a line that cannot be read. So do the following.
    pub fn tensor_lines(&self) -> KernelResult<Vec<TensorLine>> {
        let mut lines = self.contract.lines()?.tensors.clone();
        for line in lines.iter_mut().filter(|line| self.made.contains(&line.name)) {
            line.optional = true;
        }
        Ok(lines)
    }

    /// The scalars of a case: the launcher's, and what is beside them.
    pub fn scalar_lines(&self) -> KernelResult<Vec<ScalarLine>> {
        let beside = (self.beside)();
        let mut lines = self.contract.lines()?.scalars.clone();
        lines.retain(|line| beside.iter().all(|other| other.name != line.name));
        lines.extend(beside);
        Ok(lines)
    }

    /// What it takes and returns, a line each, as `dsa run --help` prints it.
    pub fn lines(&self) -> KernelResult<Vec<String>> {
        let mut lines = Vec::new();
        for line in self.contract.tensors {
            let made = self.made.iter().any(|name| line.starts_with(&format!("{name}: ")));
            lines.push(format!("tensor  {line}{}", if made { " (made if left out)" } else { "" }));
        }
        lines.extend(self.scalar_lines()?.iter().map(|line| format!("scalar  {line}")));
        lines.extend(self.contract.sizes.iter().map(|line| format!("size  {line}")));
        lines.extend(self.contract.outputs.iter().map(|line| format!("output  {line}")));
        Ok(lines)
    }
}

/// Holds `case` against what `kernel` takes.
///
/// # Errors
/// The [`CaseError`] that names the first tensor or scalar that is not as the lines say.
pub(crate) fn check<'a>(kernel: &'a Kernel, case: &Case) -> Result<Bound<'a>, CaseError> {
    let (tensors, scalars) = (kernel.tensor_lines()?, kernel.scalar_lines()?);
    let names: Vec<&str> = tensors.iter().map(|line| line.name).collect();
    known(kernel, "tensor", case.tensors.keys(), &names)?;
    let names: Vec<&str> = scalars.iter().map(|line| line.name).collect();
    known(kernel, "scalar", case.scalars.keys(), &names)?;

    for line in tensors.iter().filter(|line| !line.optional && line.instead.is_none()) {
        case.tensor(line.name)?;
    }
    for line in &scalars {
        expect_scalar(case, line, &scalars)?;
    }
    let forms: Vec<_> =
        tensors.iter().map(|line| case.tensors.get(line.name).map(Form::from)).collect();
    let of_launcher = kernel.contract.lines()?;
    let given: Vec<_> =
        of_launcher.scalars.iter().map(|line| given(case, line, &scalars)).collect();
    let bound = kernel.contract.bind_lines(&tensors, &forms, &given)?;

    let mut bytes = expression(kernel, kernel.scratch, &bound)?;
    for line in &kernel.contract.lines()?.outputs {
        let shape = output_shape(kernel, line, &bound)?;
        let size = bound.types_of(line).first().map_or(0, |dtype| dtype.size());
        bytes = bytes.saturating_add(product(&shape).saturating_mul(size as u128));
    }
    let kernel = kernel.name;
    expect_room(bytes, COPIES_OF_OUTPUTS).map_err(|most| CaseError::TooLarge {
        kernel,
        bytes,
        most,
    })?;
    Ok(bound)
}

/// Refuses a case whose reference would compute for hours.
pub(crate) fn expect_little_work(kernel: &Kernel, bound: &Bound) -> Result<(), CaseError> {
    let operations = expression(kernel, kernel.work, bound)?;
    if operations <= MOST_WORK {
        return Ok(());
    }
    let (kernel, work, most) = (kernel.name, kernel.work, MOST_WORK);
    Err(CaseError::TooMuchWork { kernel, work, operations, most })
}

/// The outputs of a case that has nothing to compute: `None` if one of them has an element.
pub(crate) fn empty_outputs(kernel: &Kernel, bound: &Bound) -> Result<Option<Outputs>, CaseError> {
    let mut outputs = Outputs::new();
    for line in &kernel.contract.lines()?.outputs {
        let shape = output_shape(kernel, line, bound)?;
        if product(&shape) > 0 {
            return Ok(None);
        }
        let shape = shape.iter().map(|axis| usize::try_from(*axis).ok()).collect::<Option<_>>();
        let dtype = bound.types_of(line).first().copied();
        let (Some(shape), Some(dtype)) = (shape, dtype) else { return Ok(None) };
        outputs.insert(line.name, HostTensor { dtype, shape, bytes: Vec::new() });
    }
    Ok(Some(outputs))
}

fn expression(kernel: &Kernel, text: &'static str, bound: &Bound) -> KernelResult<u128> {
    // Of several the one whose names stand for something.
    let known = text.split(" or ").find_map(|text| value(text, bound.named()));
    known.ok_or_else(|| unreadable(kernel, text))
}

fn output_shape(kernel: &Kernel, line: &TensorLine, bound: &Bound) -> KernelResult<Vec<u128>> {
    let shape = line.shapes.first().and_then(|axes| bound.named().shape(axes));
    shape.ok_or_else(|| unreadable(kernel, line.name))
}

fn unreadable(kernel: &Kernel, line: &str) -> KernelError {
    KernelError::Contract { kernel: kernel.name, line: line.to_string() }
}

fn product(shape: &[u128]) -> u128 {
    shape.iter().fold(1, |n, axis| n.saturating_mul(*axis))
}

/// Which of `names` is likely to be meant by `name`.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    // A name may be as long as a file; no kernel's is.
    let distance = |known: &str| match name.len() {
        0..=64 => strsim::damerau_levenshtein(name, known),
        _ => usize::MAX,
    };
    let nearest = names.iter().copied().min_by_key(|known| distance(known));
    nearest.filter(|known| distance(known) <= known.len() / 3)
}

/// Refuses a name that the kernel does not read.
fn known<'a>(
    kernel: &Kernel,
    what: &'static str,
    given: impl Iterator<Item = &'a String>,
    names: &[&'static str],
) -> Result<(), CaseError> {
    for name in given {
        if !names.contains(&name.as_str()) {
            let nearest = nearest(name, names);
            let (name, reads) = (name.clone(), names.to_vec());
            return Err(CaseError::Unread { kernel: kernel.name, what, name, nearest, reads });
        }
    }
    Ok(())
}

/// Refuses a scalar that is missing, stands where it is not read, or is no text of its kind. Ranges of integers are
/// the contract's to judge, but for those that are read only with a word, which the launcher's does not have.
fn expect_scalar(case: &Case, line: &ScalarLine, lines: &[ScalarLine]) -> Result<(), CaseError> {
    let got = case.scalars.get(line.name);
    let wrong = |expected: String| CaseError::Scalar {
        kernel: case.kernel.clone(),
        name: line.name.to_string(),
        got: got.cloned(),
        expected,
    };
    let holds = |(other, word): (&str, &str)| match case.scalars.get(other) {
        Some(value) => value == word,
        None => lines.iter().any(|line| line.name == other && line.default == Some(word)),
    };
    let read = line.condition.is_none_or(holds);
    let Some(text) = got else {
        return if line.is_optional() || !read { Ok(()) } else { Err(wrong(line.expected())) };
    };
    if let (false, Some((other, word))) = (read, line.condition) {
        return Err(wrong(format!("no value: it is read only with {other}={word}")));
    }
    let right = match &line.kind {
        Kind::Words(words) => words.contains(&text.as_str()),
        Kind::Integer(_) => text.parse::<u128>().is_ok(),
        Kind::Number(_) => text.parse::<f32>().is_ok(),
    };
    if !right {
        return Err(wrong(line.expected()));
    }
    match text.parse() {
        Ok(n) if line.condition.is_some() && !line.holds(n) => {
            let (name, got) = (line.name, printable(text, 60));
            Err(KernelError::Value { name, got, expected: line.expected() }.into())
        }
        _ => Ok(()),
    }
}

/// What the launcher is given for a scalar of its contract: the case's, or that of the scalar whose name stands as
/// what is taken if it is left out.
fn given<'a>(case: &'a Case, line: &ScalarLine, lines: &[ScalarLine]) -> Given<'a> {
    let text = case.scalars.get(line.name).or_else(|| {
        let line = lines.iter().find(|other| other.name == line.name)?;
        case.scalars.get(line.default?)
    });
    let Some(text) = text else { return Given::Nothing };
    match &line.kind {
        Kind::Words(_) => Given::Word(text),
        Kind::Integer(_) => text.parse().map_or(Given::Nothing, Given::Integer),
        Kind::Number(_) => text.parse().map_or(Given::Nothing, Given::Number),
    }
}

#[cfg(test)]
mod tests {
    use super::expression;
    use crate::kernels::ALL;

    #[test]
    fn every_line_of_every_contract_can_be_read() {
        for kernel in ALL {
            kernel.lines().unwrap();
            kernel.tensor_lines().unwrap();
            assert!(kernel.contract.name.starts_with(kernel.name));
            for text in [kernel.scratch, kernel.work] {
                let bound = kernel.bind(&(kernel.sample)()).unwrap();
                assert!(expression(kernel, text, &bound).is_ok(), "{text} of {}", kernel.name);
            }
        }
    }
}
