use super::*;
use dsa_kernels::DType;
use dsa_model::config::Config;
use dsa_model::layers::Precision;
use dsa_model::run::{CacheSize, KvFormat, Mode};
use dsa_model::weights::{Random, Stored};

const CONTEXT: usize = 200;

/// A layer on a device, a cache with a context that was made up, and tokens at its end that were run: a prompt of 5,
/// or the next of 3 requests.
struct Run {
    device: Device,
    layer: Block,
    cache: Cache,
    timed: Timed,
}

impl Run {
    fn new(phase: Phase, mode: Mode) -> Self {
        Self::with(phase, mode, KvFormat::Elements, Stored::Fp8, 0)
    }

    fn with(phase: Phase, mode: Mode, format: KvFormat, stored: Stored, dense: usize) -> Self {
        let device = Device::named("cpu").unwrap();
        let scaled = Config::scaled(32).unwrap();
        let config = Config { first_k_dense_replace: dense, n_routed_experts: 32, ..scaled };
        assert!(config.index_topk < CONTEXT);
        let weights = Random::stored_as(3, stored);
        let layer = Block::new(&device, &config, weights, Precision::STORED, 0).unwrap();
        let (requests, n) = if phase == Phase::Prefill { (1, 5) } else { (3, 3) };
        let size = CacheSize { layers: 1, requests, max_seq: CONTEXT + 8, page_size: 8 };
        let mut cache = Cache::new(&device, &config, size, DType::Bf16, format).unwrap();
        cache.fill_random(CONTEXT, 5).unwrap();
        let mut rng = Rng::new(9);
        let x: Vec<f32> = (0..n * config.hidden_size).map(|_| rng.normal()).collect();
        let x = device.upload_f32(&x, &[n, config.hidden_size], DType::Bf16).unwrap();
        let batch = match phase {
            Phase::Prefill => Batch::chunk(&cache, 0, CONTEXT, n, mode),
            Phase::Decode => Batch::decode(&cache, &[CONTEXT; 3], mode),
        };
        let batch = batch.unwrap();
        let traced = layer.trace(&x, Some(&x), &batch, cache.layer(0).unwrap());
        let (output, (x, trace)) = traced.unwrap();
        cache.advance(&batch);
        Self { device, layer, cache, timed: Timed { output, x, trace, batch } }
    }

    fn judge(&mut self) -> Vec<Judged> {
        judge_timed(&self.device, &self.layer, &mut self.cache, &self.timed, 1).unwrap()
    }
}

const ALL: [(Phase, Mode); 4] = [
    (Phase::Prefill, Mode::Dense),
    (Phase::Prefill, Mode::Sparse),
    (Phase::Decode, Mode::Dense),
    (Phase::Decode, Mode::Sparse),
];

fn worst(judged: &[Judged]) -> &Judged {
    judged.iter().max_by(|a, b| a.share.total_cmp(&b.share)).unwrap()
}

/// `tensor` with its last row doubled.
fn doubled(device: &Device, tensor: &Tensor) -> Tensor {
    let mut values = tensor.download_f32().unwrap();
    let from = values.len() - values.len() / tensor.shape()[0];
    values[from..].iter_mut().for_each(|value| *value *= 2.0);
    device.upload_f32(&values, tensor.shape(), tensor.dtype()).unwrap()
}

#[test]
fn every_step_passes_on_its_own_inputs_and_in_its_other_form() {
    for (phase, mode) in ALL {
        let judged = Run::new(phase, mode).judge();
        assert!(worst(&judged).share <= 1.0, "{phase:?} {mode:?}: {judged:?}");
        let of = |what: &str| judged.iter().filter(|j| j.what.contains(what)).count();
        assert_eq!((of("of its own inputs"), of("output of token")), (JUDGED, JUDGED));
        assert_eq!(of("keys of token") >= JUDGED, mode == Mode::Sparse);
    }
}

#[test]
fn a_wrong_output_of_the_timed_step_falls_and_is_named() {
    for (phase, mode) in ALL {
        let mut run = Run::new(phase, mode);
        run.timed.trace.hidden = doubled(&run.device, &run.timed.trace.hidden);
        let judged = run.judge();
        let wrong = worst(&judged);
        assert!(wrong.share > 1.0, "{phase:?} {mode:?}: {judged:?}");
        let row = if phase == Phase::Prefill { 4 } else { 2 };
        assert!(wrong.what.starts_with(&format!("output of token {row} ")), "{wrong:?}");
    }
}

#[test]
fn the_second_half_is_judged_in_whatever_its_weights_are_and_falls_if_it_is_wrong() {
    let layers = [(Stored::Fp8, 0), (Stored::Fp8, 1), (Stored::Bf16, 0), (Stored::Bf16, 1)];
    for (stored, dense) in layers {
        let judged = |change: fn(&Device, &mut Output)| {
            let mut run = Run::with(Phase::Prefill, Mode::Dense, KvFormat::Elements, stored, dense);
            change(&run.device, &mut run.timed.output);
            run.judge().last().unwrap().clone()
        };
        let right = judged(|_, _| ());
        assert!(right.what.starts_with("feed-forward of token 4"), "{right:?}");
        assert!(right.share <= 1.0, "{stored:?} {dense}: {right:?}");
        assert!(judged(|device, output| output.x = doubled(device, &output.x)).share > 1.0);
        let given = |device: &Device, output: &mut Output| {
            output.ffn_in = doubled(device, &output.ffn_in);
        };
        assert!(judged(given).share > 1.0);
    }
}

#[test]
fn a_wrong_output_of_the_attention_kernel_falls_although_the_layer_goes_on_from_it() {
    for (phase, mode) in ALL {
        let mut run = Run::new(phase, mode);
        let out = &mut run.timed.trace.attention.out;
        *out = doubled(&run.device, out);
        let judged = run.judge();
        assert!(worst(&judged).share > 1.0, "{phase:?} {mode:?}: {judged:?}");
        assert!(worst(&judged).what.contains("out["), "{judged:?}");
    }
}

#[test]
fn wrong_keys_of_the_timed_step_fall() {
    for phase in [Phase::Prefill, Phase::Decode] {
        let mut run = Run::new(phase, Mode::Sparse);
        let indices = run.timed.trace.indices.clone().unwrap();
        let mut keys = indices.download_i32().unwrap();
        let topk = indices.shape()[1];
        // The first of its request's instead of the best.
        for (i, key) in keys.iter_mut().enumerate() {
            *key = (i % topk) as i32;
        }
        run.timed.trace.indices = Some(run.device.upload_i32(&keys, indices.shape()).unwrap());
        let judged = run.judge();
        let keys =
            judged.iter().find(|one| one.share > 1.0 && one.what.starts_with("keys of token"));
        assert!(keys.is_some(), "{judged:?}");
    }
}

#[test]
fn a_step_that_reads_records_is_judged_by_the_records() {
    for (phase, mode) in ALL {
        let judged = Run::with(phase, mode, KvFormat::Fp8, Stored::Bf16, 0).judge();
        assert!(worst(&judged).share <= 1.0, "{judged:?}");
        let kernel = match (phase, mode) {
            (Phase::Prefill, Mode::Dense) => "dense_mha of token 4",
            (Phase::Prefill, Mode::Sparse) => "sparse_mla_paged of token 4",
            (Phase::Decode, Mode::Dense) => "dense_mla_paged of token 2",
            (Phase::Decode, Mode::Sparse) => "sparse_mla_paged of token 2",
        };
        assert!(judged[0].what.starts_with(kernel), "{judged:?}");
    }
}
