//! Every type and stage of the layer runs, and what does not fit is refused. That it is right, the gate shows.

use super::Attention;
use super::limits::{check_rows, logits_parts};
use crate::config::{AttentionOptions, Config, Yarn};
use crate::error::{Error, Result};
use crate::run::{Batch, Cache, CacheSize, KvFormat, Mode, Stage};
use crate::weights::{Random, Weights};
use dsa_kernels::upload::Upload;
use dsa_kernels::{DType, Device, Tensor};
use std::ops::Range;

const SIZE: CacheSize = CacheSize { layers: 1, requests: 1, max_seq: 24, page_size: 5 };

/// No width is a multiple of a tile.
fn config(index_topk: usize, attention_options: AttentionOptions) -> Config {
    let yarn = Yarn { original_max_position_embeddings: 8, ..Config::v32().rope_scaling.unwrap() };
    let config = Config {
        hidden_size: 40,
        num_attention_heads: 3,
        q_lora_rank: 24,
        kv_lora_rank: 20,
        qk_nope_head_dim: 10,
        qk_rope_head_dim: 8,
        v_head_dim: 6,
        index_n_heads: 5,
        index_head_dim: 32,
        index_topk,
        rope_scaling: Some(yarn),
        quantization: None,
        attention_options,
        ..Config::scaled(64).unwrap()
    };
    config.validate().unwrap();
    config
}

struct Case {
    device: Device,
    config: Config,
    layer: Attention,
}

impl Case {
    fn new(config: Config) -> Self {
        let device = Device::named("cpu").unwrap();
        let layer = Attention::new(&device, &config, Random::new(1), DType::F32).unwrap();
        Self { device, config, layer }
    }

    fn cache(&self, size: CacheSize, format: KvFormat) -> Cache {
        Cache::new(&self.device, &self.config, size, DType::F32, format).unwrap()
    }

    /// A chunk of one request.
    fn forward(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        request: usize,
        start: usize,
        mode: Mode,
    ) -> Result<Tensor> {
        let batch = Batch::chunk(cache, request, start, x.shape()[0], mode)?;
        let y = self.layer.forward(x, &batch, cache.layer(0)?)?;
        cache.advance(&batch);
        Ok(y)
    }

    /// A token of each request.
    fn decode(
        &self,
        x: &Tensor,
        cache: &mut Cache,
        positions: &[usize],
        mode: Mode,
    ) -> Result<Tensor> {
        let batch = Batch::decode(cache, positions, mode)?;
        let y = self.layer.forward(x, &batch, cache.layer(0)?)?;
        cache.advance(&batch);
        Ok(y)
    }
}

#[test]
fn bf16_runs_in_both_modes_and_stages_are_measured() {
    let case = Case::new(config(7, AttentionOptions::OFFICIAL));
    let (device, dtype) = (&case.device, DType::Bf16);
    let layer = Attention::new(device, &case.config, Random::new(1), dtype).unwrap();
    let mut cache = Cache::new(device, &case.config, SIZE, dtype, KvFormat::Fp8).unwrap();
    cache.fill_random(20, 3).unwrap();
    for mode in [Mode::Dense, Mode::Sparse] {
        let x = device.upload_f32(&vec![0.5; 3 * 40], &[3, 40], dtype).unwrap();
        let batch = Batch::chunk(&cache, 0, 20, 3, mode).unwrap().measured().unwrap();
        let y = layer.forward(&x, &batch, cache.layer(0).unwrap()).unwrap();
        cache.advance(&batch);
        let stages = batch.stages();
        assert!(y.download_f32().unwrap().iter().all(|v| v.is_finite() && *v != 0.0));
        let measured = Stage::ALL.map(|stage| stages.seconds(stage) > 0.0);
        let sparse = mode == Mode::Sparse;
        let of_attention = [false, true, sparse, sparse, !sparse, true, false, false];
        assert_eq!(measured, of_attention, "{mode:?}");
        assert!(stages.total() > 0.0);
        // A step may be repeated: what the request held from there on is replaced.
        assert_eq!(cache.length(0), 23);
    }
}

