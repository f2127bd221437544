//! Where the tokens of one step stand, and the same on the device.

use crate::cache::Cache;
use crate::config::Config;
use crate::error::{Error, Result};
use dsa_kernels::{Device, Tensor};

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

/// The new tokens of a step: a chunk of one request, or the next token of each of several.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub phase: Phase,
    /// The first request that takes part.
    pub request: usize,
    /// How many take part. If it is more than one, row i belongs to request `request + i`.
    pub requests: usize,
    /// Position of each row in its request.
    pub positions: Vec<usize>,
}

impl Step {
    /// `tokens` tokens of `request` from position `start` on.
    pub fn chunk(cache: &Cache, request: usize, start: usize, tokens: usize) -> Result<Self> {
        Error::check(tokens > 0, "x", "0 tokens", "at least 1")?;
        let requests = cache.requests();
        Error::check(request < requests, "request", request, format!("below {requests}"))?;
        // Before start + tokens is formed, which could overflow.
        let (most, got) = (cache.max_seq(), format!("{start}, then {tokens} tokens"));
        let fits = start <= most && tokens <= most - start;
        Error::check(fits, "start", got, format!("at most the cache's {most} positions"))?;
        let positions = (start..start + tokens).collect();
        Ok(Self { phase: Phase::of(tokens), request, requests: 1, positions })
    }

    /// One token of each request, at these positions.
    pub fn batch(cache: &Cache, positions: &[usize], tokens: usize) -> Result<Self> {
        let (n, requests) = (positions.len(), cache.requests());
        let expected = format!("as many as x has rows: {tokens}");
        Error::check(n == tokens, "positions", format!("{n} positions"), expected)?;
        let right = (1..=requests).contains(&n);
        let expected = format!("1 to the cache's {requests} requests");
        Error::check(right, "positions", format!("{n} positions"), expected)?;
        for position in positions {
            let (right, most) = (*position < cache.max_seq(), cache.max_seq());
            Error::check(right, "position", position, format!("below {most}"))?;
        }
        let positions = positions.to_vec();
        Ok(Self { phase: Phase::Decode, request: 0, requests: n, positions })
    }

    /// Refuses a step whose largest tensors have more rows than the kernels can index, before anything of it is
    /// done. `table_rows`: rows of the cache that it sees.
    pub fn check_sizes(
        &self,
        config: &Config,
        table_rows: usize,
        sparse: bool,
        expanded: bool,
    ) -> Result<()> {
        let (n, heads) = (self.tokens(), config.num_attention_heads);
        let rows = [
            ("the rows of q", true, n, heads),
            ("the rows of the keys, expanded", expanded, table_rows, heads),
            ("the rows of the index queries", sparse, n, config.index_n_heads),
            ("the columns of the index logits", sparse && !expanded, table_rows, 1),
        ];
        for (name, _, rows, each) in rows.into_iter().filter(|(_, made, ..)| *made) {
            let fits = (rows as u64).checked_mul(each as u64).is_some_and(|rows| rows < 1 << 31);
            let got = format!("{rows} times {each}");
            Error::check(fits, name, got, "fewer than 2^31: take shorter chunks")?;
        }
        Ok(())
    }

    /// Rows of x.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// The request of a row.
    pub fn request_of(&self, row: usize) -> usize {
        self.request + if self.requests > 1 { row } else { 0 }
    }

    /// Length of the longest context, the new tokens included.
    pub fn longest(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }
}

/// The step's numbers on the device, each `[n]` i32 for n new tokens.
///
/// The kernels see the cache of a step as one table of rows: those of the request of a chunk up to
/// its end, or all rows of all requests of a batch ([`Cache::context`]).
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Position in the request.
    pub positions: Tensor,
    /// Row of the whole cache that the token is written to.
    pub slots: Tensor,
    /// First row of the table that the token sees: where its request begins.
    pub first: Tensor,
    /// One past the last row of the table that the token sees: itself.
    pub last: Tensor,
    /// Zeros.
    pub zero: Tensor,
    /// Keys that the token sees: its position + 1.
    pub seen: Tensor,
    /// Length of each request's context, the new tokens included `[requests]`.
    pub contexts: Tensor,
}

impl Places {
    pub fn upload(device: &Device, step: &Step, cache: &Cache) -> Result<Self> {
        let rows = || step.positions.iter().enumerate();
        let begin = |row: usize| (step.request_of(row) - step.request) * cache.max_seq();
        let slot = |(row, p): (usize, &usize)| step.request_of(row) * cache.max_seq() + p;
        // Cache::new has made sure that every row's number is an i32.
        let vector = |values: Vec<usize>| {
            let values: Vec<i32> = values.into_iter().map(|v| v as i32).collect();
            device.upload_i32(&values, &[values.len()])
        };
        let contexts = if step.requests > 1 {
            step.positions.iter().map(|p| p + 1).collect()
        } else {
            vec![step.longest()]
        };
        Ok(Self {
            positions: vector(step.positions.clone())?,
            slots: vector(rows().map(slot).collect())?,
            first: vector(rows().map(|(row, _)| begin(row)).collect())?,
            last: vector(rows().map(|(row, p)| begin(row) + p + 1).collect())?,
            zero: vector(vec![0; step.tokens()])?,
            seen: vector(step.positions.iter().map(|p| p + 1).collect())?,
            contexts: vector(contexts)?,
        })
    }
}
