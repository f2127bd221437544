//! Forms and inputs of attention, sparse and dense.

use super::form::{D_QK, Exactly, Forms, KV_LORA_RANK, Model, PAGE, ROPE_DIM, TOPK};
use super::{Fill, Rng, extreme, float, gap, index_lists, poison_unused, ranges, tensor};
use crate::case::{Case, HostTensor};
use dsa_kernels::DType;
use dsa_reference::cache_write::KvRecord;
use ndarray::Array2;
use proptest::prelude::*;

const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];

/// One row is key and value: its infinities make its score one.
const ANY_ROWS: extreme::Rows = extreme::Rows { scaled: true, special: true };

/// What may be given or left out, each a choice of code.
#[derive(Clone, Copy, Debug)]
struct Options {
    lengths: bool,
    sinks: bool,
    splits: Option<usize>,
    strided: &'static str,
}

fn one_in_three() -> impl Strategy<Value = bool> {
    proptest::sample::select(&[false, false, true][..])
}

fn splits() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (1usize..6).prop_map(Some)]
}

fn options() -> impl Strategy<Value = Options> {
    (one_in_three(), one_in_three(), splits(), gap())
        .prop_map(|(lengths, sinks, splits, strided)| Options { lengths, sinks, splits, strided })
}

impl Options {
    /// `case` with these options, its lists being of `topk` entries.
    fn of(&self, mut case: Case, rng: &mut Rng, s: usize, heads: usize, topk: usize) -> Case {
        if self.lengths {
            let lengths: Vec<i32> = (0..s)
                .map(|_| match rng.below(8) {
                    0 => rng.choose(&[-1, i32::MIN, i32::MAX, 0]),
                    _ => rng.below(topk + 2) as i32,
                })
                .collect();
            case = case.with("topk_length", HostTensor::i32(&[s], &lengths));
        }
        if self.sinks {
            let sinks: Vec<f32> = (0..heads)
                .map(|_| match rng.below(4) {
                    0 => rng.choose(&[f32::INFINITY, f32::NEG_INFINITY]),
                    _ => rng.normal(),
                })
                .collect();
            case = case.with("attn_sink", HostTensor::new(DType::F32, &[heads], &sinks));
        }
        self.split(case)
    }

    /// `case` with these splits and strides.
    fn split(&self, case: Case) -> Case {
        let case = match self.splits {
            Some(splits) => case.set("splits", splits),
            None => case,
        };
        case.set("strided", self.strided)
    }
}

/// Entries of a model's list: now and then all that there are, which takes the reference a second.
fn topk() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 33usize..200, 1 => Exactly(TOPK)]
}

#[derive(Clone, Debug)]
struct Sparse {
    s: usize,
    heads: usize,
    s_kv: usize,
    topk: usize,
    d_qk: usize,
    d_v: usize,
    dtype: DType,
    /// Whether the rows are in pages of three, if they divide.
    pages: bool,
    options: Options,
}

pub(super) fn sparse_mla() -> Forms {
    let form =
        |((s, heads, s_kv, topk), d_qk, d_v, dtype, pages, options): (_, usize, usize, _, _, _)| {
            Sparse { s, heads, s_kv, topk, d_qk, d_v: d_v.min(d_qk), dtype, pages, options }
        };
    let sizes = (0usize..4, 1usize..=40, 1usize..90, 1usize..150);
    let random =
        (sizes, 1usize..100, 1usize..=80, float(), any::<bool>(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), 33usize..200, topk());
        let (d_qk, d_v) = (Exactly(D_QK), Exactly(KV_LORA_RANK));
        (sizes, d_qk, d_v, float(), any::<bool>(), options()).prop_map(form)
    };
    Forms::new(random, production, |form: &Sparse, rng| {
        let (s, s_kv, topk, d_qk) = (form.s, form.s_kv, form.topk, form.d_qk);
        let fill = rng.choose(&FILLS);
        let indices = index_lists(rng, s, topk, s_kv);
        let mut kv = tensor(rng, form.dtype, &[s_kv, d_qk], fill);
        let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], fill);
        if rng.one_in(4) {
            q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
            kv = extreme::keys(rng, form.dtype, &[s_kv, d_qk], ANY_ROWS);
        }
        poison_unused(&mut kv, d_qk, &indices);
        if form.pages && s_kv.is_multiple_of(3) {
            kv.shape = vec![s_kv / 3, 3, d_qk];
        }
        let case = Case::new("sparse_mla")
            .with("q", q)
            .with("kv", kv)
            .with("indices", HostTensor::i32(&[s, topk], &indices))
            .set("d_v", form.d_v)
            .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
        form.options.of(case, rng, s, form.heads, topk)
    })
}

