//! Where the rows of the indexer's tiles are: the heads of its queries, the keys that each query may see, and the
//! keys, as rows or in the paged cache.

use super::tiling::Tiling;
use crate::pages::Pages;
use crate::tile::*;
use cubecl::prelude::*;

/// The queries of a tile, of one request: row `t · tile_heads + h` is head `h` of its query `t`.
#[derive(CubeType)]
pub(super) struct Queries<'a, E: Numeric, N: Size> {
    pub q: &'a View<Vector<E, N>>,
    /// The first query in its request, and in all.
    pub first: usize,
    pub t0: usize,
    /// Queries, and heads, that there are.
    pub count: usize,
    pub heads: usize,
    #[cube(comptime)]
    pub tile_heads: usize,
    #[cube(comptime)]
    pub dim: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size> Queries<'a, E, N> {
    pub fn new(
        q: &'a View<Vector<E, N>>,
        request: usize,
        first: usize,
        #[comptime] tiling: Tiling,
    ) -> Self {
        let rows = q.shape(1);
        let (t0, count) = (request * rows + first, min(rows - first, tiling.queries));
        let (heads, tile_heads, dim) = (q.shape(2), tiling.heads, tiling.dim);
        Queries::<'a, E, N> { q, first, t0, count, heads, tile_heads, dim }
    }

    /// Fills `tile`.
    pub fn load<S: Numeric>(&self, tile: &mut Tile<S>) {
        load_part::<S, Queries<'_, E, N>>(tile, self, 0usize, comptime![Part::WHOLE]);
    }

    /// The row of query `t` among those of all requests.
    pub fn row(&self, t: usize) -> usize {
        self.t0 + t
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, S: Numeric> Rows<S> for Queries<'a, E, N> {
    fn row(&self, i: usize) -> (usize, bool) {
        let (t, h) = (i / comptime![self.tile_heads], i % comptime![self.tile_heads]);
        let exists = t < self.count && h < self.heads;
        ((self.t0 + t) * self.q.stride(1) + h * self.q.stride(2), exists)
    }

    fn load_piece(&self, tile: &mut Tile<S>, r: usize, col: usize, at: usize, exists: bool) {
        load_elements(tile, r, col, &self.q.data, at, self.dim, exists);
    }
}

/// The keys that each query may see.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Ranges {
    pub starts: Box<[i32]>,
    pub ends: Box<[i32]>,
    #[cube(comptime)]
    pub by_context: bool,
}

/// The keys that each query of one request may see.
#[derive(CubeType)]
pub(super) struct KeyRanges<'a> {
    pub all: &'a Ranges,
    pub request: usize,
    pub rows: usize,
    pub s_kv: i32,
}

#[cube]
impl<'a> KeyRanges<'a> {
    pub fn new(all: &'a Ranges, request: usize, rows: usize, s_kv: usize) -> Self {
        KeyRanges::<'a> { all, request, rows, s_kv: s_kv as i32 }
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
            if comptime![self.all.by_context] {
                // Of next_n new tokens the last sees the whole context, each one before it a key less.
                // A negative length is 0 before anything is subtracted: INT_MIN must not wrap.
                end = max(self.all.ends[self.request], 0i32) - self.rows as i32 + i as i32 + 1;
            } else {
                start = self.all.starts[self.request * self.rows + i];
                end = self.all.ends[self.request * self.rows + i];
            }
        }
        (clamp(start, 0i32, self.s_kv) as usize, clamp(end, 0i32, self.s_kv) as usize)
    }
}

/// The keys `start .. end` of a program, of which it scores the tiles `first .. last`: from the first key that
/// one of its queries may see to the last one. The rest is not even read.
#[derive(CubeType)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
    pub first: usize,
    pub last: usize,
    pub tiles: usize,
}

#[cube]
impl Span {
    pub fn new(
        start: usize,
        end: usize,
        lowest: usize,
        highest: usize,
        #[comptime] keys: usize,
    ) -> Self {
        let skipped = clamp(lowest, start, end) - start;
        let first = start + skipped / keys * keys;
        let tiles = (clamp(highest, first, end) - first).div_ceil(keys);
        Span { start, end, first, last: min(first + tiles * keys, end), tiles }
    }
}

/// The keys of all requests: rows (prefill), or slots of the paged cache found through the block table (decode).
#[derive(CubeType, CubeLaunch)]
pub(super) struct Keys<E: Numeric, N: Size, B: Size> {
    pub k: Box<[Vector<E, N>]>,
    /// f32 as bytes: those of rows, or the cache again.
    pub scale: Box<[Vector<u8, B>]>,
    pub block_table: View<i32>,
    pub pages: Pages,
    #[cube(comptime)]
    pub paged: bool,
    /// Elements from a key to the next, if they are without gaps.
    #[cube(comptime)]
    pub stride: Option<usize>,
}

