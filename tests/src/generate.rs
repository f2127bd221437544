//! Inputs chosen to break kernels: shapes that fit no tile, ties, plateaus, signed zeros, infinities, NaN,
//! empty and reversed ranges, bad indices, poison in every place that must not be read.

use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_reference::quant::{KvRecord, ScaleFmt, act_quant, index_cache_pages};
use ndarray::Array2;
use proptest::prelude::*;

/// A small deterministic generator (splitmix64), so that a case is a function of its numbers and seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Normal with mean 0 and deviation 1 (sum of twelve uniforms).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// What values a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Normal, deviation 1.
    Normal,
    /// Normal over ten, as FlashMLA's tests.
    Tenth,
    /// Whole numbers from -2 to 2: many exact ties.
    Ties,
    /// Mostly zeros of either sign.
    Zeros,
    /// Normal, with single elements a thousand times larger.
    Outliers,
    /// From 1e-6 to 1e6 in magnitude.
    Wide,
    /// Normal with NaN, infinities and signed zeros strewn in.
    Special,
}

impl Fill {
    fn value(self, rng: &mut Rng) -> f32 {
        match self {
            Self::Normal => rng.normal(),
            Self::Tenth => rng.normal() / 10.0,
            Self::Ties => rng.below(5) as f32 - 2.0,
            Self::Zeros if rng.one_in(8) => rng.normal(),
            Self::Zeros => [0.0, -0.0][rng.below(2)],
            Self::Outliers => rng.normal() * if rng.one_in(40) { 1000.0 } else { 1.0 },
            Self::Wide => rng.normal() * 10f32.powi(rng.below(13) as i32 - 6),
            Self::Special => match rng.below(12) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3 => -0.0,
                4 => 0.0,
                _ => rng.normal(),
            },
        }
    }
}

/// A tensor of `fill`.
pub fn tensor(rng: &mut Rng, dtype: DType, shape: &[usize], fill: Fill) -> HostTensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| fill.value(rng)).collect();
    HostTensor::new(dtype, shape, &values)
}

const FINITE: [Fill; 5] = [Fill::Normal, Fill::Tenth, Fill::Ties, Fill::Zeros, Fill::Outliers];

fn fill(of: &'static [Fill]) -> impl Strategy<Value = Fill> {
    proptest::sample::select(of)
}

fn float() -> impl Strategy<Value = DType> {
    proptest::sample::select(&DType::FLOATS[..])
}

/// Half-open ranges within and beyond `0..n`: whole, causal, random, empty, reversed, out of bounds.
fn ranges(rng: &mut Rng, rows: usize, n: usize) -> (HostTensor, HostTensor) {
    let kind = rng.below(4);
    let (mut ks, mut ke) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let (start, end) = match kind {
            0 => (0, n as i64),
            1 => (0, (n + row + 1) as i64 - rows as i64),
            2 => (rng.below(n + 1) as i64, rng.below(n + 1) as i64),
            _ => {
                (rng.below(2 * n + 2) as i64 - 1 - (n / 2) as i64, rng.below(3 * n + 2) as i64 - 1)
            }
        };
        let extreme = rng.below(40);
        ks.push(if extreme == 0 { i32::MIN } else { start as i32 });
        ke.push(if extreme == 1 { i32::MAX } else { end as i32 });
    }
    (HostTensor::i32(&[rows], &ks), HostTensor::i32(&[rows], &ke))
}

/// Indices that FlashMLA's tests use for "no key", beside -1.
const BAD_INDICES: [i32; 8] =
    [-1, i32::MIN, -123_456, i32::MAX, 114_514, 1_919_810, 2_147_480_000, -2];

