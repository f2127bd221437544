//! The new tokens of a step: where they stand, on the host and on the device.

use super::{Cache, Rotary, Stages};
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
/// The kernels see the cache of a step as one table of rows: those of the request of a chunk up to its end, or all
/// rows of all requests of a batch.
pub struct Batch {
    device: Device,
    phase: Phase,
    mode: Mode,
    stages: Stages,
    /// The first request that takes part.
    request: usize,
    /// How many take part. If it is more than one, row i belongs to request `request + i`.
    requests: usize,
    /// Position of each row in its request.
    positions: Vec<usize>,
    /// First row of the step's table in the cache, and its rows.
    context: (usize, usize),
    places: Places,
    rotary: Rotary,
    /// `0 .. rows` of the table, made when a layer first needs it.
    rows: OnceLock<Tensor>,
    /// What the last layer with an indexer selected in this step, `[n, index_topk]` i32.
    selected: Mutex<Option<Tensor>>,
}

/// A batch's numbers on the device: `[n]` i32 each but the last.
struct Places {
    positions: Tensor,
    slots: Tensor,
    first: Tensor,
    last: Tensor,
    zero: Tensor,
    seen: Tensor,
    /// `[requests, max_pages]` i32.
    block_table: Tensor,
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
        Self::new(cache, Phase::of(tokens), (request, 1), positions, mode)
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
        for position in positions {
            let (right, most) = (*position < cache.max_seq(), cache.max_seq());
            Error::check(right, "position", position, format!("below {most}"))?;
        }
        Self::new(cache, Phase::Decode, (0, n), positions.to_vec(), mode)
    }

    fn new(
        cache: &Cache,
        phase: Phase,
        (request, requests): (usize, usize),
        positions: Vec<usize>,
        mode: Mode,
    ) -> Result<Self> {
        let max_seq = cache.max_seq();
        let of = |row: usize| request + if requests > 1 { row } else { 0 };
        for (row, position) in positions.iter().enumerate().take(requests) {
            cache.check(of(row), *position, mode)?;
        }
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let device = cache.device();
        // The cache has made sure that every row's number is an i32.
        let vector = |values: Vec<usize>| {
            let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
            device.upload_i32(&values, &[values.len()])
        };
        let rows = || positions.iter().enumerate();
        let begin = |row: usize| (of(row) - request) * max_seq;
        let places = Places {
            positions: vector(positions.clone())?,
            slots: vector(rows().map(|(row, p)| of(row) * max_seq + p).collect())?,
            first: vector(rows().map(|(row, _)| begin(row)).collect())?,
            last: vector(rows().map(|(row, p)| begin(row) + p + 1).collect())?,
            zero: vector(vec![0; positions.len()])?,
            seen: vector(positions.iter().map(|p| p + 1).collect())?,
            block_table: cache.block_table().narrow(0, request, requests)?,
        };
        let table_rows = if requests > 1 { requests * max_seq } else { longest };
        Ok(Self {
            device: device.clone(),
            phase,
            mode,
            stages: Stages::new(),
            request,
            requests,
            positions,
            context: (request * max_seq, table_rows),
            places,
            rotary: cache.rotary().clone(),
            rows: OnceLock::new(),
            selected: Mutex::new(None),
        })
    }

    /// The same batch, with its stages' device time measured.
    pub fn measured(mut self) -> Self {
        self.stages = Stages::measuring(&self.device);
        self
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
        self.requests
    }

    /// The request of a row.
    pub fn request_of(&self, row: usize) -> usize {
        self.request + if self.requests > 1 { row } else { 0 }
    }

    /// Position of each row in its request.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Length of the longest context, the new tokens included.
    pub fn longest(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }

    /// The rows `start .. start + rows` of the cache that the step sees as its table: `(start, rows)`.
    pub fn context(&self) -> (usize, usize) {
        self.context
    }

    /// The first request that takes part, for what is kept by requests.
    pub(crate) fn first_request(&self) -> usize {
        self.request
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
        let rows: Vec<i32> = (0..self.context.1 as i32).collect();
        let uploaded = self.device.upload_i32(&rows, &[rows.len()])?;
        Ok(self.rows.get_or_init(|| uploaded))
    }
}
