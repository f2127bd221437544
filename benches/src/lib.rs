//! What the benches share: their command line ([`args`]), the device's measured ceilings ([`peaks`]), one
//! kernel's measurement from its gate to its row ([`session`]), the list of measurements ([`specs`]), and what
//! judges the outputs that were timed ([`timed`]).
//!
//! Nothing is timed before it has passed its gate: `dsa_figures::Row` cannot be built without one.
#![forbid(unsafe_code)]

pub mod args;
pub mod peaks;
pub mod session;
pub mod specs;
pub mod timed;
