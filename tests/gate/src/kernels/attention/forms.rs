//! How cases of absorbed attention are drawn: their sizes, their options, rows and records.

use super::*;

pub(in crate::kernels) const FILLS: [Fill; 3] = [Fill::Normal, Fill::Tenth, Fill::Ties];

/// One row is key and value: its infinities make its score one.
pub(in crate::kernels) const ANY_ROWS: extreme::Rows =
    extreme::Rows { scaled: true, special: true };

/// What may be given or left out, each a choice of code.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Options {
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

pub(in crate::kernels) fn options() -> impl Strategy<Value = Options> {
    (one_in_three(), one_in_three(), splits(), gap())
        .prop_map(|(lengths, sinks, splits, strided)| Options { lengths, sinks, splits, strided })
}

impl Options {
    /// `case` with these options, its lists, if it has any, being of `topk` entries.
    pub fn of(&self, mut case: Case, rng: &mut Rng, topk: Option<usize>) -> Case {
        let shape = paths::shape(&case, "q").to_vec();
        if let (true, Some(topk)) = (self.lengths, topk) {
            let lengths: Vec<i32> = (0..shape[0])
                .map(|_| match rng.below(8) {
                    0 => rng.choose(&[-1, i32::MIN, i32::MAX, 0]),
                    _ => rng.below(topk + 2) as i32,
                })
                .collect();
            case = case.with("topk_length", vector(&lengths));
        }
        if self.sinks {
            let sinks: Vec<f32> = (0..shape[1])
                .map(|_| match rng.below(4) {
                    0 => rng.choose(&[f32::INFINITY, f32::NEG_INFINITY]),
                    _ => rng.normal(),
                })
                .collect();
            case = case.with("attn_sink", HostTensor::new(DType::F32, &[shape[1]], &sinks));
        }
        let case = match self.splits {
            Some(splits) => case.set("splits", splits),
            None => case,
        };
        case.set("strided", self.strided)
    }
}

/// Entries of a model's list: now and then all that there are, which takes the reference a second.
pub(in crate::kernels) fn topk() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 33usize..200, 1 => Exactly(v32::TOPK)]
}

/// Rows of elements, in one piece or in pages.
#[derive(Clone, Debug)]
pub(in crate::kernels) struct OfRows {
    pub s: usize,
    pub heads: usize,
    pub s_kv: usize,
    /// Entries of a list, where keys are listed.
    pub topk: usize,
    pub d_qk: usize,
    pub d_v: usize,
    pub dtype: DType,
    /// Whether the rows are in pages of three, if they divide.
    pub pages: bool,
    pub options: Options,
}

/// Forms of rows of elements, whose small `sizes` are `(s, heads, s_kv, topk)`.
pub(in crate::kernels) fn forms_of_rows<S>(
    kernel: &'static str,
    of: Of,
    sizes: S,
    d: usize,
) -> Forms
where
    S: Strategy<Value = (usize, usize, usize, usize)> + 'static,
{
    let form =
        |((s, heads, s_kv, topk), d_qk, d_v, dtype, pages, options): (_, usize, usize, _, _, _)| {
            OfRows { s, heads, s_kv, topk, d_qk, d_v: d_v.min(d_qk), dtype, pages, options }
        };
    let random = (sizes, 1usize..100, 1usize..=d, float(), any::<bool>(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), 33usize..200, topk());
        let (d_qk, d_v) = (Exactly(v32::D_QK), Exactly(v32::KV_LORA_RANK));
        (sizes, d_qk, d_v, float(), any::<bool>(), options()).prop_map(form)
    };
    Forms::new(random, production, move |form: &OfRows, rng| case_of_rows(kernel, of, form, rng))
}

fn case_of_rows(kernel: &str, of: Of, form: &OfRows, rng: &mut Rng) -> Case {
    let (s, s_kv, d_qk) = (form.s, form.s_kv, form.d_qk);
    let fill = rng.choose(&FILLS);
    let (case, used) = keys(Case::new(kernel), of, rng, [s, form.topk, s_kv]);
    let mut kv = tensor(rng, form.dtype, &[s_kv, d_qk], fill);
    let mut q = tensor(rng, form.dtype, &[s, form.heads, d_qk], fill);
    if rng.one_in(4) {
        q = extreme::queries(rng, form.dtype, &[s, form.heads, d_qk], 1.0);
        kv = extreme::keys(rng, form.dtype, &[s_kv, d_qk], ANY_ROWS);
    }
    if form.d_v < FEW_COLUMNS {
        make_positive(&mut kv, form.d_v);
    }
    poison_unused(&mut kv, d_qk, &used);
    if form.pages && s_kv.is_multiple_of(3) {
        kv.shape = vec![s_kv / 3, 3, d_qk];
    }
    let case = case
        .with("q", q)
        .with("kv", kv)
        .set("d_v", form.d_v)
        .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
    form.options.of(case, rng, of.listed.then_some(form.topk))
}

