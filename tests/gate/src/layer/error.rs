//! What can be wrong while a layer is verified.

use crate::CaseError;
use dsa_kernels::KernelError;

/// A result of a verification.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a layer could not be verified. One that is verified and found wrong is a report that did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model refused its configuration, its checkpoint, a step or an argument.
    #[error(transparent)]
    Model(#[from] dsa_model::Error),

    /// The reference refused its arguments. (Not called a source: its message is in this one.)
    #[error("the reference: {0}")]
    Reference(dsa_reference::Error),

    /// What a step was given is no case of its attention kernel.
    #[error("timed step: {0}")]
    Case(CaseError),
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        Self::Model(error.into())
    }
}

impl From<dsa_reference::Error> for Error {
    fn from(error: dsa_reference::Error) -> Self {
        Self::Reference(error)
    }
}

impl From<CaseError> for Error {
    fn from(error: CaseError) -> Self {
        Self::Case(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn no_error_says_its_reason_twice() {
        let reference = dsa_reference::Error::Value { name: "n", found: "1".into(), expected: "2" };
        let model = dsa_model::Error::check(false, "n", "1", "2").unwrap_err();
        for error in [Error::from(reference), Error::from(model)] {
            assert_eq!(error.to_string().matches("n is 1").count(), 1, "{error}");
            assert!(error.source().is_none(), "{error}");
        }
    }
}
