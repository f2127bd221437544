//! Feed-forward networks and their sum, the norm behind a residual, weights in 8 bits.
use crate::random::{Random, worst};
use dsa_reference::add_norm::add_rms_norm;
use dsa_reference::arithmetic::Arithmetic;
use dsa_reference::combine::combine;
use dsa_reference::dispatch::{Dispatch, dispatch};
use dsa_reference::embedding::embedding;
use dsa_reference::experts::{ExpertsWeights, experts, routed_experts};
use dsa_reference::feed_forward::{FeedForwardWeights, feed_forward};
use dsa_reference::linear::linear;
use dsa_reference::norm::rms_norm;
use dsa_reference::quant::{ScaleFmt, act_quant, bf16_round, e4m3_decode, e4m3_encode};
use dsa_reference::rope::Pairing;
use dsa_reference::router::{RouterConfig, Routing};
use dsa_reference::swiglu::swiglu;
use dsa_reference::watch::Watch;
use dsa_reference::weight::Weight;
use ndarray::{Array1, Array2, Axis, array};

fn exact() -> Arithmetic {
    Arithmetic::exact(Pairing::HalfSplit)
}

fn network(random: &mut Random, hidden: usize, inner: usize) -> FeedForwardWeights {
    let mut matrix = |out, into| Weight::F32(random.array2(out, into) / (into as f32).sqrt());
    FeedForwardWeights {
        gate_proj: matrix(inner, hidden),
        up_proj: matrix(inner, hidden),
        down_proj: matrix(hidden, inner),
    }
}

/// Of width 1, and returns about `scale` for the input 1: silu(100) · 1 · scale / 100.
fn constant(scale: f32) -> FeedForwardWeights {
    let one = |x: f32| Weight::F32(array![[x]]);
    FeedForwardWeights { gate_proj: one(100.0), up_proj: one(1.0), down_proj: one(scale / 100.0) }
}

#[test]
fn swiglu_is_rounded_once() {
    let y = swiglu(array![[0.0, 1.0, -2.0]].view(), array![[5.0, 2.0, 3.0]].view(), &exact());
    assert!(worst(&y.unwrap(), &array![[0.0, 1.462_117_2, -0.715_217_5]]) < 1e-6);
    let mut random = Random::new(3);
    let bf16 = |x: Array2<f32>| x.mapv(bf16_round);
    let (gate, up) = (bf16(random.array2(20, 50)), bf16(random.array2(20, 50)));
    let run = |a: &Arithmetic| swiglu(gate.view(), up.view(), a).unwrap();
    let once = run(&Arithmetic::official());
    assert_eq!(once, bf16(run(&exact())));
    let silu = bf16(swiglu(gate.view(), Array2::ones((20, 50)).view(), &exact()).unwrap());
    assert_ne!(once, bf16(silu * &up), "rounded in between it is another function");
    let error = swiglu(gate.view(), up.t(), &exact()).unwrap_err().to_string();
    assert_eq!(error, "up has shape [50, 20], expected [20, 50]");
    let far = swiglu(array![[-1e4f32, 1e4]].view(), array![[1.0, 1.0]].view(), &exact()).unwrap();
    assert_eq!(far, array![[0.0, 1e4]]);
    // silu(−1e4) is 0 to any precision, and yet not 0.
    let gates = array![[-1e4f32, -1.0, 3.0, 0.0, f32::NEG_INFINITY]];
    let infinite = swiglu(gates.view(), Array2::from_elem((1, 5), f32::INFINITY).view(), &exact());
    let infinite = infinite.unwrap();
    assert_eq!(
        infinite.as_slice().unwrap()[..3],
        [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY]
    );
    assert!(infinite[(0, 3)].is_nan() && infinite[(0, 4)].is_nan());
}

#[test]
fn the_norm_sees_the_sum_before_it_is_rounded() {
    let mut random = Random::new(4);
    let bf16 = |x: Array2<f32>| x.mapv(bf16_round);
    let (x, r) = (bf16(random.array2(9, 64)), bf16(random.array2(9, 64) * 30.0));
    let weight = random.array1(64);
    let run = |a: &Arithmetic| add_rms_norm(x.view(), r.view(), weight.view(), 1e-6, a).unwrap();
    let (y, residual) = run(&Arithmetic::official());
    assert_eq!(residual, bf16(&x + &r));
    assert_eq!(y, bf16(rms_norm((&x + &r).view(), weight.view(), 1e-6).unwrap()));
    assert_ne!(y, bf16(rms_norm(residual.view(), weight.view(), 1e-6).unwrap()));
    assert_ne!(residual, &x + &r, "the residual is rounded");
    let (y, residual) = run(&exact());
    assert_eq!(residual, &x + &r);
    assert_eq!(y, rms_norm(residual.view(), weight.view(), 1e-6).unwrap());
    let short = x.slice_axis(Axis(0), (1..).into());
    let error = add_rms_norm(x.view(), short, weight.view(), 1e-6, &exact()).unwrap_err();
    assert_eq!(error.to_string(), "residual has shape [8, 64], expected [9, 64]");
}

