//! DeepSeek-V3.2 and GLM-5 on the kernels: configuration, checkpoints, layers, and the whole model from token ids to
//! logits, and from text to text.
#![forbid(unsafe_code)]

pub mod chat;
pub mod config;
pub mod error;
pub mod eval;
pub mod generate;
pub mod intermediates;
mod json;
pub mod layers;
pub mod make_tiny;
mod model;
mod names;
pub mod plan;
pub mod run;
pub mod sample;
pub mod tokenizer;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
pub use model::{Model, PAGE_SIZE};
pub use plan::Plan;