/// Index lists over `n_rows`: distinct rows in random order, with bad indices strewn in; some rows of the
/// list entirely bad.
fn index_lists(rng: &mut Rng, s: usize, topk: usize, n_rows: usize) -> Vec<i32> {
    let mut all = Vec::with_capacity(s * topk);
    for _ in 0..s {
        let empty = rng.one_in(8);
        let bad_one_in = [2, 5, 1_000_000][rng.below(3)];
        let mut order: Vec<usize> = (0..n_rows).collect();
        for i in (1..n_rows).rev() {
            order.swap(i, rng.below(i + 1));
        }
        for j in 0..topk {
            let row = order.get(j).filter(|_| !empty && !rng.one_in(bad_one_in));
            let mut index = BAD_INDICES[rng.below(BAD_INDICES.len())];
            if index == 114_514 && rng.one_in(2) {
                index = n_rows as i32;
            }
            all.push(row.map_or(index, |row| *row as i32));
        }
    }
    all
}

/// Fills with NaN every row that no list names.
fn poison_unused(tensor: &mut HostTensor, cols: usize, indices: &[i32]) {
    let bytes = cols * tensor.dtype.size();
    for (row, chunk) in tensor.bytes.chunks_mut(bytes.max(1)).enumerate() {
        if !indices.contains(&(row as i32)) {
            chunk.fill(0xff);
        }
    }
}

/// Random cases of `kernel`.
pub fn strategy(kernel: &str) -> BoxedStrategy<Case> {
    match kernel {
        "act_quant" | "round_trip" => act_quant_cases(kernel.to_string()).boxed(),
        "store_kv" => store_kv_cases().boxed(),
        "store_index_keys" => store_index_key_cases().boxed(),
        "hadamard" => hadamard_cases().boxed(),
        "rope" => rope_cases().boxed(),
        "rms_norm" | "layer_norm" => norm_cases(kernel.to_string()).boxed(),
        "gemm" => gemm_cases().boxed(),
        "fold_scales" => fold_scales_cases().boxed(),
        "indexer_logits" => indexer_cases().boxed(),
        "indexer_logits_paged" => indexer_paged_cases().boxed(),
        "top_k" => top_k_cases().boxed(),
        "shift_indices" => shift_cases().boxed(),
        "place_rows" => place_cases().boxed(),
        "sparse_mla" => sparse_cases().boxed(),
        "sparse_mla_paged" => sparse_paged_cases().boxed(),
        "dense_mha" => dense_mha_cases().boxed(),
        "dense_mla" => dense_mla_cases().boxed(),
        // A kernel without cases must not pass for tested.
        other => Just(Case::new(other)).boxed(),
    }
}

fn act_quant_cases(kernel: String) -> impl Strategy<Value = Case> {
    const FILLS: [Fill; 5] = [Fill::Normal, Fill::Ties, Fill::Zeros, Fill::Wide, Fill::Outliers];
    let fmt = proptest::sample::select(&["plain", "ue8m0"][..]);
    (0usize..5, 1usize..300, float(), fill(&FILLS), fmt, any::<bool>(), any::<u64>()).prop_map(
        move |(rows, cols, dtype, fill, fmt, strided, seed)| {
            let mut rng = Rng::new(seed);
            let mut x = tensor(&mut rng, DType::F32, &[rows, cols], fill).to_f32();
            // The scale's own steps: powers of two times 448, and their neighbours.
            for v in x.iter_mut() {
                if rng.one_in(30) {
                    *v = f32::from_bits((448.0 * 2f32.powi(rng.below(9) as i32 - 6)).to_bits() + 1);
                }
                if rng.one_in(200) {
                    *v = f32::NAN;
                }
            }
            Case::new(&kernel)
                .with("x", HostTensor::new(dtype, &[rows, cols], &x))
                .set("fmt", fmt)
                .set("strided", strided)
        },
    )
}

/// Distinct slots of a cache, some of them out of range.
fn slots(rng: &mut Rng, n: usize, n_slots: usize) -> HostTensor {
    let mut order: Vec<i32> = (0..n_slots as i32).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i + 1));
    }
    let values: Vec<i32> = (0..n)
        .map(|i| match order.get(i) {
            Some(slot) if !rng.one_in(10) => *slot,
            _ => [-1, i32::MIN, n_slots as i32, i32::MAX][rng.below(4)],
        })
        .collect();
    HostTensor::i32(&[n], &values)
}

