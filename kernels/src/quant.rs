//! Block-scaled fp8: activations, and the two fp8 caches.
//!
//! ```text
//! amax = max(max |x_i|, 1e-4)                over blocks of 128 along the last axis
//! s    = amax / 448                          plain
//! s    = 2^ceil(log2(amax / 448))            ue8m0
//! q_i  = e4m3(clamp(x_i / s, -448, 448))     round to nearest even
//! ```
//!
//! DeepSeek-V3.2-Exp demo, `act_quant`, operation by operation: the codes are bit-exact. FlashMLA's cache
//! quantiser differs in one point: its floor of 1e-4 is on the scale, not on amax ([`store_kv`]).
//!
//! Cost: two reads of x and one write of a quarter to a half of its bytes; bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::device::Device;
use crate::keys::{Pages, PagesLaunch};
use crate::slots::{expect_slots, launches, slot_of};
use crate::tensor::{DType, Tensor};
use crate::tile::*;
use crate::{KernelError, Result};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl_common::e4m3;

/// Elements that share a scale.
pub const BLOCK: usize = 128;

/// The largest finite e4m3 number.
const E4M3_MAX: f32 = 448.0;

/// How a block's scale is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleFmt {
    /// `amax / 448` as it is.
    Plain,
    /// Up to a power of two.
    Ue8m0,
}

/// Where the floor that keeps an all-zero block's scale positive applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Floor {
    /// On amax (act_quant).
    Amax,
    /// On the scale (FlashMLA's cache).
    Scale,
}

/// The scale of a block whose largest magnitude is `amax`.
#[cube]
fn block_scale(amax: f32, #[comptime] fmt: ScaleFmt, #[comptime] floor: Floor) -> f32 {
    let inverse = comptime![1.0f32 / E4M3_MAX];
    let scale = if comptime![floor == Floor::Amax] {
        max(amax, 1.0e-4f32) * inverse
    } else {
        max(amax * inverse, 1.0e-4f32)
    };
    if comptime![fmt == ScaleFmt::Ue8m0] {
        let bits = u32::reinterpret(scale);
        let up = select((bits & 0x007f_ffffu32) != 0, 1u32, 0u32);
        f32::reinterpret(((bits >> 23) + up) << 23)
    } else {
        scale
    }
}

/// The e4m3 code of `x / scale`. NaN stays NaN, of the one code on every device: their own conversions differ in
/// its sign, and a cache must not.
#[cube]
fn quantise(x: f32, scale: f32) -> e4m3 {
    let y = x / scale;
    let y = select(y > E4M3_MAX, E4M3_MAX, y);
    let code = e4m3::cast_from(select(y < -E4M3_MAX, -E4M3_MAX, y));
    e4m3::reinterpret(select(y.is_nan(), 0x7fu8, u8::reinterpret(code)))
}

/// The largest magnitude of `x[at .. at + n]`, NaN left out.
#[cube]
fn amax<E: Numeric>(x: &[E], at: usize, n: usize, #[comptime] machine: Machine) -> f32 {
    let mut top = 0.0f32.runtime();
    for step in 0..n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < n {
            let value = f32::cast_from(x[at + i]);
            let magnitude = select(value < 0.0f32, -value, value);
            // A comparison with NaN is false, so NaN never becomes the maximum.
            top = select(magnitude > top, magnitude, top);
        }
    }
    max_team(top, machine)
}

/// The block of a row that a program quantises: its `n` columns from `first` on, which begin at element `at`,
/// and their scale.
#[derive(CubeType)]
struct Block {
    row: usize,
    first: usize,
    n: usize,
    at: usize,
    scale: f32,
}

/// Block `program` of `x`.
#[cube]
fn block_of<E: Numeric>(
    x: &View<E>,
    program: usize,
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
) -> Block {
    let cols = x.shape(1);
    let blocks = cols.div_ceil(BLOCK);
    let (row, nth) = divided(program, blocks);
    let first = nth * BLOCK;
    let n = min(cols - first, BLOCK);
    let at = row * x.stride(0) + first;
    let scale = block_scale(amax(&x.data, at, n, machine), fmt, Floor::Amax);
    Block { row, first, n, at, scale }
}

