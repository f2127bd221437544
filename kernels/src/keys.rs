//! Where the keys of absorbed attention are: which rows a token attends to, and how a row is kept.
//!
//! | keys of a token | rows |
//! |---|---|
//! | an index list (sparse), or a range (dense) | elements, in one piece or in pages; or fp8 records in pages |
//!
//! An index that is negative or >= the number of rows is no key: nothing of its row is read.

mod noted;
mod record;
mod refill;

use crate::dtype::DType;
use crate::pages::{KvRecord, Pages, PagesLaunch};
use crate::seen::KeyRange;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;
use noted::noted;
pub(crate) use noted::noted_piece;
use record::{load_record, rope_at};

/// The rows of keys, each of which is a value in its first columns.
#[derive(Clone, Copy, Debug)]
pub enum Kv<'a> {
    /// `[s_kv, d_qk]`, or pages `[n_pages, page_size, d_qk]` that lists number through (`page · page_size + offset`),
    /// of the type of q.
    Rows(&'a Tensor),
    /// The paged cache of fp8 records ([`store_kv`](crate::cache_write::store_kv)).
    Records {
        /// `[n_pages, page_size · record.bytes()]` u8.
        cache: &'a Tensor,
        /// Tokens of a page, any number.
        page_size: usize,
        /// What a record holds: together the d_qk elements of q.
        record: KvRecord,
    },
}

/// Which rows each token attends to.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// Those of its list.
    Listed {
        /// `[s, topk]` i32, any order, any topk from 1; duplicates count twice.
        indices: &'a Tensor,
        /// `[s]` i32: entries from here on are ignored.
        topk_length: Option<&'a Tensor>,
    },
    /// Those of its range: dense attention.
    Range(KeyRange<'a>),
}

impl<'a> Keys<'a> {
    /// Those of the lists, all of whose entries count.
    pub fn listed(indices: &'a Tensor) -> Self {
        Self::Listed { indices, topk_length: None }
    }

    /// Those of the range `ks .. ke`.
    pub fn range(ks: &'a Tensor, ke: &'a Tensor) -> Self {
        Self::Range(KeyRange { ks, ke })
    }

    pub(crate) fn are_listed(&self) -> bool {
        matches!(self, Self::Listed { .. })
    }

    /// The tensors, in the contract's order.
    pub(crate) fn tensors(&self) -> (&'a Tensor, Option<&'a Tensor>) {
        match *self {
            Self::Listed { indices, topk_length } => (indices, topk_length),
            Self::Range(KeyRange { ks, ke }) => (ks, Some(ke)),
        }
    }
}

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeySet {
    /// Those of its index list.
    Listed,
    /// Those of its range: dense attention, the same body.
    Range,
}

/// How a key's row is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RowFormat {
    /// As elements.
    Elements,
    /// As an fp8 record of the paged cache.
    Record { kv_lora_rank: usize },
}

/// What a key's row is, of all keys of a launch: rows of elements, in one piece or in pages, or fp8 records.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct KeyCache<E: Numeric, N: Size, B: Size> {
    /// Rows of elements, or what stands in for them where rows are records.
    pub elements: Box<[Vector<E, N>]>,
    /// The bytes of the rows.
    pub records: Box<[Vector<u8, B>]>,
    /// How the rows lie.
    pub pages: Pages,
    #[cube(comptime)]
    pub format: RowFormat,
}

/// Which rows each token of a launch attends to.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Lists {
    /// `[s, topk]`; any buffer of i32 for ranges.
    pub indices: View<i32>,
    /// `[s]`: the first entry that counts, and the end of those that do.
    pub starts: Box<[i32]>,
    pub ends: Box<[i32]>,
    /// Entries that there are: of a list, or rows.
    pub limit: usize,
    #[cube(comptime)]
    pub key_set: KeySet,
    #[cube(comptime)]
    pub has_bounds: (bool, bool),
}

#[cube]
impl Lists {
    /// The entries of token `t` that count.
    pub fn of(&self, t: usize) -> (usize, usize) {
        let limit = self.limit as i32;
        let mut start = 0usize.runtime();
        let mut end = self.limit;
        if comptime![self.has_bounds.0] {
            start = clamp(self.starts[t], 0i32, limit) as usize;
        }
        if comptime![self.has_bounds.1] {
            end = max(clamp(self.ends[t], 0i32, limit) as usize, start);
        }
        (start, end)
    }

