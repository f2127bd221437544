//! One kernel of the list, and the one way to run it.

use crate::case::{Case, CaseError, Outputs};
use crate::contract;
use dsa_kernels::Device;
use dsa_kernels::tile::Machine;

/// A kernel, its reference, and what they take.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// The launcher's name.
    pub name: &'static str,
    /// The source file in `kernels/src`.
    pub file: &'static str,
    /// Tensors it reads, in the grammar of [`contract`](crate::contract).
    pub tensors: &'static [&'static str],
    /// Scalars it reads.
    pub scalars: &'static [&'static str],
    /// What the sizes in its shapes may be.
    pub sizes: &'static [&'static str],
    /// Outputs.
    pub outputs: &'static [&'static str],
    /// Bytes that the launcher takes beside inputs and outputs, as an expression of the sizes.
    pub scratch: &'static str,
    /// Operations of the reference, as an expression of the sizes.
    pub work: &'static str,
    /// How the kernel runs on a device.
    pub machine: fn(&Device) -> Machine,
    /// Runs the launcher, which checks what it is given itself, on a case that nobody has checked.
    pub launch: fn(&Device, &Case) -> Result<Outputs, CaseError>,
    /// Runs the reference on a case that has been checked.
    pub compute: fn(&Case) -> Result<Outputs, CaseError>,
}

impl Kernel {
    /// Holds `case` against the lists above.
    ///
    /// # Errors
    /// The [`CaseError`] that names the first tensor, scalar or size that is not as they say.
    pub fn check(&self, case: &Case) -> Result<(), CaseError> {
        contract::check(self, case).map(|_| ())
    }

    /// Runs the kernel on a case that it [checks](Self::check) first.
    ///
    /// # Errors
    /// As [`check`](Self::check), and what the launcher refuses.
    pub fn run(&self, device: &Device, case: &Case) -> Result<Outputs, CaseError> {
        contract::check(self, case)?;
        (self.launch)(device, case)
    }

    /// Runs the reference on a case that it [checks](Self::check) first.
    ///
    /// # Errors
    /// As [`check`](Self::check), and [`CaseError::TooMuchWork`].
    pub fn reference(&self, case: &Case) -> Result<Outputs, CaseError> {
        let sizes = contract::check(self, case)?;
        // A loop over 2^31 rows without columns would take minutes to compute nothing.
        if let Some(outputs) = contract::empty_outputs(self, case, &sizes) {
            return Ok(outputs);
        }
        contract::expect_little_work(self, &sizes)?;
        (self.compute)(case)
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
