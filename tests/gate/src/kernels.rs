//! Every kernel, and in one file each what the gate knows of it.
//!
//! A new kernel is entered in three places: its file in `kernels/src`, the same name in `reference/src`, and here: a
//! file `kernels/NAME.rs` with its [`Kernel`], and its line in [`ALL`]. Everything else asks this list: the gate, the
//! property tests, the tests of refusals, `dsa run`, `dsa check`, the code for absent devices, the benches.
//!
//! ```text
//! pub const KERNEL: Kernel = Kernel {
//!     name: hadamard::HADAMARD.name,           // on command lines and in saved cases
//!     contract: hadamard::HADAMARD,            // the launcher's: tensors, types, shapes, scalars
//!     file: "hadamard.rs",                     // in kernels/src
//!     beside: || vec![strided()],              // scalars that only a case has
//!     made: &[],                               // tensors of the contract that a run makes itself
//!     scratch: "0", work: "rows * n * n",      // bytes beside the outputs, operations of the reference
//!     tolerance: tolerance::rounded,           // a row of the table
//!     machine: hadamard::machine,
//!     launch: run, compute: reference,         // the case through the launcher, and through the reference
//!     forms, paths,                            // random cases, and the code that they must run
//!     production, sample,                      // cases at a model's dimensions, and a small one
//!     bench: &[Bench { stage: Stage::Prefill, room: None, spec }],
//! };
//! ```

use crate::bench::*;
use crate::case::{Case, CaseError, Cuboid, HostTensor, Matrix, Outputs, Vector};
use crate::contract;
use crate::generate::{
    ALL_FILLS, Exactly, FEW_COLUMNS, Fill, Form, Forms, Model, float, gap, index_lists,
    make_positive, poison_unused, ranges, slots, tensor,
};
use crate::paths::{self, Paths};
use crate::production as v32;
use crate::production::{ints, pages, zeros};
use crate::tolerance::{self, Tolerance};
use dsa_figures::Stage;
use dsa_kernels::contract::{Bound, Contract, ScalarLine};
use dsa_kernels::random::Rng;
use dsa_kernels::tile::{Machine, MatrixUnit};
use dsa_kernels::{DType, Device, Tensor};
use dsa_reference as reference;
use ndarray::Axis;
use proptest::prelude::*;

mod act_quant;
mod add_rms_norm;
mod attention;
mod combine;
mod dense_mha;
mod dense_mla;
mod dense_mla_paged;
mod dequantise;
mod dispatch;
mod embedding;
mod fold_scales;
mod gemm;
mod grouped_gemm;
mod grouped_gemm_fp8;
mod hadamard;
mod indexer_logits;
mod indexer_logits_paged;
mod layer_norm;
mod linear_fp8;
mod load_kv;
mod place_rows;
mod random_weights;
mod rms_norm;
mod rope;
mod round_trip;
mod router;
mod shift_indices;
mod slots_of_keys;
mod sparse_mla;
mod sparse_mla_paged;
mod store_index_keys;
mod store_kv;
mod swiglu;
mod top_k;

/// All kernels.
pub const ALL: &[Kernel] = &[
    act_quant::KERNEL,
    round_trip::KERNEL,
    store_kv::KERNEL,
    store_index_keys::KERNEL,
    load_kv::KERNEL,
    slots_of_keys::KERNEL,
    hadamard::KERNEL,
    rope::KERNEL,
    rms_norm::KERNEL,
    layer_norm::KERNEL,
    gemm::KERNEL,
    linear_fp8::KERNEL,
    grouped_gemm::KERNEL,
    grouped_gemm_fp8::KERNEL,
    fold_scales::KERNEL,
    indexer_logits::KERNEL,
    indexer_logits_paged::KERNEL,
    top_k::KERNEL,
    shift_indices::KERNEL,
    place_rows::KERNEL,
    sparse_mla::KERNEL,
    sparse_mla_paged::KERNEL,
    dense_mha::KERNEL,
    dense_mla::KERNEL,
    dense_mla_paged::KERNEL,
    dequantise::KERNEL,
    random_weights::KERNEL,
    embedding::KERNEL,
    add_rms_norm::KERNEL,
    router::KERNEL,
    dispatch::KERNEL,
    swiglu::KERNEL,
    combine::KERNEL,
];

