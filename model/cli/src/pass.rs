//! One pass of the model over a text, on a device or by the reference, with or without its stages.

use super::open;
use super::plan::expect_room;
use dsa_gate::model::Reference;
use dsa_kernels::Device;
use dsa_model::intermediates::{Intermediates, Stored};
use dsa_model::layers::Precision;
use dsa_model::plan::Load;
use dsa_model::run::{Batch, Execution, KvFormat, Mode};
use dsa_model::weights::Weights;
use dsa_model::{Config, Model};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Token ids, and how they are run.
pub(super) struct Text<'a> {
    pub ids: &'a [u32],
    /// The first that is run by itself.
    pub from: usize,
    /// Tokens of a chunk, before that.
    pub chunk: usize,
}

/// What is run, by whom and how.
pub(super) struct Setup<'a> {
    pub config: &'a Config,
    pub precision: Precision,
    /// The best one there is if none is named.
    pub device: Option<&'a str>,
    pub by_reference: bool,
    pub execution: Execution,
    /// What the device must have room for.
    pub load: Load,
}

/// Who runs the model.
pub(super) enum Runner {
    Device {
        device: Device,
        model: Box<Model>,
        /// How latents are cached.
        format: KvFormat,
    },
    Reference(Box<Reference>),
}

/// The logits `[n, vocab_size]`, f32 as little-endian bytes, and the stages that were kept.
type Results = (Vec<u8>, BTreeMap<String, Stored>);

impl Runner {
    /// The model with `weights`, of which `stored_fp8` are stored in fp8: by the reference, or on the device named, or
    /// the best there is, if that has room for it.
    pub fn new<W: Weights>(
        setup: &Setup,
        weights: W,
        stored_fp8: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Self> {
        let Setup { config, precision, load, .. } = *setup;
        if setup.by_reference {
            let reference = Reference::new(config, weights, precision)?;
            return Ok(Self::Reference(Box::new(reference)));
        }
        let device = open(setup.device)?;
        expect_room(&device, config, precision, stored_fp8, load)?;
        let model = Model::new(&device, config, weights, precision)?.executed(setup.execution);
        Ok(Self::Device { device, model: Box::new(model), format: load.format })
    }

    /// Where it runs: a device's name, or the reference.
    pub fn name(&self) -> &str {
        match self {
            Self::Device { device, .. } => device.name(),
            Self::Reference(_) => "the reference",
        }
    }

    /// The name as the end of a sentence.
    pub fn who(&self) -> String {
        match self {
            Self::Device { device, .. } => {
                format!("on {} ({})", device.kind(), device.name())
            }
            Self::Reference(_) => format!("by {}", self.name()),
        }
    }

    /// Tokens of a chunk: the reference computes all at once.
    pub fn chunk(&self, text: &Text) -> usize {
        match self {
            Self::Device { .. } => text.chunk,
            Self::Reference(_) => text.ids.len(),
        }
    }

    /// Runs the text, and keeps `stages` if they are given.
    pub fn run(
        &self,
        text: &Text,
        mode: Mode,
        stages: Option<Intermediates>,
    ) -> anyhow::Result<Results> {
        let (model, format) = match self {
            Self::Device { model, format, .. } => (model, *format),
            Self::Reference(reference) => {
                let mut stages = stages;
                let logits = reference.run(text.ids, text.from, mode, stages.as_mut())?;
                let kept = stages.as_mut().map(Intermediates::take);
                return Ok((logits, kept.unwrap_or_default()));
            }
        };
        let stages = stages.map(|stages| Arc::new(Mutex::new(stages)));
        let mut cache = model.cache_of(1, text.ids.len(), format)?;
        let mut logits = Vec::new();
        for (ids, chunk) in [(&text.ids[..text.from], text.chunk), (&text.ids[text.from..], 1)] {
            for ids in ids.chunks(chunk) {
                let (start, n) = (cache.length(0), ids.len());
                let mut batch = Batch::chunk(&cache, 0, start, n, mode)?;
                if let Some(stages) = &stages {
                    batch = batch.watched(Intermediates::watch(stages, (start, n)));
                }
                logits.extend(model.forward(ids, &batch, &mut cache)?.download()?);
            }
        }
        let kept = stages.map(|stages| {
            let mut stages = stages.lock().unwrap_or_else(PoisonError::into_inner);
            stages.take()
        });
        Ok((logits, kept.unwrap_or_default()))
    }
}
