//! What a model's answers lose by attending sparsely: over a text, by planted sentences, by the keys that are chosen.

mod needle;
mod overlap;
mod quality;

pub use needle::{Found, Needle, find};
pub use overlap::{Overlap, overlap};
pub use quality::{Quality, quality};

use dsa_kernels::Tensor;

use crate::error::Result;

/// The rows of `[n, topk]` i32: keys ascending, without what is none.
fn chosen(keys: &Tensor) -> Result<Vec<Vec<i32>>> {
    let topk = keys.shape()[1].max(1);
    let of = |row: &[i32]| row.iter().copied().filter(|key| *key >= 0).collect();
    Ok(keys.download_i32()?.chunks_exact(topk).map(of).collect())
}
