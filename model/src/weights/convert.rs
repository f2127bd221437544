//! The elements of a tensor, from their bytes to f32.

use dsa_kernels::DType;

use super::Dtype;
use crate::config::QUANT_BLOCK;

/// e4m3 [rows, columns] times its scales [⌈rows/128⌉, ⌈columns/128⌉], row-major.
pub(super) fn scaled(bytes: &[u8], columns: usize, scales: &[f32]) -> Vec<f32> {
    let table = DType::E4m3.decode(&(0..=255).collect::<Vec<u8>>());
    let across = columns.div_ceil(QUANT_BLOCK);
    let mut values = Vec::with_capacity(bytes.len());
    for (row, bytes) in bytes.chunks_exact(columns.max(1)).enumerate() {
        let scales = &scales[row / QUANT_BLOCK * across..][..across];
        for (block, scale) in bytes.chunks(QUANT_BLOCK).zip(scales) {
            values.extend(block.iter().map(|&byte| table[usize::from(byte)] * scale));
        }
    }
    values
}

/// Elements that need no scale, in f32; `None` for another type.
pub(super) fn plain(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::Bf16,
        Dtype::F16 => DType::F16,
        _ => return None,
    };
    Some(dtype.decode(bytes))
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
