//! Making up a context, so that a step at any length can be measured without computing it.

use super::{Batch, Cache, Mode};
use crate::error::{Error, Result};
use dsa_kernels::random::Rng;

/// Tokens made up at a time.
const CHUNK: usize = 4096;

impl Cache {
    /// Fills every request of every layer with the same `len` made-up tokens: normal numbers of variance 1, as
    /// normalised latents and index keys are. The same on every machine.
    ///
    /// # Errors
    /// [`Error::Argument`] if `len` is more than there is room for.
    pub fn fill_random(&mut self, len: usize, seed: u64) -> Result<()> {
        let most = self.max_seq();
        Error::check(len <= most, "len", len, format!("at most {most}"))?;
        let mut rng = Rng::new(seed);
        let device = self.device().clone();
        let (dtype, (latent, index)) = (self.layer(0)?.dtype(), self.layer(0)?.widths());
        self.clear();
        for start in (0..len).step_by(CHUNK) {
            let n = CHUNK.min(len - start);
            let mut random = |width: usize| {
                let values: Vec<f32> = (0..n * width).map(|_| rng.normal()).collect();
                device.upload_f32(&values, &[n, width], dtype)
            };
            let kv = random(latent)?; // [n, rank + rope]
            let k = random(index)?; // [n, D]
            for request in 0..self.requests() {
                let batch = Batch::chunk(self, request, start, n, Mode::Sparse)?;
                for layer in self.layers() {
                    layer.store_latents(&kv, &batch)?;
                    layer.store_index_keys(&k, &batch)?;
                }
                self.advance(&batch);
            }
        }
        Ok(())
    }
}
