//! Tiles that some units of a cube load while the others multiply.
//!
//! ```text
//! feed.start(count);                           who loads does so for all tiles, place by place as they become free
//! if takes(roles.products) {
//!     for n in 0..count {
//!         feed.await_tile(n);                  tile n is complete
//!         ..                                   products of it
//!         feed.used(n);                        its place may be filled anew, once all who multiply have said so
//!     }
//! }
//! ```
//!
//! Groups that multiply meet nowhere: while one scales what it has, the matrix unit works for the other. On a machine
//! of one role this is a [`Pipeline`].

use super::machine::{Machine, Part, Role, WARPGROUP, team_memory};
use super::nvptx::{arrive, arrive_when_copied, await_arrivals, initialise_barrier, wait_copies};
use super::pipeline::*;
use super::roles::takes;
use cubecl::prelude::*;

/// Who takes which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedRoles {
    /// The units that load tiles.
    pub loads: Machine,
    /// The units that multiply them.
    pub products: Machine,
}

impl FeedRoles {
    /// If they are to be `apart`, the last of a machine's warpgroups loads; otherwise there is one role.
    pub fn of(machine: Machine, apart: bool) -> Self {
        if !apart || machine.groups() < 2 {
            return Self { loads: machine, products: machine };
        }
        let role = |first: usize, groups: usize, barrier: usize| Machine {
            team: groups * WARPGROUP,
            role: Some(Role { first: first * WARPGROUP, barrier }),
            ..machine
        };
        let multiply = machine.groups() - 1;
        Self { products: role(0, multiply, 1), loads: role(multiply, 1, 2) }
    }

    /// Whether different units load and multiply.
    pub fn are_apart(&self) -> bool {
        self.loads != self.products
    }
}

/// A loop's tiles in a ring of places.
#[derive(CubeType)]
pub struct Feed<L: Source + CubeType> {
    /// The rings, and what fills them.
    pub tiles: Pipeline<L>,
    /// An mbarrier for each place's tile, and one for each place.
    words: Shared<[u64]>,
    #[cube(comptime)]
    stages: usize,
    #[cube(comptime)]
    stores: bool,
    #[cube(comptime)]
    roles: FeedRoles,
}

#[cube]
impl<L: Source + CubeType> Feed<L> {
    /// Nothing is loaded yet. `stores`: units store what they load, so that it must be made visible to products.
    /// `running`: a tile's product goes on while the next is started.
    pub fn new(
        source: L,
        #[comptime] stages: usize,
        #[comptime] running: bool,
        #[comptime] stores: bool,
        #[comptime] roles: FeedRoles,
    ) -> Self {
        let (schedule, barriers) = comptime! {
            let machine = roles.products;
            let schedule = match running {
                true => Schedule::of_running_products(machine, stages),
                false => Schedule::new(machine, stages),
            };
            (schedule, if roles.are_apart() { 2 * stages } else { 1 })
        };
        let words = team_memory::<u64>(barriers, 8usize, comptime![roles.products]);
        let tiles = Pipeline::<L>::new(source, schedule);
        Feed::<L> { tiles, words, stages, stores, roles }
    }

    /// Starts to load `count` tiles. Every unit of the cube calls it; those that load return when they have loaded all.
    pub fn start(&mut self, count: usize) {
        let (roles, stages) = comptime![(self.roles, self.stages)];
        if comptime![roles.are_apart()] {
            if UNIT_POS == 0 {
                #[unroll]
                for place in 0..stages {
                    // Each unit arrives when its copies are there, and with what it stored.
                    let loads = comptime![roles.loads.team * if self.stores { 2 } else { 1 }];
                    initialise_barrier(&mut self.words, place, loads as u32);
                    let products = comptime![roles.products.team as u32];
                    initialise_barrier(&mut self.words, stages + place, products);
                }
            }
            sync_cube();
            if takes(roles.loads) {
                for n in 0..count {
                    self.fill(n);
                }
                wait_copies(0usize);
            }
        } else {
            self.tiles.start(count);
        }
    }

    /// Loads the `n`-th tile into its place as soon as that is free.
    fn fill(&mut self, n: usize) {
        let stages = comptime![self.stages];
        let place = n % stages;
        if n >= stages {
            await_arrivals(&mut self.words, stages + place, ((n / stages + 1) % 2) as u32);
        }
        self.tiles.source.load(n, comptime![Part::WHOLE]);
        if comptime![self.stores] {
            sync_async_proxy_shared();
            arrive(&mut self.words, place);
        }
        arrive_when_copied(&mut self.words, place);
    }

    /// Waits until the `n`-th tile has arrived. By those who multiply.
    pub fn await_tile(&mut self, n: usize) {
        if comptime![self.roles.are_apart()] {
            let stages = comptime![self.stages];
            await_arrivals(&mut self.words, n % stages, (n / stages % 2) as u32);
        } else {
            self.tiles.await_tile(n);
            self.tiles.load_next(n);
        }
    }

    /// The `n`-th tile is no longer read by this unit's group.
    pub fn used(&mut self, n: usize) {
        if comptime![self.roles.are_apart()] {
            let stages = comptime![self.stages];
            arrive(&mut self.words, stages + n % stages);
        }
    }
}
