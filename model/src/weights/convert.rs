//! The elements of a tensor, from their bytes to f32.

use dsa_reference::quant::e4m3_decode;
use half::{bf16, f16};
use ndarray::Array2;

use super::Dtype;
use crate::config::QUANT_BLOCK;

/// e4m3 [rows, columns] times its scales [⌈rows/128⌉, ⌈columns/128⌉], row-major.
pub(super) fn scaled(bytes: &[u8], columns: usize, scales: &Array2<f32>) -> Vec<f32> {
    let table: Vec<f32> = (0..=255).map(e4m3_decode).collect();
    let mut values = Vec::with_capacity(bytes.len());
    for (row, bytes) in bytes.chunks_exact(columns.max(1)).enumerate() {
        let scales = scales.row(row / QUANT_BLOCK);
        for (block, scale) in bytes.chunks(QUANT_BLOCK).zip(scales) {
            values.extend(block.iter().map(|&byte| table[usize::from(byte)] * scale));
        }
    }
    values
}

/// Elements that need no scale, in f32; `None` for another type.
pub(super) fn plain(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let (two, _) = bytes.as_chunks::<2>();
    let (four, _) = bytes.as_chunks::<4>();
    match dtype {
        Dtype::F32 => Some(four.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::BF16 => Some(two.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::F16 => Some(two.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// e8m0: `2^(byte − 127)`, and NaN for 255 (OCP Microscaling Formats, 5.4.1). The least, 2^−127, is a
/// subnormal f32.
pub(super) fn e8m0(bytes: &[u8]) -> Vec<f32> {
    let power = |byte: u8| match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    };
    bytes.iter().copied().map(power).collect()
}

#[cfg(test)]
mod tests {
    use super::e8m0;

    #[test]
    fn e8m0_is_a_power_of_two() {
        let powers: Vec<f32> = (0..255).map(|byte| 2f32.powi(byte - 127)).collect();
        let bytes: Vec<u8> = (0..255).collect();
        assert_eq!(e8m0(&bytes), powers);
        assert!(e8m0(&[255])[0].is_nan());
    }
}
