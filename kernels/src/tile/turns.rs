//! What the two stages of attention hand over from tile to tile.
//!
//! | what | with a role each |
//! |---|---|
//! | a tile | arrives at an mbarrier that counts the copies of all units that load: those of the outputs, whose products free its place |
//! | factors | lie in memory, with an mbarrier of their own: outputs are rescaled before there are probabilities |
//! | probabilities | lie over the tile's own last panel, which only the scores needed; in two parts, an mbarrier each |
//!
//! Two tiles are in memory. Scores never wait for the next tile before they have handed on the present one: that tile
//! can only come when the outputs have freed a place, which they cannot without these probabilities.
//!
//! A place is refilled while products of its later rows run. Copies are awaited by mbarriers and not made visible to
//! products by a fence, which none of the published kernels does either; what units store is.

use super::fragment::{Fragment, Layout, lane_of, row_of};
use super::load::FoundRows;
use super::machine::{Machine, Part, Piece, sync_team, team_memory};
use super::multiply::{Product, finish_product, multiply_nn, start_nt};
use super::nvptx::{
    arrive, arrive_when_copied, await_arrivals, fresh, initialise_barrier, invalidate_barrier,
    sync_units,
};
use super::pipeline::{Pipeline, Source, finish_loads};
use super::roles::{Block, PLACES, Refill, RefillExpand, Roles, takes};
use super::softmax::OnlineSoftmax;
use super::tiles::{Tile, TileShape, store_fragment, store_part};
use super::warpgroup::{commit_mma, wait_mma};
use cubecl::prelude::*;
use cubecl::wgmma::Major;

/// Parts in which probabilities are handed over, and rows of a place filled.
const PARTS: usize = 2;

/// The tiles of the loop, and what its stages hand over.
#[derive(CubeType)]
pub struct Turns<L: Source + CubeType, S: Numeric> {
    /// The tiles.
    pub tiles: Pipeline<L>,
    /// Of each row: the factors of each place's tile, then the scales of the outputs.
    pub factors: Shared<[f32]>,
    /// The factors of the unit's own rows where it has both roles.
    own: Array<f32>,
    /// What probabilities go through where units have both roles; any tile where they have not.
    via: Tile<S>,
    /// The first of the unit's own rows of scores.
    row: usize,
    /// How many tiles there are.
    count: usize,
    /// Which rows of the next tile to be loaded this unit has asked for.
    asked: Array<i32>,
    /// mbarriers.
    words: Shared<[u64]>,
    #[cube(comptime)]
    layout: Layout,
    #[cube(comptime)]
    roles: Roles,
}

/// Which mbarrier says that a place's tile is there.
const TILE: usize = 0;
/// That its factors are there; the one after those of the places is that of the scales.
const FACTORS: usize = TILE + PLACES;
/// That a part of its probabilities is there.
const PROBABILITIES: usize = FACTORS + PLACES + 1;
const BARRIERS: usize = PROBABILITIES + PLACES * PARTS;

impl Roles {
    /// The team memory of [`Turns`] with scores laid out as `layout`, of elements of `size` bytes, in the order in which
    /// it is taken.
    pub fn pieces(&self, layout: Layout, size: usize) -> Vec<Piece> {
        let words = Piece { bytes: self.barriers() * size_of::<u64>(), alignment: 8 };
        let factors = Piece { bytes: self.factors(layout) * size_of::<f32>(), alignment: 16 };
        if self.are_apart() {
            vec![factors, words]
        } else {
            vec![factors, TileShape::via(layout).piece(1, size), words]
        }
    }

    fn barriers(&self) -> usize {
        if self.are_apart() { BARRIERS } else { 1 }
    }

    fn factors(&self, layout: Layout) -> usize {
        if self.are_apart() { (PLACES + 1) * layout.rows } else { layout.rows }
    }
}

#[cube]
impl<L: Source + Refill<S> + CubeType, S: Numeric> Turns<L, S> {
    /// Nothing is loaded yet. `layout` is that of the scores.
    pub fn new(tiles: Pipeline<L>, #[comptime] layout: Layout, #[comptime] roles: Roles) -> Self {
        let factors = team_memory::<f32>(comptime![roles.factors(layout)], 16usize, roles.all);
        let via = if comptime![roles.are_apart()] {
            tiles.source.tile(0usize)
        } else {
            Tile::<S>::new(comptime![TileShape::via(layout)])
        };
        let words = team_memory::<u64>(comptime![roles.barriers()], 8usize, roles.all);
        let own = Array::<f32>::new(comptime![layout.own_rows()]);
        let entries = tiles.source.own_rows();
        let asked = Array::<i32>::new(entries);
        let row = row_of(0usize, layout);
        Turns::<L, S> {
            tiles,
            factors,
            own,
            via,
            row,
            count: 0usize.runtime(),
            asked,
            words,
            layout,
            roles,
        }
    }

