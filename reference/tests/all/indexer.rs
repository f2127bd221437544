//! Index scores, from arrays and from pages.
use crate::random::{Random, worst};
use dsa_reference::cache_write::index_cache_pages;
use dsa_reference::indexer::{ScoreFn, indexer_logits, indexer_logits_paged};
use dsa_reference::quant::{ScaleFmt, act_quant, e4m3_decode};
use ndarray::{Array1, Array2, Array3, Array4, Axis, Slice, array};

const RELU: ScoreFn = ScoreFn::ReluWeighted;

#[test]
fn one_score_by_hand() {
    let q = Array3::from_shape_vec((1, 2, 2), vec![1.0, 2.0, -1.0, 0.0]).unwrap();
    let k = array![[3.0, 1.0], [-2.0, 0.5]];
    let (scale, w) = (array![0.5, 2.0], array![[10.0, -1.0]]);
    let score = |f| {
        let (q, k) = (q.view(), k.view());
        indexer_logits(q, k, scale.view(), w.view(), &[0], &[2], f).unwrap()
    };
    // Head 0 sees 5 and −1, head 1 sees −3 and 2.
    assert_eq!(score(RELU), array![[25.0, -4.0]]);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let expected = array![[
        0.5 * (10.0 * sigmoid(5.0) - sigmoid(-3.0)),
        2.0 * (10.0 * sigmoid(-1.0) - sigmoid(2.0)),
    ]];
    assert!(worst(&score(ScoreFn::SigmoidWeighted), &expected) < 1e-5);
}

#[test]
fn outside_the_range_is_minus_infinity_and_unread() {
    let q = Array3::ones((5, 1, 1));
    let k = array![[f32::NAN], [1.0], [2.0], [f32::NAN]];
    let (scale, w) = (array![f32::NAN, 1.0, 1.0, f32::NAN], Array2::ones((5, 1)));
    let (ks, ke) = ([1, 0, 2, 1, -7], [3, 0, 1, 2, 0]);
    let (k, scale, w) = (k.view(), scale.view(), w.view());
    let logits = indexer_logits(q.view(), k, scale, w, &ks, &ke, RELU).unwrap();
    let no = f32::NEG_INFINITY;
    let none = [no; 4];
    assert_eq!(logits, array![[no, 1.0, 2.0, no], none, none, [no, 1.0, no, no], none]);
    let whole = indexer_logits(q.view(), k, scale, w, &[i32::MIN; 5], &[i32::MAX; 5], RELU);
    assert!(whole.unwrap()[(0, 0)].is_nan(), "a NaN that is used comes out");
}

#[test]
fn closed_relus_give_an_exact_zero_and_nan_stays() {
    let q = Array3::from_elem((1, 2, 1), -1.0);
    let (k, scale, w) = (array![[1.0], [f32::NAN]], array![1.0, 1.0], array![[1.0, 2.0]]);
    let (k, scale, w) = (k.view(), scale.view(), w.view());
    let logits = indexer_logits(q.view(), k, scale, w, &[0], &[2], RELU).unwrap();
    assert_eq!(logits[(0, 0)], 0.0);
    assert!(logits[(0, 1)].is_nan());
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let q = Array3::ones((2, 1, 3));
    let (k, scale, w) = (Array2::ones((4, 3)), Array1::ones(4), Array2::ones((2, 1)));
    let (q, k, scale, w) = (q.view(), k.view(), scale.view(), w.view());
    assert!(indexer_logits(q, k, scale, w, &[0, 0], &[4, 4], RELU).is_ok());
    let error = indexer_logits(q, k, scale, w, &[0], &[4, 4], RELU).unwrap_err().to_string();
    assert_eq!(error, "ks has shape [1], expected [2]");
    assert!(indexer_logits(q, k.t(), scale, w, &[0, 0], &[4, 4], RELU).is_err());
    assert!(indexer_logits(q, k, scale, w.t(), &[0, 0], &[4, 4], RELU).is_err());
}

/// A paged cache and the keys that lie in it.
struct Paged {
    cache: Array2<u8>,
    table: Array2<i32>,
    keys: Vec<Array2<f32>>,
    scales: Vec<Array1<f32>>,
}

