//! Which code of a kernel a case runs: the choices that its launcher makes while a kernel is compiled.
//!
//! A path is one way that one choice can fall, as "records by vectors" or "bf16". The list of a kernel is
//! fixed; what a case runs is computed from its sizes and options by the launcher's own rules. The gate fails
//! if its cases leave one out, so that no code goes ungated because nobody happened to draw it.

use crate::case::Case;
use crate::kernels::find;
use dsa_kernels::tile::{Machine, load_width};
use dsa_kernels::{DType, Device};

/// A kernel's paths.
#[derive(Clone, Copy)]
pub struct Paths {
    /// Those that it has on a device.
    pub all: fn(&Device) -> Vec<&'static str>,
    /// Those that a case runs there, if none of its tensors that [`Paths::first`] names is empty.
    pub of: fn(&Case, &Device) -> Vec<&'static str>,
    /// The tensor without which there is nothing to compute.
    pub first: &'static str,
}

/// The types of a float tensor.
pub const FLOATS: &[&str] = &["f32", "bf16", "f16"];
/// How tiles are loaded.
pub const LOADS: &[&str] = &["vectors", "elements"];

impl Paths {
    /// Of a kernel with one path, whatever it is given.
    pub const fn one(first: &'static str) -> Self {
        Self { all: |_| vec!["any"], of: |_, _| vec!["any"], first }
    }
}

/// The paths that `case` runs on `device`; none if there is nothing to compute, or no such kernel.
pub fn of(case: &Case, device: &Device) -> Vec<&'static str> {
    let Ok(kernel) = find(&case.kernel) else { return vec![] };
    match shape(case, kernel.paths.first).contains(&0) {
        true => vec![],
        false => (kernel.paths.of)(case, device),
    }
}

/// All of these.
pub fn joined(parts: &[&[&'static str]]) -> Vec<&'static str> {
    parts.concat()
}

/// The shape of a tensor; empty if the case has none.
pub fn shape<'a>(case: &'a Case, name: &str) -> &'a [usize] {
    case.tensors.get(name).map_or(&[][..], |tensor| &tensor.shape[..])
}

/// The type of a tensor.
pub fn dtype(case: &Case, name: &str) -> DType {
    case.tensors.get(name).map_or(DType::F32, |tensor| tensor.dtype)
}

/// The name of the type of a tensor.
pub fn type_of(case: &Case, name: &str) -> &'static str {
    dtype(case, name).name()
}

/// The text of a scalar.
pub fn word<'a>(case: &'a Case, name: &str) -> Option<&'a str> {
    case.scalars.get(name).map(String::as_str)
}

/// The chosen word of `choices`: the first if the case names none.
pub fn chosen<T>(case: &Case, name: &str, choices: &[(&'static str, T)]) -> &'static str {
    let named =
        choices.iter().map(|(known, _)| *known).find(|known| word(case, name) == Some(known));
    named.or_else(|| choices.first().map(|(known, _)| *known)).unwrap_or("")
}

/// The words of `choices`.
pub fn words<T>(choices: &[(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(known, _)| *known).collect()
}

/// One of the two.
pub fn either(a: bool, yes: &'static str, no: &'static str) -> &'static str {
    if a { yes } else { no }
}

/// How tiles of these tensors, all of one type, are loaded.
pub fn loads(case: &Case, machine: Machine, names: &[&str]) -> &'static str {
    let vectors = names.iter().all(|name| {
        let width = load_width(machine, dtype(case, name).size());
        in_vectors(case, name, width)
    });
    either(vectors, LOADS[0], LOADS[1])
}

/// The type of the first of these tensors, and whether rows of all are read in vectors of 16 of its bytes.
pub fn rows(case: &Case, names: &[&str]) -> Vec<&'static str> {
    let dtype = names.first().map_or(DType::F32, |first| dtype(case, first));
    let vectors = names.iter().all(|name| in_vectors(case, name, 16 / dtype.size()));
    vec![dtype.name(), either(vectors, LOADS[0], LOADS[1])]
}

/// Whether a team is one unit: then the height of tiles depends on what there is to do.
pub fn is_plain(device: &Device) -> bool {
    device.machine(64).team == 1
}

/// Elements of `dtype` behind each row of the case's tensors.
pub fn gap(case: &Case, dtype: DType) -> usize {
    case.gap(dtype).unwrap_or(0)
}

/// Whether rows of `name` begin and end at multiples of `width` elements.
pub fn in_vectors(case: &Case, name: &str, width: usize) -> bool {
    case.tensors.get(name).is_some_and(|tensor| {
        let cols = tensor.shape.last().copied().unwrap_or(0);
        cols % width == 0 && gap(case, tensor.dtype).is_multiple_of(width)
    })
}
