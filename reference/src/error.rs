//! The one error type of the crate.

/// What a function refused: the offending value and what it expected in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An array does not have the shape that the other arguments ask for.
    #[error("{array} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The argument's name.
        array: &'static str,
        /// The shape it came with.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A number is outside its domain.
    #[error("{name} is {found}, expected {expected}")]
    Value {
        /// The argument's name.
        name: &'static str,
        /// The value it came with.
        found: String,
        /// The domain in words.
        expected: &'static str,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refuses an array whose shape is not `expected`.
pub(crate) fn check_shape(array: &'static str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { array, found: found.to_vec(), expected: expected.to_vec() })
}

/// Refuses a value that is outside its domain; `ok` says whether it is inside.
pub(crate) fn check_value(
    name: &'static str,
    found: impl std::fmt::Display,
    expected: &'static str,
    ok: bool,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Value { name, found: found.to_string(), expected })
}
