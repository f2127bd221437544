//! The new tokens of a step: where they stand, on the host and on the device.

use super::{Cache, Rotary, Shown, Stages, Watch};
use crate::error::{Error, Result};
use dsa_kernels::seen::KeyRange;
use dsa_kernels::{Device, Tensor};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Which keys a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All up to its own position: DeepSeek-V3.1.
    Dense,
    /// The `index_topk` that the indexer selects among them: DeepSeek-V3.2.
    Sparse,
}

/// The two ways in which a model runs. They decide the form of dense attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Several tokens of one request.
    Prefill,
    /// One token of each request.
    Decode,
}

impl Phase {
    /// The phase of a chunk of `tokens` tokens of one request: decode if it is one.
    pub fn of(tokens: usize) -> Self {
        if tokens == 1 { Self::Decode } else { Self::Prefill }
    }
}

/// The n new tokens of a step: a chunk of one request, or the next token of each of several. Every layer of the
/// step takes the same batch; what it holds was uploaded once.
///
/// What reads ranges of rows sees the cache of a step as one table: as many rows of each request, one request after the
/// other, as the longest context has.
pub struct Batch {
    device: Device,
    phase: Phase,
    mode: Mode,
    stages: Stages,
    watch: Watch,
    /// The requests that take part. If it is more than one, row i belongs to the i-th of them.
    requests: Vec<usize>,
    /// Position of each row in its request.
    positions: Vec<usize>,
    places: Places,
    rotary: Rotary,
    /// `0 .. rows` of the table, made when a layer first needs it.
    rows: OnceLock<Tensor>,
    /// What the last layer with an indexer selected in this step, `[n, index_topk]` i32.
    selected: Mutex<Option<Tensor>>,
}

/// A batch's numbers on the device: `[n]` i32 each but the last two.
struct Places {
    positions: Tensor,
    slots: Tensor,
    first: Tensor,
    last: Tensor,
    /// Where a row's request begins in the table, negated.
    back: Tensor,
    zero: Tensor,
    seen: Tensor,
    /// `[requests, max_pages]` i32.
    block_table: Tensor,
    /// `[requests · longest]` i32: the slot of each row of the table, -1 behind a request's own.
    table_slots: Tensor,
}

impl Batch {
    /// `tokens` tokens of `request` from position `start` on: a prompt, a chunk of one, or (one token) a
    /// decoded one.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no token, for a request that the cache has no room for, for positions
    /// beyond its room or behind a gap, and in sparse mode if earlier tokens have no index keys.
    pub fn chunk(
        cache: &Cache,
        request: usize,
        start: usize,
        tokens: usize,
        mode: Mode,
    ) -> Result<Self> {
        Error::check(tokens > 0, "x", "0 tokens", "at least 1")?;
        let requests = cache.requests();
        Error::check(request < requests, "request", request, format!("below {requests}"))?;
        // Before start + tokens is formed, which could overflow.
        let (most, got) = (cache.max_seq(), format!("{start}, then {tokens} tokens"));
        let fits = start <= most && tokens <= most - start;
        Error::check(fits, "start", got, format!("at most the cache's {most} positions"))?;
        let positions = (start..start + tokens).collect();
        Self::new(cache, Phase::of(tokens), vec![request], positions, mode)
    }

    /// The next token of each of the first requests, where `positions` says: row i is of request i.
    ///
    /// # Errors
    /// As [`Batch::chunk`].
    pub fn decode(cache: &Cache, positions: &[usize], mode: Mode) -> Result<Self> {
        let (n, requests) = (positions.len(), cache.requests());
        let right = (1..=requests).contains(&n);
        let expected = format!("1 to the cache's {requests} requests");
        Error::check(right, "positions", format!("{n} positions"), expected)?;
        let next: Vec<_> = positions.iter().copied().enumerate().collect();
        Self::decode_of(cache, &next, mode)
    }

    /// The next token of each of some requests, each with its position: row i is of the i-th of `next`.
    ///
    /// # Errors
    /// As [`Batch::chunk`]; for a request that is there twice, whose tokens do not know each other.
    pub fn decode_of(cache: &Cache, next: &[(usize, usize)], mode: Mode) -> Result<Self> {
        Error::check(!next.is_empty(), "requests", "none", "at least 1")?;
        for (nth, (request, position)) in next.iter().enumerate() {
            let requests = cache.requests();
            Error::check(*request < requests, "request", request, format!("below {requests}"))?;
            let once = next[..nth].iter().all(|(other, _)| other != request);
            Error::check(once, "request", request, "each request once")?;
            let (right, most) = (*position < cache.max_seq(), cache.max_seq());
            Error::check(right, "position", position, format!("below {most}"))?;
        }
        let (requests, positions) = next.iter().copied().unzip();
        Self::new(cache, Phase::Decode, requests, positions, mode)
    }

