//! The rotary table: cos and sin of every position, one for the whole model.

use crate::config::{Config, Yarn};
use dsa_kernels::{DType, Device, Result, Tensor};
use std::f64::consts::PI;

/// cos and sin of the angles by which the pairs of a head turn.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// `[positions, rope/2]` f32.
    pub cos: Tensor,
    /// `[positions, rope/2]` f32.
    pub sin: Tensor,
}

impl Rotary {
    /// The table of the positions `0 .. positions`.
    ///
    /// The angle `position · frequency` is formed in f32, as the official model does: near 1e5 that rounds it by
    /// up to 0.004 rad, and the trained weights have seen those rounded angles. Only cos and sin of it are exact.
    ///
    /// # Errors
    /// If the device refuses the upload.
    pub fn new(device: &Device, config: &Config, positions: usize) -> Result<Self> {
        let frequencies = frequencies(config);
        let factor = config.rope_scaling.map_or(1.0, |yarn| {
            temperature(&yarn, yarn.mscale) / temperature(&yarn, yarn.mscale_all_dim)
        });
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions)
                .flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)))
                .map(|angle| of(angle) as f32 * factor as f32)
                .collect();
            device.upload_f32(&values, &[positions, frequencies.len()], DType::F32)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

/// The rope/2 angles from one position to the next, in f32.
///
/// `1 / θ^(2i/rope)`; with YaRN divided by `factor` where a pair makes fewer than `beta_slow` turns in
/// the original context, kept where it makes more than `beta_fast`, with a linear ramp between. Each step is an
/// f32 and in the order of the source, since the last bit depends on it: `precompute_freqs_cis` of the official
/// inference demo.
fn frequencies(config: &Config) -> Vec<f32> {
    let (dim, base) = (config.qk_rope_head_dim, config.rope_theta);
    let plain = (0..dim / 2).map(|i| 1.0 / base.powf(2.0 * i as f64 / dim as f64) as f32);
    let Some(yarn) = config.rope_scaling else {
        return plain.collect();
    };
    // The pair that makes `turns` turns within the original context.
    let pair = |turns: f64| {
        let length = yarn.original_max_position_embeddings as f64;
        dim as f64 * (length / (turns * 2.0 * PI)).ln() / (2.0 * base.ln())
    };
    let first = pair(yarn.beta_fast).floor().max(0.0);
    let mut last = pair(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
    if first == last {
        last += 0.001;
    }
    plain
        .enumerate()
        .map(|(i, f)| {
            let kept = 1.0 - ((i as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
            f / yarn.factor as f32 * (1.0 - kept) + f * kept
        })
        .collect()
}

/// YaRN's `0.1 · mscale · ln(factor) + 1`; 1 where the context is not extended.
pub(crate) fn temperature(yarn: &Yarn, mscale: f64) -> f64 {
    if yarn.factor <= 1.0 { 1.0 } else { 0.1 * mscale * yarn.factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the official demo for DeepSeek-V3.2-Exp, by its own arithmetic.
    #[test]
    fn the_first_pair_is_kept_and_the_last_is_slowed_by_the_whole_factor() {
        let config = Config::v32();
        let all = frequencies(&config);
        assert_eq!(all.len(), 32);
        assert_eq!(all[0], 1.0);
        let plain = 10_000f64.powf(-62.0 / 64.0);
        assert!((f64::from(all[31]) * 40.0 / plain - 1.0).abs() < 1e-6);
        let unscaled = frequencies(&Config { rope_scaling: None, ..config });
        assert!((f64::from(unscaled[31]) / plain - 1.0).abs() < 1e-6);
    }
}
