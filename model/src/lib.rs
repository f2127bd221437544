//! DeepSeek-V3.2-Exp: configuration, checkpoints, the attention layer, and the command line `dsa`.

pub mod config;
pub mod error;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
