use super::*;
use crate::cache::{CacheSize, KvFormat};
use crate::config::Config;
use dsa_kernels::DType;

const CONTEXT: usize = 200;

/// A layer, a cache with a context that was made up, and tokens at its end: a prompt of 5, or the next of 3 requests.
fn timed(phase: Phase, mode: Mode) -> (Attention, Cache, Tensor, TimedStep) {
    timed_in(phase, mode, KvFormat::Elements)
}

fn timed_in(phase: Phase, mode: Mode, format: KvFormat) -> (Attention, Cache, Tensor, TimedStep) {
    let device = Device::named("cpu").unwrap();
    let config = Config::scaled(32).unwrap();
    assert!(config.index_topk < CONTEXT);
    let layer = Attention::random(&device, &config, DType::Bf16, 3).unwrap();
    let (requests, n) = if phase == Phase::Prefill { (1, 5) } else { (3, 3) };
    let size = CacheSize { requests, max_seq: CONTEXT + 8, page_size: 8 };
    let mut cache = Cache::new(&device, &config, size, DType::Bf16, format).unwrap();
    cache.fill_random(CONTEXT, 5).unwrap();
    let mut rng = Rng::new(9);
    let x: Vec<f32> = (0..n * config.hidden_size).map(|_| rng.normal()).collect();
    let x = device.upload_f32(&x, &[n, config.hidden_size], DType::Bf16).unwrap();
    let stages = &mut Stages::new();
    let step = match phase {
        Phase::Prefill => layer.forward_timed(&x, &mut cache, 0, CONTEXT, mode, stages),
        Phase::Decode => layer.decode_timed(&x, &mut cache, &[CONTEXT; 3], mode, stages),
    };
    (layer, cache, x, step.unwrap())
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
    let mut values = device.download_f32(tensor).unwrap();
    let from = values.len() - values.len() / tensor.shape()[0];
    values[from..].iter_mut().for_each(|value| *value *= 2.0);
    device.upload_f32(&values, tensor.shape(), tensor.dtype()).unwrap()
}

#[test]
fn every_step_passes_on_its_own_inputs_and_in_its_other_form() {
    for (phase, mode) in ALL {
        let (layer, mut cache, x, step) = timed(phase, mode);
        let judged = layer.judge_timed(&x, &mut cache, &step, 1).unwrap();
        assert!(worst(&judged).share <= 1.0, "{phase:?} {mode:?}: {judged:?}");
        let of = |what: &str| judged.iter().filter(|j| j.what.contains(what)).count();
        assert_eq!((of("of its own inputs"), of("output of token")), (JUDGED, JUDGED));
        assert_eq!(of("keys of token") >= JUDGED, mode == Mode::Sparse);
    }
}

#[test]
fn a_wrong_output_of_the_timed_step_falls_and_is_named() {
    for (phase, mode) in ALL {
        let (layer, mut cache, x, mut step) = timed(phase, mode);
        step.trace.hidden = doubled(&layer.device, &step.trace.hidden);
        let judged = layer.judge_timed(&x, &mut cache, &step, 1).unwrap();
        let wrong = worst(&judged);
        assert!(wrong.share > 1.0, "{phase:?} {mode:?}: {judged:?}");
        let row = if phase == Phase::Prefill { 4 } else { 2 };
        assert!(wrong.what.starts_with(&format!("output of token {row} ")), "{wrong:?}");
    }
}

#[test]
fn a_wrong_output_of_the_attention_kernel_falls_although_the_layer_goes_on_from_it() {
    for (phase, mode) in ALL {
        let (layer, mut cache, x, mut step) = timed(phase, mode);
        step.trace.attention.out = doubled(&layer.device, &step.trace.attention.out);
        let judged = layer.judge_timed(&x, &mut cache, &step, 1).unwrap();
        assert!(worst(&judged).share > 1.0, "{phase:?} {mode:?}: {judged:?}");
        assert!(worst(&judged).what.contains("out["), "{judged:?}");
    }
}

#[test]
fn wrong_keys_of_the_timed_step_fall() {
    for phase in [Phase::Prefill, Phase::Decode] {
        let (layer, mut cache, x, mut step) = timed(phase, Mode::Sparse);
        let indices = step.trace.indices.clone().unwrap();
        let mut keys = layer.device.download_i32(&indices).unwrap();
        let topk = indices.shape()[1];
        // The first of its request's instead of the best.
        let begin = |row: usize| if phase == Phase::Decode { row * cache.max_seq() } else { 0 };
        for (i, key) in keys.iter_mut().enumerate() {
            *key = (begin(i / topk) + i % topk) as i32;
        }
        step.trace.indices = Some(layer.device.upload_i32(&keys, indices.shape()).unwrap());
        let judged = layer.judge_timed(&x, &mut cache, &step, 1).unwrap();
        let keys =
            judged.iter().find(|one| one.share > 1.0 && one.what.starts_with("keys of token"));
        assert!(keys.is_some(), "{judged:?}");
    }
}

#[test]
fn sparse_decode_from_records_is_judged_by_the_records() {
    let (layer, mut cache, x, step) = timed_in(Phase::Decode, Mode::Sparse, KvFormat::Fp8);
    let judged = layer.judge_timed(&x, &mut cache, &step, 1).unwrap();
    assert!(worst(&judged).share <= 1.0, "{judged:?}");
    assert!(judged[0].what.starts_with("sparse_mla_paged of token 2"), "{judged:?}");
}
