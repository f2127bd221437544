//! The gate: which experts a token goes to, and with which weights.
//!
//! ```text
//! g       = sigmoid(logits)                      [n, E], f32
//! b       = g + bias                             only the choice sees the bias
//! groups  = consecutive experts, n_group of them; a group's score is the sum of its two best b
//! b       = −inf outside the topk_group best groups (with one group: nowhere)
//! indices = the best b, best first               [n, num_experts_per_tok]
//! weights = g[indices] / Σ g[indices] · scale    [n, num_experts_per_tok]
//! ```
//! −inf and not 0: a biased score may be negative, and 0 would then be better than it. The lower index wins a tie, of
//! groups too; NaN is worse than −inf. The denominator has transformers' 1e-20, so that gates that are all 0 give 0.
//!
//! Source: `Gate` of the DeepSeek-V3.2-Exp inference demo; `noaux_tc` of the published configurations.
//!
//! g is the f32 nearest to the sigmoid, whatever a device's own exp makes of it: two scores that differ in their last
//! bit choose different experts, and a tie should be one for everybody. So it is computed in f64, as the weights are.
//!
//! Method: the place of an expert among the others is the number of those that are better.
//!
//! Cost: `E² + E · n_group` comparisons and about 50 f64 FLOP an expert for each token; reads the logits once.
//!
//! Budget (sm_90a): at most 48 registers a unit, 9 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 9 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::{Contract, Given};
use crate::device::Device;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::prelude::*;

/// Experts that a gate tells apart.
const MOST_EXPERTS: usize = 512;

/// Sizes of the gate; the values in brackets are DeepSeek-V3.2's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    /// Experts a token goes to (8).
    pub num_experts_per_tok: usize,
    /// Groups of experts (8); 1 is none.
    pub n_group: usize,
    /// Groups a token may choose from (4).
    pub topk_group: usize,
    /// The weights are divided by their sum (true).
    pub norm_topk_prob: bool,
    /// What the weights are multiplied with at last (2.5).
    pub routed_scaling_factor: f32,
}

/// The gate's choice for each token, best expert first.
#[derive(Clone, Debug)]
pub struct Routing {
    /// `[n, num_experts_per_tok]` i32.
    pub indices: Tensor,
    /// `[n, num_experts_per_tok]` f32.
    pub weights: Tensor,
}

/// log2(e), and ln 2 in two parts, of which the first times a whole number below 2^20 is exact.
const LOG2_E: f64 = std::f64::consts::LOG2_E;
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Terms of the exponential's series within ln 2 / 2 of 0: the next is below 1e-17.
const TERMS: usize = 14;

/// `1 / (1 + e^−x)`, to the last bit of f32.
#[cube]
fn sigmoid(x: f32) -> f32 {
    // e^-|x|, which cannot overflow. Beyond 120 it is nothing to f32.
    let at = f64::cast_from(min(x.abs(), 120.0f32)) * -1.0f64;
    let twos = (at * LOG2_E).round();
    let left = at - twos * LN_2_HIGH - twos * LN_2_LOW;
    let mut series = 1.0f64.runtime();
    #[unroll]
    for i in 0..TERMS {
        let term = comptime![1.0 / (TERMS - i) as f64];
        series = 1.0f64 + series * left * term;
    }
    let power = f64::reinterpret(u64::cast_from(i64::cast_from(twos) + 1023i64) << 52u64);
    let exp = series * power;
    let g = select(x < 0.0f32, exp, 1.0f64) / (1.0f64 + exp);
    select(x.is_nan(), f32::NAN, f32::cast_from(g))
}

/// An unsigned integer that orders as scores do: −0 as +0, and NaN below −inf.
#[cube]
fn key_of(score: f32) -> u32 {
    // Adding +0 makes a -0 positive and changes no other number.
    let bits = u32::reinterpret(score + 0.0f32);
    let key = select((bits >> 31) == 1u32, !bits, bits | 0x8000_0000u32);
    select(score.is_nan(), 0u32, key)
}

/// Scores that the team ranks.
#[derive(CubeType)]
struct Ranking {
    keys: Shared<[u32]>,
}

#[cube]
impl Ranking {
    /// Room for `most` scores.
    fn new(#[comptime] most: usize, #[comptime] machine: Machine) -> Self {
        Ranking { keys: team_memory::<u32>(most, 4usize, machine) }
    }

    /// Puts a score in place `i`.
    fn put(&mut self, i: usize, score: f32) {
        self.keys[i] = key_of(score);
    }

    /// How many of the first `count` are better than the one in place `own`: of equal ones the lower place is.
    fn better(&self, own: usize, count: usize) -> usize {
        let key = self.keys[own];
        let mut better = 0u32.runtime();
        for other in 0..count {
            let is = self.keys[other] > key || (self.keys[other] == key && other < own);
            better += select(is, 1u32, 0u32);
        }
        better as usize
    }
}

/// The sum of the two best of the scores `first .. end`; NaN if no two are numbers.
#[cube]
fn two_best(scores: &Shared<[f32]>, first: usize, end: usize) -> f32 {
    let mut best = f32::NAN.runtime();
    let mut second = f32::NAN.runtime();
    for i in first..end {
        let score = scores[i];
        if key_of(score) > key_of(best) {
            second = best;
            best = score;
        } else if key_of(score) > key_of(second) {
            second = score;
        }
    }
    best + second
}