/// The tiles of keys that a program scores, one after the other: the keys of one request from `first` on, of which
/// those below `end` are wanted. A key whose page is out of range is none.
#[derive(CubeType)]
pub(super) struct IndexTiles<'a, E: Numeric, N: Size, B: Size, S: Numeric> {
    pub all: &'a Keys<E, N, B>,
    /// Where the request's pages are in the block table.
    pub table: usize,
    pub first: usize,
    pub end: usize,
    pub ring: Ring<S>,
    /// The scales of the tiles in the ring, where they are copied with them.
    scales: Shared<[Vector<u8, Const<8>>]>,
    #[cube(comptime)]
    in_one_page: Option<usize>,
    #[cube(comptime)]
    pub dim: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> IndexTiles<'a, E, N, B, S> {
    pub fn new(
        all: &'a Keys<E, N, B>,
        request: usize,
        first: usize,
        end: usize,
        ring: Ring<S>,
        #[comptime] tiling: Tiling,
    ) -> Pipeline<IndexTiles<'a, E, N, B, S>> {
        let mut table = 0usize.runtime();
        if comptime![all.paged] {
            table = request * all.block_table.shape(1);
        }
        let machine = comptime![ring.shape.machine];
        let schedule = comptime![Schedule::new(machine, ring.stages)];
        let (in_one_page, dim) = comptime![(tiling.in_one_page, tiling.dim)];
        let vectors =
            comptime![if in_one_page.is_some() { tiling.stages * tiling.keys / 2 } else { 0 }];
        let scales = team_memory::<Vector<u8, Lanes>>(vectors, COPY_BYTES, machine);
        let tiles =
            IndexTiles::<'a, E, N, B, S> { all, table, first, end, ring, scales, in_one_page, dim };
        Pipeline::<IndexTiles<'a, E, N, B, S>>::new(tiles, schedule)
    }

    /// The first key of the `n`-th tile.
    pub fn first_of(&self, n: usize) -> usize {
        self.first + n * comptime![self.ring.shape.rows]
    }

    /// The page of `key` and its position there, and whether there is such a key.
    pub fn locate(&self, key: usize) -> (usize, usize, bool) {
        let mut page = 0usize.runtime();
        let mut position = key;
        let mut exists = key < self.end;
        if comptime![self.all.paged] {
            let page_size = match comptime![self.in_one_page] {
                Some(page_size) => page_size.runtime(),
                None => self.all.pages.page_size,
            };
            let (nth, row) = divided(key, page_size);
            position = row;
            let entry = self.all.block_table.data[self.table + select(exists, nth, 0usize)];
            exists = exists && entry >= 0 && entry < self.all.pages.count as i32;
            page = select(exists, entry, 0i32) as usize;
        }
        (page, position, exists)
    }

    /// The byte at which the scale of the key at `position` of `page` is. A page of the cache holds the codes of all
    /// its tokens, then their scales (DeepGEMM's fused layout).
    fn scale_at(&self, page: usize, position: usize) -> usize {
        let mut at = position * 4;
        if comptime![self.all.paged] {
            let codes = self.all.pages.page_size * comptime![self.dim];
            at += page * self.all.pages.page_stride + codes;
        }
        at
    }

    /// The scale of the `row`-th key of the `n`-th tile, and whether there is such a key; in one page, whether there
    /// is that page. Without branches, so that a product that is running goes on meanwhile; there is at least one page.
    pub fn scale(&self, n: usize, row: usize) -> (f32, bool) {
        if comptime![self.in_one_page.is_some()] {
            let (_, _, exists) = self.locate(self.first_of(n));
            let (keys, stages) = comptime![(self.ring.shape.rows, self.ring.stages)];
            (read_f32(&self.scales, (n % stages * keys + row) * 4), exists)
        } else {
            let (page, position, exists) = self.locate(self.first_of(n) + row);
            let at = self.scale_at(page, select(exists, position, 0usize));
            (read_f32(&self.all.scale, at), exists)
        }
    }

    /// Starts to copy a part of the `n`-th tile, whose keys lie in one page, and with the first part its scales. Those
    /// of keys beyond the end come along: the page has them.
    fn load_from_one_page(&self, n: usize, #[comptime] part: Part) {
        let first = self.first_of(n);
        let (page, position, exists) = self.locate(first);
        let dim = comptime![self.dim].runtime();
        let start = page * self.all.pages.page_stride + position * dim;
        let count = select(exists, self.end - first, 0usize);
        let mut tile = self.ring.tile(n);
        let rows = Strided::<'_, E, N>::new(&self.all.k, start, dim, count, dim);
        rows.load_part(&mut tile, 0usize, part);
        if comptime![part.index == 0] {
            let (keys, stages) = comptime![(self.ring.shape.rows, self.ring.stages)];
            let unit = unit_id(comptime![self.ring.shape.machine]);
            if unit < comptime![keys * 4 / COPY_BYTES] {
                let at = self.scale_at(page, select(exists, position, 0usize)) / COPY_BYTES + unit;
                let to = n % stages * comptime![keys / 2] + unit * 2;
                let mut scales = self.scales.clone();
                copy_async(&mut scales, to, &self.all.scale, at, exists);
            }
        }
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Rows<S> for IndexTiles<'a, E, N, B, S> {
    fn row(&self, i: usize) -> (usize, bool) {
        let (page, position, exists) = self.locate(i);
        let stride = match comptime![self.all.stride] {
            Some(stride) => stride.runtime(),
            None => self.all.pages.stride,
        };
        (page * self.all.pages.page_stride + position * stride, exists)
    }

    fn load_piece(&self, tile: &mut Tile<S>, r: usize, col: usize, at: usize, exists: bool) {
        load_elements(tile, r, col, &self.all.k, at, self.dim, exists);
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Source for IndexTiles<'a, E, N, B, S> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        if comptime![self.in_one_page.is_some()] {
            self.load_from_one_page(n, part);
        } else {
            let mut tile = self.ring.tile(n);
            load_part::<S, IndexTiles<'_, E, N, B, S>>(&mut tile, self, self.first_of(n), part);
        }
    }
}
