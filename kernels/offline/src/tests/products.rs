//! Warpgroup products of both forms, compiled for devices that are not here.

use crate::{Artefact, Offline, Target};
use cubecl::prelude::*;
use cubecl::wgmma::{Major, Swizzle, WgmmaTileLayout};
use dsa_kernels::tile::{
    commit_copies, commit_mma, copy_async, descriptor, exp2_fast, fence_cells, fence_fragment,
    fence_mma, issue_mma, issue_mma_registers, wait_copies, wait_mma,
};
use dsa_kernels::{DType, Device, KernelError};
use half::bf16;
use std::sync::Arc;

type Cell = Const<1>;

fn layout(major: Major, rows: usize, k: usize) -> WgmmaTileLayout {
    WgmmaTileLayout { major, swizzle: Swizzle::B128, rows, k }
}

/// Starts the copy of `rows` rows of 64 columns from row `from` on to row `to` of a tile of
/// `tile_rows` rows.
#[cube]
fn fill(
    tile: &mut [Vector<bf16, Const<8>>],
    source: &[Vector<bf16, Const<8>>],
    to: usize,
    from: usize,
    valid: bool,
    #[comptime] rows: usize,
    #[comptime] tile_rows: usize,
) {
    let tile_layout = comptime![layout(Major::K, tile_rows, 64)];
    let from = select(valid, from, 0usize);
    #[unroll]
    for step in 0..comptime![rows * 8 / 128] {
        let i = step * 128 + UNIT_POS as usize;
        let at = tile_layout.offset(to + i / 8, i % 8 * 8, 2usize) / 8;
        copy_async(tile, at, source, from * 8 + i, valid);
    }
}

#[cube]
fn clear<W: Size>(cells: &mut Array<Vector<f32, W>>) {
    #[unroll]
    for i in 0..cells.len() {
        cells[i] = Vector::new(0.0f32);
    }
}

#[cube]
fn scale<W: Size>(cells: &mut Array<Vector<f32, W>>, by: f32) {
    #[unroll]
    for i in 0..cells.len() {
        cells[i] *= Vector::new(by);
    }
}

/// `out = Σ_j 2^(..) a[j] · b[j]ᵀ`, both tiles 64 x 64, the next two copied while these are multiplied.
#[cube(launch_unchecked)]
fn scaled_products(
    a: &[Vector<bf16, Const<8>>],
    b: &[Vector<bf16, Const<8>>],
    out: &mut [f32],
    tiles: u32,
) {
    let both = comptime![layout(Major::K, 128, 64)];
    let mut a_tile = Shared::<[Vector<bf16, Const<8>>]>::new_aligned_slice(1024usize, 1024usize);
    let mut b_tile = Shared::<[Vector<bf16, Const<8>>]>::new_aligned_slice(1024usize, 1024usize);
    let a_at = descriptor::<bf16>(&a_tile, both);
    let b_at = descriptor::<bf16>(&b_tile, both);
    let mut cells = Array::<Vector<f32, Cell>>::new(32usize);
    clear::<Cell>(&mut cells);
    let tiles = tiles as usize;
    fill(&mut a_tile, a, 0usize, 0usize, true, 64usize, 128usize);
    fill(&mut b_tile, b, 0usize, 0usize, true, 64usize, 128usize);
    commit_copies();
    for j in 0..tiles {
        let next = (j + 1) % 2 * 64;
        fill(&mut a_tile, a, next, (j + 1) * 64, j + 1 < tiles, 64usize, 128usize);
        fill(&mut b_tile, b, next, (j + 1) * 64, j + 1 < tiles, 64usize, 128usize);
        commit_copies();
        wait_copies(1usize);
        sync_async_proxy_shared();
        sync_cube();
        let by = exp2_fast(cells[0].extract(0usize));
        scale::<Cell>(&mut cells, by);
        fence_cells::<Cell>(&mut cells);
        fence_mma();
        #[unroll]
        for step in 0..4usize {
            let at = both.byte_offset(j % 2 * 64, step * 16, 2usize) as u64 / 16;
            issue_mma::<bf16, Cell>(
                &mut cells,
                a_at + at,
                b_at + at,
                64usize,
                comptime![Major::K],
                comptime![Major::K],
            );
        }
        commit_mma();
        wait_mma(0usize);
        fence_cells::<Cell>(&mut cells);
        sync_cube();
    }
    #[unroll]
    for i in 0..32usize {
        out[i * 128 + UNIT_POS as usize] = cells[i].extract(0usize);
    }
}

