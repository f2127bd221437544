//! Numbers of one type from another, and from bytes.

use super::machine::{LANES, Lanes, Machine};
use super::nvptx::widen_codes;
use cubecl::prelude::*;
use cubecl_common::e4m3;
use half::{bf16, f16};

/// `x` rounded to the nearest `O`, ties to even.
///
/// On the CPU a bf16 is rounded in integers: LLVM would call a function of its run-time library
/// (`__truncsfbf2`) wherever the processor has no instruction for it, and the kernel's linker finds none.
#[cube]
pub fn round_to<O: Numeric>(x: f32, #[comptime] machine: Machine) -> O {
    let elem = elem_type_of::<O>();
    if comptime![elem == bf16::elem_type_native() && machine.team == 1] {
        O::reinterpret(u16::cast_from(bf16_bits(x)))
    } else {
        O::cast_from(x)
    }
}

/// [`round_to`] of eight numbers, as f32 again: what is left of them in a buffer of `O`.
#[cube]
pub fn rounded_through<O: Numeric>(
    x: Vector<f32, Lanes>,
    #[comptime] machine: Machine,
) -> Vector<f32, Lanes> {
    let elem = elem_type_of::<O>();
    if comptime![elem == bf16::elem_type_native() && machine.team == 1] {
        let mut out = x;
        #[unroll]
        for i in 0..LANES {
            out.insert(i, f32::reinterpret(bf16_bits(x.extract(i)) << 16));
        }
        out
    } else {
        Vector::cast_from(Vector::<O, Lanes>::cast_from(x))
    }
}

/// The bits of the bf16 nearest to `x`, ties to even, in the lower half; those of a NaN if it is one.
#[cube]
pub fn bf16_bits(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + 0x7fffu32 + ((bits >> 16) & 1u32)) >> 16;
    // Rounding could carry a NaN's payload into the sign: a NaN is cut and kept quiet.
    select((bits & 0x7fff_ffffu32) > 0x7f80_0000u32, (bits >> 16) | 0x40u32, rounded)
}

/// What eight e4m3 codes stand for.
#[cube]
pub fn codes_to_f32(
    codes: Vector<e4m3, Lanes>,
    #[comptime] machine: Machine,
) -> Vector<f32, Lanes> {
    if comptime![machine.can().converts_codes] {
        let mut out = Vector::<f32, Lanes>::new(0.0f32);
        let words = Vector::<u32, Const<2>>::reinterpret(codes);
        #[unroll]
        for pair in 0..4usize {
            let word = words.extract(comptime![pair / 2]) >> comptime![pair as u32 % 2 * 16];
            let two = Vector::<f16, Const<2>>::reinterpret(widen_codes(word));
            out.insert(2 * pair, f32::cast_from(two.extract(0usize)));
            out.insert(2 * pair + 1, f32::cast_from(two.extract(1usize)));
        }
        out
    } else {
        Vector::cast_from(codes)
    }
}

/// The little-endian f32 at byte `at`; with vectors of 4 or 8 bytes, `at` is a multiple of 4.
#[cube]
pub fn read_f32<B: Size>(bytes: &[Vector<u8, B>], at: usize) -> f32 {
    let width = B::value();
    if comptime![width == 4] {
        f32::reinterpret(bytes[at / 4])
    } else if comptime![width == 8] {
        let two = Vector::<f32, Const<2>>::reinterpret(bytes[at / 8]);
        select(at & 4 == 0, two.extract(0usize), two.extract(1usize))
    } else {
        let mut bits = 0u32.runtime();
        #[unroll]
        for i in 0..4usize {
            bits |= u32::cast_from(bytes[at + i].extract(0usize)) << comptime![8 * i as u32];
        }
        f32::reinterpret(bits)
    }
}

/// Writes a little-endian f32 at byte `at`.
#[cube]
pub fn write_f32(bytes: &mut [u8], at: usize, value: f32) {
    let bits = u32::reinterpret(value);
    #[unroll]
    for i in 0..4usize {
        bytes[at + i] = u8::cast_from((bits >> comptime![8 * i as u32]) & 0xffu32);
    }
}
