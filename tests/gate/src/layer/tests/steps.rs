//! The layer against the reference's, in every way in which tokens can come.

use crate::layer::reference::{attention_config, attention_options, attention_weights};
use crate::layer::thresholds::{LAYER, worst_row};
use dsa_kernels::random::Rng;
use dsa_kernels::{DType, Device, Tensor};
use dsa_model::Result;
use dsa_model::config::{AttentionOptions, Config, Quantization, Yarn};
use dsa_model::layers::Attention;
use dsa_model::run::{Batch, Cache, CacheSize, KvFormat, Mode};
use dsa_model::weights::Random;
use dsa_reference::attention_layer;
use ndarray::{Array2, Axis, Slice};

const TOKENS: usize = 23;
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
    x: Array2<f32>,
}

impl Case {
    fn new(config: Config) -> Self {
        let device = Device::named("cpu").unwrap();
        let layer = Attention::new(&device, &config, Random::new(1), DType::F32).unwrap();
        let mut rng = Rng::new(2);
        let x = Array2::from_shape_simple_fn((TOKENS, config.hidden_size), || rng.normal());
        Self { device, config, layer, x }
    }

    fn cache(&self, size: CacheSize, format: KvFormat) -> Cache {
        Cache::new(&self.device, &self.config, size, DType::F32, format).unwrap()
    }

    /// Tokens of x.
    fn rows(&self, tokens: std::ops::Range<usize>) -> Array2<f32> {
        self.x.slice_axis(Axis(0), Slice::from(tokens)).to_owned()
    }

    fn upload(&self, x: &Array2<f32>) -> Tensor {
        let values: Vec<f32> = x.iter().copied().collect();
        self.device.upload_f32(&values, x.shape(), DType::F32).unwrap()
    }