#[derive(Clone, Debug)]
struct SparsePaged {
    s: usize,
    heads: usize,
    rank: usize,
    half_rope: usize,
    page_size: usize,
    n_pages: usize,
    topk: usize,
    dtype: DType,
    options: Options,
}

pub(super) fn sparse_mla_paged() -> Forms {
    let form = |((s, heads, topk), rank, half_rope, (page_size, n_pages), dtype, options)| {
        SparsePaged { s, heads, rank, half_rope, page_size, n_pages, topk, dtype, options }
    };
    let small = (proptest::sample::select(&[1usize, 2][..]), 1usize..41);
    let large = (proptest::sample::select(&[53usize, 61, 64, 69][..]), 1usize..3);
    // One latent in four is of whole vectors, and its rope part begins at one too: the record is read in
    // vectors then.
    let rank = prop_oneof![
        3 => 1usize..150,
        1 => proptest::sample::select(&[136usize, 144, 264][..]),
    ];
    let half_rope = prop_oneof![0usize..10, proptest::sample::select(&[4usize, 8][..])];
    let sizes = (0usize..3, 1usize..20, 1usize..100);
    let pages = prop_oneof![small, large];
    let random = (sizes, rank, half_rope, pages, float(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), topk());
        let (rank, half_rope) = (Exactly(KV_LORA_RANK), Exactly(ROPE_DIM / 2));
        let pages = (Exactly(PAGE), 1usize..4);
        (sizes, rank, half_rope, pages, float(), options()).prop_map(form)
    };
    Forms::new(random, production, sparse_paged_case)
}

