//! The embedding: a row of the table for each token id.
use crate::error::{Result, check_value};
use crate::math::key;
use ndarray::{Array2, ArrayView2};

/// `x[t] = table[ids[t]]`: `ids` `[s]`, `table` `[vocab_size, hidden_size]`, `x` `[s, hidden_size]`.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if an id is negative or at least `vocab_size`.
pub fn embedding(ids: &[i32], table: ArrayView2<f32>) -> Result<Array2<f32>> {
    let mut x = Array2::zeros((ids.len(), table.ncols())); // [s, hidden_size]
    for (mut x, &id) in x.rows_mut().into_iter().zip(ids) {
        let row = key(id, table.nrows());
        check_value("token id", id, "at least 0 and below vocab_size", row.is_some())?;
        if let Some(row) = row {
            x.assign(&table.row(row));
        }
    }
    Ok(x)
}