    fn new(
        cache: &Cache,
        phase: Phase,
        requests: Vec<usize>,
        positions: Vec<usize>,
        mode: Mode,
    ) -> Result<Self> {
        let page_size = cache.page_size();
        // The place among the requests of the one that a row belongs to.
        let nth = |row: usize| if requests.len() > 1 { row } else { 0 };
        for (row, position) in positions.iter().enumerate().take(requests.len()) {
            cache.check(requests[nth(row)], *position, mode)?;
        }
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let device = cache.device();
        // The cache has made sure that every row's number is an i32.
        let vector = |values: Vec<usize>| {
            let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
            device.upload_i32(&values, &[values.len()])
        };
        let rows = || positions.iter().enumerate();
        let begin = |row: usize| nth(row) * longest;
        let slot = |request: usize, position: usize| {
            let page = cache.table(request).get(position / page_size)?;
            Some(page * page_size + position % page_size)
        };
        let pages = longest.div_ceil(page_size);
        let (mut block_table, mut table_slots) = (Vec::new(), Vec::new());
        for (place, &request) in requests.iter().enumerate() {
            let own = positions.iter().enumerate().filter(|(row, _)| nth(*row) == place);
            let own = own.map(|(_, last)| last + 1).max().unwrap_or(0);
            let page = |i| cache.table(request).get(i).map_or(-1, |page| *page as i32);
            block_table.extend((0..pages).map(page));
            let held = |p: usize| slot(request, p).filter(|_| p < own).map_or(-1, |s| s as i32);
            table_slots.extend((0..longest).map(held));
        }
        let places = Places {
            positions: vector(positions.clone())?,
            slots: vector(rows().filter_map(|(row, p)| slot(requests[nth(row)], *p)).collect())?,
            first: vector(rows().map(|(row, _)| begin(row)).collect())?,
            last: vector(rows().map(|(row, p)| begin(row) + p + 1).collect())?,
            back: device.upload_i32(
                &rows().map(|(row, _)| -(begin(row) as i32)).collect::<Vec<_>>(),
                &[positions.len()],
            )?,
            zero: vector(vec![0; positions.len()])?,
            seen: vector(positions.iter().map(|p| p + 1).collect())?,
            block_table: device.upload_i32(&block_table, &[requests.len(), pages])?,
            table_slots: device.upload_i32(&table_slots, &[table_slots.len()])?,
        };
        Ok(Self {
            device: device.clone(),
            phase,
            mode,
            stages: Stages::new(),
            watch: Watch::default(),
            requests,
            positions,
            places,
            rotary: cache.rotary().clone(),
            rows: OnceLock::new(),
            selected: Mutex::new(None),
        })
    }

    /// The same batch, with its stages' device time measured.
    ///
    /// # Errors
    /// As [`Stages::measuring`].
    pub fn measured(mut self) -> Result<Self> {
        self.stages = Stages::measuring(&self.device)?;
        Ok(self)
    }

    /// The same batch, of which `take` sees the tensors that the layers make, in their order. What it returns takes the
    /// place of the tensor that it was shown; if that is `None`, nothing of the result depends on its watching. Its
    /// error ends the step.
    pub fn watched(
        mut self,
        take: impl FnMut(Shown) -> Result<Option<Tensor>> + Send + 'static,
    ) -> Self {
        self.watch = Watch::new(take);
        self
    }

    /// Who watches the step.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Where the step's time goes.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Prefill or decode.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Dense or sparse.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// New tokens: rows of x.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Requests that take part.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// The request of a row.
    pub fn request_of(&self, row: usize) -> usize {
        self.requests[if self.requests.len() > 1 { row } else { 0 }]
    }

    /// Position of each row in its request.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Length of the longest context, the new tokens included.
    pub fn longest(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }

    /// Rows of the step's table: as many of each request as the longest context has.
    pub fn rows(&self) -> usize {
        self.requests() * self.longest()
    }

    /// The slots of the cache that the rows of the table are in: `[rows]` i32, -1 for none.
    pub(crate) fn table_slots(&self) -> &Tensor {
        &self.places.table_slots
    }

    /// Minus the row of the table at which each token's request begins: `[n]` i32.
    pub(crate) fn back(&self) -> &Tensor {
        &self.places.back
    }

    /// Position in the request: `[n]` i32.
    pub(crate) fn at(&self) -> &Tensor {
        &self.places.positions
    }

    /// Row of the whole cache that each token is written to: `[n]` i32.
    pub(crate) fn slots(&self) -> &Tensor {
        &self.places.slots
    }

    /// The rows of the table that each token sees, `[n]` i32 each: from where its request begins to itself.
    pub(crate) fn seen_rows(&self) -> KeyRange<'_> {
        KeyRange { ks: &self.places.first, ke: &self.places.last }
    }

    /// The positions of its request that each token sees, `[n]` i32 each: 0 to its own + 1.
    pub(crate) fn seen_positions(&self) -> KeyRange<'_> {
        KeyRange { ks: &self.places.zero, ke: &self.places.seen }
    }

    /// `[requests, max_pages]` i32.
    pub(crate) fn block_table(&self) -> &Tensor {
        &self.places.block_table
    }

    /// cos and sin of every position.
    pub(crate) fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Notes the keys that a layer selected, `[n, index_topk]` i32, for those behind it that share them.
    pub(crate) fn select(&self, keys: &Tensor) {
        *self.selected.lock().unwrap_or_else(PoisonError::into_inner) = Some(keys.clone());
    }

    /// The keys that the last layer with an indexer selected in this step.
    pub(crate) fn selected(&self) -> Option<Tensor> {
        self.selected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The numbers of all rows of the table, `[rows]` i32: made once a step.
    pub(crate) fn table_rows(&self) -> dsa_kernels::Result<&Tensor> {
        if let Some(rows) = self.rows.get() {
            return Ok(rows);
        }
        let rows: Vec<i32> = (0..self.rows() as i32).collect();
        let uploaded = self.device.upload_i32(&rows, &[rows.len()])?;
        Ok(self.rows.get_or_init(|| uploaded))
    }
}
