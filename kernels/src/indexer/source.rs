//! Where the keys of a launch are, as the host sees it.

use super::IndexKeys;
use super::keys::KeysLaunch;
use super::tiling::Tiling;
use crate::dtype::DType;
use crate::pages::PagesLaunch;
use crate::seen::{KeyRange, Seen};
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;

/// Where the keys of a launch are.
pub(super) struct KeySource<'a> {
    pub k: Tensor,
    /// The scales as bytes.
    pub scale: Tensor,
    pub starts: &'a Tensor,
    pub ends: &'a Tensor,
    /// Whether `ends` are the contexts of requests.
    pub by_context: bool,
    pub block_table: &'a Tensor,
    pub row: usize,
    pub pages: usize,
    pub page_size: usize,
    pub page_stride: usize,
    pub paged: bool,
}

impl<'a> KeySource<'a> {
    /// Those of the contract: keys of `dim` elements, and who sees them.
    pub fn new(keys: &IndexKeys<'a>, seen: &Seen<'a>, dim: usize) -> Self {
        let (starts, ends, by_context) = match *seen {
            Seen::Range(KeyRange { ks, ke }) => (ks, ke, false),
            Seen::Context(lens) => (lens, lens, true),
        };
        match *keys {
            IndexKeys::Rows { k, k_scale } => Self {
                k: k.clone(),
                scale: k_scale.reinterpret(DType::U8),
                starts,
                ends,
                by_context,
                block_table: ends,
                row: k.strides()[0],
                pages: 1,
                page_size: k.shape()[0].max(1),
                page_stride: 0,
                paged: false,
            },
            IndexKeys::Paged { cache, page_size, block_table, .. } => Self {
                k: cache.reinterpret(DType::E4m3),
                scale: cache.clone(),
                starts,
                ends,
                by_context,
                block_table,
                row: dim,
                pages: cache.shape()[0],
                page_size,
                page_stride: cache.strides()[0],
                paged: true,
            },
        }
    }

    /// The argument of a launch, its buffers in vectors of these widths.
    pub fn launch<E: Numeric, N: Size, B: Size>(
        &self,
        width: usize,
        scale_width: usize,
        dim: usize,
    ) -> KeysLaunch<E, N, B> {
        KeysLaunch::new(
            self.k.arg(width),
            self.scale.arg(scale_width),
            self.block_table.view(1),
            PagesLaunch::new(self.pages, self.row, self.page_size, self.page_stride),
            self.paged,
            (self.row == dim).then_some(dim),
        )
    }

    /// Whether every key of `dim` elements begins at a multiple of `width` elements, and ends at one.
    pub fn in_vectors(&self, width: usize, dim: usize) -> bool {
        let strides = [self.row, self.page_stride, dim];
        self.k.in_vectors(width) && strides.iter().all(|n| n.is_multiple_of(width))
    }

    /// The keys of a page, if those of tiles of `keys` keys lie in one page each, with scales that can be copied with
    /// them.
    pub fn in_one_page(&self, keys: usize, dim: usize) -> Option<usize> {
        let fits = self.paged
            && self.page_size.is_multiple_of(keys)
            && self.scale.in_vectors(COPY_BYTES)
            && (self.page_size * dim).is_multiple_of(COPY_BYTES);
        fits.then_some(self.page_size)
    }

    /// Bytes of the vectors in which scales are bound: those of one copy, or one scale, or single ones.
    pub fn scale_width(&self, tiling: &Tiling) -> usize {
        // Beside rows stand whole f32; in a page they begin where the codes end.
        let in_words = !self.paged
            || self.scale.in_vectors(4) && (self.page_size * tiling.dim).is_multiple_of(4);
        match (tiling.in_one_page.is_some(), in_words) {
            (true, _) => COPY_BYTES,
            (false, true) => 4,
            (false, false) => 1,
        }
    }
}
