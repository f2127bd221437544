//! Pages of the two fp8 caches, of random values: no two keys of a million are alike.

use crate::production::{INDEX_DIM, KV_LORA_RANK, PAGE, ROPE_DIM};
use dsa_kernels::DType;
use dsa_kernels::random::Rng;

/// Values that are made; they are repeated. A prime, so that no page begins as another does.
const MADE: usize = 1_000_003;

/// Random bytes of one type, repeated for ever.
struct Repeated {
    bytes: Vec<u8>,
    at: usize,
}

impl Repeated {
    fn new(dtype: DType, values: impl Iterator<Item = f32>) -> Self {
        Self { bytes: dtype.encode(&values.collect::<Vec<_>>()), at: 0 }
    }

    /// Appends the next `n` bytes.
    fn give(&mut self, n: usize, to: &mut Vec<u8>) {
        let mut left = n;
        while left > 0 {
            let some = left.min(self.bytes.len() - self.at);
            to.extend_from_slice(&self.bytes[self.at..self.at + some]);
            self.at = (self.at + some) % self.bytes.len();
            left -= some;
        }
    }
}

/// Codes, scales from 0.5 to 1.5, and parts in bf16.
fn sources(seed: u64, values: usize) -> [Repeated; 3] {
    let mut rng = Rng::new(seed);
    let codes = Repeated::new(DType::E4m3, (0..values).map(|_| rng.normal()));
    let scales = Repeated::new(DType::F32, (0..values).map(|_| 0.5 + rng.unit()));
    let parts = Repeated::new(DType::Bf16, (0..values).map(|_| rng.normal()));
    [codes, scales, parts]
}

/// `pages` pages of index keys: the codes of all, then their scales.
pub fn index_pages(pages: usize, seed: u64) -> Vec<u8> {
    let page = PAGE * (INDEX_DIM + 4);
    let mut bytes = Vec::with_capacity(pages * page);
    let [mut codes, mut scales, _] = sources(seed, MADE.min(pages * page));
    for _ in 0..pages {
        codes.give(PAGE * INDEX_DIM, &mut bytes);
        scales.give(4 * PAGE, &mut bytes);
    }
    bytes
}

/// `pages` pages of latents: each token's codes, scales and rotated part in bf16.
pub fn latent_pages(pages: usize, seed: u64) -> Vec<u8> {
    let token = KV_LORA_RANK + 4 * (KV_LORA_RANK / 128) + 2 * ROPE_DIM;
    let mut bytes = Vec::with_capacity(pages * PAGE * token);
    let [mut codes, mut scales, mut parts] = sources(seed, MADE.min(pages * PAGE * token));
    for _ in 0..pages * PAGE {
        codes.give(KV_LORA_RANK, &mut bytes);
        scales.give(4 * (KV_LORA_RANK / 128), &mut bytes);
        parts.give(2 * ROPE_DIM, &mut bytes);
    }
    bytes
}
