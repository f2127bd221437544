//! What a kernel takes, as text that is also the check: the lists in [`kernels`](crate::kernels) are what
//! `dsa run --help` prints, and what every case is held against before kernel or reference see it.
//!
//! ```text
//! tensor   kv: [s_kv, d_qk] or [n_pages, page_size, d_qk] as q     shapes, then types: a|b, or those of another
//! tensor   attn_sink: [h] f32 (optional)
//! scalar   page_size: integer 1 to 1048576
//! scalar   splits: integer 1 to 1024 (chosen for the device)       what stands in brackets if it is left out
//! scalar   min: integer 0 to 4294967295 (with policy=fraction)     required then, refused otherwise
//! size     n: 1 to 1024, a power of two
//! ```
//!
//! A name in a shape stands for one size wherever it occurs; a scalar's name for its value, which is 1 if
//! it is left out. `/` rounds down, within `ceil( )` up.

use crate::case::{Case, CaseError, HostTensor};
use crate::kernels::Kernel;
use dsa_kernels::DType;

mod memory;
mod text;

use memory::COPIES_OF_OUTPUTS;
pub use memory::MOST_BYTES;
pub(crate) use memory::{COPIES_OF_INPUTS, expect_room};
use text::{Kind, Range, ScalarLine, TensorLine};

/// More operations than this are not begun by a reference: hours of them, whatever the file's size.
pub const MOST_WORK: u128 = 1 << 40;

/// The sizes that the names of a contract stand for in one case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes(Vec<(String, u128)>);

impl Sizes {
    fn get(&self, name: &str) -> Option<u128> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, size)| *size)
    }

    /// Binds `name`, unless it is bound already.
    fn bind(&mut self, name: &str, size: u128) {
        if self.get(name).is_none() {
            self.0.push((name.to_string(), size));
        }
    }

    /// The axes of a shape, in numbers.
    fn shape(&self, axes: &[&str]) -> Option<Vec<u128>> {
        axes.iter().map(|axis| text::value(axis, self)).collect()
    }

    /// `[s_kv=9, d_qk=24]`.
    fn describe(&self, axes: &[&str]) -> String {
        let axis = |axis: &&str| match text::value(axis, self) {
            Some(size) => format!("{axis}={size}"),
            None => axis.to_string(),
        };
        format!("[{}]", axes.iter().map(axis).collect::<Vec<_>>().join(", "))
    }
}

/// Holds `case` against the contract of `kernel`: names, types, shapes, scalars, and what the run would
/// take of memory.
///
/// # Errors
/// The [`CaseError`] that names the first tensor or scalar that is not as the contract says.
pub(crate) fn check(kernel: &Kernel, case: &Case) -> Result<Sizes, CaseError> {
    let unreadable =
        |line: &str| CaseError::Contract { kernel: kernel.name, line: line.to_string() };
    let tensors: Vec<TensorLine> = parsed(kernel.tensors, TensorLine::parse, unreadable)?;
    let scalars: Vec<ScalarLine> = parsed(kernel.scalars, ScalarLine::parse, unreadable)?;
    let outputs: Vec<TensorLine> = parsed(kernel.outputs, TensorLine::parse, unreadable)?;

    let names: Vec<&str> = tensors.iter().map(|line| line.name).collect();
    known(kernel, "tensor", case.tensors.keys(), &names)?;
    let names: Vec<&str> = scalars.iter().map(|line| line.name).collect();
    known(kernel, "scalar", case.scalars.keys(), &names)?;

    let mut sizes = Sizes::default();
    for line in &scalars {
        if let Some(value) = scalar(kernel, case, line)? {
            sizes.bind(line.name, value);
        }
    }
    for line in &tensors {
        bind_axes(case, line, &mut sizes)?;
    }
    for line in &scalars {
        if let (Kind::Integer(range), Some(got)) = (&line.kind, case.scalars.get(line.name)) {
            let value = sizes.get(line.name).unwrap_or(0);
            if !range.holds(value, &sizes).ok_or_else(|| unreadable(line.body))? {
                return Err(wrong_scalar(kernel, line, Some(got)));
            }
        }
    }
    for line in kernel.sizes {
        let (name, range) = line.split_once(": ").ok_or_else(|| unreadable(line))?;
        let got = text::value(name, &sizes).ok_or_else(|| unreadable(line))?;
        let range = Range::parse(range).ok_or_else(|| unreadable(line))?;
        if !range.holds(got, &sizes).ok_or_else(|| unreadable(line))? {
            let (name, expected) = (name.to_string(), range.text.to_string());
            return Err(CaseError::Size { name, got, expected });
        }
    }
    for line in &tensors {
        if let Some(tensor) = case.tensors.get(line.name) {
            expect_form(case, line, tensor, &sizes)?;
        }
    }
    let mut bytes =
        text::value(kernel.scratch, &sizes).ok_or_else(|| unreadable(kernel.scratch))?;
    for line in &outputs {
        let shape = line.shapes.first().and_then(|axes| sizes.shape(axes));
        let elements = product(&shape.ok_or_else(|| unreadable(line.name))?);
        let size = line.types(case).first().map_or(0, |dtype| dtype.size());
        bytes = bytes.saturating_add(elements.saturating_mul(size as u128));
    }
    expect_room(bytes, COPIES_OF_OUTPUTS).map_err(|most| CaseError::TooLarge {
        kernel: kernel.name,
        bytes,
        most,
    })?;
    Ok(sizes)
}

