//! What the two paged fp8 caches hold: the 656-byte record of FlashMLA ([`KvRecord`]) and the index keys of
//! DeepGEMM ([`index_cache_pages`]), simulated bit for bit.

mod index_cache;
mod kv_cache;
pub use index_cache::{index_cache_pages, index_cache_read};
pub use kv_cache::KvRecord;
