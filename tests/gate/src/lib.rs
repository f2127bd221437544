//! What a kernel must satisfy, as data: cases that can be saved and replayed ([`case`]), every kernel and its
//! reference under one name ([`kernels`]), generators of hard inputs ([`generate`]), the table of tolerances
//! ([`tolerance`]), the comparison ([`compare`]), the code that a case runs ([`paths`]) and the gate that puts them
//! together ([`gate`]); the code they compile to for devices that are not here ([`offline`], [`production`]); what is
//! measured of them ([`bench`]); and the layer and the model around the kernels against the reference's ([`layer`]).
//! The tests, `dsa check`, `dsa run` and the benches all pass through here.
#![forbid(unsafe_code)]

pub mod bench;
pub mod case;
pub mod compare;
pub mod contract;
mod diagnosis;
pub mod gate;
pub mod generate;
pub mod kernels;
pub mod layer;
pub mod offline;
pub mod paths;
pub mod production;
pub mod tolerance;

pub use case::{Case, CaseError, HostTensor, Outputs};
pub use gate::{GateFailure, GateReport, gate};