/// Refuses a case whose reference would compute for hours.
pub(crate) fn expect_little_work(kernel: &Kernel, sizes: &Sizes) -> Result<(), CaseError> {
    match text::value(kernel.work, sizes) {
        Some(operations) if operations <= MOST_WORK => Ok(()),
        Some(operations) => Err(CaseError::TooMuchWork {
            kernel: kernel.name,
            work: kernel.work,
            operations,
            most: MOST_WORK,
        }),
        None => Err(CaseError::Contract { kernel: kernel.name, line: kernel.work.to_string() }),
    }
}

/// The outputs of a case that has nothing to compute: `None` if one of them has an element.
pub(crate) fn empty_outputs(
    kernel: &Kernel,
    case: &Case,
    sizes: &Sizes,
) -> Option<crate::case::Outputs> {
    let mut outputs = crate::case::Outputs::new();
    for text in kernel.outputs {
        let line = TensorLine::parse(text)?;
        let shape = sizes.shape(line.shapes.first()?)?;
        if product(&shape) > 0 {
            return None;
        }
        let shape = shape.iter().map(|axis| usize::try_from(*axis).ok()).collect::<Option<_>>()?;
        let dtype = *line.types(case).first()?;
        outputs.insert(line.name, HostTensor { dtype, shape, bytes: Vec::new() });
    }
    Some(outputs)
}

fn parsed<T>(
    lines: &'static [&'static str],
    parse: impl Fn(&'static str) -> Option<T>,
    unreadable: impl Fn(&str) -> CaseError,
) -> Result<Vec<T>, CaseError> {
    lines.iter().map(|line| parse(line).ok_or_else(|| unreadable(line))).collect()
}

fn product(shape: &[u128]) -> u128 {
    shape.iter().fold(1, |n, axis| n.saturating_mul(*axis))
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
            // A name may be as long as a file; no kernel's is.
            let distance = |known: &str| match name.len() {
                0..=64 => strsim::damerau_levenshtein(name, known),
                _ => usize::MAX,
            };
            let nearest = names.iter().copied().min_by_key(|known| distance(known));
            let nearest = nearest.filter(|known| distance(known) <= known.len() / 3);
            let (name, reads) = (name.clone(), names.to_vec());
            return Err(CaseError::Unread { kernel: kernel.name, what, name, nearest, reads });
        }
    }
    Ok(())
}