/// One program quantises one block of one row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn act_quant_kernel<E: Numeric>(
    x: &View<E>,            // [rows, cols]
    codes: &mut View<e4m3>, // [rows, cols]
    scales: &mut [f32],     // [rows, ceil(cols / 128)]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= x.shape(0) * x.shape(1).div_ceil(BLOCK) {
        terminate!();
    }
    let block = block_of(x, program, fmt, machine);
    let to = block.row * codes.stride(0) + block.first;
    for step in 0..block.n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < block.n {
            codes.data[to + i] = quantise(f32::cast_from(x.data[block.at + i]), block.scale);
        }
    }
    if unit_id(machine) == 0 {
        scales[program] = block.scale;
    }
}

/// One program quantises one block of one row and writes what the codes stand for.
#[cube(launch_unchecked, address_type = "dynamic")]
fn round_trip_kernel<E: Numeric>(
    x: &View<E>,       // [rows, cols]
    out: &mut View<E>, // [rows, cols]
    #[comptime] fmt: ScaleFmt,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let program = program_id(machine);
    if program >= x.shape(0) * x.shape(1).div_ceil(BLOCK) {
        terminate!();
    }
    let block = block_of(x, program, fmt, machine);
    let to = block.row * out.stride(0) + block.first;
    for step in 0..block.n.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < block.n {
            let code = quantise(f32::cast_from(x.data[block.at + i]), block.scale);
            out.data[to + i] = round_to::<E>(f32::cast_from(code) * block.scale, machine);
        }
    }
}

/// One program writes one token's 656-byte record (for kv_lora_rank 512 and rope 64): the codes of the
/// latent, one f32 scale a block, the rope part in bf16.
#[cube(launch_unchecked, address_type = "dynamic")]
fn store_kv_kernel<E: Numeric>(
    c: &View<E>,      // [n, kv_lora_rank]
    k_pe: &View<E>,   // [n, rope_dim]
    slots: &[i32],    // [n]
    cache: &mut [u8], // pages of records
    pages: &Pages,
    #[comptime] machine: Machine,
    #[define(E)] _elem: ElemType,
) {
    let (n, rank, rope_dim) = (c.shape(0), c.shape(1), k_pe.shape(1));
    let blocks = rank.div_ceil(BLOCK);
    let token = program_id(machine);
    if token >= n {
        terminate!();
    }
    let (slot, stored) = slot_of(slots, token, n, pages.count, machine);
    let at = pages.start(slot);
    for block in 0..blocks {
        let first = block * BLOCK;
        let n = min(rank - first, BLOCK);
        let from = token * c.stride(0) + first;
        let scale = block_scale(amax(&c.data, from, n, machine), ScaleFmt::Ue8m0, Floor::Scale);
        for step in 0..n.div_ceil(comptime![machine.team]) {
            let i = step * comptime![machine.team] + unit_id(machine);
            if stored && i < n {
                let code = quantise(f32::cast_from(c.data[from + i]), scale);
                cache[at + first + i] = u8::reinterpret(code);
            }
        }
        if stored && unit_id(machine) == 0 {
            write_f32(cache, at + rank + 4 * block, scale);
        }
    }
    for step in 0..rope_dim.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if stored && i < rope_dim {
            // In integers on every device: their own conversions differ in the last bit, and a cache must not.
            let bits = bf16_bits(f32::cast_from(k_pe.data[token * k_pe.stride(0) + i]));
            let to = at + rank + 4 * blocks + 2 * i;
            cache[to] = u8::cast_from(bits & 0xffu32);
            cache[to + 1] = u8::cast_from(bits >> 8);
        }
    }
}

/// One program writes one token's index key: codes in the first part of its page, scale in the second.
#[cube(launch_unchecked, address_type = "dynamic")]
fn store_index_key_kernel(
    codes: &View<u8>, // [n, D]
    scales: &[f32],   // [n]
    slots: &[i32],    // [n]
    cache: &mut [u8], // pages of D codes for each token, then an f32 for each
    pages: &Pages,
    #[comptime] machine: Machine,
) {
    let (n, dim) = (codes.shape(0), codes.shape(1));
    let token = program_id(machine);
    if token >= n {
        terminate!();
    }
    let (slot, stored) = slot_of(slots, token, n, pages.count, machine);
    if stored {
        let at = pages.start(slot);
        for step in 0..dim.div_ceil(comptime![machine.team]) {
            let i = step * comptime![machine.team] + unit_id(machine);
            if i < dim {
                cache[at + i] = codes.data[token * codes.stride(0) + i];
            }
        }
        if unit_id(machine) == 0 {
            let (page, row) = divided(slot, pages.page_size);
            let codes_end = page * pages.page_stride + pages.page_size * dim;
            write_f32(cache, codes_end + 4 * row, scales[token]);
        }
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(32)
}

/// What [`act_quant`] returns.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// `[rows, cols]` e4m3.
    pub codes: Tensor,
    /// `[rows, ceil(cols / 128)]` f32; multiply to dequantise.
    pub scale: Tensor,
}

