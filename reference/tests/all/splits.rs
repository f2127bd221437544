//! Merging splits, the fp8 cache, masks.
use crate::attention::{INF, TAU, assert_close, assert_no_key, sparse};
use crate::random::Random;
use dsa_reference::cache_write::KvRecord;
use dsa_reference::mask::{causal_mask, compose, index_mask};
use dsa_reference::sparse_attention::*;
use ndarray::{Array2, ArrayView2, Axis, Slice, array};

#[test]
fn splits_merge_to_the_whole() {
    let mut random = Random::new(7);
    let (q, kv) = (random.array3(3, 2, 8), random.array2(20, 8));
    let mut indices = Array2::from_shape_fn((3, 20), |(t, j)| ((t * 3 + j) % 20) as i32);
    indices.row_mut(1).fill(-1); // no key at all
    for j in 0..5 {
        indices[(2, j)] = -1; // none in the first split
    }
    let whole = sparse(&q, &kv, &indices, 6);
    let cut = |from: usize, to: usize| {
        sparse(&q, &kv, &indices.slice_axis(Axis(1), Slice::from(from..to)).to_owned(), 6)
    };
    let merged = merge_splits(&[cut(0, 5), cut(5, 6), cut(6, 20)]);
    assert_close(&merged, &whole);
    assert_no_key(&merged, 1);
    assert_eq!(merge_splits(std::slice::from_ref(&whole)).lse, whole.lse);
    assert_eq!(merge_splits(&[]).out.dim(), (0, 0, 0));
    let odd = sparse(&q, &kv, &indices, 3);
    assert!(merge_splits(&[whole, odd]).out.iter().all(|x| x.is_nan()));
}

#[test]
fn the_fp8_cache_is_attended_as_it_is_read() {
    let mut random = Random::new(8);
    let record = KvRecord { kv_lora_rank: 130, rope_dim: 6 };
    let (c, k_pe) = (random.array2(9, 130), random.array2(9, 6));
    let mut records = record.quantise_kv(c.view(), k_pe.view());
    let kv = record.dequantise_kv(records.view());
    records.row_mut(4).fill(0xff); // a slot nobody names
    let q = random.array3(2, 3, 136);
    let indices = array![[0, 8, -1, 9], [3, 2, i32::MAX, 1]];
    let paged = |records: ArrayView2<u8>| {
        sparse_mla_paged(q.view(), records, record, indices.view(), TAU, 130, None, None)
    };
    assert_eq!(paged(records.view()).unwrap(), sparse(&q, &kv, &indices, 130));
    let error = paged(Array2::zeros((9, 7)).view()).unwrap_err().to_string();
    assert_eq!(error, "records has shape [9, 7], expected [9, 150]");
}

#[test]
fn masks() {
    let no = -INF;
    assert_eq!(
        index_mask(array![[1, -1, 9], [i32::MIN, 0, 1]].view(), 2),
        array![[no, 0.0], [0.0, 0.0]]
    );
    assert_eq!(causal_mask(2, 1, 4), array![[0.0, 0.0, no, no], [0.0, 0.0, 0.0, no]]);
    let both = compose(array![[0.0, no, 0.0]].view(), array![[no, no, 0.0]].view()).unwrap();
    assert_eq!(both, array![[no, no, 0.0]]);
    assert!(compose(array![[0.0]].view(), array![[0.0, 0.0]].view()).is_err());
}
