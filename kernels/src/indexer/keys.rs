//! Where the rows of the indexer's tiles are: the heads of its queries, the keys that each query may see, and the
//! keys, as rows or in the paged cache.

use crate::keys::Pages;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;

/// The heads of a tile of queries: row `t · tile_heads + h` is head `h` of its query `t`.
#[derive(CubeType)]
pub(super) struct QueryHeads {
    /// The first query of the tile.
    pub t0: usize,
    /// Queries that there are.
    pub count: usize,
    /// Heads that there are.
    pub heads: usize,
    pub q_row: usize,
    pub q_head: usize,
    #[cube(comptime)]
    pub tile_heads: usize,
}

#[cube]
impl Rows for QueryHeads {
    fn row(&self, i: usize) -> (usize, bool) {
        let (t, h) = (i / comptime![self.tile_heads], i % comptime![self.tile_heads]);
        let exists = t < self.count && h < self.heads;
        let at = (self.t0 + t) * self.q_row + h * self.q_head;
        (at, exists)
    }
}

/// The keys that each query of one request may see.
#[derive(CubeType)]
pub(super) struct KeyRanges<'a> {
    pub starts: &'a [i32],
    pub ends: &'a [i32],
    pub request: usize,
    pub rows: usize,
    pub s_kv: i32,
    #[cube(comptime)]
    pub paged: bool,
}

#[cube]
impl<'a> KeyRanges<'a> {
    pub fn new(
        starts: &'a [i32],
        ends: &'a [i32],
        request: usize,
        rows: usize,
        s_kv: i32,
        #[comptime] paged: bool,
    ) -> Self {
        KeyRanges::<'a> { starts, ends, request, rows, s_kv, paged }
    }

    /// The first key that any of the `count` queries from the `first`-th on may see, and the end of them all.
    pub fn of_all(&self, first: usize, count: usize) -> (usize, usize) {
        let mut lowest = self.s_kv as usize;
        let mut highest = 0usize.runtime();
        for t in 0..count {
            let (start, end) = self.of(first + t);
            if start < end {
                lowest = min(lowest, start);
                highest = max(highest, end);
            }
        }
        (lowest, highest)
    }

    /// The first key that query `i` of the request may see and the end, within `0..s_kv`.
    pub fn of(&self, i: usize) -> (usize, usize) {
        let mut start = 0i32.runtime();
        let mut end = 0i32.runtime();
        if i < self.rows {
            if comptime![self.paged] {
                // Of next_n new tokens the last sees the whole context, each one before it a key less.
                // A negative length is 0 before anything is subtracted: INT_MIN must not wrap.
                end = max(self.ends[self.request], 0i32) - self.rows as i32 + i as i32 + 1;
            } else {
                start = self.starts[self.request * self.rows + i];
                end = self.ends[self.request * self.rows + i];
            }
        }
        (clamp(start, 0i32, self.s_kv) as usize, clamp(end, 0i32, self.s_kv) as usize)
    }
}

/// The keys of one request, of which the first `end` are wanted: rows (prefill), or slots of the paged cache
/// found through the block table (decode). A key whose page is out of range is none.
#[derive(CubeType)]
pub(super) struct IndexKeys<'a> {
    pub block_table: &'a [i32],
    /// Where the request's pages are in the block table.
    pub table: usize,
    pub end: usize,
    pub pages: Pages,
    #[cube(comptime)]
    pub paged: bool,
    #[cube(comptime)]
    pub stride: Option<usize>,
}

#[cube]
impl<'a> IndexKeys<'a> {
    pub fn new(
        block_table: &'a [i32],
        table: usize,
        end: usize,
        pages: Pages,
        #[comptime] paged: bool,
        #[comptime] stride: Option<usize>,
    ) -> Self {
        IndexKeys::<'a> { block_table, table, end, pages, paged, stride }
    }

