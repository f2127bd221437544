//! e4m3, scales, cache layouts.
use crate::random::Random;
use dsa_reference::cache_write::*;
use dsa_reference::quant::*;
use ndarray::{Array2, array};

#[test]
fn every_code_survives_decoding_and_encoding() {
    for code in 0..=255u8 {
        assert_eq!(e4m3_encode(e4m3_decode(code)), code, "code {code:#x}");
        assert_eq!(e4m3_decode(code).is_nan(), code & 0x7f == 0x7f);
        assert_eq!(e4m3_decode(code).is_sign_negative(), code & 0x80 != 0);
    }
    assert_eq!(e4m3_decode(0x7e), 448.0);
    assert_eq!(e4m3_decode(0x38), 1.0);
    assert_eq!(e4m3_decode(0x01), 2f32.powi(-9));
    assert_eq!(e4m3_decode(0x08), 2f32.powi(-6));
}

#[test]
fn a_tie_goes_to_the_even_code_and_its_neighbours_to_the_nearer() {
    for code in 0..0x7eu8 {
        let (low, high) = (e4m3_decode(code), e4m3_decode(code + 1));
        let middle = (low + high) / 2.0; // exact
        assert_eq!(e4m3_encode(middle), code + (code & 1), "between {low} and {high}");
        assert_eq!(e4m3_encode(middle.next_down()), code);
        assert_eq!(e4m3_encode(middle.next_up()), code + 1);
        assert_eq!(e4m3_encode(-middle), 0x80 | (code + (code & 1)));
    }
}

#[test]
fn beyond_the_largest_number_it_saturates() {
    for x in [448.0, 449.0, 463.9, 464.0, 480.0, 512.0, 1e9, f32::MAX, f32::INFINITY] {
        assert_eq!(e4m3_encode(x), 0x7e, "{x}");
        assert_eq!(e4m3_encode(-x), 0xfe, "{x}");
    }
    assert_eq!(e4m3_encode(f32::NAN.copysign(1.0)), 0x7f);
    assert_eq!(e4m3_encode(f32::NAN.copysign(-1.0)), 0xff);
    assert_eq!(e4m3_encode(-0.0), 0x80);
    assert_eq!(e4m3_encode(f32::MIN_POSITIVE), 0);
    assert_eq!(e4m3_encode(f32::from_bits(1)), 0);
}

#[test]
fn golden_ue8m0_scales() {
    let table = [
        (0.0, -22),
        (1e-4, -22),
        (1e-3, -18),
        (0.1, -12),
        (0.4375, -10),
        (0.5, -9),
        (0.875, -9),
        (1.0, -8),
        (1.75, -8),
        (1.75f32.next_up(), -7),
        (3.5, -7),
        (448.0, 0),
        (449.0, 1),
        (896.0, 1),
        (1000.0, 2),
    ];
    for (amax, e) in table {
        for x in [amax, -amax] {
            let q = act_quant(array![[0.0, x]].view(), 128, ScaleFmt::Ue8m0).unwrap();
            assert_eq!(q.scale[(0, 0)], 2f32.powi(e), "amax {amax}");
        }
    }
    let plain = act_quant(array![[3.0f32]].view(), 128, ScaleFmt::Plain).unwrap();
    assert_eq!(plain.scale[(0, 0)], 3.0 * (1.0f32 / 448.0));
    assert_eq!(plain.codes[(0, 0)], 0x7e);
}

#[test]
fn each_block_has_its_scale_and_the_last_may_be_short() {
    let x = Random::new(1).array2(3, 300) * 5.0;
    for fmt in [ScaleFmt::Plain, ScaleFmt::Ue8m0] {
        let q = act_quant(x.view(), 128, fmt).unwrap();
        assert_eq!(q.scale.dim(), (3, 3));
        let y = q.dequantise();
        for ((row, col), &y) in y.indexed_iter() {
            let (x, s) = (x[(row, col)], q.scale[(row, col / 128)]);
            let half_step = (x.abs() / 16.0).max(s * 2f32.powi(-10)); // 3 mantissa bits
            assert!((x - y).abs() <= half_step * 1.0001, "{x} became {y}, scale {s}");
        }
    }
    let wide = act_quant(x.view(), usize::MAX, ScaleFmt::Plain).unwrap();
    assert_eq!(wide.scale.dim(), (3, 1));
    let error = act_quant(x.view(), 0, ScaleFmt::Plain).unwrap_err().to_string();
    assert_eq!(error, "block is 0, expected at least 1 column");
    assert_eq!(act_quant(Array2::zeros((0, 0)).view(), 4, ScaleFmt::Plain).unwrap().codes.len(), 0);
}

#[test]
fn nan_stays_where_it_is_and_infinity_takes_its_block() {
    let x = array![[1.0, f32::NAN, -1.75, 0.5, f32::INFINITY, 1.0]];
    let q = act_quant(x.view(), 4, ScaleFmt::Ue8m0).unwrap();
    assert_eq!(q.scale, array![[2f32.powi(-8), f32::INFINITY]]);
    assert_eq!(q.codes[(0, 1)] & 0x7f, 0x7f);
    let y = q.dequantise();
    assert_eq!((y[(0, 0)], y[(0, 2)], y[(0, 3)]), (1.0, -1.75, 0.5));
    assert!(y[(0, 1)].is_nan() && y[(0, 4)].is_nan() && y[(0, 5)].is_nan());
    assert_eq!(q.codes[(0, 4)], 0x7f);
}

