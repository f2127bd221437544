//! DeepSeek-V3.2-Exp: configuration, checkpoints, and the attention layer on the kernels.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
mod json;
pub mod layers;
mod names;
pub mod run;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
