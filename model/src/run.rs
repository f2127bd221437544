//! What a step shares over all layers: where its tokens stand ([`Batch`], uploaded once), what the layers keep of
//! earlier tokens ([`Cache`], one block table for all), the rotary table ([`Rotary`], one a model) and the
//! division of its time ([`Stages`]). Who wants to see what the layers make watches the batch ([`Shown`]).

mod batch;
mod cache;
mod execution;
mod fill;
mod layer_cache;
mod rotary;
mod stages;
mod watch;

pub use batch::{Batch, Mode, Phase};
pub use cache::{Cache, CacheSize, KvFormat};
pub use execution::Execution;
pub use layer_cache::LayerCache;
pub use rotary::Rotary;
pub use stages::{Stage, Stages};
pub use watch::Shown;

pub(crate) use layer_cache::IndexCache;
pub(crate) use rotary::temperature;
pub(crate) use watch::Watch;
