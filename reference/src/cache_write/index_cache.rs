//! The paged key cache of the indexer, in DeepGEMM's layout.
use crate::error::{Error, Result, check_value};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// Bytes of one scale.
const SCALE: usize = 4;

/// Pages `[ceil(n / page_size), page_size · (D + 4)]` of the keys `codes` `[n, D]` (e4m3) and
/// `scale` `[n]`.
///
/// Inside a page all the codes come first, `page_size · D` bytes, and then all the scales,
/// `page_size` little-endian f32; a key's scale does not lie beside its codes. Slots that no key
/// fills are 0. A key without a scale gets NaN. A `page_size` of 0 has no pages.
pub fn index_cache_pages(
    codes: ArrayView2<u8>,
    scale: ArrayView1<f32>,
    page_size: usize,
) -> Array2<u8> {
    let (n, d) = codes.dim();
    let n_pages = if page_size == 0 { 0 } else { n.div_ceil(page_size) };
    let mut pages = Array2::zeros((n_pages, page_size * (d + SCALE))); // [n_pages, page bytes]
    if page_size == 0 {
        return pages;
    }
    for token in 0..n {
        let (page, slot) = (token / page_size, token % page_size);
        for col in 0..d {
            pages[(page, slot * d + col)] = codes[(token, col)];
        }
        let s = scale.get(token).copied().unwrap_or(f32::NAN);
        for (i, byte) in s.to_le_bytes().into_iter().enumerate() {
            pages[(page, page_size * d + slot * SCALE + i)] = byte;
        }
    }
    pages
}

/// The inverse of [`index_cache_pages`]: codes `[n_pages · page_size, D]` and scales
/// `[n_pages · page_size]` of every slot, the unfilled ones included.
///
/// # Errors
/// [`Error::Value`] if `page_size` is 0, or if a page's width is no `page_size · (D + 4)`.
pub fn index_cache_read(
    pages: ArrayView2<u8>,
    page_size: usize,
) -> Result<(Array2<u8>, Array1<f32>)> {
    let d = head_dim(pages, page_size)?;
    let n = pages.nrows() * page_size;
    let codes = Array2::from_shape_fn((n, d), |(token, col)| {
        pages[(token / page_size, token % page_size * d + col)]
    }); // [n, D]
    let scale = Array1::from_shape_fn(n, |token| {
        let at = page_size * d + token % page_size * SCALE;
        f32::from_le_bytes(std::array::from_fn(|i| pages[(token / page_size, at + i)]))
    }); // [n]
    Ok((codes, scale))
}

/// D of pages that are `page_size · (D + 4)` bytes wide.
fn head_dim(pages: ArrayView2<u8>, page_size: usize) -> Result<usize> {
    check_value("page_size", page_size, "at least 1 key a page", page_size > 0)?;
    let width = pages.ncols();
    let per_key = if width.is_multiple_of(page_size) { width / page_size } else { 0 };
    per_key.checked_sub(SCALE).ok_or_else(|| Error::Value {
        name: "page width",
        found: format!("{width} bytes for {page_size} keys"),
        expected: "page_size * (D + 4) bytes",
    })
}
