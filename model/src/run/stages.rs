//! The stages that a step's time is divided into.

use dsa_kernels::timing::Stopwatch;
use dsa_kernels::{Device, KernelError};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A part of a step. What both modes do is in [`Projections`](Stage::Projections), so that their
/// difference is in the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The two norms of the residual stream, and what is added to it before them.
    Norms,
    /// The new tokens' own products, norms and rotations, the cache writes, `o_proj`; absorbing
    /// W_UK and W_UV where the form is absorbed.
    Projections,
    /// Keys and values of each head from all latents of the context: expanded form only. Work that
    /// a prefill of the whole prompt in one chunk does once a token, a chunked one once a chunk.
    Expansion,
    /// The indexer: its own projections, its keys into the cache, the logits. Sparse mode only.
    Indexer,
    /// The selection. Sparse mode only.
    TopK,
    /// The attention kernel.
    Attention,
    /// The feed-forward network of a dense layer.
    FeedForward,
    /// The experts of a layer that has some: gate, sorting by expert, routed and shared networks, their sum.
    Experts,
}

impl Stage {
    /// All stages, in the order in which they first run.
    pub const ALL: [Stage; 8] = [
        Self::Norms,
        Self::Projections,
        Self::Indexer,
        Self::TopK,
        Self::Expansion,
        Self::Attention,
        Self::FeedForward,
        Self::Experts,
    ];

    /// The name in results: `norms`, `projections`, `indexer`, `top_k`, `expansion`, `attention`, `feed_forward`,
    /// `experts`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norms => "norms",
            Self::Projections => "projections",
            Self::Expansion => "expansion",
            Self::Indexer => "indexer",
            Self::TopK => "top_k",
            Self::Attention => "attention",
            Self::FeedForward => "feed_forward",
            Self::Experts => "experts",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// More launches than a stage makes.
const LAUNCHES: usize = 48;

/// Runs the stages of steps and, if asked to, adds up the device time of each.
///
/// Measuring waits for the device after every stage, and begins each behind other work, so that the host's launches
/// count for nothing ([`Stopwatch`]): the sum is the time of the kernels, as in a step that is launched as one recorded
/// graph.
#[derive(Default)]
pub struct Stages {
    watch: Option<(Device, Stopwatch)>,
    seconds: Mutex<[f64; Stage::ALL.len()]>,
}

impl Stages {
    /// Only runs them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs them and measures on `device`.
    ///
    /// # Errors
    /// As [`Stopwatch::new`].
    pub fn measuring(device: &Device) -> dsa_kernels::Result<Self> {
        let watch = (device.clone(), Stopwatch::new(device, LAUNCHES)?);
        Ok(Self { watch: Some(watch), ..Self::default() })
    }

    /// Device time spent in `stage` so far, in seconds; 0 if not measuring.
    pub fn seconds(&self, stage: Stage) -> f64 {
        self.held()[stage as usize]
    }

    /// Device time of all stages so far, in seconds.
    pub fn total(&self) -> f64 {
        self.held().iter().sum()
    }

    /// Runs `work` as a part of `stage`.
    pub(crate) fn run<T: Send, E: From<KernelError> + Send>(
        &self,
        stage: Stage,
        work: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let Some((device, watch)) = &self.watch else {
            return work();
        };
        let mut made = None;
        let time = watch.time(|| {
            made = Some(work());
            Ok(())
        })?;
        self.held()[stage as usize] += time.as_secs_f64();
        made.unwrap_or_else(|| {
            let reason = format!("the profiler did not run the stage {stage}");
            Err(KernelError::Launch { device: device.name().to_string(), reason }.into())
        })
    }

    /// Numbers are whole whatever panicked while it held them.
    fn held(&self) -> MutexGuard<'_, [f64; Stage::ALL.len()]> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
