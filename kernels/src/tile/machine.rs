//! What a kernel is compiled for: the comptime value every body is parametrised by.

use super::nvptx::sync_units;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::ir::types::ArrayType;
use cubecl::prelude::*;

/// Columns that move together: tiles are loaded, kept and multiplied in vectors of this many
/// elements, and tile widths are rounded up to a multiple of it.
pub const LANES: usize = 8;

/// [`LANES`] as the size of a `Vector`.
pub type Lanes = Const<8>;

/// `n` rounded up to whole vectors of [`LANES`].
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// The unit that multiplies tiles, and with it the lowering of every verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixUnit {
    /// Vector arithmetic of each unit: the CPU, and any GPU whose matrix unit has no lowering yet.
    Plain,
    /// Hopper's warpgroup MMA (`wgmma`, sm_90a): 128 units multiply a 64-row tile together.
    Wgmma,
}

/// Units of a warpgroup, and the rows they multiply together.
pub const WARPGROUP: usize = 128;
/// Rows of one warpgroup MMA.
pub const WARPGROUP_ROWS: usize = 64;

/// What a lowering can do. Bodies, tilings and verbs ask for one of these, never for the lowering by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Abilities {
    /// The units that a matrix unit serves together; none where each unit multiplies for itself.
    pub group: Option<Group>,
    /// In which order the cells of a fragment are a unit's.
    pub cells: CellOrder,
    /// Columns in one cell of a fragment.
    pub cell_width: usize,
    /// Columns of an output that a unit holds beside each other and writes together.
    pub store_width: usize,
    /// Whether tiles keep the type of the buffers they are loaded from; f32 otherwise.
    pub keeps_type: bool,
    /// Columns to whole multiples of which tiles are padded.
    pub tile_cols: usize,
    /// Bytes of the panels in which a tile is kept swizzled; none if it is rows of vectors.
    pub panel: Option<usize>,
    /// Bytes that one instruction copies to team memory while its unit goes on; none if units load and store.
    pub async_copy: Option<usize>,
    /// Whether products go on while the units do, until they wait for them, and read team memory by a path of
    /// their own, for which ordinary stores must be made visible.
    pub async_products: bool,
    /// Whether results can be an operand where they are, if a group holds whole rows.
    pub operands_in_registers: bool,
    /// Whether `2^x` and `1 / x` are one instruction, to 1 or 2 units in the last place. The exact reciprocal is a
    /// call there, and a kernel that calls has its products serialised.
    pub fast_math: bool,
    /// Whether two e4m3 codes are converted by one instruction.
    pub converts_codes: bool,
    /// Whether a line of the cache can be asked for without waiting for it.
    pub prefetches: bool,
    /// Whether one team takes a core for itself.
    pub fills_core: bool,
}

/// Units that a matrix unit serves together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// How many there are.
    pub units: usize,
    /// Rows that they multiply together.
    pub rows: usize,
    /// Columns of results that their registers have room for.
    pub most_cols: usize,
    /// Adjacent lanes that hold cells of the same row.
    pub lanes: usize,
    /// Rows that each unit holds cells of.
    pub own_rows: usize,
}

/// In which order the cells of a fragment are a unit's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CellOrder {
    /// Row after row, the lanes of a row taking turns.
    Rows,
    /// As a warpgroup MMA accumulates: a quad of lanes holds eight columns of two rows, two columns a lane.
    Quads,
}

impl MatrixUnit {
    /// What its lowering can do.
    pub fn abilities(self) -> Abilities {
        match self {
            Self::Plain => Abilities {
                group: None,
                cells: CellOrder::Rows,
                cell_width: LANES,
                store_width: 1,
                keeps_type: false,
                tile_cols: LANES,
                panel: None,
                async_copy: None,
                async_products: false,
                operands_in_registers: false,
                fast_math: false,
                converts_codes: false,
                prefetches: false,
                fills_core: false,
            },
            Self::Wgmma => Abilities {
                group: Some(Group {
                    units: WARPGROUP,
                    rows: WARPGROUP_ROWS,
                    most_cols: 256,
                    lanes: 4,
                    own_rows: 2,
                }),
                cells: CellOrder::Quads,
                cell_width: 1,
                store_width: 2,
                keeps_type: true,
                // A panel of 2-byte elements; of 1-byte elements, half of the widest index head.
                tile_cols: 64,
                panel: Some(128),
                async_copy: Some(16),
                async_products: true,
                operands_in_registers: true,
                fast_math: true,
                converts_codes: true,
                prefetches: true,
                fills_core: true,
            },
        }
    }
}