fn store_kv_cases() -> impl Strategy<Value = Case> {
    (
        0usize..9,
        1usize..200,
        0usize..20,
        1usize..4,
        1usize..70,
        float(),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(n, rank, half_rope, pages, page_size, dtype, strided, seed)| {
            let mut rng = Rng::new(seed);
            let rope_dim = 2 * half_rope;
            let record = KvRecord { kv_lora_rank: rank, rope_dim };
            let bytes = pages * page_size * record.bytes();
            let fill = FINITE[rng.below(FINITE.len())];
            Case::new("store_kv")
                .with("c", tensor(&mut rng, dtype, &[n, rank], fill))
                .with("k_pe", tensor(&mut rng, dtype, &[n, rope_dim], Fill::Normal))
                .with("slots", slots(&mut rng, n, pages * page_size))
                .with("cache", HostTensor::u8(&[pages, bytes / pages], vec![0xa5; bytes]))
                .set("page_size", page_size)
                .set("strided", strided && rope_dim > 0)
        })
}

fn store_index_key_cases() -> impl Strategy<Value = Case> {
    (0usize..9, 1usize..129, 1usize..4, 1usize..70, float(), any::<u64>()).prop_map(
        |(n, dim, pages, page_size, dtype, seed)| {
            let mut rng = Rng::new(seed);
            let bytes = pages * page_size * (dim + 4);
            Case::new("store_index_keys")
                .with("k", tensor(&mut rng, dtype, &[n, dim], Fill::Normal))
                .with("slots", slots(&mut rng, n, pages * page_size))
                .with("cache", HostTensor::u8(&[pages, bytes / pages], vec![0x5a; bytes]))
                .set("page_size", page_size)
        },
    )
}

fn hadamard_cases() -> impl Strategy<Value = Case> {
    (0usize..9, 0u32..9, float(), fill(&FINITE), any::<bool>(), any::<u64>()).prop_map(
        |(rows, log, dtype, fill, strided, seed)| {
            let x = tensor(&mut Rng::new(seed), dtype, &[rows, 1 << log], fill);
            Case::new("hadamard").with("x", x).set("strided", strided)
        },
    )
}

fn rope_cases() -> impl Strategy<Value = Case> {
    let pairing = proptest::sample::select(&["interleaved", "half_split"][..]);
    (0usize..5, 1usize..5, 1usize..40, 1usize..9, float(), pairing, any::<bool>(), any::<u64>())
        .prop_map(|(n, heads, half, table, dtype, pairing, strided, seed)| {
            let mut rng = Rng::new(seed);
            let angles: Vec<f32> = (0..table * half).map(|_| rng.normal() * 50.0).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let positions: Vec<i32> = (0..n).map(|_| rng.below(table + 2) as i32 - 1).collect();
            Case::new("rope")
                .with("x", tensor(&mut rng, dtype, &[n, heads, 2 * half], Fill::Normal))
                .with("cos", HostTensor::new(DType::F32, &[table, half], &cos))
                .with("sin", HostTensor::new(DType::F32, &[table, half], &sin))
                .with("positions", HostTensor::i32(&[n], &positions))
                .set("pairing", pairing)
                .set("strided", strided)
        })
}

fn norm_cases(kernel: String) -> impl Strategy<Value = Case> {
    const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Outliers];
    (0usize..5, 1usize..300, float(), fill(&FILLS), any::<bool>(), any::<u64>()).prop_map(
        move |(rows, cols, dtype, fill, strided, seed)| {
            let mut rng = Rng::new(seed);
            let case = Case::new(&kernel)
                .with("x", tensor(&mut rng, dtype, &[rows, cols], fill))
                .with("weight", tensor(&mut rng, DType::F32, &[cols], Fill::Normal))
                .set("eps", 1e-6)
                .set("strided", strided);
            if kernel == "layer_norm" {
                case.with("bias", tensor(&mut rng, DType::F32, &[cols], Fill::Normal))
            } else {
                case
            }
        },
    )
}

