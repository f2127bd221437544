//! What a kernel is compiled for: the comptime value every body is parametrised by.

use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::ir::types::ArrayType;
use cubecl::prelude::*;

/// The unit that multiplies tiles.
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
}

impl Machine {
    /// Whether loops over a fragment's cells are unrolled: on a GPU the cells are registers, which
    /// can only be indexed by constants; on the CPU they are memory, and unrolling would only make
    /// the compiler slow.
    pub fn unrolled(&self) -> bool {
        self.team > 1
    }

    /// Whether tiles are copied while the units go on computing, and multiplied by a matrix unit.
    pub fn is_wgmma(&self) -> bool {
        self.matrix == MatrixUnit::Wgmma
    }

    /// Warpgroups of a team that has a matrix unit.
    pub fn warpgroups(&self) -> usize {
        self.team / WARPGROUP
    }

    /// The type in which tiles of `elem` are kept: f32 for plain arithmetic, as it is for a matrix unit.
    pub fn kept(&self, elem: ElemType) -> ElemType {
        if self.is_wgmma() { elem } else { f32::elem_type_native() }
    }

    /// Columns in one cell of a fragment (see [`Layout`](super::Layout)).
    pub fn cell_width(&self) -> usize {
        match self.matrix {
            MatrixUnit::Plain => super::LANES,
            MatrixUnit::Wgmma => 1,
        }
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
    if comptime![machine.team == 1] { 0usize.runtime() } else { UNIT_POS as usize }
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
        if comptime![machine.is_wgmma()] {
            sync_async_proxy_shared();
        }
        sync_cube();
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