#[test]
fn scales_of_a_broken_quantised_read_as_nan() {
    let q = Quantised { codes: Array2::zeros((1, 2)), scale: Array2::ones((1, 1)), block: 1 };
    let y = q.dequantise();
    assert!(y[(0, 0)] == 0.0 && y[(0, 1)].is_nan());
    assert!(Quantised { block: 0, ..q }.dequantise()[(0, 0)].is_nan());
}

#[test]
fn bf16_rounds_to_even() {
    assert_eq!(bf16_round(1.0 + 2f32.powi(-8)), 1.0);
    assert_eq!(bf16_round(1.0 + 3.0 * 2f32.powi(-8)), 1.0 + 2f32.powi(-6));
    assert_eq!(bf16_round(f32::INFINITY), f32::INFINITY);
}

#[test]
fn record_of_the_fp8_cache() {
    let record = KvRecord { kv_lora_rank: 512, rope_dim: 64 };
    assert_eq!(record.bytes(), 656);
    let mut c = Array2::zeros((2, 512));
    c[(0, 0)] = 448.0;
    c[(0, 128)] = -449.0;
    c[(0, 384)] = 1e-3; // amax/448 is below the floor of the scale
    let mut k_pe = Array2::zeros((2, 64));
    k_pe[(1, 63)] = 1.0 + 2f32.powi(-9); // rounds to 1 in bf16
    let records = record.quantise_kv(c.view(), k_pe.view());
    assert_eq!(records.dim(), (2, 656));
    let scale = |row: usize, b: usize| {
        f32::from_le_bytes(std::array::from_fn(|i| records[(row, 512 + 4 * b + i)]))
    };
    let floor = 2f32.powi(-13);
    assert_eq!([scale(0, 0), scale(0, 1), scale(0, 2), scale(0, 3)], [1.0, 2.0, floor, floor]);
    assert_eq!((records[(0, 0)], records[(0, 128)]), (0x7e, e4m3_encode(-224.5)));
    assert_eq!((records[(1, 654)], records[(1, 655)]), (0x80, 0x3f));
    let read = record.dequantise_kv(records.view());
    assert_eq!(read.dim(), (2, 576));
    assert_eq!((read[(0, 0)], read[(0, 128)], read[(1, 575)]), (448.0, -448.0, 1.0));
}

#[test]
fn records_of_any_width_and_what_is_missing_is_nan() {
    let mut random = Random::new(2);
    for (rank, rope) in [(512, 64), (130, 6), (32, 16), (3, 1)] {
        let record = KvRecord { kv_lora_rank: rank, rope_dim: rope };
        let (c, k_pe) = (random.array2(5, rank), random.array2(5, rope));
        let read = record.dequantise_kv(record.quantise_kv(c.view(), k_pe.view()).view());
        for ((n, col), &y) in read.indexed_iter() {
            if col < rank {
                let x = c[(n, col)];
                assert!((x - y).abs() <= (x.abs() / 16.0).max(0.001), "{x} became {y}");
            } else {
                assert_eq!(y, bf16_round(k_pe[(n, col - rank)]));
            }
        }
    }
    let record = KvRecord { kv_lora_rank: 4, rope_dim: 2 };
    let records = record.quantise_kv(array![[1.0, 2.0]].view(), array![[3.0]].view());
    let read = record.dequantise_kv(records.view());
    let nan: Vec<bool> = read.iter().map(|x| x.is_nan()).collect();
    assert_eq!(nan, [false, false, true, true, false, true]);
    assert!(record.dequantise_kv(Array2::zeros((1, 3)).view()).iter().all(|x| x.is_nan()));
}

#[test]
fn index_cache_has_codes_first_then_scales() {
    let codes = array![[1u8, 2, 3], [4, 5, 6], [7, 8, 9]];
    let scale = array![1.0f32, 2.0, 0.5];
    let pages = index_cache_pages(codes.view(), scale.view(), 2);
    assert_eq!(pages.dim(), (2, 14));
    let first = [1, 2, 3, 4, 5, 6, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40];
    assert_eq!(pages.row(0).to_vec(), first);
    let second = [7, 8, 9, 0, 0, 0, 0, 0, 0, 0x3f, 0, 0, 0, 0];
    assert_eq!(pages.row(1).to_vec(), second);
}

#[test]
fn index_cache_reads_back_at_any_page_size() {
    let mut random = Random::new(3);
    let codes = Array2::from_shape_simple_fn((150, 32), || random.below(256) as u8);
    let scale = random.array1(150);
    for page_size in [1, 2, 53, 61, 64, 69, 576] {
        let pages = index_cache_pages(codes.view(), scale.view(), page_size);
        assert_eq!(pages.dim(), (150usize.div_ceil(page_size), page_size * 36));
        let (read, read_scale) = index_cache_read(pages.view(), page_size).unwrap();
        assert_eq!(
            read.iter().take(150 * 32).collect::<Vec<_>>(),
            codes.iter().collect::<Vec<_>>()
        );
        assert_eq!(read_scale.to_vec()[..150], scale.to_vec());
    }
    assert_eq!(index_cache_pages(codes.view(), scale.view(), 0).dim(), (0, 0));
    let pages = Array2::<u8>::zeros((1, 13));
    let error = index_cache_read(pages.view(), 2).unwrap_err().to_string();
    assert_eq!(error, "page width is 13 bytes for 2 keys, expected page_size * (D + 4) bytes");
    assert!(index_cache_read(pages.view(), 0).is_err());
}