fn gemm_cases() -> impl Strategy<Value = Case> {
    const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];
    (
        1usize..4,
        0usize..40,
        1usize..80,
        1usize..200,
        float(),
        fill(&FILLS),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(b, m, n, k, dtype, fill, strided, seed)| {
            let mut rng = Rng::new(seed);
            let scale = 1.0 / (k as f32).sqrt();
            let w: Vec<f32> = (0..b * n * k).map(|_| rng.normal() * scale).collect();
            Case::new("gemm")
                .with("x", tensor(&mut rng, dtype, &[b, m, k], fill))
                .with("w", HostTensor::new(dtype, &[b, n, k], &w))
                .set("strided", strided)
        })
}

fn fold_scales_cases() -> impl Strategy<Value = Case> {
    (0usize..9, 1usize..129, any::<u64>()).prop_map(|(s, heads, seed)| {
        let mut rng = Rng::new(seed);
        Case::new("fold_scales")
            .with("weights", tensor(&mut rng, DType::F32, &[s, heads], Fill::Normal))
            .with("q_scale", tensor(&mut rng, DType::F32, &[s, heads], Fill::Normal))
            .set("factor", 0.011_048_543)
    })
}

fn indexer_cases() -> impl Strategy<Value = Case> {
    const TYPES: [DType; 4] = [DType::E4m3, DType::Bf16, DType::F16, DType::F32];
    const FILLS: [Fill; 4] = [Fill::Normal, Fill::Ties, Fill::Zeros, Fill::Outliers];
    let size = (0usize..7, 0usize..90, 1usize..=128, 1usize..=160);
    (
        size,
        proptest::sample::select(&TYPES[..]),
        fill(&FILLS),
        any::<bool>(),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|((s, s_kv, heads, dim), dtype, fill, sigmoid, strided, seed)| {
            let mut rng = Rng::new(seed);
            let (ks, ke) = ranges(&mut rng, s, s_kv);
            let mut k_scale = tensor(&mut rng, DType::F32, &[s_kv], Fill::Normal).to_f32();
            let mut k = tensor(&mut rng, dtype, &[s_kv, dim], fill);
            // Keys beyond the union of the ranges must not be read, nor may their NaN show.
            let inside = |n: usize| {
                ks.to_i32().iter().zip(ke.to_i32()).any(|(a, b)| *a <= n as i32 && (n as i32) < b)
            };
            for (n, scale) in k_scale.iter_mut().enumerate() {
                if !inside(n) {
                    let bytes = dim * dtype.size();
                    k.bytes[n * bytes..(n + 1) * bytes].fill(0xff);
                    *scale = f32::NAN;
                } else if rng.one_in(60) {
                    *scale = f32::NAN;
                }
            }
            Case::new("indexer_logits")
                .with("q", tensor(&mut rng, dtype, &[s, heads, dim], fill))
                .with("k", k)
                .with("k_scale", HostTensor::new(DType::F32, &[s_kv], &k_scale))
                .with("weights", tensor(&mut rng, DType::F32, &[s, heads], Fill::Normal))
                .with("ks", ks)
                .with("ke", ke)
                .set("score_fn", if sigmoid { "sigmoid" } else { "relu" })
                .set("strided", strided)
        })
}