/// The output of a prompt of 20 tokens and what they attend to, and of a batch after it, with so many bytes of index
/// logits.
fn with_budget(options: AttentionOptions, budget: usize) -> [(Vec<f32>, Vec<i32>); 2] {
    let mut case = Case::new(config(7, options));
    case.layer.execution.logits_budget = budget;
    let mut cache = case.cache(CacheSize { requests: 3, ..SIZE }, KvFormat::Elements);
    cache.fill_random(3, 1).unwrap();
    let mut rng = dsa_kernels::random::Rng::new(2);
    let mut x = |n: usize| {
        let values: Vec<f32> = (0..n * 40).map(|_| rng.normal()).collect();
        case.device.upload_f32(&values, &[n, 40], DType::F32).unwrap()
    };
    let (prompt, next) = (x(20), x(3));
    let chunk = Batch::chunk(&cache, 1, 3, 20, Mode::Sparse).unwrap();
    let run = |x: &Tensor, batch: &Batch, cache: &mut Cache| {
        let trace = case.layer.trace(x, batch, cache.layer(0).unwrap()).unwrap();
        cache.advance(batch);
        let keys = trace.indices.unwrap().download_i32().unwrap();
        (trace.hidden.download_f32().unwrap(), keys)
    };
    let chunk = run(&prompt, &chunk, &mut cache);
    let batch = Batch::decode(&cache, &[3, 23, 2], Mode::Sparse).unwrap();
    [chunk, run(&next, &batch, &mut cache)]
}

#[test]
fn no_budget_of_index_logits_changes_a_bit() {
    for options in [AttentionOptions::EXACT, AttentionOptions::OFFICIAL] {
        let whole = with_budget(options, usize::MAX);
        assert!(whole[1].1.iter().any(|key| *key >= 0));
        // Of one row at a time, of parts that do not divide the rows, of all but one.
        for budget in [0, 23 * 4, 7 * 25 * 4, 19 * 25 * 4, 20 * 25 * 4] {
            assert_eq!(with_budget(options, budget), whole, "{options:?}, {budget} bytes");
        }
    }
}

#[test]
fn index_logits_are_within_their_budget_whatever_the_context() {
    for (n, columns, budget) in
        [(4096, 131_072, 512 << 20), (100, 7, 61), (3, 1000, 4000), (5, 10, usize::MAX), (1, 1, 4)]
    {
        let parts: Vec<_> = logits_parts(n, columns, budget).collect();
        assert!(parts.iter().all(|part| part.len() * columns * 4 <= budget));
        assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
        assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, n));
    }
    // A row is the least.
    assert_eq!(logits_parts(3, 1000, 3999).count(), 3);
    // What the kernel is asked for are these parts.
    for options in [AttentionOptions::EXACT, AttentionOptions::OFFICIAL] {
        let case = Case::new(config(7, options));
        let mut cache = case.cache(SIZE, KvFormat::Elements);
        cache.fill_random(4, 1).unwrap();
        let x = case.device.upload_f32(&[0.5; 20 * 40], &[20, 40], DType::F32).unwrap();
        let qr = case.device.upload_f32(&[0.5; 20 * 24], &[20, 24], DType::F32).unwrap();
        let batch = Batch::chunk(&cache, 0, 4, 20, Mode::Sparse).unwrap();
        let (indexer, held) = (case.layer.indexer().unwrap(), cache.layer(0).unwrap());
        let queries = indexer.queries(&x, &qr, &batch, held.index_keys().unwrap()).unwrap();
        let mut rows = 0;
        for part in logits_parts(20, batch.rows(), 700) {
            let logits = indexer.logits(&queries, part, &batch, held, case.layer.score_fn).unwrap();
            assert!(logits.len() * 4 <= 700);
            rows += logits.shape()[0];
        }
        assert_eq!(rows, 20);
    }
}

