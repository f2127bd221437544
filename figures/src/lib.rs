//! Result rows in, pictures out.
//!
//! A bench measures, builds a [`Row`] and appends it to a JSONL file with [`append`]. Everything
//! here starts from such rows: [`compare()`](compare::compare) sets two files side by side,
//! [`draw`] makes the pictures, [`cost`] turns seconds into US dollars. Nothing here measures.
//!
//! Read in this order: [`gate`] and [`timing`] (why a row can be believed), [`what`] and [`row`]
//! (what is in one), [`store`] (the file), [`curve`] (knees and crossovers), [`cost`] (the cost
//! model), [`plot`] (the pictures).

#![forbid(unsafe_code)]

pub mod compare;
pub mod cost;
pub mod curve;
pub mod dimensions;
pub mod error;
pub mod findings;
pub mod gate;
pub mod official;
pub mod plot;
pub mod row;
pub mod store;
pub mod timing;
pub mod what;

pub use error::Error;
pub use gate::{Gate, GateFailed, PassedGate};
pub use plot::{Options, draw};
pub use row::{Origin, Peak, Row, Work};
pub use store::{append, find, latest, read, read_or_empty};
pub use timing::Timing;
pub use what::{Device, DeviceKind, Key, Place, Stage, Variant, What};