#[test]
fn experts_are_summed_by_ascending_number_in_f32_and_the_shared_one_comes_last() {
    let x = array![[1.0f32]];
    let scales = [1e8, 1.0, -1e8];
    let networks = scales.map(constant);
    let routing = |indices: [i32; 3]| Routing {
        indices: Array2::from_shape_vec((1, 3), indices.to_vec()).unwrap(),
        weights: Array2::ones((1, 3)),
    };
    let run = |indices| routed_experts(x.view(), &routing(indices), &networks, &exact()).unwrap();
    // (1e8 + 1) − 1e8 is 0 in f32; in any order that adds the 1 last it is 1.
    for indices in [[0, 1, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]] {
        assert_eq!(run(indices), array![[0.0]], "{indices:?}");
    }
    // Routed experts cancel before the shared one is added: 1e8 − 1e8 + 1.
    let weights = ExpertsWeights {
        gate: array![[0.0], [0.0]],
        bias: array![0.0, 0.0],
        experts: vec![constant(1e8), constant(-1e8)],
        shared: constant(1.0),
    };
    let config = RouterConfig {
        num_experts_per_tok: 2,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
    };
    let y = experts(x.view(), &weights, &config, &exact(), &mut Watch::none()).unwrap();
    assert!(worst(&y, &array![[1.0]]) < 1e-6);
    let wide = array![[1.0f32, 2.0]];
    let error = experts(wide.view(), &weights, &config, &exact(), &mut Watch::none())
        .unwrap_err()
        .to_string();
    assert_eq!(error, "gate.weight has shape [2, 1], expected [2, 2]");
}

#[test]
fn each_token_goes_to_its_experts_with_its_weights() {
    let mut random = Random::new(5);
    let networks: Vec<FeedForwardWeights> = (0..5).map(|_| network(&mut random, 8, 6)).collect();
    let x = random.array2(7, 8);
    // Nobody goes to expert 3, all go to expert 4.
    let indices =
        Array2::from_shape_fn((7, 2), |(t, slot)| if slot == 0 { 4 } else { t as i32 % 3 });
    let routing = Routing { indices, weights: random.array2(7, 2) };
    let y = routed_experts(x.view(), &routing, &networks, &exact()).unwrap();
    for t in 0..7 {
        let token = x.slice_axis(Axis(0), (t..t + 1).into());
        let mut sum = Array1::<f32>::zeros(8);
        for slot in 0..2 {
            let expert = &networks[routing.indices[(t, slot)] as usize];
            let out = feed_forward(token, expert, &exact()).unwrap();
            sum += &(&out.row(0) * routing.weights[(t, slot)]);
        }
        assert!(worst(y.row(t), &sum) < 1e-5);
    }
    for wrong in [-1, 5] {
        let mut routing = routing.clone();
        routing.indices[(6, 1)] = wrong;
        let error = routed_experts(x.view(), &routing, &networks, &exact()).unwrap_err();
        let expected = "expected at least 0 and below the number of experts";
        assert_eq!(error.to_string(), format!("expert is {wrong}, {expected}"));
    }
    let few = Routing { weights: Array2::zeros((7, 1)), ..routing };
    let error = routed_experts(x.view(), &few, &networks, &exact()).unwrap_err().to_string();
    assert_eq!(error, "weights has shape [7, 1], expected [7, 2]");
}

