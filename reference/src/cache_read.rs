//! What is read out of the paged caches for a step: the records of tokens as rows, and where the keys of requests are.
use crate::cache_write::KvRecord;
use crate::error::{Result, check_value};
use crate::math::key;
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis};

/// `out[t]` = latent and rotary key of the record in slot `slots[t]`; NaN where there is no such slot.
///
/// `records` `[n_slots, record.bytes()]`, `out` `[n, kv_lora_rank + rope_dim]`.
pub fn load_kv(records: ArrayView2<u8>, slots: &[i32], record: KvRecord) -> Array2<f32> {
    let width = record.kv_lora_rank + record.rope_dim;
    let mut out = Array2::from_elem((slots.len(), width), f32::NAN); // [n, width]
    for (mut out, slot) in out.rows_mut().into_iter().zip(slots) {
        if let Some(slot) = key(*slot, records.nrows()) {
            let row = records.row(slot).insert_axis(Axis(0)); // [1, bytes]
            out.assign(&record.dequantise_kv(row).row(0));
        }
    }
    out
}

/// `slots[r, t, j] = block_table[r, p / page_size] · page_size + p mod page_size` of `p = indices[r, t, j]`; -1 where
/// `p` is no position of the block table, or its page is none of `pages`.
///
/// `indices` `[b, next_n, topk]`, `block_table` `[b, max_pages]`.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if `page_size` is 0.
pub fn slots_of_keys(
    indices: ArrayView3<i32>,
    block_table: ArrayView2<i32>,
    pages: usize,
    page_size: usize,
) -> Result<Array3<i32>> {
    check_value("page_size", page_size, "at least 1", page_size > 0)?;
    Ok(Array3::from_shape_fn(indices.dim(), |(r, t, j)| {
        let slot = || {
            let p = usize::try_from(indices[(r, t, j)]).ok()?;
            let page = key(*block_table.get((r, p / page_size))?, pages)?;
            i32::try_from(page * page_size + p % page_size).ok()
        };
        slot().unwrap_or(-1)
    }))
}
