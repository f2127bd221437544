//! How a model runs what its configuration leaves open.

/// What decides how a step is computed, but not what.
///
/// By default **a row does not depend on its company**: its bits are the same in a chunk of any size, alone and beside
/// other requests, at every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Execution {
    /// Sums over keys are split as keeps the device busy: a row's bits then depend on how many rows there are. The
    /// faster the fewer tokens are decoded together.
    pub fast: bool,
    /// Sparse prefill is dense, in the expanded form, while the context is no longer than `index_topk`: all keys are
    /// selected then. A row's bits then depend on the chunk that it comes in.
    pub expand_short_prefill: bool,
    /// Most bytes of index logits that a layer holds at a time, at least one row's: the queries of a chunk are scored in
    /// so many parts. No bit of the result depends on it.
    pub logits_budget: usize,
}

impl Default for Execution {
    fn default() -> Self {
        Self { fast: false, expand_short_prefill: false, logits_budget: 512 << 20 }
    }
}
