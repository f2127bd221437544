//! The fp8 cache record of FlashMLA: one token's latent and rotary key in one run of bytes.
use crate::quant::{E4M3_MAX, amax, e4m3_decode, encode_scaled, pow2_ceil};
use ndarray::{Array2, ArrayView2};

/// Columns of the latent that share a scale.
const BLOCK: usize = 128;
/// The floor lies on the scale here; in [`act_quant`](super::act_quant) it lies on amax.
const MIN_SCALE: f32 = 1e-4;

/// Layout of one token in the fp8 cache:
/// `kv_lora_rank` e4m3 codes, one little-endian f32 scale per 128 of them, then `rope_dim` bf16.
///
/// For 512 and 64 that is 512 + 16 + 128 = 656 bytes. The rotary part is not quantised further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvRecord {
    /// Width of the latent c.
    pub kv_lora_rank: usize,
    /// Width of the rotary key k_pe.
    pub rope_dim: usize,
}

impl KvRecord {
    /// Bytes of one record.
    pub fn bytes(&self) -> usize {
        self.kv_lora_rank + 4 * self.blocks() + 2 * self.rope_dim
    }

    /// Scales of one record.
    fn blocks(&self) -> usize {
        self.kv_lora_rank.div_ceil(BLOCK)
    }

    /// Records `[n, bytes]` of the latents `c` `[n, kv_lora_rank]` and keys `k_pe` `[n, rope_dim]`.
    ///
    /// `s = 2^ceil(log2(max(amax/448, 1e-4)))`, `code = e4m3(c / s)`; the power is exact, taken
    /// from the exponent's bits. Columns or rows that an argument lacks are stored as NaN; columns
    /// it has too many are left out.
    pub fn quantise_kv(&self, c: ArrayView2<f32>, k_pe: ArrayView2<f32>) -> Array2<u8> {
        let n = c.nrows();
        let scale_at = self.kv_lora_rank;
        let rope_at = scale_at + 4 * self.blocks();
        let mut records = Array2::zeros((n, self.bytes())); // [n, bytes]
        for token in 0..n {
            for b in 0..self.blocks() {
                let columns = b * BLOCK..((b + 1) * BLOCK).min(self.kv_lora_rank);
                let present = columns.start.min(c.ncols())..columns.end.min(c.ncols());
                let s = pow2_ceil((amax(c, token, present) / E4M3_MAX).max(MIN_SCALE));
                for col in columns {
                    let x = c.get((token, col)).copied().unwrap_or(f32::NAN);
                    records[(token, col)] = encode_scaled(x, s);
                }
                for (i, byte) in s.to_le_bytes().into_iter().enumerate() {
                    records[(token, scale_at + 4 * b + i)] = byte;
                }
            }
            for col in 0..self.rope_dim {
                let x = k_pe.get((token, col)).copied().unwrap_or(f32::NAN);
                let [low, high] = half::bf16::from_f32(x).to_le_bytes();
                records[(token, rope_at + 2 * col)] = low;
                records[(token, rope_at + 2 * col + 1)] = high;
            }
        }
        records
    }

    /// `[n, kv_lora_rank + rope_dim]`: `code · scale`, then the rotary key as it is stored.
    ///
    /// The product is f32, whatever the scale (a scale that is no power of two loses nothing).
    /// Bytes that a record lacks make the value they belong to NaN.
    pub fn dequantise_kv(&self, records: ArrayView2<u8>) -> Array2<f32> {
        let scale_at = self.kv_lora_rank;
        let rope_at = scale_at + 4 * self.blocks();
        let byte = |token, at| records.get((token, at)).copied();
        let scale = |token, b| {
            let at = scale_at + 4 * b;
            let bytes = [
                byte(token, at)?,
                byte(token, at + 1)?,
                byte(token, at + 2)?,
                byte(token, at + 3)?,
            ];
            Some(f32::from_le_bytes(bytes))
        };
        let latent = |token, col| Some(e4m3_decode(byte(token, col)?) * scale(token, col / BLOCK)?);
        let rope = |token, col| {
            let at = rope_at + 2 * col;
            let bytes = [byte(token, at)?, byte(token, at + 1)?];
            Some(half::bf16::from_le_bytes(bytes).to_f32())
        };
        let shape = (records.nrows(), self.kv_lora_rank + self.rope_dim);
        Array2::from_shape_fn(shape, |(token, col)| {
            let value = match col.checked_sub(self.kv_lora_rank) {
                None => latent(token, col),
                Some(col) => rope(token, col),
            };
            value.unwrap_or(f32::NAN)
        })
    }
}
