//! What a measurement was of, and its name.

use std::collections::BTreeMap;
use std::fmt;

use dsa_files::printable;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Which half of serving a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Many tokens of one sequence in one call.
    Prefill,
    /// One new token a sequence.
    Decode,
}

impl Stage {
    /// Both stages, in the order the pictures show them.
    pub const ALL: [Stage; 2] = [Stage::Prefill, Stage::Decode];

    /// "prefill" or "decode".
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prefill => "prefill",
            Stage::Decode => "decode",
        }
    }
}

/// Which of the two models of the paper's cost figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Variant {
    /// Dense attention: every key of the context.
    #[serde(rename = "V3.1-Terminus")]
    V31Terminus,
    /// Sparse attention: the keys that the indexer chose.
    #[serde(rename = "V3.2-Exp")]
    V32Exp,
    /// The measurement belongs to neither.
    #[serde(rename = "")]
    Neither,
}

impl Variant {
    /// The two models, dense first.
    pub const MODELS: [Variant; 2] = [Variant::V31Terminus, Variant::V32Exp];

    /// "V3.1-Terminus", "V3.2-Exp" or "".
    pub fn name(self) -> &'static str {
        match self {
            Variant::V31Terminus => "V3.1-Terminus",
            Variant::V32Exp => "V3.2-Exp",
            Variant::Neither => "",
        }
    }
}

/// The runtime that a kernel was compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An AMD GPU.
    Hip,
}

/// The device that ran.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its name as the driver or the operating system gives it.
    pub name: String,
    /// Its runtime.
    pub kind: DeviceKind,
    /// Version of the driver, or of what compiled for the processor.
    pub driver: String,
    /// Cores of a processor, multiprocessors or compute units of a GPU.
    pub cores: u64,
}

/// What ran: everything that decides which number comes out, except chance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct What {
    /// Name of the bench: "indexer", "top_k", [`crate::row::COST_BENCH`], …
    pub bench: String,
    /// Prefill or decode.
    pub stage: Stage,
    /// The model, or [`Variant::Neither`].
    pub variant: Variant,
    /// Name of the case within the bench.
    pub case: String,
    /// Sizes by name: `s_q`, `s_kv`, `heads`, `topk`, `context`, `tokens` (per call), …
    pub shape: BTreeMap<String, u64>,
    /// Number type of the inputs, "bf16", "e4m3", …
    pub dtype: String,
    /// Seed of the inputs.
    pub seed: u64,
    /// The device.
    pub device: Device,
    /// SHA-256 of the kernel's source files, 64 lower-case hexadecimal digits.
    pub kernel_hash: String,
}

impl What {
    /// Names must be there, and the hash must look like one.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (field, value) in
            [("bench", &self.bench), ("dtype", &self.dtype), ("device.name", &self.device.name)]
        {
            if value.is_empty() {
                return Err(Error::value(field, "empty", "a name"));
            }
        }
        let hash = &self.kernel_hash;
        let digits = hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hash.len() != 64 || !digits {
            return Err(Error::value("kernel_hash", hash, "64 lower-case hexadecimal digits"));
        }
        Ok(())
    }

    /// Names this measurement, so that a run that was cut short can see what it has already.
    pub fn key(&self) -> Key {
        Key { place: self.place(), kernel_hash: self.kernel_hash.clone() }
    }

    /// The key without the kernel's hash: what stays the same when a kernel is changed.
    pub fn place(&self) -> Place {
        Place {
            bench: self.bench.clone(),
            stage: self.stage,
            variant: self.variant,
            case: self.case.clone(),
            shape: self.shape.clone(),
            dtype: self.dtype.clone(),
            device: self.device.name.clone(),
            seed: self.seed,
        }
    }
}

/// Names one measurement of one version of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Everything but the version.
    pub place: Place,
    /// The version: the kernel's hash.
    pub kernel_hash: String,
}

/// Names one measurement across versions of a kernel; the comparison pairs rows by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the bench.
    pub bench: String,
    /// Prefill or decode.
    pub stage: Stage,
    /// The model.
    pub variant: Variant,
    /// Name of the case.
    pub case: String,
    /// Sizes by name.
    pub shape: BTreeMap<String, u64>,
    /// Number type of the inputs.
    pub dtype: String,
    /// Name of the device.
    pub device: String,
    /// Seed of the inputs.
    pub seed: u64,
}

impl fmt::Display for Place {
    /// One line, fit for a terminal: a place may come from a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} {}", self.bench, self.stage.name());
        for word in [self.variant.name(), &self.case, &self.dtype] {
            if !word.is_empty() {
                text.push_str(&format!(" {word}"));
            }
        }
        for (name, size) in &self.shape {
            text.push_str(&format!(" {name}={size}"));
        }
        f.write_str(&printable(&text, 300))
    }
}
