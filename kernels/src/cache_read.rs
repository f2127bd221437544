//! What is read out of the paged caches for a step: fp8 records as rows, and where the keys of a request are.
//!
//! ```text
//! load_kv        out[t] = c ‖ k_pe of the record in slot slots[t], c = code · scale
//! slots_of_keys  slots[r, t, j] = block_table[r, p / page_size] · page_size + p mod page_size,  p = indices[r, t, j]
//! ```
//!
//! FlashMLA's record ([`cache_write`](crate::cache_write)). The attention kernels read records in place; dense
//! prefill, which expands latents to keys and values of every head, needs them as rows for that step.
//!
//! Cost: one read of a record or of an index, and one write of its row or slot; bound by memory.
//!
//! Budget (sm_90a): at most 40 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.
//! Budget (gfx950): at most 24 registers a unit, 0 KB of shared memory, no spills; vector arithmetic.

use crate::Result;
use crate::contract::Contract;
use crate::copy::place_rows;
use crate::device::Device;
use crate::dtype::DType;
use crate::pages::{KvRecord, Pages, PagesLaunch};
use crate::quant::BLOCK;
use crate::tensor::Tensor;
use crate::tile::*;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl_common::e4m3;

/// One program reads one token's record: a unit an element of the latent, or of the rope part.
#[cube(launch_unchecked, address_type = "dynamic")]
fn load_kv_kernel<O: Numeric, B: Size>(
    cache: &[Vector<u8, B>], // pages of records
    slots: &[i32],           // [n]
    pages: &Pages,
    out: &mut View<O>, // [n, kv_lora_rank + rope_dim]
    kv_lora_rank: usize,
    #[comptime] machine: Machine,
    #[define(O)] _elem: ElemType,
) {
    let token = program_id(machine);
    if token >= out.shape(0) {
        terminate!();
    }
    let (cols, to) = (out.shape(1), token * out.stride(0));
    let slot = slots[token];
    let known = slot >= 0 && slot < pages.count as i32;
    let at = pages.start(select(known, slot, 0i32) as usize);
    let scales_at = at + kv_lora_rank;
    let rope_at = scales_at + 4 * kv_lora_rank.div_ceil(BLOCK);
    for step in 0..cols.div_ceil(comptime![machine.team]) {
        let i = step * comptime![machine.team] + unit_id(machine);
        if i < cols {
            let mut value = f32::NAN.runtime();
            if known {
                if i < kv_lora_rank {
                    let code = e4m3::reinterpret(cache[at + i].extract(0usize));
                    value = f32::cast_from(code) * read_f32(cache, scales_at + i / BLOCK * 4);
                } else {
                    let from = rope_at + 2 * (i - kv_lora_rank);
                    let low = u32::cast_from(cache[from].extract(0usize));
                    let high = u32::cast_from(cache[from + 1].extract(0usize));
                    // A bf16 is the upper half of an f32.
                    value = f32::reinterpret((high << 24) | (low << 16));
                }
            }
            out.data[to + i] = round_to::<O>(value, machine);
        }
    }
}

/// One unit looks up one key.
#[cube(launch_unchecked, address_type = "dynamic")]
fn slots_kernel(
    indices: &View<i32>,     // [b, next_n, topk]
    block_table: &View<i32>, // [b, max_pages]
    slots: &mut [i32],       // [b, next_n, topk]
    pages: u32,
    page_size: u32,
    #[comptime] machine: Machine,
) {
    let i = program_id(machine) * comptime![machine.team] + unit_id(machine);
    let each = indices.shape(1) * indices.shape(2);
    if i < indices.shape(0) * each {
        let (index, request) = (indices.data[i], i / each);
        let position = max(index, 0i32) as u32;
        let nth = (position / page_size) as usize;
        let mut slot = -1i32.runtime();
        if index >= 0 && nth < block_table.shape(1) {
            let page = block_table.data[request * block_table.stride(0) + nth];
            // Compared before it is multiplied: no number in the table is too large.
            if page >= 0 && (page as u32) < pages {
                slot = (page as u32 * page_size + position % page_size) as i32;
            }
        }
        slots[i] = slot;
    }
}

/// How these kernels run on `device`.
pub fn machine(device: &Device) -> Machine {
    device.machine(128)
}

/// What [`load_kv`] takes and returns.
pub const LOAD_KV: Contract = Contract {
    name: "load_kv",
    tensors: &[
        "cache: [n_pages, page_size * (kv_lora_rank + 4 * ceil(kv_lora_rank / 128) + 2 * rope_dim)] u8, rows",
        "slots: [n] i32",
    ],
    scalars: &[
        "page_size: integer 1 to 1048576",
        "kv_lora_rank: integer 1 to 1024",
        "rope_dim: integer 0 to 1024",
        "out: f32|bf16|f16 (f32)",
    ],
    sizes: &["n_pages * page_size: 0 to 2147483647"],
    outputs: &["out: [n, kv_lora_rank + rope_dim] as out"],
};