fn indexer_paged_cases() -> impl Strategy<Value = Case> {
    let size = (0usize..4, 1usize..3, 1usize..=64, 1usize..=130);
    let pages = proptest::sample::select(&[1usize, 2, 5, 53, 61, 64, 69][..]);
    (size, pages, 1usize..4, any::<bool>(), any::<u64>()).prop_map(
        |((b, next_n, heads, dim), page_size, max_pages, strided, seed)| {
            let mut rng = Rng::new(seed);
            let n_pages = b * max_pages + 1;
            let n = n_pages * page_size;
            let keys = tensor(&mut rng, DType::F32, &[n, dim], Fill::Normal).to_f32();
            let keys = Array2::from_shape_vec((n, dim), keys).unwrap_or_default();
            let Ok(q8) = act_quant(keys.view(), dim, ScaleFmt::Ue8m0) else {
                return Case::new("indexer_logits_paged");
            };
            let cache = index_cache_pages(q8.codes.view(), q8.scale.column(0), page_size);
            let mut cache: Vec<u8> = cache.iter().copied().collect();
            // The last page belongs to nobody: poison.
            let page_bytes = page_size * (dim + 4);
            cache[(n_pages - 1) * page_bytes..].fill(0xff);
            let mut order: Vec<i32> = (0..n_pages as i32 - 1).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
            for page in order.iter_mut() {
                if rng.one_in(12) {
                    *page = [-1, i32::MIN, n_pages as i32, i32::MAX][rng.below(4)];
                }
            }
            let longest = max_pages * page_size;
            let max_context = 1 + rng.below(longest);
            let lens: Vec<i32> = (0..b)
                .map(|_| [0, 1, rng.below(longest + 1), longest][rng.below(4)] as i32)
                .collect();
            Case::new("indexer_logits_paged")
                .with("q", tensor(&mut rng, DType::E4m3, &[b, next_n, heads, dim], Fill::Normal))
                .with("cache", HostTensor::u8(&[n_pages, page_bytes], cache))
                .with("weights", tensor(&mut rng, DType::F32, &[b * next_n, heads], Fill::Normal))
                .with("context_lens", HostTensor::i32(&[b], &lens))
                .with("block_table", HostTensor::i32(&[b, max_pages], &order))
                .set("page_size", page_size)
                .set("max_context", max_context)
                .set("strided", strided)
        },
    )
}

fn top_k_cases() -> impl Strategy<Value = Case> {
    const FILLS: [Fill; 6] =
        [Fill::Normal, Fill::Ties, Fill::Zeros, Fill::Wide, Fill::Special, Fill::Tenth];
    let policy = proptest::sample::select(&["fixed", "fixed", "fraction", "window"][..]);
    (1usize..4, 0usize..3000, 1usize..2500, fill(&FILLS), policy, any::<bool>(), any::<u64>())
        .prop_map(|(rows, length, topk, fill, policy, strided, seed)| {
            let mut rng = Rng::new(seed);
            let (ks, ke) = ranges(&mut rng, rows, length);
            let mut logits = tensor(&mut rng, DType::F32, &[rows, length], fill).to_f32();
            match rng.below(4) {
                // One value everywhere: the order of indices alone decides.
                0 => logits.fill(1.5),
                // "10 LSB": the upper 22 bits are the same, only the last ones differ.
                1 => {
                    for v in logits.iter_mut() {
                        *v = f32::from_bits(0x3f80_0000 | rng.below(1024) as u32);
                    }
                }
                _ => {}
            }
            let case = Case::new("top_k")
                .with("logits", HostTensor::new(DType::F32, &[rows, length], &logits))
                .with("ks", ks)
                .with("ke", ke)
                .set("topk", topk)
                .set("policy", policy)
                .set("strided", strided);
            // Short rows are only sifted if they are told to be.
            let case = if rng.one_in(2) { case.set("pieces", rng.below(5)) } else { case };
            match policy {
                "fraction" => case.set("per_mille", rng.below(1001)).set("min", rng.below(100)),
                "window" => case.set("window", rng.below(300)).set("sinks", rng.below(20)),
                _ => case,
            }
        })
}

