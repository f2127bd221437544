//! The layers. A layer's struct path is its weights' path in the checkpoint, and a step of it takes its input, the
//! batch and its own cache, nothing else.

mod attention;
mod block;
mod experts;
mod feed_forward;
mod indexer;
mod kv_b;
mod limits;
mod linear;
mod load;
mod norm;
mod router;
#[cfg(test)]
mod tests;

pub use attention::{Attention, Trace};
pub use block::{Block, Matrices, MlpWeights, Output};
pub use linear::Precision;
pub(crate) use linear::{Linear, Loader, check_dtype};
pub(crate) use norm::Norm;
