//! The tiles of the indexer: what of its kernel is fixed while it is compiled, and how many programs share its work.

use super::ScoreFn;
use crate::device::Device;
use crate::tile::*;

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Query rows in a tile. Few rows take smaller tiles: no row's logits show which.
    pub queries: usize,
    /// Heads a query, padded to whole cells of every unit with ones that do not count.
    pub heads: usize,
    /// Whether there are any such.
    pub padded: bool,
    /// Keys in a tile.
    pub keys: usize,
    /// Tiles of keys in memory: the next are loaded while one is worked on.
    pub stages: usize,
    /// The keys of a page, if those of a tile lie side by side in one: the tile is then found by one look into the
    /// block table, and its scales are copied with it.
    pub in_one_page: Option<usize>,
    /// Elements of a head.
    pub dim: usize,
    /// The same, padded to what the matrix unit multiplies.
    pub tile_dim: usize,
    pub score_fn: ScoreFn,
}

/// Keys of a tile where a matrix unit does not say.
const KEYS: usize = 32;

/// Tiles of keys that could be worked on in the time in which a program loads its queries and its first keys.
const START: usize = 2;

/// Columns of the products of a narrow tile: one query of 64 heads.
const NARROW: usize = 64;

/// Teams a core of tiles of more than two queries.
const WIDE_TEAMS: usize = 3;

/// Waves of programs that are worth it, at most.
const WAVES: usize = 4;

/// Programs for each core of a device whose units multiply for themselves.
const PROGRAMS: usize = 4;

/// Bytes of a core's memory that each of its teams takes for itself.
const RESERVED: usize = 1024;

impl Tiling {
    /// The tiles that suit `machine`.
    pub fn new(
        machine: Machine,
        rows: usize,
        heads: usize,
        dim: usize,
        elem_size: usize,
        score_fn: ScoreFn,
    ) -> Self {
        let in_one_page = None;
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
                in_one_page,
                dim,
                tile_dim,
                score_fn,
            };
        }
        let lanes = Layout::new(machine, KEYS, LANES).lanes();
        let padded = !heads.is_multiple_of(LANES * lanes);
        let heads = heads.next_multiple_of(LANES * lanes);
        let (queries, keys, stages, tile_dim) = (1, KEYS, 1, dim);
        Self { queries, heads, padded, keys, stages, in_one_page, dim, tile_dim, score_fn }
    }

    /// The same for keys whose tiles, of so many keys, lie in one page each if `in_one_page` says of how many keys. It
    /// makes a difference where tiles are copied on their own and are narrow: the registers of a wide one are full, and
    /// one team fewer would fit a core.
    pub fn of_pages(self, machine: Machine, in_one_page: impl Fn(usize) -> Option<usize>) -> Self {
        let copied = machine.can().async_copy == Some(COPY_BYTES);
        let narrow = self.queries * self.heads <= NARROW;
        Self { in_one_page: in_one_page(self.keys).filter(|_| copied && narrow), ..self }
    }

    /// Bytes of team memory, for elements of `elem_size` bytes.
    fn bytes(&self, elem_size: usize) -> usize {
        let rows = self.queries * self.heads + self.stages * self.keys;
        let scales = if self.in_one_page.is_some() { self.stages * self.keys * 4 } else { 0 };
        rows * self.tile_dim * elem_size + scales
    }

    /// Teams that a core with a matrix unit holds at once: as many as fit its memory. Where each lane writes several
    /// logits of a tile, its registers let in fewer.
    fn teams(&self, device: &Device, elem_size: usize) -> usize {
        let by_memory = device.shared_memory() / (self.bytes(elem_size) + RESERVED);
        by_memory.clamp(1, if self.queries > 2 { WIDE_TEAMS } else { by_memory.max(1) })
    }

    /// Into how many spans `s_kv` keys are cut for each of `row_tiles` tiles of queries.
    pub fn spans(
        &self,
        device: &Device,
        machine: Machine,
        elem_size: usize,
        row_tiles: usize,
        s_kv: usize,
    ) -> usize {
        if machine.can().group.is_none() {
            return (PROGRAMS * device.cores()).div_ceil(row_tiles);
        }
        let places = device.cores() * self.teams(device, elem_size);
        let tiles = s_kv.div_ceil(self.keys);
        // Programs of one length run in waves of as many as there are places, and a wave that is not full takes as
        // long as one that is.
        let time = |spans: &usize| {
            (row_tiles * spans).div_ceil(places).saturating_mul(tiles.div_ceil(*spans) + START)
        };
        let of_waves = |waves: usize| (waves * places / row_tiles).clamp(1, tiles);
        let spans = (1..=WAVES).map(of_waves).min_by_key(time).unwrap_or(1);
        // As few as are no longer.
        tiles.div_ceil(tiles.div_ceil(spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_holds_whole_pairs_of_cells_of_a_query() {
        let machine = Machine::of_warpgroups(1);
        for heads in 1..=128 {
            let tiling = Tiling::new(machine, 64, heads, 128, 1, ScoreFn::default());
            let layout = Layout::new(machine, tiling.keys, tiling.queries * tiling.heads);
            assert_eq!(layout.run() % (2 * tiling.queries), 0, "{heads} heads");
        }
    }
}
