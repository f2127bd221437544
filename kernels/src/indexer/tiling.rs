//! The tiles of the indexer: what of its kernel is fixed while it is compiled.

use super::ScoreFn;
use crate::tile::*;

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Query rows in a tile.
    pub queries: usize,
    /// Heads a query, padded to whole cells of every unit with ones that do not count.
    pub heads: usize,
    /// Whether there are any such.
    pub padded: bool,
    /// Keys in a tile.
    pub keys: usize,
    /// Tiles of keys in memory: the next are loaded while one is worked on.
    pub stages: usize,
    /// Elements from a key to the next, if they are without gaps: the addresses of a tile's keys are then
    /// constants apart.
    pub key_stride: Option<usize>,
    /// Elements of a head.
    pub dim: usize,
    /// The same, padded to what the matrix unit multiplies.
    pub tile_dim: usize,
    /// Whether keys live in the paged cache (decode) or in rows (prefill).
    pub paged: bool,
    pub score_fn: ScoreFn,
}

impl Tiling {
    /// The tiles that suit `machine`.
    pub fn new(
        machine: Machine,
        rows: usize,
        heads: usize,
        dim: usize,
        elem_size: usize,
        key_stride: Option<usize>,
        paged: bool,
        score_fn: ScoreFn,
    ) -> Self {
        if let Some(group) = machine.can().group {
            // A 64 x 128 product: 64 keys against two queries of 64 heads, or as many as fit.
            let (heads, padded) = (heads.next_multiple_of(8), !heads.is_multiple_of(8));
            // A power of two, so that the lanes of a row can share out its logits.
            let queries = (128 / heads).max(1).ilog2().min(rows.next_power_of_two().ilog2());
            let queries = 1 << queries;
            // The swizzled layout cuts rows into panels.
            let panel = machine.can().panel.unwrap_or(LANES * elem_size);
            let tile_dim = dim.next_multiple_of(panel / elem_size);
            let (keys, stages) = (group.rows, if elem_size == 1 { 4 } else { 2 });
            return Self {
                queries,
                heads,
                padded,
                keys,
                stages,
                key_stride,
                dim,
                tile_dim,
                paged,
                score_fn,
            };
        }
        let keys = 32;
        let lanes = Layout::new(machine, keys, LANES).lanes();
        let padded = !heads.is_multiple_of(LANES * lanes);
        let heads = heads.next_multiple_of(LANES * lanes);
        let (queries, stages, tile_dim) = (1, 1, dim);
        Self { queries, heads, padded, keys, stages, key_stride, dim, tile_dim, paged, score_fn }
    }
}
