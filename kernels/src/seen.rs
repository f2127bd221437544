//! Which keys each query token sees, by position: what the indexer, top-k and dense attention are told alike.

use crate::tensor::Tensor;

/// Token t sees the keys `ks[t] .. ke[t]`, clamped to those there are; it may see none. Causal attention from
/// position p on is `ks = 0`, `ke[t] = p + t + 1`.
#[derive(Clone, Copy, Debug)]
pub struct KeyRange<'a> {
    /// `[s]` i32: the first key.
    pub ks: &'a Tensor,
    /// `[s]` i32: the end.
    pub ke: &'a Tensor,
}

/// Which keys the query tokens of requests see.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// Each token a range of its own.
    Range(KeyRange<'a>),
    /// `[b]` i32, the tokens each request holds, of which its `next_n` query tokens are the last: token i of them
    /// sees the keys `n < context - next_n + i + 1`.
    Context(&'a Tensor),
}
