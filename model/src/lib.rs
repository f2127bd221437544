//! DeepSeek-V3.2-Exp: configuration, checkpoints, the attention layer, and the command line `dsa`.

pub mod cli;
pub mod config;
pub mod error;
pub mod layers;
pub mod run;
mod json;
mod names;
pub mod verify;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