    /// Starts to load the first of `count` tiles. Everything that the scores' units loaded before is there for them
    /// with the first. Every unit of the cube calls it.
    pub fn start(&mut self, count: usize) {
        let roles = comptime![self.roles];
        self.count = count;
        if comptime![roles.are_apart()] {
            if UNIT_POS == 0 {
                #[unroll]
                for i in 0..BARRIERS {
                    // Each unit arrives at a tile twice: when its copies are there, and with what it stored.
                    let arrivals = comptime![if i < FACTORS {
                        2 * roles.outputs.team
                    } else {
                        roles.scores.team
                    }];
                    initialise_barrier(&mut self.words, i, arrivals as u32);
                }
            }
            sync_cube();
            if takes(roles.scores) {
                // Asked anew: where probabilities go would be computed before all passes, and kept through them.
                self.row = fresh(row_of(0usize, self.layout) as u32) as usize;
                finish_loads(roles.scores);
            } else {
                self.fill_places();
            }
        } else {
            self.tiles.start(count);
        }
    }

    /// Starts to load a tile in every place, as far as there are tiles.
    fn fill_places(&mut self) {
        let entries = self.tiles.source.own_rows();
        let mut asked = Sequence::<Array<i32>>::new();
        #[unroll]
        for n in 0..PLACES {
            // Where the first tiles are would be kept for another pass through all of this one.
            let mut of_tile = Array::<i32>::new(entries);
            self.tiles.source.ask(fresh(n as u32) as usize, &mut of_tile);
            asked.push(of_tile);
        }
        self.tiles.source.ask(fresh(PLACES as u32) as usize, &mut self.asked);
        #[unroll]
        for n in 0..PLACES {
            if n < self.count {
                let mut rows = self.tiles.source.find(fresh(n as u32) as usize, asked.index(n));
                #[unroll]
                for index in 0..PARTS {
                    let part = comptime![Part { index, of: PARTS }];
                    self.tiles.source.read(&mut rows, part);
                    self.tiles.source.load_found(n, &rows, comptime![Block::Rows(part)]);
                }
                self.tiles.source.load_found(n, &rows, comptime![Block::LastPanel]);
                self.loaded(n);
            }
        }
    }

    /// Arrives at the `n`-th tile, all of whose blocks are on their way.
    fn loaded(&mut self, n: usize) {
        let stores = self.tiles.source.stores();
        if comptime![stores] {
            sync_async_proxy_shared();
        }
        let at = comptime![TILE] + n % PLACES;
        arrive_when_copied(&mut self.words, at);
        arrive(&mut self.words, at);
    }

    /// Waits for the phase of the mbarrier `first + place` that the `n`-th tile ends.
    fn wait(&mut self, n: usize, #[comptime] first: usize) {
        let parity = (n / PLACES % 2) as u32;
        await_arrivals(&mut self.words, first + n % PLACES, parity);
    }

    /// Waits until the `n`-th tile has arrived.
    pub fn await_tile(&mut self, n: usize) {
        if comptime![self.roles.are_apart()] {
            self.wait(n, comptime![TILE]);
        } else {
            self.tiles.await_tile(n);
        }
    }

    /// Starts `c += a · bᵀ`, b being the `n`-th tile.
    pub fn start_nt<W: Size>(&self, n: usize, c: &mut Fragment<W>, a: &Tile<S>) {
        let tile = self.tiles.source.tile(n);
        if comptime![self.roles.are_apart()] {
            start_nt(c, a, &tile);
        } else {
            self.tiles.start_nt(n, c, a, &tile);
        }
    }

    /// Hands over what the outputs so far are multiplied by before the `n`-th tile's are added.
    pub fn put_factors(&mut self, n: usize, factors: &Array<f32>) {
        let layout = comptime![self.layout];
        if comptime![self.roles.are_apart()] {
            self.write(n % PLACES * comptime![layout.rows], factors);
            arrive(&mut self.words, comptime![FACTORS] + n % PLACES);
        } else {
            #[unroll(layout.unrolled())]
            for own in 0..comptime![layout.own_rows()] {
                self.own[own] = factors[own];
            }
        }
    }

    /// Hands over what the outputs are multiplied by in the end.
    pub fn put_scales(&mut self, scales: &Array<f32>) {
        let first = self.first_scale();
        self.write(first, scales);
        if comptime![self.roles.are_apart()] {
            arrive(&mut self.words, comptime![FACTORS + PLACES]);
        }
    }

