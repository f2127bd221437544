//! Made-up weights: each element is a function of a key and of its own number, so that any part of a tensor can be made
//! anywhere, on any machine, and is the same.
//!
//! ```text
//! h      = mix(mix(i + key's lower half) ^ key's upper half)          i: the element's number, 32 bits
//! t      = lower half of h + upper half of h − 65535                  −65535 to 65535, deviation 65536 / √6
//! out[i] = step · (offset + t)                                        one product, rounded once more to out's type
//! ```
//! `mix` is lowbias32 of C. Wellons' hash-prospector. All of it is arithmetic of integers but for the product, whose
//! factors are exact: `offset + t` is below 2^24.
//!
//! Cost: about 20 integer operations an element; every element is written once.
//!
//! Budget (sm_90a): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 16 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Elements of a program.
const CHUNK: usize = 4096;

/// The deviation of `t`: `65536 / √6`.
pub const DEVIATION: f64 = 65_536.0 / 2.449_489_742_783_178;

/// What tells one tensor's elements from another's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomWeights {
    /// Of the seed and the tensor's name.
    pub key: u64,
    /// The number of the first element.
    pub first: u32,
    /// What stands in the middle, in steps: 0 to 2^22.
    pub offset: u32,
    /// The size of a step.
    pub step: f32,
}

/// A hash of `x` in which every bit depends on every bit.
#[cube]
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)) * 0x7feb_352du32;
    let x = (x ^ (x >> 15)) * 0x846c_a68bu32;
    x ^ (x >> 16)
}

/// `t` of element `i`.
#[cube]
fn random_integer(i: u32, low: u32, high: u32) -> i32 {
    let h = mix(mix(i + low) ^ high);
    i32::cast_from(h & 0xffffu32) + i32::cast_from(h >> 16) - 65_535
}

/// One program makes [`CHUNK`] elements.
#[cube(launch_unchecked, address_type = "dynamic")]
fn random_weights_kernel<E: Numeric>(
    out: &mut View<E>, // [n]
    low: u32,
    high: u32,
    first: u32,
    offset: u32,
    step_size: f32,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let begin = program_id(machine) * CHUNK;
    for step in 0..comptime![CHUNK.div_ceil(machine.team)] {
        let at = begin + step * comptime![machine.team] + unit_id(machine);
        if at < out.shape(0) {
            let t = random_integer(first + at as u32, low, high);
            let value = f32::cast_from(i32::cast_from(offset) + t) * step_size;
            out.data[at] = round_to::<E>(value, machine);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`random_weights`] takes and changes.
pub const RANDOM_WEIGHTS: Contract = Contract {
    name: "random_weights",
    tensors: &["out: [n] f32|bf16|f16|e4m3"],
    scalars: &[
        "key: integer 0 to 18446744073709551615",
        "first: integer 0 to 4294967295",
        "offset: integer 0 to 4194304",
        "step: number above 0",
    ],
    sizes: &["first + n: 0 to 4294967296"],
    outputs: &["out: [n] as out"],
};

/// Fills a tensor with made-up weights ([`RANDOM_WEIGHTS`]).
///
/// - `out`: `[n]` f32, bf16, f16 or e4m3; what is beyond the largest number of its type is up to the device.
///
/// # Errors
/// What is not as the contract says.
pub fn random_weights(out: &Tensor, of: RandomWeights) -> Result<()> {
    let device = out.device();
    let RandomWeights { key, first, offset, step } = of;
    let scalars =
        [(key as usize).into(), (first as usize).into(), (offset as usize).into(), step.into()];
    let [n] = RANDOM_WEIGHTS.check([Some(out)], &scalars)?.sizes(["n"])?;
    if n == 0 {
        return Ok(());
    }
    let machine = machine(device);
    // SAFETY: the kernel compares every element's number with the length of out.
    unsafe {
        random_weights_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n.div_ceil(CHUNK))?,
            machine.cube_dim(),
            device.addresses([out]),
            out.view(1),
            key as u32,
            (key >> 32) as u32,
            first,
            offset,
            step,
            machine,
            out.dtype().elem(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn made(n: usize, dtype: DType, of: RandomWeights) -> Vec<f32> {
        let out = Device::named("cpu").unwrap().empty(&[n], dtype).unwrap();
        random_weights(&out, of).unwrap();
        out.download_f32().unwrap()
    }

    #[test]
    fn a_part_is_the_part_of_the_whole_and_another_key_is_other_numbers() {
        let of = RandomWeights { key: 0x1234_5678_9abc_def0, first: 0, offset: 0, step: 0.5 };
        let whole = made(10_000, DType::F32, of);
        let part = made(77, DType::F32, RandomWeights { first: 5_000, ..of });
        assert_eq!(part, whole[5_000..5_077]);
        for key in [of.key + 1, of.key + (1 << 32)] {
            let other = made(10_000, DType::F32, RandomWeights { key, ..of });
            let same = other.iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} numbers of another key are the same");
        }
    }

    #[test]
    fn they_have_the_mean_and_the_deviation_that_are_said_and_neighbours_know_nothing_of_each_other()
     {
        let n = 1 << 16;
        let of = RandomWeights { key: 7, first: 0, offset: 3 << 16, step: 1.0 };
        let values: Vec<f64> = made(n, DType::F32, of).iter().map(|v| f64::from(*v)).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = |shift: usize| {
            let pairs = values.iter().zip(values.iter().cycle().skip(shift));
            pairs.map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / n as f64
        };
        let deviation = square(0).sqrt();
        assert!((mean - f64::from(3 << 16)).abs() < 0.02 * DEVIATION, "{mean}");
        assert!((deviation / DEVIATION - 1.0).abs() < 0.02, "{deviation}");
        for shift in [1, 2, 128, 4096] {
            assert!(square(shift).abs() < 0.02 * DEVIATION * DEVIATION, "{shift}");
        }
    }
}