/// A kernel, its reference, and all that is known of what they take.
#[derive(Clone, Copy)]
pub struct Kernel {
    /// Its name on command lines and in saved cases: that of its contract.
    pub name: &'static str,
    /// What the launcher takes and returns.
    pub contract: Contract,
    /// Its source file in `kernels/src`.
    pub file: &'static str,
    /// Scalars of a case that the contract does not have, as words for choices, or has otherwise.
    pub beside: fn() -> Vec<ScalarLine>,
    /// Tensors of the contract that the run makes if the case leaves them out.
    pub made: &'static [&'static str],
    /// Bytes that the launcher takes beside inputs and outputs, as an expression of the sizes.
    pub scratch: &'static str,
    /// Operations of the reference, as an expression of the sizes; or several, joined by ` or `, for shapes that have
    /// other names.
    pub work: &'static str,
    /// How far an output may be off on a matrix unit, by its name and type: one of [`tolerance`].
    pub tolerance: fn(MatrixUnit, &str, DType) -> Tolerance,
    /// How the kernel runs on a device.
    pub machine: fn(&Device) -> Machine,
    /// Runs the launcher, which checks what it is given itself, on a case that nobody has checked.
    pub launch: fn(&Device, &Case) -> Result<Outputs, CaseError>,
    /// Runs the reference on a case that has been checked.
    pub compute: fn(&Case) -> Result<Outputs, CaseError>,
    /// The function that computes the formula there, and its file: what changes with the kernel's formula.
    pub reference: (&'static str, &'static str),
    /// How random cases are drawn.
    pub forms: fn() -> Forms,
    /// The code that it has, and that a case runs.
    pub paths: Paths,
    /// One case for each choice of code that DeepSeek-V3.2 makes ([`production`](crate::production)).
    pub production: fn() -> Vec<Case>,
    /// A small case that every device takes, whose shapes are all different.
    pub sample: fn() -> Case,
    /// What is measured of it.
    pub bench: &'static [Bench],
}

impl Kernel {
    /// Holds `case` against what the kernel takes.
    ///
    /// # Errors
    /// The [`CaseError`] that names the first tensor, scalar or size that is not as its lines say.
    pub fn check(&self, case: &Case) -> Result<(), CaseError> {
        self.bind(case).map(|_| ())
    }

    /// [`check`](Self::check), with what the names of the contract stand for.
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, case: &Case) -> Result<Bound<'_>, CaseError> {
        contract::check(self, case)
    }

    /// Runs the kernel on a case that it [checks](Self::check) first.
    ///
    /// # Errors
    /// As [`check`](Self::check), and what the launcher refuses.
    pub fn run(&self, device: &Device, case: &Case) -> Result<Outputs, CaseError> {
        self.check(case)?;
        (self.launch)(device, case)
    }

    /// Runs the reference on a case that it [checks](Self::check) first.
    ///
    /// # Errors
    /// As [`check`](Self::check), and [`CaseError::TooMuchWork`].
    pub fn reference(&self, case: &Case) -> Result<Outputs, CaseError> {
        let bound = self.bind(case)?;
        // A loop over 2^31 rows without columns would take minutes to compute nothing.
        if let Some(outputs) = contract::empty_outputs(self, &bound)? {
            return Ok(outputs);
        }
        contract::expect_little_work(self, &bound)?;
        (self.compute)(case)
    }

    /// Random cases.
    pub fn cases(&self) -> BoxedStrategy<Case> {
        let forms = (self.forms)();
        (forms.random, any::<u64>()).prop_map(|(form, seed): (Form, u64)| form.case(seed)).boxed()
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The kernel of this name.
pub fn find(name: &str) -> Result<&'static Kernel, CaseError> {
    ALL.iter().find(|k| k.name == name).ok_or_else(|| CaseError::UnknownKernel(name.to_string()))
}

/// The scalar by which a case says that there are gaps behind its rows.
fn strided() -> ScalarLine {
    ScalarLine::choice("strided", crate::case::GAPS)
}

/// One of several words as a value; the first if the case has none.
fn choice<T: Copy>(case: &Case, name: &str, choices: &[(&'static str, T)]) -> Result<T, CaseError> {
    let got = case.scalars.get(name);
    let chosen = match got {
        Some(word) => choices.iter().find(|(known, _)| known == word),
        None => choices.first(),
    };
    chosen.map(|(_, value)| *value).ok_or_else(|| CaseError::Scalar {
        kernel: case.kernel.clone(),
        name: name.to_string(),
        got: got.cloned(),
        expected: choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or "),
    })
}

/// The words of `choices`, each drawn as often.
fn word_of<T>(choices: &[(&'static str, T)]) -> impl Strategy<Value = &'static str> + use<T> {
    proptest::sample::select(paths::words(choices))
}

fn outputs<const N: usize>(named: [(&'static str, HostTensor); N]) -> Outputs {
    named.into_iter().collect()
}

/// The only output of a run.
fn only(name: &'static str, tensor: &Tensor) -> Result<Outputs, CaseError> {
    Ok(outputs([(name, HostTensor::download(tensor)?)]))
}

/// The case's tensor `out`, or room for what is like `x`.
fn out_like(device: &Device, case: &Case, x: &Tensor) -> Result<Tensor, CaseError> {
    match case.tensors.contains_key("out") {
        true => case.upload_rows(device, "out"),
        false => Ok(device.empty(x.shape(), x.dtype())?),
    }
}

/// Normal numbers in f32, of a sample.
fn floats(seed: u64, shape: &[usize]) -> HostTensor {
    tensor(&mut Rng::new(seed), DType::F32, shape, Fill::Normal)
}

/// The reference's arithmetic that rounds nothing: [`HostTensor::cast`] rounds the result to whatever type it has.
fn unrounded() -> reference::arithmetic::Arithmetic {
    reference::arithmetic::Arithmetic::exact(reference::rope::Pairing::HalfSplit)
}

/// A vector of i32.
fn vector(values: &[i32]) -> HostTensor {
    HostTensor::i32(&[values.len()], values)
}