/// One program chooses the experts of one token.
#[cube(launch_unchecked, address_type = "dynamic")]
fn router_kernel(
    logits: &View<f32>,      // [n, E]
    bias: &[f32],            // [E]
    indices: &mut View<i32>, // [n, top_k]
    weights: &mut [f32],     // [n, top_k]
    n_group: usize,
    topk_group: usize,
    scale: f32,
    #[comptime] normalised: bool,
    #[comptime] machine: Machine,
) {
    let token = program_id(machine);
    if token >= logits.shape(0) {
        terminate!();
    }
    let team = comptime![machine.team];
    let unit = unit_id(machine);
    let (experts, top_k) = (logits.shape(1), indices.shape(1));
    let (from, to) = (token * logits.stride(0), token * indices.stride(0));

    let mut gates = team_memory::<f32>(MOST_EXPERTS, 4usize, machine);
    let mut biased = team_memory::<f32>(MOST_EXPERTS, 4usize, machine);
    for step in 0..experts.div_ceil(team) {
        let expert = step * team + unit;
        if expert < experts {
            let g = sigmoid(logits.data[from + expert]);
            gates[expert] = g;
            biased[expert] = g + bias[expert];
        }
    }
    sync_team(machine);

    let (group_size, _) = divided(experts, n_group);
    let mut groups = Ranking::new(comptime![MOST_EXPERTS / 2], machine);
    if n_group > 1 {
        for step in 0..n_group.div_ceil(team) {
            let group = step * team + unit;
            if group < n_group {
                groups.put(group, two_best(&biased, group * group_size, (group + 1) * group_size));
            }
        }
        sync_team(machine);
    }

    let mut scores = Ranking::new(MOST_EXPERTS, machine);
    for step in 0..experts.div_ceil(team) {
        let expert = step * team + unit;
        if expert < experts {
            let mut score = biased[expert];
            if n_group > 1 {
                let (group, _) = divided(expert, group_size);
                let open = groups.better(group, n_group) < topk_group;
                score = select(open, score, f32::NEG_INFINITY);
            }
            scores.put(expert, score);
        }
    }
    sync_team(machine);

    let mut chosen = team_memory::<f32>(MOST_EXPERTS, 4usize, machine);
    for step in 0..experts.div_ceil(team) {
        let expert = step * team + unit;
        if expert < experts {
            let place = scores.better(expert, experts);
            if place < top_k {
                indices.data[to + place] = expert as i32;
                chosen[place] = gates[expert];
            }
        }
    }
    sync_team(machine);

    let mut divisor = 1.0f64.runtime();
    if comptime![normalised] {
        divisor = 1.0e-20f64;
        let mut sum = 0.0f64.runtime();
        for place in 0..top_k {
            sum += f64::cast_from(chosen[place]);
        }
        divisor += sum;
    }
    for step in 0..top_k.div_ceil(team) {
        let place = step * team + unit;
        if place < top_k {
            let weight = f64::cast_from(chosen[place]) / divisor * f64::cast_from(scale);
            weights[to + place] = f32::cast_from(weight);
        }
    }
}

/// How this kernel runs on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(256)
}

/// What [`router`] takes and returns.
pub const ROUTER: Contract = Contract {
    name: "router",
    tensors: &["logits: [n, E] f32, rows", "bias: [E] f32"],
    scalars: &[
        "n_group: integer 1 to E / 2, a divisor of E",
        "topk_group: integer 1 to n_group",
        "num_experts_per_tok: integer 1 to topk_group * E / n_group",
        "norm_topk_prob: true|false (true)",
        "routed_scaling_factor: number",
    ],
    sizes: &["E: 2 to 512"],
    outputs: &["indices: [n, num_experts_per_tok] i32", "weights: [n, num_experts_per_tok] f32"],
};

/// The experts of each token ([`ROUTER`]).
///
/// - `logits`: `[n, E]` f32, the gate's product;
/// - `bias`: `[E]` f32, `e_score_correction_bias`;
/// - returns indices `[n, num_experts_per_tok]` i32, best first, and weights of the same shape, f32. NaN is chosen
///   only where nothing else is left, and the weights are then NaN.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the outputs.
pub fn router(logits: &Tensor, bias: &Tensor, config: &RouterConfig) -> Result<Routing> {
    let device = logits.device();
    let normalised = config.norm_topk_prob;
    let scalars = [
        config.n_group.into(),
        config.topk_group.into(),
        config.num_experts_per_tok.into(),
        Given::Word(if normalised { "true" } else { "false" }),
        config.routed_scaling_factor.into(),
    ];
    let bound = ROUTER.check([logits, bias].map(Some), &scalars)?;
    let (indices, weights) = (bound.output("indices")?, bound.output("weights")?);
    let [n] = bound.sizes(["n"])?;
    if n == 0 {
        return Ok(Routing { indices, weights });
    }
    let machine = machine(device);
    // SAFETY: logits are read below n and E, E is at most `MOST_EXPERTS` and the length of bias; the places below
    // top_k of each of n rows are written.
    unsafe {
        router_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n)?,
            machine.cube_dim(),
            device.addresses([logits, &indices]),
            logits.view(1),
            bias.arg(1),
            indices.view(1),
            weights.arg(1),
            config.n_group,
            config.topk_group,
            config.routed_scaling_factor,
            normalised,
            machine,
        );
    }
    Ok(Routing { indices, weights })
}