fn sparse_paged_case(form: &SparsePaged, rng: &mut Rng) -> Case {
    let (s, rank, rope_dim, topk) = (form.s, form.rank, 2 * form.half_rope, form.topk);
    let record = KvRecord { kv_lora_rank: rank, rope_dim };
    let n = form.n_pages * form.page_size;
    let array = |rng: &mut Rng, cols: usize| Array2::from_shape_fn((n, cols), |_| rng.normal());
    let (mut c, mut k_pe) = (array(rng, rank), array(rng, rope_dim));
    let d_qk = rank + rope_dim;
    let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], Fill::Normal);
    let far = rng.one_in(4);
    if far {
        // Whole numbers times a power of two are fp8 codes times a scale.
        q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
        let kv = extreme::keys(rng, form.dtype, &[n, d_qk], ANY_ROWS).to_f32();
        c = Array2::from_shape_fn((n, rank), |(row, i)| kv[row * d_qk + i]);
        k_pe = Array2::from_shape_fn((n, rope_dim), |(row, i)| kv[row * d_qk + rank + i]);
    }
    let records = record.quantise_kv(c.view(), k_pe.view());
    let indices = index_lists(rng, s, topk, n);
    let bytes: Vec<u8> = records.iter().copied().collect();
    let shape = [form.n_pages, form.page_size * record.bytes()];
    let mut cache = HostTensor::u8(&shape, bytes);
    poison_unused(&mut cache, record.bytes(), &indices);
    // Scales that are no powers of two must be multiplied exactly too (FlashMLA #184), each block's own.
    if !far && rng.one_in(2) {
        for index in indices.iter().filter(|i| **i >= 0 && (**i as usize) < n) {
            for block in 0..rank.div_ceil(128) {
                let at = *index as usize * record.bytes() + rank + 4 * block;
                let scale = 0.01 + 0.02 * rng.unit();
                cache.bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
    let case = Case::new("sparse_mla_paged")
        .with("q", q)
        .with("cache", cache)
        .with("indices", HostTensor::i32(&[s, topk], &indices))
        .set("kv_lora_rank", rank)
        .set("page_size", form.page_size)
        .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
    form.options.of(case, rng, s, form.heads, topk)
}

#[derive(Clone, Debug)]
struct Mha {
    s: usize,
    s_kv: usize,
    heads: usize,
    d_qk: usize,
    d_v: usize,
    dtype: DType,
    strided: &'static str,
}

pub(super) fn dense_mha() -> Forms {
    let form = |((s, s_kv), heads, d_qk, d_v, dtype, strided)| Mha {
        s,
        s_kv,
        heads,
        d_qk,
        d_v,
        dtype,
        strided,
    };
    let sizes = (0usize..40, 0usize..100);
    let random = (sizes, 1usize..6, 1usize..70, 1usize..70, float(), gap()).prop_map(form);
    let production = move |model: Model| {
        let (d_qk, d_v) = model.expanded();
        let sizes = (1usize..5, 1usize..60);
        (sizes, Exactly(model.heads()), Exactly(d_qk), Exactly(d_v), float(), gap()).prop_map(form)
    };
    Forms::new(random, production, |form: &Mha, rng| {
        let (s, s_kv, heads, d_qk) = (form.s, form.s_kv, form.heads, form.d_qk);
        let fill = rng.choose(&FILLS);
        let (ks, ke) = ranges(rng, s, s_kv);
        let mut q = tensor(rng, form.dtype, &[s, heads, d_qk], fill);
        let mut k = tensor(rng, form.dtype, &[s_kv, heads, d_qk], fill);
        let mut v = tensor(rng, form.dtype, &[s_kv, heads, form.d_v], fill);
        if rng.one_in(4) {
            // An infinite value times a probability too small for f32 is 0 or inf by the order of keys: where
            // values are infinite, scores are not far apart.
            let scaled = rng.one_in(2);
            let values = extreme::Rows { scaled, special: !scaled };
            q = extreme::queries(rng, form.dtype, &[s, heads, d_qk], 1.0);
            let keys = extreme::Rows { scaled, special: true };
            k = extreme::keys(rng, form.dtype, &[s_kv, heads, d_qk], keys);
            v = extreme::keys(rng, form.dtype, &[s_kv, heads, form.d_v], values);
        }
        Case::new("dense_mha")
            .with("q", q)
            .with("k", k)
            .with("v", v)
            .with("ks", ks)
            .with("ke", ke)
            .set("softmax_scale", 1.0 / (d_qk as f32).sqrt())
            .set("strided", form.strided)
    })
}

#[derive(Clone, Debug)]
struct Mla {
    s: usize,
    s_kv: usize,
    heads: usize,
    d_qk: usize,
    d_v: usize,
    dtype: DType,
    options: Options,
}

pub(super) fn dense_mla() -> Forms {
    let form = |((s, s_kv), heads, d_qk, d_v, dtype, options): (_, _, usize, usize, _, _)| Mla {
        s,
        s_kv,
        heads,
        d_qk,
        d_v: d_v.min(d_qk),
        dtype,
        options,
    };
    let options = || {
        (splits(), gap()).prop_map(|(splits, strided)| Options {
            lengths: false,
            sinks: false,
            splits,
            strided,
        })
    };
    let sizes = (0usize..4, 0usize..150);
    let random = (sizes, 1usize..40, 1usize..100, 1usize..100, float(), options()).prop_map(form);
    let production = move |model: Model| {
        let (d_qk, d_v) = (Exactly(D_QK), Exactly(KV_LORA_RANK));
        let sizes = (1usize..3, 1usize..200);
        (sizes, Exactly(model.heads()), d_qk, d_v, float(), options()).prop_map(form)
    };
    Forms::new(random, production, |form: &Mla, rng| {
        let (s, s_kv, d_qk) = (form.s, form.s_kv, form.d_qk);
        let fill = rng.choose(&FILLS);
        let (ks, ke) = ranges(rng, s, s_kv);
        let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], fill);
        let mut kv = tensor(rng, form.dtype, &[s_kv, d_qk], fill);
        if rng.one_in(4) {
            q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
            kv = extreme::keys(rng, form.dtype, &[s_kv, d_qk], ANY_ROWS);
        }
        let case = Case::new("dense_mla")
            .with("q", q)
            .with("kv", kv)
            .with("ks", ks)
            .with("ke", ke)
            .set("d_v", form.d_v)
            .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
        form.options.split(case)
    })
}