/// How a kernel shares its work among the units of a device. A *team* is the set of units that work
/// on one tile together and meet at [`sync_team`]; a *program* is one team's piece of the grid.
///
/// On a GPU a team is a whole cube. On the CPU a team is one unit (one OS thread) with private
/// memory, and a cube holds one team per core, so that cores never wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The unit that multiplies tiles.
    pub matrix: MatrixUnit,
    /// Units in a team.
    pub team: usize,
    /// Units in a plane (warp, wavefront); 1 where plane operations do not exist.
    pub plane: usize,
    /// Teams in a cube.
    pub teams: usize,
    /// Which of a cube's units the team is, if they take different roles ([`Roles`](super::Roles)).
    pub role: Option<Role>,
}

/// Some of the units of a cube, in whole groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Role {
    /// The first of them.
    pub first: usize,
    /// The hardware's barrier at which they meet; 0 is that of the cube.
    pub barrier: usize,
}

impl Machine {
    /// `teams` teams a cube of units that multiply for themselves, each team of `team` units in planes of `plane`.
    pub fn plain(team: usize, plane: usize, teams: usize) -> Self {
        Self { matrix: MatrixUnit::Plain, team, plane, teams, role: None }
    }

    /// A team of `warpgroups` warpgroups.
    pub fn of_warpgroups(warpgroups: usize) -> Self {
        let team = warpgroups * WARPGROUP;
        Self { matrix: MatrixUnit::Wgmma, team, plane: 32, teams: 1, role: None }
    }

    /// Whether loops over a fragment's cells are unrolled: on a GPU the cells are registers, which
    /// can only be indexed by constants; on the CPU they are memory, and unrolling would only make
    /// the compiler slow.
    pub fn unrolled(&self) -> bool {
        self.team > 1
    }

    /// What its lowering can do.
    pub fn can(&self) -> Abilities {
        self.matrix.abilities()
    }

    /// Groups of units that a matrix unit serves, in a team; 0 without one.
    pub fn groups(&self) -> usize {
        self.can().group.map_or(0, |group| self.team / group.units)
    }

    /// The type in which tiles of `elem` are kept: f32 for plain arithmetic, as it is for a matrix unit.
    pub fn kept(&self, elem: ElemType) -> ElemType {
        if self.can().keeps_type { elem } else { f32::elem_type_native() }
    }

    /// Columns in one cell of a fragment (see [`Layout`](super::Layout)).
    pub fn cell_width(&self) -> usize {
        self.can().cell_width
    }

    /// The cubes that `programs` programs take.
    ///
    /// # Errors
    /// [`KernelError::Value`] for more programs than a GPU starts, 2^31 - 1.
    pub fn cube_count(&self, programs: usize) -> Result<CubeCount> {
        if programs > i32::MAX as usize {
            let expected = "fewer than 2^31: take fewer rows at a time".to_string();
            return Err(KernelError::Value {
                name: "programs",
                got: programs.to_string(),
                expected,
            });
        }
        Ok(CubeCount::Static(programs.div_ceil(self.teams).max(1) as u32, 1, 1))
    }

    /// The units of a cube.
    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d((self.team * self.teams) as u32)
    }
}

/// One of several parts into which some steps are cut, so that other work can stand between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Which part: `0..of`.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Part {
    /// All steps.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// The first of this part's steps, of `steps` in all.
    pub fn first(&self, steps: usize) -> usize {
        steps * self.index / self.of
    }

    /// How many steps this part has, of `steps` in all.
    pub fn count(&self, steps: usize) -> usize {
        steps * (self.index + 1) / self.of - self.first(steps)
    }
}

