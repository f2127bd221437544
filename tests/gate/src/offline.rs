//! Every kernel compiled for devices that are not here.

use crate::case::{Case, CaseError};
use crate::kernels::Kernel;
use dsa_kernels::{Device, KernelError};
use dsa_offline::{Artefact, Offline, Target};
use std::sync::{Arc, Mutex, PoisonError};

/// A compiled kernel and the case whose launch compiled it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The first tensor of the case and its splits, if it has any: what told this code from another.
    pub case: String,
    /// What the launch was compiled to.
    pub artefact: Arc<Artefact>,
}

/// The offline device of `target`: one for the whole process, which compiles each kernel once.
///
/// # Errors
/// As [`Offline::open`].
pub fn device(target: Target) -> Result<Arc<Offline>, KernelError> {
    static DEVICES: Mutex<Vec<(Target, Arc<Offline>)>> = Mutex::new(Vec::new());
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = devices.iter().find(|(of, _)| *of == target) {
        return Ok(device.clone());
    }
    let device = Arc::new(Offline::open(target)?);
    devices.push((target, device.clone()));
    Ok(device)
}

/// What the launcher of `kernel` launches for `target` on its [`production`](Kernel::production) cases, each kernel once.
///
/// # Errors
/// [`CaseError::Kernel`] if one of them does not compile.
pub fn compile(kernel: &Kernel, target: Target) -> Result<Vec<Compiled>, CaseError> {
    compile_as(kernel, target, Device::clone)
}

/// [`compile`] with addresses of 64 bits.
///
/// # Errors
/// As [`compile`].
pub fn compile_wide(kernel: &Kernel, target: Target) -> Result<Vec<Compiled>, CaseError> {
    compile_as(kernel, target, Device::wide)
}

fn compile_as(
    kernel: &Kernel,
    target: Target,
    form: impl Fn(&Device) -> Device,
) -> Result<Vec<Compiled>, CaseError> {
    let device = device(target)?;
    let mut all: Vec<Compiled> = Vec::new();
    for case in (kernel.production)() {
        let artefacts = device.compile(|device| kernel.run(&form(device), &case).map(|_| ()))?;
        for artefact in artefacts {
            if !all.iter().any(|other| Arc::ptr_eq(&other.artefact, &artefact)) {
                all.push(Compiled { case: label(kernel, &case), artefact });
            }
        }
    }
    Ok(all)
}

fn label(kernel: &Kernel, case: &Case) -> String {
    let first = kernel.contract.tensors.first().and_then(|tensor| tensor.split(':').next());
    let shape = first.and_then(|name| Some((name, case.tensors.get(name)?)));
    let mut label = shape.map_or_else(String::new, |(name, tensor)| format!("{name} {tensor:?}"));
    if let Some(splits) = case.scalars.get("splits") {
        label.push_str(&format!(", splits {splits}"));
    }
    label
}
