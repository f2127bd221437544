//! Forms: what of a case decides how its kernel is compiled, drawn once for several inputs.

use crate::case::Case;
use dsa_kernels::random::Rng;
use proptest::num::usize::BinarySearch;
use proptest::prelude::*;
use proptest::strategy::{NewTree, ValueTree};
use proptest::test_runner::TestRunner;
use std::sync::Arc;

/// Whose dimensions a form has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
    /// DeepSeek-V3.2's: 128 heads of 576/512 absorbed and 192/128 expanded, 64 index heads of 128.
    DeepSeekV32,
    /// GLM-5's: 64 heads of 576/512 absorbed and 256/256 expanded, 32 index heads of 128.
    Glm5,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::DeepSeekV32, Self::Glm5];

    /// Width of the hidden state.
    pub fn hidden(self) -> usize {
        if self == Self::DeepSeekV32 { 7168 } else { 6144 }
    }

    /// Attention heads.
    pub fn heads(self) -> usize {
        if self == Self::DeepSeekV32 { 128 } else { 64 }
    }

    /// Heads of the indexer.
    pub fn index_heads(self) -> usize {
        if self == Self::DeepSeekV32 { 64 } else { 32 }
    }

    /// Widths of a head in the expanded form: of keys with rope, and of values.
    pub fn expanded(self) -> (usize, usize) {
        if self == Self::DeepSeekV32 { (192, 128) } else { (256, 256) }
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::DeepSeekV32 { "DeepSeek-V3.2" } else { "GLM-5" })
    }
}

/// Elements of the latent, of its rope part and of both, of both models; and the same of the indexer and the
/// cache.
pub(super) const KV_LORA_RANK: usize = 512;
pub(super) const ROPE_DIM: usize = 64;
pub(super) const D_QK: usize = KV_LORA_RANK + ROPE_DIM;
pub(super) const INDEX_DIM: usize = 128;
pub(super) const TOPK: usize = 2048;
pub(super) const PAGE: usize = 64;

/// The sizes, types and options of a case. Its values, ranges, lists and slots follow from a seed.
#[derive(Clone)]
pub struct Form {
    sizes: String,
    inputs: Arc<dyn Fn(&mut Rng) -> Case + Send + Sync>,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sizes)
    }
}

impl Form {
    /// The case of this form whose inputs are those of `seed`.
    pub fn case(&self, seed: u64) -> Case {
        (self.inputs)(&mut Rng::new(seed))
    }

    /// The size `n`, which shrinks towards 1.
    pub(crate) fn exactly(n: usize) -> impl Strategy<Value = usize> {
        Exactly(n)
    }
}

/// How the forms of a kernel are drawn.
#[derive(Clone, Debug)]
pub struct Forms {
    /// Of any sizes, small ones.
    pub random: BoxedStrategy<Form>,
    /// Of each model's dimensions, with few tokens; they shrink to any sizes.
    pub production: [BoxedStrategy<Form>; 2],
}

impl Forms {
    /// Forms of the sizes that `random` and, for each model, `production` draw, whose inputs `case` makes.
    pub(crate) fn new<S, R, P>(
        random: R,
        production: impl Fn(Model) -> P,
        case: impl Fn(&S, &mut Rng) -> Case + Clone + Send + Sync + 'static,
    ) -> Self
    where
        S: std::fmt::Debug + Send + Sync + 'static,
        R: Strategy<Value = S> + 'static,
        P: Strategy<Value = S> + 'static,
    {
        let form = move |sizes: S| {
            let case = case.clone();
            Form {
                sizes: format!("{sizes:?}"),
                inputs: Arc::new(move |rng: &mut Rng| case(&sizes, rng)),
            }
        };
        let production = Model::ALL.map(|model| production(model).prop_map(form.clone()).boxed());
        Self { random: random.prop_map(form).boxed(), production }
    }

    /// Of a kernel without cases: one that its launcher refuses.
    pub(super) fn nothing(kernel: &str) -> Self {
        let kernel = kernel.to_string();
        Self::new(Just(()), |_| Just(()), move |(), _| Case::new(&kernel))
    }
}

/// The size `.0`, which shrinks towards 1 as a random one does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exactly(pub usize);

impl Strategy for Exactly {
    type Tree = AtLeastOne;
    type Value = usize;

    fn new_tree(&self, _: &mut TestRunner) -> NewTree<Self> {
        Ok(AtLeastOne(BinarySearch::new(self.0)))
    }
}

/// See [`Exactly`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtLeastOne(BinarySearch);

impl ValueTree for AtLeastOne {
    type Value = usize;

    fn current(&self) -> usize {
        self.0.current().max(1)
    }

    fn simplify(&mut self) -> bool {
        self.0.simplify()
    }

    fn complicate(&mut self) -> bool {
        self.0.complicate()
    }
}