/// Adds `q · kᵀ` (64 x 32) to cleared scores, from row `half` of the keys on, as one group.
#[cube]
fn issue_scores(scores: &mut Array<Vector<f32, Cell>>, q_at: u64, k_at: u64, half: usize) {
    let keys = comptime![layout(Major::K, 64, 64)];
    #[unroll]
    for step in 0..4usize {
        issue_mma::<bf16, Cell>(
            scores,
            q_at + keys.byte_offset(0usize, step * 16, 2usize) as u64 / 16,
            k_at + keys.byte_offset(half, step * 16, 2usize) as u64 / 16,
            32usize,
            comptime![Major::K],
            comptime![Major::K],
        );
    }
    commit_mma();
}

/// Adds `p · v` (64 x 256) to the cells, from row `half` of the values on, as one group.
#[cube]
fn issue_outputs(
    cells: &mut Array<Vector<f32, Cell>>,
    low: &Array<bf16>,
    high: &Array<bf16>,
    v_at: u64,
    half: usize,
) {
    let values = comptime![layout(Major::MN, 256, 64)];
    let first = v_at + values.byte_offset(0usize, half, 2usize) as u64 / 16;
    let second = v_at + values.byte_offset(0usize, half + 16, 2usize) as u64 / 16;
    issue_mma_registers::<bf16, Cell>(cells, low, first, 256usize, comptime![Major::MN]);
    issue_mma_registers::<bf16, Cell>(cells, high, second, 256usize, comptime![Major::MN]);
    commit_mma();
}