fn shift_cases() -> impl Strategy<Value = Case> {
    (1usize..9, 1usize..70, any::<u64>()).prop_map(|(n, topk, seed)| {
        let mut rng = Rng::new(seed);
        let indices: Vec<i32> = (0..n * topk)
            .map(|_| if rng.one_in(4) { -1 } else { rng.below(1 << 20) as i32 })
            .collect();
        let first: Vec<i32> = (0..n).map(|_| rng.below(1 << 20) as i32).collect();
        Case::new("shift_indices")
            .with("indices", HostTensor::i32(&[n, topk], &indices))
            .with("first", HostTensor::i32(&[n], &first))
    })
}

fn place_cases() -> impl Strategy<Value = Case> {
    let size = (0usize..9, 1usize..6, 1usize..100, 1usize..20);
    (size, float(), any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |((n, heads, dim, rows), dtype, repeated, strided, seed)| {
            let mut rng = Rng::new(seed);
            let of_x = if repeated { 1 } else { heads };
            Case::new("place_rows")
                .with("x", tensor(&mut rng, dtype, &[n, of_x, dim], Fill::Special))
                .with("slots", slots(&mut rng, n, rows))
                .with("out", tensor(&mut rng, dtype, &[rows, heads, dim], Fill::Normal))
                .set("strided", strided)
        },
    )
}

fn sparse_cases() -> impl Strategy<Value = Case> {
    let size = (0usize..4, 1usize..=40, 1usize..90, 1usize..150, 1usize..100);
    (size, 1usize..=80, float(), fill(&[Fill::Normal, Fill::Tenth, Fill::Ties]), any::<u64>())
        .prop_map(|((s, heads, s_kv, topk, d_qk), d_v, dtype, fill, seed)| {
            let mut rng = Rng::new(seed);
            let d_v = d_v.min(d_qk);
            let indices = index_lists(&mut rng, s, topk, s_kv);
            let mut kv = tensor(&mut rng, dtype, &[s_kv, d_qk], fill);
            poison_unused(&mut kv, d_qk, &indices);
            // The same rows as pages, if they divide.
            if s_kv.is_multiple_of(3) && rng.one_in(2) {
                kv.shape = vec![s_kv / 3, 3, d_qk];
            }
            let case = Case::new("sparse_mla")
                .with("q", tensor(&mut rng, dtype, &[s, heads, d_qk], fill))
                .with("kv", kv)
                .with("indices", HostTensor::i32(&[s, topk], &indices))
                .set("d_v", d_v)
                .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
            with_options(case, &mut rng, s, heads, topk)
        })
}

/// Adds, sometimes, lengths, sinks, splits and strides.
fn with_options(mut case: Case, rng: &mut Rng, s: usize, heads: usize, topk: usize) -> Case {
    if rng.one_in(3) {
        let lengths: Vec<i32> = (0..s)
            .map(|_| match rng.below(8) {
                0 => [-1, i32::MIN, i32::MAX, 0][rng.below(4)],
                _ => rng.below(topk + 2) as i32,
            })
            .collect();
        case = case.with("topk_length", HostTensor::i32(&[s], &lengths));
    }
    if rng.one_in(3) {
        let sinks: Vec<f32> = (0..heads)
            .map(|_| match rng.below(4) {
                0 => [f32::INFINITY, f32::NEG_INFINITY][rng.below(2)],
                _ => rng.normal(),
            })
            .collect();
        case = case.with("attn_sink", HostTensor::new(DType::F32, &[heads], &sinks));
    }
    if rng.one_in(2) {
        case = case.set("splits", 1 + rng.below(5));
    }
    let strided = rng.one_in(2);
    case.set("strided", strided)
}

