//! The layer: absorbed against expanded, sparse against dense, and what each option does.
use crate::random::{Random, worst};
use dsa_reference::attention_layer::*;
use dsa_reference::quant::ScaleFmt;
use dsa_reference::rope::{Pairing, Yarn};
use ndarray::{Array1, Array2};

const OFF: Options = Options {
    pairing: Pairing::Interleaved,
    indexer_pairing: Pairing::HalfSplit,
    hadamard: false,
    index_fp8: false,
    kv_fp8: false,
    scale_fmt: ScaleFmt::Ue8m0,
};

fn config(index_topk: usize) -> AttentionConfig {
    AttentionConfig {
        hidden_size: 40,
        num_attention_heads: 3,
        q_lora_rank: 24,
        kv_lora_rank: 20,
        qk_nope_head_dim: 10,
        qk_rope_head_dim: 8,
        v_head_dim: 6,
        index_n_heads: 16,
        index_head_dim: 32,
        index_topk,
        rms_norm_eps: 1e-6,
        rope_theta: 10000.0,
        yarn: Some(Yarn {
            factor: 40.0,
            original_max_position_embeddings: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }),
    }
}

fn weights(random: &mut Random, c: &AttentionConfig) -> AttentionWeights {
    let mut matrix = |out: usize, into: usize| random.array2(out, into) / (into as f32).sqrt();
    let h = c.num_attention_heads;
    AttentionWeights {
        q_a_proj: matrix(c.q_lora_rank, c.hidden_size),
        q_a_layernorm: Array1::ones(c.q_lora_rank),
        q_b_proj: matrix(h * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.q_lora_rank),
        kv_a_proj_with_mqa: matrix(c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size),
        kv_a_layernorm: Array1::ones(c.kv_lora_rank),
        kv_b_proj: matrix(h * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        o_proj: matrix(c.hidden_size, h * c.v_head_dim),
        indexer: IndexerWeights {
            wq_b: matrix(c.index_n_heads * c.index_head_dim, c.q_lora_rank),
            wk: matrix(c.index_head_dim, c.hidden_size),
            k_norm_weight: Array1::ones(c.index_head_dim),
            k_norm_bias: Array1::from_elem(c.index_head_dim, 0.1),
            weights_proj: matrix(c.index_n_heads, c.hidden_size),
        },
    }
}

fn make(s: usize, index_topk: usize) -> (AttentionConfig, AttentionWeights, Array2<f32>) {
    let mut random = Random::new(1);
    let c = config(index_topk);
    (c.clone(), weights(&mut random, &c), random.array2(s, c.hidden_size))
}

#[test]
fn absorbed_is_expanded() {
    let (c, w, x) = make(50, 8);
    for options in [OFF, Options::default()] {
        let absorbed = attention(x.view(), &c, &w, &options, Mode::Dense).unwrap();
        let expanded = attention_expanded(x.view(), &c, &w, &options).unwrap();
        assert!(worst(&absorbed, &expanded) < 1e-5);
        assert!(absorbed.iter().any(|x| x.abs() > 0.1));
    }
}

#[test]
fn sparse_is_dense_while_there_are_no_more_than_topk_keys() {
    let (c, w, x) = make(50, 20);
    let run = |mode| attention(x.view(), &c, &w, &Options::default(), mode).unwrap();
    let (sparse, dense) = (run(Mode::Sparse), run(Mode::Dense));
    for t in 0..50 {
        let difference = worst(sparse.row(t), dense.row(t));
        assert!(
            if t < 20 { difference == 0.0 } else { difference > 1e-4 },
            "row {t}: {difference}"
        );
    }
}

#[test]
fn selection_is_causal_and_full() {
    let (c, w, x) = make(50, 20);
    let indices = indexer_topk(x.view(), &c, &w, &Options::default()).unwrap();
    for (t, row) in indices.rows().into_iter().enumerate() {
        let keys = row.iter().take_while(|&&n| n >= 0).count();
        assert_eq!(keys, 20.min(t + 1));
        assert!(row.iter().take(keys).is_sorted());
        assert!(row.iter().all(|&n| n <= t as i32));
        assert!(row.iter().skip(keys).all(|&n| n == -1));
    }
    // A later token changes nothing before it.
    let short = x.slice_axis(ndarray::Axis(0), ndarray::Slice::from(..30));
    let before = indexer_topk(short, &c, &w, &Options::default()).unwrap();
    assert_eq!(before, indices.slice_axis(ndarray::Axis(0), ndarray::Slice::from(..30)));
}

#[test]
fn hadamard_alone_is_neutral_and_pairing_is_not() {
    let (c, w, x) = make(60, 16);
    let select = |options: Options| indexer_topk(x.view(), &c, &w, &options).unwrap();
    let plain = select(OFF);
    let same = |other: &Array2<i32>| {
        plain.rows().into_iter().zip(other.rows()).filter(|(a, b)| a == b).count()
    };
    let hadamard = select(Options { hadamard: true, ..OFF });
    assert!(same(&hadamard) >= 58, "only a tie may fall otherwise: {}", same(&hadamard));
    let interleaved = select(Options { indexer_pairing: Pairing::Interleaved, ..OFF });
    assert!(same(&interleaved) < 50, "{}", same(&interleaved));
    let fp8 = select(Options { index_fp8: true, ..OFF });
    let shared =
        |t: usize| fp8.row(t).iter().filter(|&n| plain.row(t).iter().any(|m| m == n)).count();
    let mean = (16..60).map(shared).sum::<usize>() as f32 / 44.0;
    assert!((14.0..16.0).contains(&mean), "8 bits move a few choices: {mean} of 16 stay");
}

#[test]
fn fp8_latents_move_the_result_a_little() {
    let (c, w, x) = make(50, 8);
    let run = |options| attention(x.view(), &c, &w, &options, Mode::Dense).unwrap();
    let difference = worst(&run(OFF), &run(Options { kv_fp8: true, ..OFF }));
    assert!((1e-4..0.2).contains(&difference), "{difference}");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let (c, w, x) = make(3, 4);
    let run = |c: &AttentionConfig, w: &AttentionWeights| {
        let error = |r: dsa_reference::Result<_>| r.unwrap_err().to_string();
        let options = Options::default();
        assert!(indexer_topk(x.view(), c, w, &options).is_err());
        assert!(attention_expanded(x.view(), c, w, &options).is_err());
        error(attention(x.view(), c, w, &options, Mode::Sparse))
    };
    let broken = AttentionWeights { o_proj: Array2::zeros((1, 2)), ..w.clone() };
    assert_eq!(run(&c, &broken), "o_proj has shape [1, 2], expected [40, 18]");
    let wide = AttentionConfig { hidden_size: 41, ..c.clone() };
    assert_eq!(run(&wide, &w), "x has shape [3, 40], expected [3, 41]");
    let huge = AttentionConfig { num_attention_heads: usize::MAX, ..c.clone() };
    assert!(run(&huge, &w).starts_with("q_b_proj has shape [54, 24]"));
    // Sizes that fit the weights and contradict each other.
    let odd = AttentionConfig { qk_nope_head_dim: 11, qk_rope_head_dim: 7, ..c.clone() };
    let mut random = Random::new(2);
    assert_eq!(run(&odd, &weights(&mut random, &odd)), "qk_rope_head_dim is 7, expected even");
    let narrow = AttentionConfig { index_head_dim: 4, ..c.clone() };
    let message = "index_head_dim is 4, expected at least qk_rope_head_dim";
    assert_eq!(run(&narrow, &weights(&mut random, &narrow)), message);
}

#[test]
fn an_empty_sequence() {
    let (c, w, x) = make(0, 4);
    let y = attention(x.view(), &c, &w, &Options::default(), Mode::Sparse).unwrap();
    assert_eq!(y.dim(), (0, 40));
    let expanded = attention_expanded(x.view(), &c, &w, &Options::default()).unwrap();
    assert_eq!(expanded.dim(), (0, 40));
}

#[test]
fn any_keys_may_be_attended_to_by_the_last_tokens() {
    let (c, w, x) = make(50, 8);
    let absorbed = Absorbed::new(x.view(), &c, &w, &OFF).unwrap();
    let keys = indexer_topk(x.view(), &c, &w, &OFF).unwrap();
    let all = attention(x.view(), &c, &w, &OFF, Mode::Sparse).unwrap();
    let last = |n: usize| keys.slice_axis(ndarray::Axis(0), ndarray::Slice::from(50 - n..));
    for n in [50, 3, 1] {
        let got = absorbed.sparse(last(n), &c, &w).unwrap();
        assert_eq!(got, all.slice_axis(ndarray::Axis(0), ndarray::Slice::from(50 - n..)));
    }
    let every = Array2::from_shape_fn((50, 50), |(t, n)| if n <= t { n as i32 } else { -1 });
    let dense = attention(x.view(), &c, &w, &OFF, Mode::Dense).unwrap();
    assert!(worst(&absorbed.sparse(every.view(), &c, &w).unwrap(), &dense) < 1e-6);
    let many = Array2::from_elem((51, 1), 0);
    assert!(absorbed.sparse(many.view(), &c, &w).is_err());
}

#[test]
fn records_round_the_latent_and_the_rotary_key() {
    let (c, w, x) = make(20, 8);
    let exact = Absorbed::new(x.view(), &c, &w, &OFF).unwrap();
    let rounded = exact.through_records(&c);
    assert_eq!(rounded.q, exact.q);
    let rank = c.kv_lora_rank;
    for ((t, i), value) in rounded.kv.indexed_iter() {
        let (error, size) = ((value - exact.kv[(t, i)]).abs(), exact.kv[(t, i)].abs());
        // e4m3 has 3 bits behind its first, and a step of 2^-9 of the block's scale near 0; bf16 has 7.
        let allowed = if i < rank { size / 16.0 + 1e-4 } else { size / 256.0 };
        assert!(error <= allowed, "{t} {i}: {error} of {size}");
    }
    assert!(rounded.kv != exact.kv);
    // What went through a latent of ue8m0 already is not rounded again, but for the rotary key.
    let official = Absorbed::new(x.view(), &c, &w, &Options::default()).unwrap();
    let again = official.through_records(&c);
    for t in 0..20 {
        assert!((0..rank).all(|i| again.kv[(t, i)] == official.kv[(t, i)]), "token {t}");
    }
}

#[test]
fn pairing_and_scales_of_the_attention_decide() {
    let (c, w, x) = make(50, 8);
    let run = |options: &Options| attention(x.view(), &c, &w, options, Mode::Dense).unwrap();
    let half = Options { pairing: Pairing::HalfSplit, ..OFF };
    assert!(worst(&run(&OFF), &run(&half)) > 0.01);
    let free = Options { scale_fmt: ScaleFmt::Plain, ..Options::default() };
    let (free, powers) = (run(&free), run(&Options::default()));
    let difference = worst(&free, &powers);
    assert!(difference > 1e-4 && difference < 0.2, "{difference}");
}