/// Quantises rows in blocks of 128.
///
/// - `x`: `[rows, cols]` f32, bf16 or f16, last stride 1; the last block may be partial;
/// - returns codes `[rows, cols]` e4m3 and scales `[rows, ceil(cols / 128)]` f32. A NaN element gives a NaN
///   code and does not touch its block's scale.
pub fn act_quant(device: &Device, x: &Tensor, fmt: ScaleFmt) -> Result<Quantised> {
    let (rows, cols) = rows_and_cols("x", x)?;
    let blocks = cols.div_ceil(BLOCK);
    let codes = device.output("codes", &[rows, cols], DType::E4m3)?;
    let scale = device.output("scale", &[rows, blocks], DType::F32)?;
    if rows * cols > 0 {
        let machine = machine(device);
        // SAFETY: every access is below rows and cols, which are the shapes of all three tensors.
        unsafe {
            act_quant_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows * blocks)?,
                machine.cube_dim(),
                device.addresses([x, &codes]),
                x.view(1),
                codes.view(1),
                scale.arg(1),
                fmt,
                machine,
                x.dtype().elem(),
            );
        }
    }
    Ok(Quantised { codes, scale })
}

/// Quantises and dequantises: what the latent goes through before it is cached in bf16 (the fixed
/// November 2025 model).
///
/// `x`, `out`: `[rows, cols]` of one type, last stride 1; they may be the same tensor.
pub fn round_trip(device: &Device, x: &Tensor, out: &Tensor, fmt: ScaleFmt) -> Result<()> {
    let (rows, cols) = rows_and_cols("x", x)?;
    out.expect_shape("out", &[("rows", rows), ("cols", cols)])?;
    out.expect_dtype("out", &[x.dtype()])?;
    out.expect_rows("out")?;
    if rows * cols == 0 {
        return Ok(());
    }
    let machine = machine(device);
    // SAFETY: every access is below rows and cols, the shape of both tensors; a block is read whole
    // before it is written.
    unsafe {
        round_trip_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(rows * cols.div_ceil(BLOCK))?,
            machine.cube_dim(),
            device.addresses([x, out]),
            x.view(1),
            out.view(1),
            fmt,
            machine,
            x.dtype().elem(),
        );
    }
    Ok(())
}

/// The paged fp8 cache of MLA latents, FlashMLA's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvRecord {
    /// Elements of the latent.
    pub kv_lora_rank: usize,
    /// Elements of the rope part.
    pub rope_dim: usize,
}

impl KvRecord {
    /// Bytes of one token: codes, one f32 scale per 128, rope in bf16. 656 for 512 and 64.
    pub fn bytes(&self) -> usize {
        self.kv_lora_rank + 4 * self.kv_lora_rank.div_ceil(BLOCK) + 2 * self.rope_dim
    }
}

/// Writes tokens into the paged fp8 cache.
///
/// - `c`: `[n, kv_lora_rank]`, `k_pe`: `[n, rope_dim]`, one float type, last stride 1;
/// - `slots`: `[n]` i32, `page · page_size + offset`; a slot out of range is not written, and of several rows
///   with one slot the last is;
/// - `cache`: `[n_pages, page_size · record.bytes()]` u8, last stride 1.
pub fn store_kv(
    device: &Device,
    c: &Tensor,
    k_pe: &Tensor,
    slots: &Tensor,
    cache: &Tensor,
    page_size: usize,
) -> Result<()> {
    let (n, kv_lora_rank) = rows_and_cols("c", c)?;
    let (_, rope_dim) = rows_and_cols("k_pe", k_pe)?;
    k_pe.expect_shape("k_pe", &[("n", n), ("rope_dim", rope_dim)])?;
    k_pe.expect_dtype("k_pe", &[c.dtype()])?;
    let record = KvRecord { kv_lora_rank, rope_dim };
    expect_cache(cache, slots, n, page_size, record.bytes())?;
    if n == 0 {
        return Ok(());
    }
    let machine = machine(device);
    for rows in launches(n) {
        let (c, k_pe) = (c.rows(rows.clone())?, k_pe.rows(rows.clone())?);
        let slots = slots.rows(rows.clone())?;
        // SAFETY: rows and columns are those of c and k_pe; slots are compared with the number of slots of
        // the cache before anything is written.
        unsafe {
            store_kv_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows.len())?,
                machine.cube_dim(),
                device.addresses([&c, &k_pe, cache]),
                c.view(1),
                k_pe.view(1),
                slots.arg(1),
                cache.arg(1),
                pages(cache, page_size, record.bytes()),
                machine,
                c.dtype().elem(),
            );
        }
    }
    Ok(())
}