fn sparse_paged_cases() -> impl Strategy<Value = Case> {
    let pages = proptest::sample::select(&[1usize, 2, 53, 61, 64, 69][..]);
    (0usize..3, 1usize..20, 1usize..150, 0usize..10, pages, 1usize..100, float(), any::<u64>())
        .prop_map(|(s, heads, rank, half_rope, page_size, topk, dtype, seed)| {
            let mut rng = Rng::new(seed);
            let rope_dim = 2 * half_rope;
            let record = KvRecord { kv_lora_rank: rank, rope_dim };
            let n_pages = 1 + rng.below(if page_size < 8 { 40 } else { 2 });
            let n = n_pages * page_size;
            let array =
                |rng: &mut Rng, cols: usize| Array2::from_shape_fn((n, cols), |_| rng.normal());
            let (c, k_pe) = (array(&mut rng, rank), array(&mut rng, rope_dim));
            let records = record.quantise_kv(c.view(), k_pe.view());
            let indices = index_lists(&mut rng, s, topk, n);
            let bytes: Vec<u8> = records.iter().copied().collect();
            let mut cache = HostTensor::u8(&[n_pages, page_size * record.bytes()], bytes);
            poison_unused(&mut cache, record.bytes(), &indices);
            // Scales that are no powers of two must be multiplied exactly too (FlashMLA #184).
            if rng.one_in(2) {
                for index in indices.iter().filter(|i| **i >= 0 && (**i as usize) < n) {
                    let at = *index as usize * record.bytes() + rank;
                    cache.bytes[at..at + 4].copy_from_slice(&(0.01 + rng.unit()).to_le_bytes());
                }
            }
            let d_qk = rank + rope_dim;
            let case = Case::new("sparse_mla_paged")
                .with("q", tensor(&mut rng, dtype, &[s, heads, d_qk], Fill::Normal))
                .with("cache", cache)
                .with("indices", HostTensor::i32(&[s, topk], &indices))
                .set("kv_lora_rank", rank)
                .set("page_size", page_size)
                .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
            with_options(case, &mut rng, s, heads, topk)
        })
}

fn dense_mha_cases() -> impl Strategy<Value = Case> {
    let size = (0usize..40, 0usize..100, 1usize..6, 1usize..70, 1usize..70);
    (size, float(), fill(&[Fill::Normal, Fill::Tenth, Fill::Ties]), any::<bool>(), any::<u64>())
        .prop_map(|((s, s_kv, heads, d_qk, d_v), dtype, fill, strided, seed)| {
            let mut rng = Rng::new(seed);
            let (ks, ke) = ranges(&mut rng, s, s_kv);
            Case::new("dense_mha")
                .with("q", tensor(&mut rng, dtype, &[s, heads, d_qk], fill))
                .with("k", tensor(&mut rng, dtype, &[s_kv, heads, d_qk], fill))
                .with("v", tensor(&mut rng, dtype, &[s_kv, heads, d_v], fill))
                .with("ks", ks)
                .with("ke", ke)
                .set("softmax_scale", 1.0 / (d_qk as f32).sqrt())
                .set("strided", strided)
        })
}

fn dense_mla_cases() -> impl Strategy<Value = Case> {
    let size = (0usize..4, 0usize..150, 1usize..40, 1usize..100, 1usize..100);
    (size, float(), fill(&[Fill::Normal, Fill::Tenth, Fill::Ties]), any::<u64>()).prop_map(
        |((s, s_kv, heads, d_qk, d_v), dtype, fill, seed)| {
            let mut rng = Rng::new(seed);
            let (ks, ke) = ranges(&mut rng, s, s_kv);
            let case = Case::new("dense_mla")
                .with("q", tensor(&mut rng, dtype, &[s, heads, d_qk], fill))
                .with("kv", tensor(&mut rng, dtype, &[s_kv, d_qk], fill))
                .with("ks", ks)
                .with("ke", ke)
                .set("d_v", d_v.min(d_qk))
                .set("softmax_scale", 1.0 / (d_qk as f32).sqrt())
                .set("strided", rng.one_in(2));
            if rng.one_in(2) { case.set("splits", 1 + rng.below(5)) } else { case }
        },
    )
}