#[test]
fn the_sum_over_rows_in_the_order_of_the_experts_is_that_over_experts() {
    let mut random = Random::new(9);
    let networks: Vec<FeedForwardWeights> = (0..5).map(|_| network(&mut random, 8, 6)).collect();
    let (x, shared) = (random.array2(7, 8), random.array2(7, 8));
    // Nobody goes to expert 3; token 6 lists expert 4 twice.
    let indices = Array2::from_shape_fn((7, 3), |(t, slot)| [4, t as i32 % 3, 2][slot]);
    let mut routing = Routing { indices, weights: random.array2(7, 3) };
    routing.indices[(6, 1)] = 4;
    let Dispatch { order, ends } = dispatch(routing.indices.view(), 5);
    assert_eq!(ends[2..], [ends[2], ends[2], 21]);
    let expert = |pair: i32| routing.indices[(pair as usize / 3, pair as usize % 3)];
    assert!(order.windows(2).all(|two| (expert(two[0]), two[0]) < (expert(two[1]), two[1])));
    let mut y = Array2::zeros((21, 8));
    for (&pair, mut y) in order.iter().zip(y.rows_mut()) {
        let token = pair as usize / 3;
        let x = x.slice_axis(Axis(0), (token..token + 1).into());
        let out = feed_forward(x, &networks[expert(pair) as usize], &exact()).unwrap();
        y.assign(&out.row(0));
    }
    let dispatched = Dispatch { order, ends };
    let run = |routing: &Routing, shared| {
        combine(y.view(), &dispatched, routing, shared, &exact()).unwrap()
    };
    let expected = routed_experts(x.view(), &routing, &networks, &exact()).unwrap();
    assert_eq!(run(&routing, None), expected);
    assert_eq!(run(&routing, Some(shared.view())), expected + &shared);
    // What is no expert comes last and takes no part.
    let mut none = routing.clone();
    none.indices[(2, 0)] = -1;
    let without = dispatch(none.indices.view(), 5);
    assert_eq!((without.order[20], without.ends[4]), (6, 20));
    let few = Array2::zeros((20, 8));
    let error = combine(few.view(), &dispatched, &routing, None, &exact()).unwrap_err();
    assert_eq!(error.to_string(), "y has shape [20, 8], expected [21, 8]");
}

#[test]
fn a_network_is_two_products_and_a_swiglu() {
    let mut random = Random::new(6);
    let (w, x) = (network(&mut random, 12, 20), random.array2(4, 12));
    let m = |w: &Weight| w.dequantise().unwrap();
    let gate = linear(x.view(), m(&w.gate_proj).view());
    let inner = gate.mapv(|g| g / (1.0 + (-g).exp())) * linear(x.view(), m(&w.up_proj).view());
    let expected = linear(inner.view(), m(&w.down_proj).view());
    assert!(worst(&feed_forward(x.view(), &w, &exact()).unwrap(), &expected) < 1e-5);
    let narrow = x.slice_axis(Axis(1), (..11).into());
    let error = feed_forward(narrow, &w, &exact()).unwrap_err().to_string();
    assert_eq!(error, "gate_proj has shape [20, 12], expected [20, 11]");
}

#[test]
fn a_weight_in_8_bits_with_partial_last_blocks() {
    let mut random = Random::new(7);
    let (m, n, k) = (3, 200, 300);
    let codes = random.array2(n, k).mapv(|w| e4m3_encode(w * 100.0));
    let scale = Array2::from_shape_fn((2, 3), |(i, j)| 0.01 * (1 + i + 2 * j) as f32);
    let plain = Array2::from_shape_fn((n, k), |(i, j)| {
        e4m3_decode(codes[(i, j)]) * scale[(i / 128, j / 128)]
    });
    let w = Weight::Fp8 { codes: codes.clone(), scale: scale.clone() };
    assert_eq!(w.dequantise().unwrap(), plain);
    let x = random.array2(m, k);
    assert_eq!(w.linear("w", x.view(), n, &exact()).unwrap(), linear(x.view(), plain.view()));
    // In 8 bits: the activations too, and the result rounded.
    let official = w.linear("w", x.view(), n, &Arithmetic::official()).unwrap();
    let x8 = act_quant(x.view(), 128, ScaleFmt::Ue8m0).unwrap().dequantise();
    let expected = linear(x8.view(), plain.view());
    assert!(official.iter().all(|&y| y == bf16_round(y)));
    assert!(official.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0 + 1e-4));
    assert_ne!(official, linear(x.view(), plain.view()).mapv(bf16_round));
    let error = |w: &Weight, out| w.linear("w", x.view(), out, &exact()).unwrap_err().to_string();
    assert_eq!(error(&w, 201), "w has shape [200, 300], expected [201, 300]");
    let few = Weight::Fp8 { codes, scale: Array2::ones((1, 3)) };
    assert_eq!(error(&few, n), "weight_scale_inv has shape [1, 3], expected [2, 3]");
}

#[test]
fn an_embedding_is_a_row_of_the_table() {
    let table = array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
    let x = embedding(&[2, 0, 2], table.view()).unwrap();
    assert_eq!(x, array![[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]);
    let error = embedding(&[3], table.view()).unwrap_err().to_string();
    assert_eq!(error, "token id is 3, expected at least 0 and below vocab_size");
    assert_eq!(embedding(&[], table.view()).unwrap().dim(), (0, 2));
}