/// Records of the paged fp8 cache as rows ([`LOAD_KV`]): what the attention kernels see of them.
///
/// - `cache`: `[n_pages, page_size · record.bytes()]` u8;
/// - `slots`: `[n]` i32, `page · page_size + offset`; a slot out of range gives a row of NaN;
/// - returns `[n, kv_lora_rank + rope_dim]` of `dtype`.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn load_kv(
    cache: &Tensor,
    slots: &Tensor,
    page_size: usize,
    record: KvRecord,
    dtype: DType,
) -> Result<Tensor> {
    let device = cache.device();
    let KvRecord { kv_lora_rank, rope_dim } = record;
    let scalars = [page_size.into(), kv_lora_rank.into(), rope_dim.into(), dtype.into()];
    let bound = LOAD_KV.check([cache, slots].map(Some), &scalars)?;
    let [n] = bound.sizes(["n"])?;
    let out = bound.output("out")?;
    if n == 0 {
        return Ok(out);
    }
    let machine = machine(device);
    let (count, stride) = (cache.shape()[0] * page_size, record.bytes());
    // SAFETY: a slot is compared with the slots of the cache before its record, of as many bytes as the contract
    // says, is read; rows and columns are those of out.
    unsafe {
        load_kv_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n)?,
            machine.cube_dim(),
            device.addresses([cache, &out]),
            1,
            cache.arg(1),
            slots.arg(1),
            PagesLaunch::new(count, stride, page_size, cache.strides()[0]),
            out.view(1),
            kv_lora_rank,
            machine,
            out.dtype().elem(),
        );
    }
    Ok(out)
}

/// What [`slots_of_keys`] takes and returns.
pub const SLOTS_OF_KEYS: Contract = Contract {
    name: "slots_of_keys",
    tensors: &["indices: [b, next_n, topk] i32", "block_table: [b, max_pages] i32"],
    scalars: &["n_pages: integer 0 to 2147483647", "page_size: integer 1 to 1048576"],
    sizes: &["n_pages * page_size: 0 to 2147483647"],
    outputs: &["slots: [b, next_n, topk] i32"],
};

/// Where in a cache of pages the keys are that the tokens of requests attend to ([`SLOTS_OF_KEYS`]).
///
/// - `indices`: `[b, next_n, topk]` i32: positions in each token's request; -1 is no key;
/// - `block_table`: `[b, max_pages]` i32: the pages of each request, of a cache of `pages` pages of `page_size` tokens;
/// - returns `[b, next_n, topk]` i32: `page · page_size + offset`, -1 where there is no key, or no such page.
///
/// # Errors
/// What is not as the contract says, and a device without memory for the output.
pub fn slots_of_keys(
    indices: &Tensor,
    block_table: &Tensor,
    pages: usize,
    page_size: usize,
) -> Result<Tensor> {
    let device = indices.device();
    let scalars = [pages.into(), page_size.into()];
    let out = SLOTS_OF_KEYS.check([indices, block_table].map(Some), &scalars)?.output("slots")?;
    let n = out.len();
    if n == 0 {
        return Ok(out);
    }
    let machine = machine(device);
    // SAFETY: both lists hold n entries, where the kernel stops; a position's page is compared with those of the block
    // table, which has a row for each request.
    unsafe {
        slots_kernel::launch_unchecked(
            device.client(),
            machine.cube_count(n.div_ceil(machine.team))?,
            machine.cube_dim(),
            device.addresses([indices, block_table, &out]),
            indices.view(1),
            block_table.view(1),
            out.arg(1),
            pages as u32,
            page_size as u32,
            machine,
        );
    }
    Ok(out)
}

/// Puts rows of indices in their places: `out = indices`, both `[n, k]` i32 without gaps.
///
/// # Errors
/// [`KernelError::DType`](crate::KernelError::DType) if one is not i32, and what [`place_rows`] refuses.
pub fn place_indices(indices: &Tensor, out: &Tensor) -> Result<()> {
    indices.expect_dtype("indices", &[DType::I32])?;
    out.expect_dtype("out", &[DType::I32])?;
    let rows: Vec<i32> = (0..out.shape()[0] as i32).collect();
    let rows = out.device().upload_i32(&rows, &[rows.len()])?;
    // Numbers of as many bits: a copy computes nothing, so that it is all the same to it what they stand for.
    let [indices, out] = [indices, out].map(|of| of.reinterpret(DType::F32).unsqueeze(1));
    place_rows(&indices, &rows, &out)
}