    fn download(&self, y: &Tensor) -> Array2<f32> {
        let values = y.download_f32().unwrap();
        Array2::from_shape_vec((y.shape()[0], y.shape()[1]), values).unwrap()
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

    /// All tokens, in chunks of these lengths.
    fn chunks(&self, cache: &mut Cache, lengths: &[usize], mode: Mode) -> Array2<f32> {
        let mut out = Array2::zeros((0, self.config.hidden_size));
        for length in lengths {
            let start = out.nrows();
            let x = self.upload(&self.rows(start..start + length));
            let y = self.forward(&x, cache, 0, start, mode).unwrap();
            out.append(Axis(0), self.download(&y).view()).unwrap();
        }
        out
    }

    fn reference(&self, mode: Mode) -> Array2<f32> {
        let mode = match mode {
            Mode::Dense => attention_layer::Mode::Dense,
            Mode::Sparse => attention_layer::Mode::Sparse,
        };
        let (config, options) = (attention_config(&self.config), attention_options(&self.config));
        let weights = attention_weights(&self.config, &Random::new(1)).unwrap();
        attention_layer::attention(self.x.view(), &config, &weights, &options, mode).unwrap()
    }

    fn assert_near(&self, got: &Array2<f32>, want: &Array2<f32>, what: &str) {
        let (worst, token) = worst_row(got.view(), want.view(), |_| true).unwrap();
        let allowed = LAYER.of(DType::F32, self.config.attention_options);
        assert!(worst <= allowed, "{what}: token {token} is off by {worst:e} of {allowed:e}");
    }
}

#[test]
fn whole_chunked_and_token_by_token_equal_the_reference() {
    let case = Case::new(config(7, AttentionOptions::EXACT));
    for mode in [Mode::Dense, Mode::Sparse] {
        let want = case.reference(mode);
        for lengths in [&[TOKENS][..], &[9, 1, 13], &[TOKENS - 3, 1, 1, 1]] {
            let mut cache = case.cache(SIZE, KvFormat::Elements);
            let got = case.chunks(&mut cache, lengths, mode);
            case.assert_near(&got, &want, &format!("{mode:?} {lengths:?}"));
            assert_eq!(cache.length(0), TOKENS);
        }
    }
}

#[test]
fn an_interleaved_indexer_equals_the_reference() {
    let config = config(7, AttentionOptions::EXACT);
    let case = Case::new(Config { indexer_rope_interleaved: true, ..config.clone() });
    let got = case.chunks(&mut case.cache(SIZE, KvFormat::Elements), &[9, 14], Mode::Sparse);
    case.assert_near(&got, &case.reference(Mode::Sparse), "interleaved");
    let other = Case::new(config).reference(Mode::Sparse);
    assert!(worst_row(got.view(), other.view(), |_| true).unwrap().0 > 0.01);
}

#[test]
fn half_split_attention_and_scales_that_are_no_powers_equal_the_reference() {
    let exact = config(7, AttentionOptions::EXACT);
    let half = Config { rope_interleaved: false, ..exact.clone() };
    let free = Config {
        quantization: Some(Quantization { ue8m0: false }),
        ..config(7, AttentionOptions::OFFICIAL)
    };
    let powers = config(7, AttentionOptions::OFFICIAL);
    for (changed, plain, what) in [(half, exact, "half split"), (free, powers, "free scales")] {
        let case = Case::new(changed);
        for mode in [Mode::Dense, Mode::Sparse] {
            let got = case.chunks(&mut case.cache(SIZE, KvFormat::Elements), &[22, 1], mode);
            case.assert_near(&got, &case.reference(mode), what);
            let other = Case::new(plain.clone()).reference(mode);
            let differs = worst_row(got.view(), other.view(), |_| true).unwrap().0;
            assert!(differs > 0.02, "{what}: {differs:e}");
        }
    }
}

#[test]
fn a_batch_of_contexts_of_different_lengths_equals_the_reference() {
    for (options, formats) in [
        (AttentionOptions::EXACT, &[KvFormat::Elements][..]),
        (AttentionOptions::OFFICIAL, &[KvFormat::Elements, KvFormat::Fp8]),
    ] {
        let case = Case::new(config(7, options));
        for (mode, format) in formats.iter().flat_map(|f| [(Mode::Dense, f), (Mode::Sparse, f)]) {
            let want = case.reference(mode);
            let mut cache = case.cache(CacheSize { requests: 3, ..SIZE }, *format);
            // The prompts are parts of one text, so the reference of one serves all; the last two
            // steps are at one position.
            for (request, start) in [11, 4, 0].into_iter().enumerate().filter(|(_, n)| *n > 0) {
                let x = case.upload(&case.rows(0..start));
                case.forward(&x, &mut cache, request, 0, mode).unwrap();
            }
            for positions in [[11, 4, 0], [12, 5, 1], [2, 2, 2]] {
                let x = case.x.select(Axis(0), &positions);
                let y = case.decode(&case.upload(&x), &mut cache, &positions, mode);
                let want = want.select(Axis(0), &positions);
                let what = format!("{mode:?} {format:?} {positions:?}");
                case.assert_near(&case.download(&y.unwrap()), &want, &what);
            }
            assert_eq!([0, 1, 2].map(|request| cache.length(request)), [3; 3]);
        }
    }
}

#[test]
fn sparse_is_dense_while_every_key_is_kept() {
    for (topk, short) in [(TOKENS, false), (100, false), (TOKENS, true)] {
        let mut case = Case::new(config(topk, AttentionOptions::EXACT));
        case.layer.execution.expand_short_prefill = short;
        let mut cache = case.cache(SIZE, KvFormat::Elements);
        let dense = case.chunks(&mut cache, &[TOKENS], Mode::Dense);
        let sparse = case.chunks(&mut cache, &[TOKENS - 1, 1], Mode::Sparse);
        case.assert_near(&sparse, &dense, &format!("topk {topk}, expanded {short}"));
    }
}

#[test]
fn the_official_arithmetic_stays_close_to_the_reference() {
    let case = Case::new(config(7, AttentionOptions::OFFICIAL));
    for (mode, format) in [
        (Mode::Dense, KvFormat::Elements),
        (Mode::Sparse, KvFormat::Elements),
        (Mode::Dense, KvFormat::Fp8),
        (Mode::Sparse, KvFormat::Fp8),
    ] {
        let mut cache = case.cache(SIZE, format);
        let got = case.chunks(&mut cache, &[TOKENS - 2, 1, 1], mode);
        case.assert_near(&got, &case.reference(mode), &format!("{mode:?} {format:?}"));
    }
}

#[test]
fn the_norms_of_the_latents_have_an_eps_of_their_own() {
    let plain = config(7, AttentionOptions::EXACT);
    let run = |config: &Config| {
        let case = Case::new(config.clone());
        let got = case.chunks(&mut case.cache(SIZE, KvFormat::Elements), &[22, 1], Mode::Sparse);
        case.assert_near(&got, &case.reference(Mode::Sparse), "eps");
        got
    };
    let want = run(&plain);
    // The residual stream's is not the attention's; the latents' decides.
    assert_eq!(run(&Config { rms_norm_eps: 0.1, ..plain.clone() }), want);
    let other = run(&Config { latent_norm_eps: 0.1, ..plain });
    assert!(worst_row(other.view(), want.view(), |_| true).unwrap().0 > 0.01);
}