/// Writes index keys into their paged cache.
///
/// - `keys`: of [`act_quant`] on `[n, D]` with D <= 128;
/// - `slots`: `[n]` i32; a slot out of range is not written, and of several rows with one slot the last is;
/// - `cache`: `[n_pages, page_size · (D + 4)]` u8, last stride 1.
pub fn store_index_keys(
    device: &Device,
    keys: &Quantised,
    slots: &Tensor,
    cache: &Tensor,
    page_size: usize,
) -> Result<()> {
    keys.codes.expect_rank("codes", &["n", "D"])?;
    keys.codes.expect_dtype("codes", &[DType::E4m3])?;
    keys.codes.expect_contiguous("codes")?;
    let (n, dim) = (keys.codes.shape()[0], keys.codes.shape()[1]);
    keys.scale.expect_shape("scale", &[("n", n), ("1: D is at most 128", 1)])?;
    keys.scale.expect_dtype("scale", &[DType::F32])?;
    keys.scale.expect_contiguous("scale")?;
    expect_cache(cache, slots, n, page_size, dim + 4)?;
    if n == 0 {
        return Ok(());
    }
    let machine = machine(device);
    let codes = keys.codes.reinterpret(DType::U8);
    for rows in launches(n) {
        let (codes, scale) = (codes.rows(rows.clone())?, keys.scale.rows(rows.clone())?);
        let slots = slots.rows(rows.clone())?;
        // SAFETY: codes hold n · dim elements, scales n; slots are compared with the number of slots.
        unsafe {
            store_index_key_kernel::launch_unchecked(
                device.client(),
                machine.cube_count(rows.len())?,
                machine.cube_dim(),
                device.addresses([&codes, cache]),
                codes.view(1),
                scale.arg(1),
                slots.arg(1),
                cache.arg(1),
                pages(cache, page_size, dim),
                machine,
            );
        }
    }
    Ok(())
}

/// How rows of which `stride` bytes come one after the other lie in the pages of `cache`.
fn pages(cache: &Tensor, page_size: usize, stride: usize) -> PagesLaunch {
    PagesLaunch::new(cache.shape()[0] * page_size, stride, page_size, cache.strides()[0])
}

/// The rows and columns of a tensor of floats.
fn rows_and_cols(name: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    x.expect_rank(name, &["rows", "cols"])?;
    x.expect_dtype(name, &DType::FLOATS)?;
    x.expect_rows(name)?;
    Ok((x.shape()[0], x.shape()[1]))
}

/// Refuses a page size of 0, or one whose bytes a usize might not count.
pub(crate) fn expect_page_size(page_size: usize) -> Result<()> {
    if (1..=1 << 20).contains(&page_size) {
        return Ok(());
    }
    let expected = "1 to 2^20".to_string();
    Err(KernelError::Value { name: "page_size", got: page_size.to_string(), expected })
}

/// Checks a cache of pages of `page_size` records and the slots to be written.
fn expect_cache(
    cache: &Tensor,
    slots: &Tensor,
    n: usize,
    page_size: usize,
    record: usize,
) -> Result<()> {
    expect_page_size(page_size)?;
    cache.expect_rank("cache", &["n_pages", "page bytes"])?;
    let n_pages = cache.shape()[0];
    cache.expect_shape("cache", &[("n_pages", n_pages), ("page bytes", page_size * record)])?;
    cache.expect_dtype("cache", &[DType::U8])?;
    cache.expect_rows("cache")?;
    expect_slots(slots, n, cache, n_pages * page_size)
}
