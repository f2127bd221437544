//! DeepSeek-V3.2-Exp: configuration, checkpoints, the attention layer, and the command line `dsa`.

pub mod attention;
pub mod cache;
pub mod cli;
pub mod config;
pub mod error;
mod json;
mod names;
pub mod verify;
pub mod weights;

pub use attention::Attention;
pub use cache::Cache;
pub use config::Config;
pub use error::{Error, Result};