#[test]
fn tensors_that_the_kernels_cannot_index_are_refused() {
    let check = |rows, sparse, expanded| {
        let mode = if sparse { Mode::Sparse } else { Mode::Dense };
        let error = check_rows(&Config::v32(), 4096, rows, mode, expanded).err()?;
        let Error::Argument { name, .. } = error else { panic!("{error}") };
        Some(name)
    };
    assert_eq!(check(262_144, false, true), None);
    assert_eq!(check(1 << 24, false, true), Some("the rows of the keys, expanded"));
    assert_eq!(check(1 << 20, true, false), None);
    assert_eq!(check(1 << 31, true, false), Some("the columns of the index logits"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::new(config(7, AttentionOptions::EXACT));
    let mut cache = case.cache(SIZE, KvFormat::Elements);
    assert_eq!(cache.max_seq(), 25);
    let x =
        |rows, dtype| case.device.upload_f32(&vec![0.0; rows * 40], &[rows, 40], dtype).unwrap();
    let mut forward = |x: &Tensor, request, start, mode| {
        let error = case.forward(x, &mut cache, request, start, mode).unwrap_err();
        let Error::Argument { name, .. } = error else { panic!("{error}") };
        name
    };
    assert_eq!(forward(&x(2, DType::Bf16), 0, 0, Mode::Dense), "x");
    assert_eq!(forward(&x(0, DType::F32), 0, 0, Mode::Dense), "x");
    assert_eq!(forward(&x(2, DType::F32), 1, 0, Mode::Dense), "request");
    assert_eq!(forward(&x(2, DType::F32), 0, 24, Mode::Dense), "start");
    assert_eq!(forward(&x(2, DType::F32), 0, usize::MAX, Mode::Dense), "start");
    assert_eq!(forward(&x(2, DType::F32), 0, 1, Mode::Dense), "position");
    case.forward(&x(4, DType::F32), &mut cache, 0, 0, Mode::Dense).unwrap();
    let error = case.forward(&x(1, DType::F32), &mut cache, 0, 4, Mode::Sparse);
    assert!(error.err().unwrap().to_string().contains("with index keys"));
    for positions in [&[][..], &[4, 4], &[25]] {
        let rows = x(positions.len(), DType::F32);
        assert!(case.decode(&rows, &mut cache, positions, Mode::Dense).is_err());
    }
    for size in [
        CacheSize { requests: 0, ..SIZE },
        CacheSize { page_size: 0, ..SIZE },
        CacheSize { requests: 1 << 30, max_seq: 1 << 30, page_size: 1, ..SIZE },
    ] {
        let cache = Cache::new(&case.device, &case.config, size, DType::F32, KvFormat::Fp8);
        assert!(matches!(cache.err(), Some(Error::Argument { .. })));
    }
    let cache = Cache::new(&case.device, &case.config, SIZE, DType::E4m3, KvFormat::Fp8);
    assert!(matches!(cache.err(), Some(Error::Argument { name: "dtype", .. })));
    // Made for another layer, or of another type.
    let other = Config { kv_lora_rank: 8, ..case.config.clone() };
    for (config, dtype) in [(&other, DType::F32), (&case.config, DType::Bf16)] {
        let mut cache = Cache::new(&case.device, config, SIZE, dtype, KvFormat::Elements).unwrap();
        let error = case.forward(&x(2, DType::F32), &mut cache, 0, 0, Mode::Dense).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "cache", .. }), "{error}");
    }
}

/// Weights of which one has another shape than the configuration says.
#[derive(Clone)]
struct Short(Random);

impl Weights for Short {
    fn at(&self, part: impl std::fmt::Display) -> Self {
        Self(self.0.at(part))
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match name {
            "o_proj.weight" => {
                Err(Error::Shape { name: name.into(), found: vec![40, 17], expected: shape.into() })
            }
            _ => self.0.values(name, shape),
        }
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<DType> {
        self.values(name, shape).map(|_| DType::F32)
    }

    fn elements(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        to: &mut Upload,
    ) -> Result<()> {
        self.0.elements(name, shape, rows, to)
    }

    fn scales(&self, name: &str, shape: [usize; 2], to: &mut Upload) -> Result<()> {
        self.0.scales(name, shape, to)
    }

    fn expect(&self, _: &Config) -> Result<()> {
        Ok(())
    }

    fn refuse_others(&self, _: &[&str]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_weight_of_another_shape_is_refused() {
    let (device, config) = (Device::named("cpu").unwrap(), config(7, AttentionOptions::EXACT));
    let layer = Attention::new(&device, &config, Short(Random::new(1)), DType::F32);
    assert!(matches!(layer.err(), Some(Error::Shape { .. })));
}
