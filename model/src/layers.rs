//! The layers. A layer's struct path is its weights' path in the checkpoint, and a step of it takes its input, the
//! batch and its own cache, nothing else.

mod attention;
mod indexer;
mod kv_b;
mod linear;
#[cfg(test)]
mod tests;

pub use attention::{Attention, Trace};
pub(crate) use linear::check_dtype;
