//! Result rows in, pictures out.
//!
//! A bench measures, builds a [`Row`] and appends it to a JSONL file with [`append`]. Everything
//! here starts from such rows: [`compare()`](compare::compare) sets two files side by side,
//! [`draw`] makes the pictures, [`cost`] turns seconds into US dollars. Nothing here measures.
//!
//! Read in this order: [`gate`] and [`timing`] (why a row can be believed), [`what`] and [`row`]
//! (what is in one), [`store`] and [`mod@append`] (the file), [`run`] (what a bench keeps and goes on from),
//! [`mod@choose`] and [`noise`] (what is drawn, and how far to trust it), [`curve`] (knees and
//! crossovers), [`cost`] (the cost model), [`plot`] (the pictures).

#![forbid(unsafe_code)]

pub mod append;
pub mod choose;
pub mod compare;
pub mod cost;
pub mod curve;
pub mod dimensions;
pub mod error;
pub mod eval;
pub mod findings;
pub mod gate;
pub mod noise;
pub mod official;
pub mod origin;
pub mod plot;
pub mod row;
pub mod run;
pub mod store;
pub mod terminal;
pub mod timing;
pub mod what;

pub use append::append;
pub use choose::choose;
pub use error::Error;
pub use gate::{Gate, GateFailed, PassedGate};
pub use noise::Noise;
pub use plot::{Options, draw, draw_eval};
pub use row::{Origin, Peak, Row, Work};
pub use run::Run;
pub use store::{latest, read, read_all};
pub use timing::Timing;
pub use what::{Device, DeviceKind, Key, Place, Stage, Variant, What};