/// Keys for requests of the lengths `lens`, their pages shuffled, everything else NaN.
fn paged(random: &mut Random, lens: &[usize], page_size: usize) -> Paged {
    let d = 8;
    let width = page_size * (d + 4);
    let max_pages = lens.iter().max().unwrap().div_ceil(page_size) + 1;
    let n_pages = lens.len() * max_pages + 3;
    let mut free: Vec<usize> = (0..n_pages).collect();
    for i in (1..n_pages).rev() {
        free.swap(i, random.below(i + 1));
    }
    let mut cache = Array2::from_elem((n_pages, width), 0xff); // NaN codes and scales
    let mut table = Array2::from_elem((lens.len(), max_pages), i32::MAX);
    let (mut keys, mut scales) = (vec![], vec![]);
    for (request, &len) in lens.iter().enumerate() {
        let q = act_quant(random.array2(len, d).view(), d, ScaleFmt::Ue8m0).unwrap();
        let pages = index_cache_pages(q.codes.view(), q.scale.column(0), page_size);
        for (i, page) in pages.rows().into_iter().enumerate() {
            let at = free.pop().unwrap();
            table[(request, i)] = at as i32;
            cache.row_mut(at).assign(&page);
        }
        keys.push(q.codes.mapv(e4m3_decode));
        scales.push(q.scale.column(0).to_owned());
    }
    Paged { cache, table, keys, scales }
}

#[test]
fn pages_change_nothing() {
    let mut random = Random::new(1);
    let lens = [0, 1, 2, 64, 130];
    for page_size in [1, 2, 53, 61, 64, 69, 576] {
        let Paged { cache, table, keys, scales } = paged(&mut random, &lens, page_size);
        for next_n in [1, 2, 3] {
            let b = lens.len();
            let q = Array4::from_shape_simple_fn((b, next_n, 4, 8), || random.normal());
            let w = random.array2(b * next_n, 4);
            let ctx = lens.map(|l| l as i32);
            let (cache, table) = (cache.view(), table.view());
            let logits =
                indexer_logits_paged(q.view(), cache, page_size, w.view(), &ctx, table, 140, RELU)
                    .unwrap();
            for (request, &len) in lens.iter().enumerate() {
                let q = q.index_axis(Axis(0), request);
                let rows = request * next_n..(request + 1) * next_n;
                let w = w.slice_axis(Axis(0), Slice::from(rows));
                let ke: Vec<i32> =
                    (0..next_n).map(|i| (len + i + 1) as i32 - next_n as i32).collect();
                let (k, scale) = (keys[request].view(), scales[request].view());
                let flat = indexer_logits(q, k, scale, w, &vec![0; next_n], &ke, RELU).unwrap();
                for i in 0..next_n {
                    let row = logits.row(request * next_n + i);
                    assert_eq!(row.to_vec()[..len], flat.row(i).to_vec());
                    assert!(row.iter().skip(len).all(|&x| x == f32::NEG_INFINITY));
                }
            }
        }
    }
}

#[test]
fn a_page_that_does_not_exist_is_minus_infinity() {
    let codes = Array2::from_elem((6, 1), 0x38u8); // 1
    let cache = index_cache_pages(codes.view(), Array1::ones(6).view(), 2);
    let (q, w) = (Array4::ones((1, 1, 1, 1)), array![[1.0]]);
    let run = |table: Array2<i32>, ctx: i32, width| {
        let (q, w, table) = (q.view(), w.view(), table.view());
        indexer_logits_paged(q, cache.view(), 2, w, &[ctx], table, width, RELU)
    };
    let no = f32::NEG_INFINITY;
    assert_eq!(run(array![[2, -1, 0]], 6, 6).unwrap(), array![[1.0, 1.0, no, no, 1.0, 1.0]]);
    assert_eq!(run(array![[3, i32::MAX, i32::MIN]], 6, 6).unwrap(), array![[no; 6]]);
    assert_eq!(run(array![[1]], i32::MAX, 4).unwrap(), array![[1.0, 1.0, no, no]]);
    assert_eq!(run(array![[1]], i32::MIN, 2).unwrap(), array![[no, no]]);
    assert_eq!(run(Array2::zeros((1, 0)), 0, 2).unwrap(), array![[no, no]]);
    assert!(run(Array2::zeros((2, 1)), 1, 2).is_err());
}
