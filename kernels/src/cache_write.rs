//! What is written to the two paged fp8 caches: records of latents, and index keys.
//!
//! ```text
//! record of a token   codes of c in e4m3 [kv_lora_rank], one f32 scale for each 128, k_pe in bf16 [rope]
//! s = 2^ceil(log2(max(amax / 448, 1e-4)))
//! page of index keys  codes of all its tokens [page_size, D], then an f32 scale for each
//! ```
//!
//! FlashMLA's and DeepGEMM's layouts. The quantisation is that of [`quant`](crate::quant) but for one point:
//! FlashMLA's floor of 1e-4 is on the scale, not on amax. Of several rows for one slot the last is stored.
//!
//! Cost: one or two reads of a row and one write of its record; bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 1 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::device::Device;
use crate::dtype::DType;
use crate::pages::{Pages, PagesLaunch};
use crate::quant::{BLOCK, Floor, Quantised, ScaleFmt, amax, block_scale, quantise};
use crate::slots::{launches, slot_of};
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

pub use crate::pages::KvRecord;

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

/// What [`store_kv`] takes and changes. The pages hold records: the latent's codes, a scale for each 128 of them, the
/// rope part in bf16.
pub const STORE_KV: Contract = Contract {
    name: "store_kv",
    tensors: &[
        "c: [n, kv_lora_rank] f32|bf16|f16, rows",
        "k_pe: [n, rope_dim] as c, rows",
        "slots: [n] i32",
        "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) + 2 * rope_dim)] u8, rows",
    ],
    scalars: &["page_size: integer 1 to 1048576"],
    sizes: &["n_pages * page_size: 0 to 2147483647"],
    outputs: &[
        "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) + 2 * rope_dim)] u8",
    ],
};

/// Writes tokens into the paged fp8 cache ([`STORE_KV`]).
///
/// - `c`: `[n, kv_lora_rank]`, `k_pe`: `[n, rope_dim]`, one float type;
/// - `slots`: `[n]` i32, `page · page_size + offset`; a slot out of range is not written, and of several rows
///   with one slot the last is;
/// - `cache`: `[n_pages, page_size · record.bytes()]` u8.
///
/// # Errors
/// What is not as the contract says.
pub fn store_kv(
    c: &Tensor,
    k_pe: &Tensor,
    slots: &Tensor,
    cache: &Tensor,
    page_size: usize,
) -> Result<()> {
    let device = c.device();
    let bound = STORE_KV.check([c, k_pe, slots, cache].map(Some), &[page_size.into()])?;
    let [n, kv_lora_rank, rope_dim] = bound.sizes(["n", "kv_lora_rank", "rope_dim"])?;
    let record = KvRecord { kv_lora_rank, rope_dim };
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

/// What [`store_index_keys`] takes and changes. A page holds the codes of all its tokens, then their scales.
pub const STORE_INDEX_KEYS: Contract = Contract {
    name: "store_index_keys",
    tensors: &[
        "codes: [n, D] e4m3",
        "scale: [n, 1] f32",
        "slots: [n] i32",
        "cache: [n_pages, page_size * (D + 4)] u8, rows",
    ],
    scalars: &["page_size: integer 1 to 1048576"],
    sizes: &["D: 1 to 128", "n_pages * page_size: 0 to 2147483647"],
    outputs: &["cache: [n_pages, page_size * (D + 4)] u8"],
};

/// Writes index keys into their paged cache ([`STORE_INDEX_KEYS`]).
///
/// - `keys`: of [`act_quant`](crate::quant::act_quant) on `[n, D]` with D <= 128;
/// - `slots`: `[n]` i32; a slot out of range is not written, and of several rows with one slot the last is;
/// - `cache`: `[n_pages, page_size · (D + 4)]` u8.
///
/// # Errors
/// What is not as the contract says.
pub fn store_index_keys(
    keys: &Quantised,
    slots: &Tensor,
    cache: &Tensor,
    page_size: usize,
) -> Result<()> {
    let device = cache.device();
    let tensors = [&keys.codes, &keys.scale, slots, cache].map(Some);
    let bound = STORE_INDEX_KEYS.check(tensors, &[page_size.into()])?;
    let [n, dim] = bound.sizes(["n", "D"])?;
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