/// `case` with lists or ranges of `s` tokens, and the rows of `s_kv` that one of them names.
fn keys(case: Case, of: Of, rng: &mut Rng, [s, topk, s_kv]: [usize; 3]) -> (Case, Vec<i32>) {
    if of.listed {
        let indices = index_lists(rng, s, topk, s_kv);
        return (case.with("indices", HostTensor::i32(&[s, topk], &indices)), indices);
    }
    let (ks, ke) = ranges(rng, s, s_kv);
    let (starts, ends) = (ks.to_i32(), ke.to_i32());
    let seen = |n: &i32| starts.iter().zip(&ends).any(|(start, end)| start <= n && n < end);
    let used = (0..s_kv as i32).filter(seen).collect();
    (case.with("ks", ks).with("ke", ke), used)
}

#[derive(Clone, Debug)]
pub(in crate::kernels) struct OfRecords {
    s: usize,
    heads: usize,
    rank: usize,
    half_rope: usize,
    page_size: usize,
    n_pages: usize,
    /// Entries of a list, where keys are listed.
    topk: usize,
    /// Columns that are the value, if not those of the latent.
    d_v: Option<usize>,
    dtype: DType,
    options: Options,
}

/// Forms of records.
pub(in crate::kernels) fn forms_of_records(kernel: &'static str, of: Of) -> Forms {
    let form = |((s, heads, topk, d_v), rank, half_rope, (page_size, n_pages), dtype, options)| {
        OfRecords { s, heads, rank, half_rope, page_size, n_pages, topk, d_v, dtype, options }
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
    let d_v = prop_oneof![2 => Just(None), 1 => (1usize..150).prop_map(Some)];
    let sizes = (0usize..3, 1usize..20, 1usize..100, d_v);
    let pages = prop_oneof![small, large];
    let random = (sizes, rank, half_rope, pages, float(), options()).prop_map(form);
    let production = move |model: Model| {
        let sizes = (1usize..3, Exactly(model.heads()), topk(), Just(None));
        let (rank, half_rope) = (Exactly(v32::KV_LORA_RANK), Exactly(v32::ROPE_DIM / 2));
        let pages = (Exactly(v32::PAGE), 1usize..4);
        (sizes, rank, half_rope, pages, float(), options()).prop_map(form)
    };
    Forms::new(random, production, move |form: &OfRecords, rng| {
        case_of_records(kernel, of, form, rng)
    })
}

fn case_of_records(kernel: &str, of: Of, form: &OfRecords, rng: &mut Rng) -> Case {
    let (s, rank, rope_dim, topk) = (form.s, form.rank, 2 * form.half_rope, form.topk);
    let record = reference::cache_write::KvRecord { kv_lora_rank: rank, rope_dim };
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
    if form.d_v.unwrap_or(rank).min(d_qk) < FEW_COLUMNS {
        c.mapv_inplace(f32::abs);
    }
    let records = record.quantise_kv(c.view(), k_pe.view());
    let (case, used) = keys(Case::new(kernel), of, rng, [s, topk, n]);
    let bytes: Vec<u8> = records.iter().copied().collect();
    let shape = [form.n_pages, form.page_size * record.bytes()];
    let mut cache = HostTensor::u8(&shape, bytes);
    poison_unused(&mut cache, record.bytes(), &used);
    // Scales that are no powers of two must be multiplied exactly too (FlashMLA #184), each block's own.
    if !far && rng.one_in(2) {
        for index in used.iter().filter(|i| **i >= 0 && (**i as usize) < n) {
            for block in 0..rank.div_ceil(128) {
                let at = *index as usize * record.bytes() + rank + 4 * block;
                let scale = 0.01 + 0.02 * rng.unit();
                cache.bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
    let case = case
        .with("q", q)
        .with("cache", cache)
        .set("kv_lora_rank", rank)
        .set("page_size", form.page_size)
        .set("softmax_scale", 1.0 / (d_qk as f32).sqrt());
    let case = match form.d_v {
        Some(d_v) => case.set("d_v", d_v.min(d_qk)),
        None => case,
    };
    form.options.of(case, rng, of.listed.then_some(topk))
}