    fn write(&mut self, first: usize, numbers: &Array<f32>) {
        let layout = comptime![self.layout];
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            let row = self.row + (row_of(own, layout) - row_of(0usize, layout));
            if lane_of(layout) == 0 && row < comptime![layout.rows] {
                self.factors[first + row] = numbers[own];
            }
        }
    }

    /// Multiplies the rows of `acc` by the factors of the `n`-th tile.
    pub fn rescale<W: Size>(&mut self, n: usize, acc: &mut Fragment<W>) {
        let layout = comptime![acc.layout];
        if comptime![self.roles.are_apart()] {
            self.wait(n, comptime![FACTORS]);
        }
        #[unroll(layout.unrolled())]
        for own in 0..comptime![layout.own_rows()] {
            if comptime![self.roles.are_apart()] {
                let factor =
                    self.factors[n % PLACES * comptime![layout.rows] + row_of(own, layout)];
                // The later the tile, the rarer a new maximum; and the scores' units want the same issue slots.
                if !plane_all(factor == 1.0f32) {
                    acc.scale_row(own, factor);
                }
            } else {
                acc.scale_row(own, self.own[own]);
            }
        }
    }

    /// Waits until it is known what the outputs are multiplied by in the end: [`Turns::factors`] has it, of each row from
    /// [`Turns::first_scale`] on.
    pub fn await_scales(&mut self) {
        if comptime![self.roles.are_apart()] {
            await_arrivals(&mut self.words, comptime![FACTORS + PLACES], 0u32);
        } else {
            sync_team(comptime![self.roles.all]);
        }
    }

    /// Where the scales begin among the factors.
    pub fn first_scale(&self) -> usize {
        // Asked anew: its address would be kept beside those of the factors through the loop.
        if comptime![self.roles.are_apart()] {
            fresh(comptime![(PLACES * self.layout.rows) as u32]) as usize
        } else {
            0usize.runtime()
        }
    }

    /// A tile in a place that no unit reads or loads any more, after the last tile.
    pub fn free_tile(&self) -> Tile<S> {
        self.tiles.source.tile(0usize)
    }

    /// Turns the scores of the `n`-th tile into probabilities by `softmax`, and hands them over.
    pub fn put<W: Size>(
        &mut self,
        n: usize,
        scores: &mut Fragment<W>,
        softmax: &mut OnlineSoftmax,
    ) {
        if comptime![self.roles.are_apart()] {
            let mut panel = self.tiles.source.tile(n).last_panel();
            #[unroll]
            for index in 0..PARTS {
                let part = comptime![Part { index, of: PARTS }];
                softmax.exponentiate(scores, part);
                store_part(&mut panel, &*scores, self.row, part);
                sync_async_proxy_shared();
                let at = comptime![PROBABILITIES + index * PLACES] + n % PLACES;
                arrive(&mut self.words, at);
            }
        } else {
            softmax.exponentiate(scores, comptime![Part::WHOLE]);
            store_fragment(&mut self.via, &*scores);
            sync_team(comptime![self.roles.all]);
        }
    }

    /// Waits for all probabilities of the `n`-th tile.
    pub fn await_probabilities(&mut self, n: usize) {
        if comptime![self.roles.are_apart()] {
            #[unroll]
            for part in 0..PARTS {
                self.wait(n, comptime![PROBABILITIES + part * PLACES]);
            }
        }
    }

    /// The rows of the tile that this unit is to load in place of the `n`-th, which were asked for a turn ago.
    pub fn look_up(&mut self, n: usize) -> FoundRows {
        let rows = self.tiles.source.find(n + PLACES, &self.asked);
        self.tiles.source.ask(n + comptime![PLACES + 1], &mut self.asked);
        rows
    }

    /// Adds the product of the `n`-th tile's probabilities and values to `acc`, and fills the tile's place with the one
    /// that is to come there, of whose rows `next` are this unit's.
    pub fn multiply_nn<W: Size>(&mut self, n: usize, acc: &mut Fragment<W>, next: &mut FoundRows) {
        let roles = comptime![self.roles];
        let tile = self.tiles.source.tile(n);
        if comptime![roles.are_apart()] {
            let values = tile.leading(comptime![acc.layout.cols]);
            let product = Product::new(&*acc, &tile.last_panel(), &values, comptime![Major::MN]);
            #[unroll]
            for index in 0..PARTS {
                self.wait(n, comptime![PROBABILITIES + index * PLACES]);
                product.begin(acc);
                product.issue::<S, W>(acc, comptime![Part { index, of: PARTS }]);
                commit_mma();
            }
            // A part's rows are free when every unit has multiplied them; the probabilities lie in the last panel.
            let later = n + PLACES;
            let more = later < self.count;
            #[unroll]
            for index in 0..PARTS {
                let part = comptime![Part { index, of: PARTS }];
                self.tiles.source.read(next, part);
                if comptime![index + 1 < PARTS] {
                    wait_mma(comptime![PARTS - 1 - index]);
                } else {
                    finish_product(acc, 0usize);
                }
                meet(roles.outputs);
                if more {
                    self.tiles.source.load_found(later, &*next, comptime![Block::Rows(part)]);
                }
            }
            if more {
                self.tiles.source.load_found(later, &*next, comptime![Block::LastPanel]);
                self.loaded(later);
            }
        } else {
            multiply_nn(acc, &self.via, &tile);
        }
    }

    /// After the last tile, when every unit has what it needs: the loop may be started anew. Every unit of the cube
    /// calls it.
    pub fn finish(&mut self) {
        let roles = comptime![self.roles];
        if comptime![roles.are_apart()] {
            sync_cube();
            if UNIT_POS == 0 {
                #[unroll]
                for i in 0..BARRIERS {
                    invalidate_barrier(&mut self.words, i);
                }
            }
        }
    }
}

/// Waits until every unit of the team is here; nothing is made visible to products.
#[cube]
fn meet(#[comptime] team: Machine) {
    if let Some(role) = comptime![team.role] {
        sync_units(role.barrier, team.team);
    }
}
