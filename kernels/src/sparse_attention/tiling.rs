//! The tiles of absorbed attention, and whether a team has room for them.

use crate::attention::AttentionArgs;
use crate::device::Device;
use crate::keys::noted_piece;
use crate::tile::*;
use cubecl::ir::ElemType;

/// What of the kernel is fixed while it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Heads of a token that share the gathered rows.
    pub heads: usize,
    /// Keys in a tile.
    pub keys: usize,
    /// Tiles of keys in memory: the next is loaded while one is worked on.
    pub stages: usize,
    /// Columns of a query and of a key.
    pub d_qk: usize,
    /// Columns of an output.
    pub d_v: usize,
    /// Columns of the output tile: d_v in whole cells for every unit.
    pub out_cols: usize,
    /// Columns of a tile of rows that probabilities are handed over in.
    pub panel: usize,
    /// Whether the kernel takes the sink into account.
    pub has_sink: bool,
}

impl Tiling {
    /// Columns of a tile of rows: those of the scores, and those of the output, beside which probabilities are handed
    /// over where a tile has panels.
    pub fn kv_cols(&self) -> usize {
        self.d_qk.max(self.out_cols + self.panel)
    }

    /// Bytes of team memory that the kernel takes, its tiles' elements of `size` bytes.
    pub fn bytes(&self, machine: Machine, size: usize) -> usize {
        let roles = Roles::of(machine);
        let scores = Layout::new(roles.scores, self.heads, self.keys);
        let kv_shape = TileShape::new(roles.outputs, self.keys, self.kv_cols());
        let mut pieces = vec![kv_shape.piece(self.stages, size), noted_piece(kv_shape)];
        pieces.extend(roles.pieces(scores, size));
        pieces.push(TileShape::new(roles.scores, self.heads, self.d_qk).piece(1, size));
        pieces.extend([OnlineSoftmax::piece(scores), Passes::PIECE]);
        bytes_of(&pieces)
    }

    /// Whether a team of `machine` has memory and registers for the tiles of elements of type `elem`.
    pub fn fits(&self, machine: Machine, device: &Device, elem: ElemType) -> bool {
        self.bytes(machine, machine.kept(elem).size()) <= device.shared_memory()
            && Layout::new(Roles::of(machine).outputs, self.heads, self.out_cols).has_room()
    }

    /// The tiles that suit `machine`.
    pub fn new(machine: Machine, heads: usize, d_qk: usize, args: &AttentionArgs) -> Self {
        let (d_v, has_sink) = (args.d_v, args.attn_sink.is_some());
        if let Some(group) = machine.can().group {
            // Each group of the outputs holds those of all heads in its part of the columns.
            let panel = machine.can().tile_cols;
            let out_cols = d_v.next_multiple_of(panel * Roles::of(machine).outputs.groups());
            let (heads, keys, stages) = (group.rows, 64, PLACES);
            return Self { heads, keys, stages, d_qk, d_v, out_cols, panel, has_sink };
        }
        // The more heads share a gathered tile the better. A GPU's team takes 16, fewer padded: with fewer
        // rows its units stand along them, and the keys they need do not fit shared memory.
        let (least, most) = if machine.team == 1 { (4, 32) } else { (16, 16) };
        let heads = heads.next_power_of_two().clamp(least, most);
        let cells = LANES * Layout::new(machine, heads, LANES).lanes();
        let (keys, stages) = (cells.max(32), 1);
        let out_cols = d_v.next_multiple_of(cells);
        Self { heads, keys, stages, d_qk, d_v, out_cols, panel: 0, has_sink }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ptxas reports of the kernel; the header's budget is this in whole KB, and is held to what it takes.
    #[test]
    fn the_tiles_of_production_take_the_memory_that_ptxas_reports() {
        let machine = Machine::of_warpgroups(3);
        let tiling = Tiling::new(machine, 128, 576, &AttentionArgs::new(1.0, 512));
        assert_eq!(tiling.bytes(machine, 2), 223_240);
        let header = include_str!("../sparse_attention.rs");
        assert!(header.contains(&format!(", {} KB of shared memory", 223_240usize.div_ceil(1024))));
    }
}
