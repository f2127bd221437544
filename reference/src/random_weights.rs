//! Made-up weights: each element is a function of a key and of its own number.
//!
//! `mix` is lowbias32 of C. Wellons' hash-prospector.
use ndarray::Array1;

/// A hash of `x` in which every bit depends on every bit.
fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `out[i] = step · (offset + t)`, where t is the sum of the two halves of a hash of `key` and of the element's number
/// `first + i`, less 65535: `out` `[n]`.
pub fn random_weights(key: u64, first: u32, offset: u32, step: f32, n: usize) -> Array1<f32> {
    let (low, high) = (key as u32, (key >> 32) as u32);
    Array1::from_shape_fn(n, |i| {
        let h = mix(mix(first.wrapping_add(i as u32).wrapping_add(low)) ^ high);
        let t = i64::from(h & 0xffff) + i64::from(h >> 16) - 65_535;
        (i64::from(offset) + t) as f32 * step
    }) // [n]
}