    /// Of token `t`'s entries the `nth` of `splits` parts, in tiles of `keys`: its first entry, its end, and how many
    /// tiles these are. Splits get whole tiles, the first ones a tile more.
    pub fn split(
        &self,
        t: usize,
        nth: usize,
        splits: usize,
        #[comptime] keys: usize,
    ) -> (usize, usize, usize) {
        let (start, end) = self.of(t);
        let (each, more) = divided((end - start).div_ceil(keys), splits);
        let first = start + (nth * each + min(nth, more)) * keys;
        let tiles = each + select(nth < more, 1usize, 0usize);
        (first, min(first + tiles * keys, end), tiles)
    }
}

/// The tiles of keys that a program attends to, one after the other: those of token `t`, from its entry `first` on.
#[derive(CubeType)]
pub(crate) struct KeyTiles<'a, E: Numeric, N: Size, B: Size, S: Numeric> {
    pub cache: &'a KeyCache<E, N, B>,
    pub lists: &'a Lists,
    /// Where the token's list begins.
    pub list: usize,
    /// The first entry of the first tile, and the first that does not count.
    pub first: usize,
    pub end: usize,
    /// The tiles.
    pub ring: Ring<S>,
    /// Which rows of each place are keys, where the units that load them are not those that ask.
    noted: Shared<[u32]>,
    /// Columns of a row.
    #[cube(comptime)]
    pub d_qk: usize,
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> KeyTiles<'a, E, N, B, S> {
    /// The tiles of entries `first .. end` of token `t`, in the places of `ring`.
    pub fn new(
        cache: &'a KeyCache<E, N, B>,
        lists: &'a Lists,
        t: usize,
        first: usize,
        end: usize,
        ring: Ring<S>,
        #[comptime] d_qk: usize,
    ) -> Pipeline<KeyTiles<'a, E, N, B, S>> {
        let mut list = 0usize.runtime();
        if comptime![lists.key_set == KeySet::Listed] {
            list = t * lists.indices.stride(0);
        }
        let schedule = comptime![Schedule::new(ring.shape.machine, ring.stages)];
        let noted = team_memory::<u32>(comptime![noted(ring.shape)], 16usize, ring.shape.machine);
        let tiles =
            KeyTiles::<'a, E, N, B, S> { cache, lists, list, first, end, ring, noted, d_qk };
        Pipeline::<KeyTiles<'a, E, N, B, S>>::new(tiles, schedule)
    }

    /// The row of key `j`, -1 if it is none. There is at least one entry, and one row.
    fn row_of_key(&self, j: usize) -> i32 {
        let entry = match comptime![self.lists.key_set] {
            KeySet::Listed => self.lists.indices.data[self.list + select(j < self.end, j, 0usize)],
            KeySet::Range => j as i32,
        };
        self.checked(j, entry)
    }

    /// The row that the entry `entry` of key `j` names, -1 if it is none.
    fn checked(&self, j: usize, entry: i32) -> i32 {
        // Compared before it is multiplied by any stride: INT_MIN and INT_MAX are harmless.
        let valid = j < self.end && entry >= 0 && entry < self.cache.pages.count as i32;
        select(valid, entry, -1i32)
    }

    /// Where the row `row` begins, and whether there is such a row.
    fn place_of(&self, row: i32) -> (usize, bool) {
        let exists = row >= 0;
        // The offset of a missing row is never used, but it must not be computed from -1 either.
        (self.cache.pages.start(select(exists, row, 0i32) as usize), exists)
    }

    /// Asks for the entries of the tile after the `n`-th, which are looked up in the next turn: a product that is
    /// running would wait for them, since its steps are issued in turn with the lookups.
    fn prefetch(&self, n: usize) {
        let (keys, machine) = comptime![(self.ring.shape.rows, self.ring.shape.machine)];
        if comptime![machine.can().prefetches && self.lists.key_set == KeySet::Listed] {
            let j = self.first + (n + 1) * keys + unit_id(machine) % keys;
            prefetch_line(&self.lists.indices.data, self.list + select(j < self.end, j, 0usize));
        }
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Rows<S> for KeyTiles<'a, E, N, B, S> {
    fn row(&self, i: usize) -> (usize, bool) {
        self.place_of(self.row_of_key(i))
    }

    fn load_piece(&self, tile: &mut Tile<S>, r: usize, col: usize, at: usize, exists: bool) {
        let (cache, d_qk) = (self.cache, comptime![self.d_qk]);
        match comptime![cache.format] {
            RowFormat::Elements => {
                load_elements(tile, r, col, &cache.elements, at, d_qk, exists);
            }
            RowFormat::Record { kv_lora_rank } => {
                load_record::<E, B, S>(
                    tile,
                    r,
                    col,
                    &cache.records,
                    at,
                    kv_lora_rank,
                    d_qk,
                    exists,
                );
            }
        }
    }
}