/// A flash step in miniature: 16 cells of scores `q · kᵀ` (64 x 32), their powers `p` in registers,
/// and 128 cells of `p · v` (64 x 256) that are rescaled before each tile. The powers of one tile are
/// computed while the product of the tile before runs.
#[cube(launch_unchecked)]
fn flash(
    q: &[Vector<bf16, Const<8>>],
    k: &[Vector<bf16, Const<8>>],
    v: &[Vector<bf16, Const<8>>],
    out: &mut [f32],
    tiles: u32,
) {
    let q_layout = comptime![layout(Major::K, 64, 64)];
    let k_layout = comptime![layout(Major::K, 64, 64)];
    let v_layout = comptime![layout(Major::MN, 256, 64)];
    let mut q_tile = Shared::<[Vector<bf16, Const<8>>]>::new_aligned_slice(512usize, 1024usize);
    let mut k_tile = Shared::<[Vector<bf16, Const<8>>]>::new_aligned_slice(512usize, 1024usize);
    let mut v_tile = Shared::<[Vector<bf16, Const<8>>]>::new_aligned_slice(2048usize, 1024usize);
    let mut tops = Shared::<[f32]>::new_slice(128usize);
    let q_at = descriptor::<bf16>(&q_tile, q_layout);
    let k_at = descriptor::<bf16>(&k_tile, k_layout);
    let v_at = descriptor::<bf16>(&v_tile, v_layout);
    let mut scores = Array::<Vector<f32, Cell>>::new(16usize);
    let mut cells = Array::<Vector<f32, Cell>>::new(128usize);
    let mut low = Array::<bf16>::new(8usize);
    let mut high = Array::<bf16>::new(8usize);
    clear::<Cell>(&mut cells);
    #[unroll]
    for i in 0..8usize {
        low[i] = bf16::cast_from(0.0f32);
        high[i] = bf16::cast_from(0.0f32);
    }
    let tiles = tiles as usize;
    fill(&mut q_tile, q, 0usize, 0usize, true, 64usize, 64usize);
    fill(&mut k_tile, k, 0usize, 0usize, true, 32usize, 64usize);
    fill(&mut v_tile, v, 0usize, 0usize, true, 256usize, 256usize);
    commit_copies();
    for j in 0..tiles {
        let half = j % 2 * 32;
        fill(&mut k_tile, k, 32 - half, (j + 1) * 32, j + 1 < tiles, 32usize, 64usize);
        commit_copies();
        wait_copies(1usize);
        sync_async_proxy_shared();
        sync_cube();
        clear::<Cell>(&mut scores);
        fence_cells::<Cell>(&mut scores);
        fence_cells::<Cell>(&mut cells);
        fence_fragment::<bf16>(&low);
        fence_fragment::<bf16>(&high);
        fence_mma();
        issue_scores(&mut scores, q_at, k_at, half);
        issue_outputs(&mut cells, &low, &high, v_at, half);
        wait_mma(1usize);
        fence_cells::<Cell>(&mut scores);
        let mut low_next = Array::<bf16>::new(8usize);
        let mut high_next = Array::<bf16>::new(8usize);
        let mut top = 0.0f32.runtime();
        #[unroll]
        for i in 0..8usize {
            let x = exp2_fast(scores[i].extract(0usize));
            let y = exp2_fast(scores[i + 8].extract(0usize));
            low_next[i] = bf16::cast_from(x);
            high_next[i] = bf16::cast_from(y);
            top = max(top, max(x, y));
        }
        let by = exp2_fast(-top);
        tops[UNIT_POS as usize] = top;
        wait_mma(0usize);
        fence_cells::<Cell>(&mut cells);
        fence_fragment::<bf16>(&low);
        fence_fragment::<bf16>(&high);
        scale::<Cell>(&mut cells, by);
        #[unroll]
        for i in 0..8usize {
            low[i] = low_next[i];
            high[i] = high_next[i];
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..128usize {
        out[i * 128 + UNIT_POS as usize] = cells[i].extract(0usize) + tops[127 - UNIT_POS as usize];
    }
}

/// What a kernel launched by `launch` is compiled to on `target`, with as many buffers as it takes.
fn compiled(
    target: Target,
    launch: impl FnOnce(&Device, CubeCount, CubeDim, &dyn Fn(usize) -> BufferArg),
) -> dsa_kernels::Result<Arc<Artefact>> {
    let artefacts = Offline::open(target)?.compile(|device| {
        let buffer = |width| device.empty(&[1 << 16], DType::Bf16).unwrap().arg(width);
        launch(device, CubeCount::Static(1, 1, 1), CubeDim::new_1d(128), &buffer);
        Ok::<_, KernelError>(())
    })?;
    Ok(artefacts[0].clone())
}

fn scaled(target: Target) -> dsa_kernels::Result<Arc<Artefact>> {
    compiled(target, |device, count, dim, buffer| {
        let (a, b, out) = (buffer(8), buffer(8), buffer(1));
        // SAFETY: nothing runs on an offline device.
        unsafe {
            scaled_products::launch_unchecked(device.client(), count, dim, a, b, out, 3);
        }
    })
}

/// Nothing is in memory that belongs in registers, and no product waits that need not.
fn expect_fast(artefact: &Artefact) {
    let usage = artefact.usage().unwrap();
    assert_eq!((usage.spills, usage.stack), (0, 0));
    assert_eq!(usage.serialised().count(), 0, "{:?}", usage.warnings);
}

#[test]
fn copies_products_and_scales_share_one_loop_and_no_local_memory() {
    let artefact = scaled(Target::Sm90a).unwrap();
    let ptx = artefact.assembly().unwrap();
    // The loop is all there is between the wait for copies and its backward branch.
    let label = ptx.find("\n$L__BB0_2:").unwrap();
    let (before, body) = ptx.split_at(label);
    let body = &body[..body.find("$L__BB0_2;").unwrap()];
    for (instruction, count) in [
        ("cp.async.cg.shared.global", 8),
        ("cp.async.commit_group", 1),
        ("cp.async.wait_group", 1),
        ("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", 4),
        ("wgmma.fence", 1),
        ("wgmma.commit_group", 1),
        ("wgmma.wait_group", 1),
        ("ex2.approx.ftz.f32", 1),
    ] {
        assert_eq!(body.matches(instruction).count(), count, "{instruction} in {body}");
    }
    assert_eq!(before.matches("cp.async.commit_group").count(), 1, "{before}");
    expect_fast(&artefact);
}

#[test]
fn products_from_registers_run_beside_the_next_scores() {
    let artefact = compiled(Target::Sm90a, |device, count, dim, buffer| {
        let (q, k, v, out) = (buffer(8), buffer(8), buffer(8), buffer(1));
        // SAFETY: nothing runs on an offline device.
        unsafe { flash::launch_unchecked(device.client(), count, dim, q, k, v, out, 3) };
    })
    .unwrap();
    let ptx = artefact.assembly().unwrap();
    assert!(ptx.contains("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16"), "{ptx}");
    expect_fast(&artefact);
}

#[test]
fn a_device_without_the_form_refuses_it() {
    let error = scaled(Target::Gfx950).unwrap_err().to_string();
    assert!(error.contains("the device has no 64x64x16 warpgroup MMA"), "{error}");
}
