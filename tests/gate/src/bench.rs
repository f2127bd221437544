//! What is measured of a kernel: the call at a model's dimensions, its operations and bytes, the small case that runs
//! the same compiled kernel, and how rows of what it computed are cut out to be judged. Measuring itself is in `benches`.

use crate::case::{Case, HostTensor};
use crate::production::INDEX_DIM;
use dsa_figures::Stage;
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;

mod records;
mod timed;

pub use records::{index_pages, latent_pages};
pub use timed::{BUDGET, Call, Cut, Drawn, MOST_ROWS, Named, Timed};

/// The sizes that are measured.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Context lengths.
    pub contexts: Vec<usize>,
    /// Query tokens of a prefill call.
    pub s_q: usize,
    /// Requests of a decode call.
    pub batch: usize,
    /// Attention heads.
    pub heads: usize,
    /// Index heads.
    pub index_heads: usize,
    /// Keys a query keeps.
    pub topk: usize,
    /// Type of activations.
    pub dtype: DType,
}

/// Bytes of a kernel's inputs and of its outputs at a context.
pub type Room = fn(&Axes, usize) -> (u128, u128);

/// One thing that is measured of a kernel.
#[derive(Clone, Copy)]
pub struct Bench {
    /// Prefill or decode.
    pub stage: Stage,
    /// The bytes of its inputs and of its outputs at a context, if it is measured at each; otherwise it is measured
    /// once.
    pub room: Option<Room>,
    /// Makes its inputs on the device, at a context and from a seed.
    pub spec: fn(&Device, &Axes, usize, u64) -> Result<Spec>,
}

/// One measurement.
pub struct Spec {
    /// The kernel in [`kernels`](crate::kernels).
    pub kernel: &'static str,
    /// Prefill or decode.
    pub stage: Stage,
    /// What sets it apart from others of the same kernel and stage.
    pub case: String,
    /// Sizes by name.
    pub shape: BTreeMap<String, u64>,
    /// Type of what is multiplied, or of the inputs.
    pub dtype: String,
    /// Operations of one call.
    pub flop: u64,
    /// Bytes that one call must move.
    pub bytes: u64,
    /// A small case that runs the same compiled kernel: gated before anything is timed.
    pub gate: Case,
    /// One call.
    pub work: Call,
    /// How rows of its outputs are judged afterwards.
    pub timed: Timed,
}

/// The sizes of a [`Spec`].
pub fn sizes<const N: usize>(named: [(&str, usize); N]) -> BTreeMap<String, u64> {
    named.into_iter().map(|(name, n)| (name.to_string(), n as u64)).collect()
}

/// A product that saturates: bytes of what no device holds.
pub fn bytes_of(factors: &[usize]) -> u128 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor as u128))
}

/// A vector of i32 on the device.
pub fn vec_i32(device: &Device, values: &[i32]) -> Result<Tensor> {
    device.upload_i32(values, &[values.len()])
}

/// The only output of a call.
pub fn one(name: &'static str, tensor: Tensor) -> Named {
    vec![(name, tensor)]
}

/// A tensor of normal values; a million of them, repeated.
pub fn random(device: &Device, dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let mut rng = Rng::new(seed);
    let some: Vec<f32> = (0..n.min(1_000_003)).map(|_| rng.normal()).collect();
    let bytes = dtype.encode(&some);
    let mut all = Vec::with_capacity(n * dtype.size());
    while all.len() < n * dtype.size() {
        let left = n * dtype.size() - all.len();
        all.extend_from_slice(&bytes[..left.min(bytes.len())]);
    }
    device.upload(&all, shape, dtype)
}

/// What is measured of a kernel of rows: those of the index heads of a chunk.
pub struct OfRows {
    /// How many there are.
    pub rows: usize,
    /// `[rows, INDEX_DIM]` of the activations' type.
    pub x: Tensor,
    /// A few rows, for the small case.
    pub small: HostTensor,
}

impl OfRows {
    /// Rows from `seed`.
    pub fn new(device: &Device, axes: &Axes, seed: u64) -> Result<Self> {
        let rows = axes.s_q * axes.index_heads;
        let x = random(device, axes.dtype, &[rows, INDEX_DIM], seed)?;
        let (rng, shape) = (&mut Rng::new(seed), [3, INDEX_DIM]);
        let small = crate::generate::tensor(rng, axes.dtype, &shape, crate::generate::Fill::Normal);
        Ok(Self { rows, x, small })
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.rows * INDEX_DIM
    }

    /// Bytes of the rows.
    pub fn bytes(&self) -> usize {
        self.elements() * self.x.dtype().size()
    }

    /// The measurement of `gate`'s kernel, of `flop` operations and `bytes` bytes.
    pub fn spec(
        &self,
        kernel: &'static str,
        (flop, bytes): (usize, usize),
        gate: Case,
        work: Call,
        cut: Cut,
    ) -> Spec {
        Spec {
            kernel,
            stage: Stage::Prefill,
            case: String::new(),
            shape: sizes([("rows", self.rows), ("cols", INDEX_DIM)]),
            dtype: self.x.dtype().to_string(),
            flop: flop as u64,
            bytes: bytes as u64,
            gate,
            work,
            timed: Timed { rows: self.rows, heads: 1, cost: INDEX_DIM, cut },
        }
    }
}