/// What a scalar's name stands for in sizes; `None` if it is no integer.
fn scalar(kernel: &Kernel, case: &Case, line: &ScalarLine) -> Result<Option<u128>, CaseError> {
    let got = case.scalars.get(line.name);
    if let Some((other, word)) = line.condition {
        let holds = case.scalars.get(other).is_some_and(|value| value == word);
        if got.is_some() && !holds {
            return Err(CaseError::Scalar {
                kernel: kernel.name.to_string(),
                name: line.name.to_string(),
                got: got.cloned(),
                expected: format!("no value: it is read only with {other}={word}"),
            });
        }
        if !holds {
            return Ok(Some(1));
        }
    }
    let Some(text) = got else {
        let one = matches!(line.kind, Kind::Integer(_)).then_some(1);
        return if line.optional { Ok(one) } else { Err(wrong_scalar(kernel, line, None)) };
    };
    let right = match &line.kind {
        Kind::Words(words) => words.contains(&text.as_str()).then_some(None),
        Kind::Integer(_) => text.parse::<u64>().ok().map(|value| Some(u128::from(value))),
        Kind::Number(range) => {
            let value = text.parse::<f32>().ok().filter(|value| value.is_finite());
            value.filter(|value| range.holds_number(*value)).map(|_| None)
        }
    };
    right.ok_or_else(|| wrong_scalar(kernel, line, got))
}

fn wrong_scalar(kernel: &Kernel, line: &ScalarLine, got: Option<&String>) -> CaseError {
    CaseError::Scalar {
        kernel: kernel.name.to_string(),
        name: line.name.to_string(),
        got: got.cloned(),
        expected: line.kind.expected(line.body),
    }
}

/// Binds the names among a tensor's axes to its sizes.
fn bind_axes(case: &Case, line: &TensorLine, sizes: &mut Sizes) -> Result<(), CaseError> {
    let Some(tensor) = case.tensors.get(line.name) else {
        return if line.optional { Ok(()) } else { case.tensor(line.name).map(|_| ()) };
    };
    let of_rank = line.shapes.iter().find(|axes| axes.len() == tensor.shape.len());
    let axes = of_rank.ok_or_else(|| wrong_tensor(line, tensor, line.shapes_text(sizes)))?;
    for (axis, size) in axes.iter().zip(&tensor.shape) {
        if text::is_name(axis) {
            sizes.bind(axis, *size as u128);
        }
    }
    Ok(())
}

/// Refuses a tensor of another type or shape.
fn expect_form(
    case: &Case,
    line: &TensorLine,
    tensor: &HostTensor,
    sizes: &Sizes,
) -> Result<(), CaseError> {
    let types = line.types(case);
    if !types.contains(&tensor.dtype) {
        let names: Vec<String> = types.iter().map(DType::to_string).collect();
        return Err(wrong_tensor(line, tensor, names.join(" or ")));
    }
    let shape: Vec<u128> = tensor.shape.iter().map(|axis| *axis as u128).collect();
    if !line.shapes.iter().any(|axes| sizes.shape(axes).is_some_and(|axes| axes == shape)) {
        return Err(wrong_tensor(line, tensor, line.shapes_text(sizes)));
    }
    // Kernels count rows in 32 bits, and rows without columns are free in a file.
    let rows = shape.split_last().map_or(1, |(_, outer)| product(outer));
    if rows > i32::MAX as u128 {
        return Err(wrong_tensor(line, tensor, "fewer than 2^31 rows".to_string()));
    }
    Ok(())
}

fn wrong_tensor(line: &TensorLine, tensor: &HostTensor, expected: String) -> CaseError {
    CaseError::Tensor { name: line.name.to_string(), got: format!("{tensor:?}"), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ALL;

    #[test]
    fn every_line_of_every_contract_can_be_read() {
        for kernel in ALL {
            for line in kernel.tensors.iter().chain(kernel.outputs) {
                assert!(TensorLine::parse(line).is_some(), "{}: {line}", kernel.name);
            }
            for line in kernel.scalars {
                assert!(ScalarLine::parse(line).is_some(), "{}: {line}", kernel.name);
            }
            for line in kernel.sizes {
                let (_, range) = line.split_once(": ").unwrap();
                assert!(Range::parse(range).is_some(), "{}: {line}", kernel.name);
            }
        }
    }
}