    /// The page of `key` and its position there, and whether there is such a key.
    pub fn locate(&self, key: usize) -> (usize, usize, bool) {
        let mut page = 0usize.runtime();
        let mut position = key;
        let mut exists = key < self.end;
        if comptime![self.paged] {
            let page_size = self.pages.page_size as usize;
            position = key % page_size;
            let entry = self.block_table[self.table + select(exists, key / page_size, 0usize)];
            exists = exists && entry >= 0 && entry < self.pages.count as i32;
            page = select(exists, entry, 0i32) as usize;
        }
        (page, position, exists)
    }

    /// The scale of `key`, and whether there is such a key. A page of the cache holds the codes of all its
    /// tokens, then their scales (DeepGEMM's fused layout). Without branches, so that a product that is running
    /// goes on meanwhile; there is at least one page.
    pub fn scale<B: Size>(&self, k_scale: &[Vector<u8, B>], key: usize, dim: usize) -> (f32, bool) {
        let (page, position, exists) = self.locate(key);
        let mut at = select(exists, position, 0usize) * 4;
        if comptime![self.paged] {
            at += page * self.pages.page_stride as usize + self.pages.page_size as usize * dim;
        }
        let scale = read_f32::<B>(k_scale, at);
        (scale, exists)
    }
}

#[cube]
impl<'a> Rows for IndexKeys<'a> {
    fn row(&self, i: usize) -> (usize, bool) {
        let (page, position, exists) = self.locate(i);
        let stride = match comptime![self.stride] {
            Some(stride) => stride.runtime(),
            None => self.pages.stride as usize,
        };
        (page * self.pages.page_stride as usize + position * stride, exists)
    }
}

/// The tiles of keys that a program scores, one after the other.
#[derive(CubeType)]
pub(super) struct KeyTiles<'a, E: Numeric, N: Size, S: Numeric> {
    pub k: &'a [Vector<E, N>],
    /// Which keys.
    pub keys: IndexKeys<'a>,
    /// The first key of the first tile.
    pub first: usize,
    pub ring: Ring<S>,
    #[cube(comptime)]
    pub dim: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> KeyTiles<'a, E, N, S> {
    pub fn new(
        k: &'a [Vector<E, N>],
        keys: IndexKeys<'a>,
        first: usize,
        ring: Ring<S>,
        #[comptime] dim: usize,
    ) -> Self {
        KeyTiles::<'a, E, N, S> { k, keys, first, ring, dim }
    }

    /// The first key of the `n`-th tile.
    pub fn first_of(&self, n: usize) -> usize {
        self.first + n * comptime![self.ring.shape.rows]
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Source for KeyTiles<'a, E, N, S> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        let (first, dim) = (self.first_of(n), comptime![self.dim]);
        let mut tile = self.ring.tile(n);
        load_part::<E, N, S, IndexKeys<'_>>(&mut tile, self.k, &self.keys, first, dim, part);
    }
}

/// Where the keys of a launch are.
pub(super) struct KeySource<'a> {
    pub k: &'a Tensor,
    pub scale: &'a Tensor,
    pub starts: &'a Tensor,
    pub ends: &'a Tensor,
    pub block_table: &'a Tensor,
    pub row: usize,
    pub pages: usize,
    pub page_size: usize,
    pub page_stride: usize,
    pub paged: bool,
}

impl KeySource<'_> {
    /// Whether every key of `dim` elements begins at a multiple of `width` elements, and ends at one.
    pub fn in_vectors(&self, width: usize, dim: usize) -> bool {
        let strides = [self.row, self.page_stride, dim];
        self.k.in_vectors(width) && strides.iter().all(|n| n.is_multiple_of(width))
    }

    /// Whether every scale begins at a multiple of four bytes.
    pub fn scales_in_words(&self, dim: usize) -> bool {
        // Beside rows stand whole f32; in a page they begin where the codes end.
        !self.paged || self.scale.in_vectors(4) && (self.page_size * dim).is_multiple_of(4)
    }
}
