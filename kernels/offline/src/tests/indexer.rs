//! What the indexer is compiled to.

use crate::{Artefact, Offline, Target};
use dsa_kernels::indexer::{IndexKeys, ScoreFn, logits};
use dsa_kernels::seen::{KeyRange, Seen};
use dsa_kernels::{DType, Device, Result};
use std::sync::Arc;

/// Bytes of memory, and registers, of a multiprocessor of an H200; bytes of that memory that a cube takes for itself;
/// registers to multiples of which a unit's are rounded.
const MEMORY: usize = 228 * 1024;
const REGISTERS: usize = 65_536;
const RESERVED: usize = 1024;
const ROUNDED: usize = 8;

/// The scores of `queries` queries of each of two requests, keys in pages of 64.
fn paged(device: &Device, queries: usize, heads: usize) -> Result<()> {
    let of = |shape: &[usize], dtype| device.empty(shape, dtype);
    let q = of(&[2, queries, heads, 128], DType::E4m3)?;
    let weights = of(&[2 * queries, heads], DType::F32)?;
    let cache = of(&[8, 64 * 132], DType::U8)?;
    let (table, lens) = (of(&[2, 4], DType::I32)?, of(&[2], DType::I32)?);
    let keys =
        IndexKeys::Paged { cache: &cache, page_size: 64, block_table: &table, max_context: 256 };
    logits(&q, &weights, &keys, &Seen::Context(&lens), ScoreFn::default()).map(|_| ())
}

/// The scores of 16 queries, keys in rows.
fn rows(device: &Device, heads: usize, dtype: DType) -> Result<()> {
    let of = |shape: &[usize], dtype| device.empty(shape, dtype);
    let (q, weights) = (of(&[16, heads, 128], dtype)?, of(&[16, heads], DType::F32)?);
    let (k, k_scale) = (of(&[256, 128], dtype)?, of(&[256], DType::F32)?);
    let (ks, ke) = (of(&[16], DType::I32)?, of(&[16], DType::I32)?);
    let keys = IndexKeys::Rows { k: &k, k_scale: &k_scale };
    let seen = Seen::Range(KeyRange { ks: &ks, ke: &ke });
    logits(&q, &weights, &keys, &seen, ScoreFn::default()).map(|_| ())
}

fn compiled(work: impl Fn(&Device) -> Result<()>) -> Vec<Arc<Artefact>> {
    Offline::open(Target::Sm90a).unwrap().compile(work).unwrap()
}

/// Teams of the kernels that `work` launches for which a multiprocessor has registers, and memory.
fn teams(work: impl Fn(&Device) -> Result<()>) -> Vec<(usize, usize)> {
    let of = |artefact: &Arc<Artefact>| {
        let registers = artefact.usage().unwrap().registers.next_multiple_of(ROUNDED);
        let by_memory = MEMORY / (artefact.shared_memory + RESERVED);
        (REGISTERS / (registers * artefact.units), by_memory)
    };
    compiled(work).iter().map(of).collect()
}

/// The number of spans is that of whole waves of as many teams as fit the memory of a multiprocessor, or of three where
/// a tile has more than two queries.
#[test]
fn as_many_teams_fit_the_registers_of_a_core_as_the_spans_are_counted_for() {
    for heads in [4, 8, 16, 32, 64, 128] {
        let of_pages = teams(|device| paged(device, 1, heads));
        let of_rows = teams(|device| {
            rows(device, heads, DType::E4m3)?;
            rows(device, heads, DType::Bf16)
        });
        assert_eq!((of_pages.len(), of_rows.len()), (1, 2));
        for (by_registers, by_memory) in of_pages.into_iter().chain(of_rows) {
            let counted = if heads < 64 { by_memory.min(3) } else { by_memory };
            assert!(by_registers >= counted, "{heads} heads: {by_registers}, not {counted}");
        }
    }
}

/// One look into the block table a tile to load it and one to know that it is there, and nothing but copies of 16 bytes.
#[test]
fn a_tile_in_one_page_is_found_once_and_brings_its_scales() {
    let artefacts = compiled(|device| paged(device, 1, 64));
    let ptx = artefacts[0].assembly().unwrap();
    let from = ptx.rfind("cp.async.wait_group").unwrap();
    let of_loop = &ptx[from..];
    // A tile of 64 rows of 128 bytes is 4 copies of each of 128 units; 16 of them copy a scale each.
    assert_eq!(of_loop.matches("cp.async.cg.shared.global").count(), 5, "{of_loop}");
    assert!(of_loop.matches("ld.global").count() <= 2, "{of_loop}");
}
