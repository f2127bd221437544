//! Making up a context, so that a step at any length can be measured without computing it.

use super::Cache;
use crate::attention::step::{Places, Step};
use crate::error::{Error, Result};
use dsa_tests::generate::Rng;

/// Tokens made up at a time.
const CHUNK: usize = 4096;

impl Cache {
    /// Fills every request with the same `len` made-up tokens: normal numbers of variance 1, as
    /// normalised latents and index keys are. The same on every machine.
    ///
    /// # Errors
    /// [`Error::Argument`] if `len` is more than there is room for.
    pub fn fill_random(&mut self, len: usize, seed: u64) -> Result<()> {
        let most = self.max_seq();
        Error::check(len <= most, "len", len, format!("at most {most}"))?;
        let mut rng = Rng::new(seed);
        let (dtype, d, dim) = (self.dtype(), self.latent.shape()[1], self.index_dim);
        self.clear();
        for start in (0..len).step_by(CHUNK) {
            let n = CHUNK.min(len - start);
            let mut random = |width: usize| {
                let values: Vec<f32> = (0..n * width).map(|_| rng.normal()).collect();
                self.device.upload_f32(&values, &[n, width], dtype)
            };
            let kv = random(d)?; // [n, rank + rope]
            let k = random(dim)?; // [n, D]
            for request in 0..self.requests() {
                let step = Step::chunk(self, request, start, n)?;
                let at = Places::upload(&self.device, &step, self)?;
                self.store_latents(&kv, &at)?;
                self.store_index_keys(&k, &at)?;
                self.advance(&step, true);
            }
        }
        Ok(())
    }
}
