//! DeepSeek-V3.2-Exp: configuration, checkpoints, the attention layer, and the command line `dsa`.

pub mod cli;
pub mod config;
pub mod error;
mod json;
pub mod layers;
mod names;
pub mod run;
pub mod verify;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
