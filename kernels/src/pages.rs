//! How rows lie in the pages of a cache, and what an fp8 record of one is.

use crate::quant::BLOCK;
use crate::tensor::Tensor;
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::prelude::*;

/// How rows lie in their buffer: `page_size` of them, `stride` apart, in each page, a page every
/// `page_stride`; rows in one piece are one page. In elements, of records in bytes.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Pages {
    /// Rows that there are.
    pub count: usize,
    /// From a row to the next of its page.
    pub stride: usize,
    /// Rows of a page.
    pub page_size: usize,
    /// From a page to the next.
    pub page_stride: usize,
}

#[cube]
impl Pages {
    /// Where row `slot` begins.
    pub fn start(&self, slot: usize) -> usize {
        let (page, row) = divided(slot, self.page_size);
        page * self.page_stride + row * self.stride
    }
}

/// A token's record in the paged fp8 cache of MLA latents, FlashMLA's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvRecord {
    /// Elements of the latent.
    pub kv_lora_rank: usize,
    /// Elements of the rope part.
    pub rope_dim: usize,
}

impl KvRecord {
    /// Bytes of one token: codes, one f32 scale per 128, rope in bf16. 656 for 512 and 64.
    pub fn bytes(&self) -> usize {
        self.kv_lora_rank + 4 * self.kv_lora_rank.div_ceil(BLOCK) + 2 * self.rope_dim
    }

    /// Refuses queries of other columns than a record holds.
    pub(crate) fn expect_columns(&self, q: &Tensor) -> Result<()> {
        let columns = self.kv_lora_rank.checked_add(self.rope_dim);
        match q.shape().last() {
            Some(d_qk) if columns != Some(*d_qk) => Err(KernelError::Value {
                name: "record",
                got: format!("{self:?}"),
                expected: format!("d_qk={d_qk} elements as q has"),
            }),
            _ => Ok(()),
        }
    }
}
