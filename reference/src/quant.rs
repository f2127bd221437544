//! Eight-bit floats with block scales: what DSA stores keys, latents and weights in.
//!
//! e4m3 (OCP "E4M3FN") is 1 sign, 4 exponent (bias 7), 3 mantissa bits. The largest number is 448;
//! there is no infinity; NaN is 0x7f and 0xff. A block of values shares one f32 scale:
//! `value = code · scale`.
//!
//! Source: `act_quant` of the DeepSeek-V3.2-Exp inference demo, simulated bit for bit, so that a kernel's
//! error is never mixed up with the error of quantising. What the caches hold is in
//! [`cache_write`](crate::cache_write).
use crate::error::{Result, check_value};
use ndarray::{Array2, ArrayView2, Axis, Slice};

/// The largest e4m3 number.
pub const E4M3_MAX: f32 = 448.0;

/// How a block's scale is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleFmt {
    /// `amax / 448` as it is.
    Plain,
    /// The next power of two at or above `amax / 448` ("unsigned, 8 exponent bits, no mantissa").
    /// It is still stored as f32.
    Ue8m0,
}

impl ScaleFmt {
    /// All of them by their words in cases and on command lines; the first is taken if none is named.
    pub const ALL: &'static [(&'static str, Self)] =
        &[("ue8m0", Self::Ue8m0), ("plain", Self::Plain)];
}

/// e4m3 code of `x`: round to nearest, ties to even. Beyond 448, infinities included, it saturates
/// to ±448. NaN becomes 0x7f or 0xff, after its sign bit.
pub fn e4m3_encode(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 31) as u8) << 7;
    if x.is_nan() {
        return sign | 0x7f;
    }
    let exponent = ((x.to_bits() >> 23) & 0xff) as i32 - 127;
    let exponent = exponent.max(-6); // below 2^-6 numbers are subnormal: the spacing stays 2^-9
    if exponent > 8 {
        return sign | 0x7e; // 512 and above
    }
    let spacing = pow2(exponent - 3); // 8 steps from one power of two to the next
    let steps = (x.abs() / spacing).round_ties_even() as i32; // 8..=16; subnormal 0..=8
    let code = (exponent + 7) * 8 + steps - 8; // 16 steps carry into the exponent by themselves
    sign | code.min(0x7e) as u8
}

/// The number an e4m3 code stands for.
pub fn e4m3_decode(code: u8) -> f32 {
    let exponent = i32::from(code >> 3 & 0xf);
    let mantissa = f32::from(code & 7);
    let magnitude = match (code & 0x7f, exponent) {
        (0x7f, _) => f32::NAN,
        (_, 0) => mantissa * pow2(-9),
        _ => (8.0 + mantissa) * pow2(exponent - 7 - 3),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// `x` rounded to the nearest bf16, ties to even.
pub fn bf16_round(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Rows of e4m3 codes with one scale per `block` columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// e4m3 codes `[rows, cols]`.
    pub codes: Array2<u8>,
    /// Scales `[rows, ceil(cols / block)]`.
    pub scale: Array2<f32>,
    /// Columns that share a scale; the last block of a row may be shorter.
    pub block: usize,
}

impl Quantised {
    /// `code · scale` `[rows, cols]`. A code without a scale gives NaN.
    pub fn dequantise(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let block = col.checked_div(self.block).unwrap_or(usize::MAX);
            let scale = self.scale.get((row, block)).copied().unwrap_or(f32::NAN);
            e4m3_decode(self.codes[(row, col)]) * scale
        })
    }
}

/// Quantises each run of `block` columns of `x` `[rows, cols]` with a scale of its own.
///
/// In this order, all in f32 (the constant is 1/448 rounded to f32, and multiplied):
/// ```text
/// amax = max(max |x_i|, 1e-4)
/// s    = amax · (1/448)                          then up to a power of two if ue8m0
/// q_i  = e4m3( clamp(x_i / s, -448, 448) )
/// ```
/// A NaN does not count in amax; it is encoded as NaN and its neighbours are unharmed. An infinity
/// makes the scale infinite, so that its whole block is NaN when read back.
///
/// # Errors
/// [`Error::Value`](crate::Error::Value) if `block` is 0.
pub fn act_quant(x: ArrayView2<f32>, block: usize, fmt: ScaleFmt) -> Result<Quantised> {
    check_value("block", block, "at least 1 column", block > 0)?;
    let (rows, cols) = x.dim();
    let mut codes = Array2::zeros((rows, cols)); // [rows, cols]
    let mut scale = Array2::zeros((rows, cols.div_ceil(block))); // [rows, ceil(cols / block)]
    for row in 0..rows {
        for b in 0..scale.ncols() {
            let columns = b * block..(b + 1).saturating_mul(block).min(cols);
            let amax = amax(x, row, columns.clone()).max(1e-4);
            let s = amax * (1.0 / E4M3_MAX);
            let s = if fmt == ScaleFmt::Ue8m0 { pow2_ceil(s) } else { s };
            for col in columns {
                codes[(row, col)] = encode_scaled(x[(row, col)], s);
            }
            scale[(row, b)] = s;
        }
    }
    Ok(Quantised { codes, scale, block })
}

/// Largest `|x|` of one block; NaN does not count.
pub(crate) fn amax(x: ArrayView2<f32>, row: usize, columns: std::ops::Range<usize>) -> f32 {
    let x = x.index_axis_move(Axis(0), row);
    let x = x.slice_axis(Axis(0), Slice::from(columns)); // [block]
    x.iter().fold(0.0, |amax, x| x.abs().max(amax)) // f32::max passes over NaN
}

/// e4m3 of `x / s`. A NaN is 0x7f, whatever its sign: machines differ in it.
pub(crate) fn encode_scaled(x: f32, s: f32) -> u8 {
    let scaled = (x / s).clamp(-E4M3_MAX, E4M3_MAX);
    if scaled.is_nan() { 0x7f } else { e4m3_encode(scaled) }
}

/// 2^e for a normal e.
fn pow2(e: i32) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

/// The smallest power of two that is at least `x` (positive, normal): the exponent field, one more
/// if any mantissa bit is set.
pub(crate) fn pow2_ceil(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    f32::from_bits(exponent << 23)
}