/// The program this unit works on: `0..programs`, or beyond it on the last cube of a CPU.
#[cube]
pub fn program_id(#[comptime] machine: Machine) -> usize {
    if comptime![machine.team == 1] {
        CUBE_POS * comptime![machine.teams] + UNIT_POS as usize
    } else {
        CUBE_POS
    }
}

/// The position of this unit in its team.
#[cube]
pub fn unit_id(#[comptime] machine: Machine) -> usize {
    match comptime![machine.role] {
        Some(role) => UNIT_POS as usize - role.first,
        None => {
            if comptime![machine.team == 1] {
                0usize.runtime()
            } else {
                UNIT_POS as usize
            }
        }
    }
}

/// `x`, the same in every unit of the team and below 2^32, asked anew wherever this is called: what is computed of
/// it in a loop stays there, where the compiler would otherwise compute it before and keep it all the while.
#[cube]
pub fn asked_anew(x: usize, #[comptime] machine: Machine) -> usize {
    if comptime![machine.plane > 1] { plane_broadcast(x as u32, 0u32) as usize } else { x }
}

/// Waits until every unit of the team is here and sees what the others wrote to team memory, with
/// ordinary stores too where a matrix unit reads it through another path.
#[cube]
pub fn sync_team(#[comptime] machine: Machine) {
    if comptime![machine.team > 1] {
        if comptime![machine.can().async_products] {
            sync_async_proxy_shared();
        }
        match comptime![machine.role] {
            Some(role) => sync_units(role.barrier, machine.team),
            None => sync_cube(),
        }
    }
}

/// `len` elements of memory that the team shares: shared memory, or for a team of one unit its own
/// local memory, which needs no barrier. Uninitialised.
#[cube]
#[allow(unused_variables)]
pub fn team_memory<E: CubePrimitive>(
    #[comptime] len: usize,
    #[comptime] alignment: usize,
    #[comptime] machine: Machine,
) -> Shared<[E]> {
    intrinsic!(|scope| {
        if machine.team == 1 {
            let elem = E::__expand_as_type(scope);
            let ty = ArrayType::get(scope.ctx(), elem, len);
            let buffer = scope.create_local_mut(ty, None);
            let slice = cubecl::frontend::slice::from_raw_parts::<E>(
                scope,
                buffer,
                0usize.into_expand(scope),
                len.into_expand(scope),
            );
            slice.expand.into()
        } else {
            Shared::<[E]>::__expand_new_aligned_slice(scope, len, alignment)
        }
    })
}

/// A piece of team memory: how long it is, and a multiple of what it begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of it.
    pub bytes: usize,
    /// Bytes a multiple of which it begins at.
    pub alignment: usize,
}

/// Bytes of team memory that `pieces` take which are allocated one after the other.
pub fn bytes_of(pieces: &[Piece]) -> usize {
    pieces.iter().fold(0, |end, piece| end.next_multiple_of(piece.alignment) + piece.bytes)
}

/// `i` as `(a, b)`, where there are `nb` of b: `i = a · nb + b`.
///
/// Both count programs, rows or tiles, of which there are fewer than 2^31 however wide addresses are. So
/// they are divided in 32 bits: a division of 64 is a call on a GPU, and with a call in a kernel its warpgroup
/// products wait for each other.
#[cube]
pub fn divided(i: usize, nb: usize) -> (usize, usize) {
    let (i, nb) = (i as u32, nb as u32);
    ((i / nb) as usize, (i % nb) as usize)
}

/// Parts of `size` into which `n` is cut, the last perhaps smaller. See [`divided`].
#[cube]
pub fn parts_of(n: usize, size: usize) -> usize {
    (n as u32).div_ceil(size as u32) as usize
}

/// `i` as `(a, b, c)`, where there are `nb` of b and `nc` of c: `i = (a · nb + b) · nc + c`. See [`divided`].
#[cube]
pub fn unravel(i: usize, nb: usize, nc: usize) -> (usize, usize, usize) {
    let (ab, c) = divided(i, nc);
    let (a, b) = divided(ab, nb);
    (a, b, c)
}