#[cube]
impl<'a, E: Numeric, N: Size, B: Size, S: Numeric> Source for KeyTiles<'a, E, N, B, S> {
    fn load(&self, n: usize, #[comptime] part: Part) {
        let mut tile = self.ring.tile(n);
        let first = self.first + n * comptime![self.ring.shape.rows];
        if comptime![part.index == 0] {
            self.prefetch(n);
        }
        load_part::<S, KeyTiles<'_, E, N, B, S>>(&mut tile, self, first, part);
    }
}

/// Where a launch finds the rows of keys.
pub(crate) struct KeyRows {
    /// The buffer.
    pub buffer: Tensor,
    /// How a row is kept.
    pub format: RowFormat,
    /// How many rows there are.
    pub count: usize,
    /// Elements from a row to the next of its page.
    pub stride: usize,
    /// Rows of a page.
    pub page_size: usize,
    /// Elements from a page to the next.
    pub page_stride: usize,
}

impl KeyRows {
    /// The argument of a launch: elements, or `q` in their stead, in vectors of `width`.
    pub fn launch<E: Numeric, N: Size, B: Size>(
        &self,
        q: &Tensor,
        width: usize,
    ) -> KeyCacheLaunch<E, N, B> {
        let elements = if self.format == RowFormat::Elements { &self.buffer } else { q };
        let bytes = self.record_width();
        KeyCacheLaunch::new(
            elements.arg(width),
            self.buffer.reinterpret(DType::U8).arg(bytes),
            PagesLaunch::new(self.count, self.stride, self.page_size, self.page_stride),
            self.format,
        )
    }

    /// Those of the contract.
    pub fn new(kv: &Kv) -> Self {
        match *kv {
            Kv::Rows(kv) => {
                let (shape, strides) = (kv.shape(), kv.strides());
                let last = shape.len() - 2;
                let (pages, page_stride) = if last == 0 { (1, 0) } else { (shape[0], strides[0]) };
                Self {
                    buffer: kv.clone(),
                    format: RowFormat::Elements,
                    count: pages * shape[last],
                    stride: strides[last],
                    page_size: shape[last].max(1),
                    page_stride,
                }
            }
            Kv::Records { cache, page_size, record } => Self {
                buffer: cache.clone(),
                format: RowFormat::Record { kv_lora_rank: record.kv_lora_rank },
                count: cache.shape()[0] * page_size,
                stride: record.bytes(),
                page_size,
                page_stride: cache.strides()[0],
            },
        }
    }

    /// Bytes of the vectors in which records can be read: 8, or 1 where a part of one begins in between.
    pub fn record_width(&self) -> usize {
        let RowFormat::Record { kv_lora_rank } = self.format else { return 1 };
        // Of rope columns that are no eights, the last eight would be the next record's too.
        let rope_columns = (self.stride - rope_at(kv_lora_rank)) / 2;
        let parts = [kv_lora_rank, rope_at(kv_lora_rank), self.stride, rope_columns];
        let whole = parts.iter().all(|bytes| bytes.is_multiple_of(LANES));
        if whole && self.buffer.in_vectors(LANES) { LANES } else { 1 }
    }
}

/// Which rows each token of a launch attends to.
pub(crate) struct KeyLists {
    /// Whether the keys are listed.
    pub key_set: KeySet,
    /// `[s, topk]` i32; any buffer of i32 for ranges.
    pub indices: Tensor,
    /// `[s]` i32: the first entry that counts; without it the first there is.
    pub starts: Option<Tensor>,
    /// `[s]` i32: the end of those that count; without it the end of all.
    pub ends: Option<Tensor>,
    /// Entries that there are: of a list, or rows.
    pub limit: usize,
}

impl KeyLists {
    /// The argument of a launch, of which `limit` entries exist.
    pub fn launch(&self, limit: usize) -> ListsLaunch {
        let any = &self.indices;
        ListsLaunch::new(
            self.indices.view(1),
            self.starts.as_ref().unwrap_or(any).arg(1),
            self.ends.as_ref().unwrap_or(any).arg(1),
            limit,
            self.key_set,
            (self.starts.is_some(), self.ends.is_some()),
        )
    }

    /// Those of the contract, of keys that are `count` rows.
    pub fn new(keys: &Keys, count: usize) -> Self {
        match *keys {
            Keys::Listed { indices, topk_length } => Self {
                key_set: KeySet::Listed,
                indices: indices.clone(),
                starts: None,
                ends: topk_length.cloned(),
                limit: indices.shape()[1],
            },
            Keys::Range(KeyRange { ks, ke }) => Self {
                key_set: KeySet::Range,
                indices: ks.clone(),
                starts: Some(ks.clone()),
                ends: Some(ke.clone()),
                limit: count,
            },
        }
    }
}
