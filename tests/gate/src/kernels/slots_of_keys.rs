//! Where in the pages of a cache the keys of requests are.

use super::*;
use dsa_kernels::cache_read::{self, SLOTS_OF_KEYS};

pub(super) const KERNEL: Kernel = Kernel {
    name: SLOTS_OF_KEYS.name,
    contract: SLOTS_OF_KEYS,
    file: "cache_read.rs",
    beside: Vec::new,
    made: &[],
    scratch: "0",
    work: "b * next_n * topk",
    tolerance: tolerance::exact,
    machine: cache_read::machine,
    launch: run,
    compute: reference,
    reference: ("slots_of_keys", "reference/src/cache_read.rs"),
    forms,
    paths: Paths::one("indices"),
    production: || {
        let (indices, table) = (ints(&[v32::FEW, 1, v32::TOPK]), ints(&[v32::FEW, v32::PAGE]));
        vec![case(indices, table, 1000, v32::PAGE)]
    },
    sample: || {
        let indices = HostTensor::i32(&[2, 2, 3], &[4, 0, -1, 7, -1, 2, 9, 1, 5, 3, 6, 8]);
        case(indices, HostTensor::i32(&[2, 3], &[5, 0, 2, 1, -1, 6]), 6, 3)
    },
    bench: &[Bench { stage: Stage::Decode, room: Some(room), spec }],
};

fn case(indices: HostTensor, block_table: HostTensor, pages: usize, page_size: usize) -> Case {
    Case::new(KERNEL.name)
        .with("indices", indices)
        .with("block_table", block_table)
        .set("n_pages", pages)
        .set("page_size", page_size)
}

fn run(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (indices, table) = (case.upload(device, "indices")?, case.upload(device, "block_table")?);
    let (pages, page_size) = (case.scalar("n_pages")?, case.scalar("page_size")?);
    only("slots", &cache_read::slots_of_keys(&indices, &table, pages, page_size)?)
}

fn reference(case: &Case) -> Result<Outputs, CaseError> {
    let indices: ndarray::Array3<i32> = case.array_i32("indices")?;
    let table: ndarray::Array2<i32> = case.array_i32("block_table")?;
    let (pages, page_size) = (case.scalar("n_pages")?, case.scalar("page_size")?);
    let slots =
        reference::cache_read::slots_of_keys(indices.view(), table.view(), pages, page_size)?;
    let values: Vec<i32> = slots.iter().copied().collect();
    Ok(outputs([("slots", HostTensor::i32(slots.shape(), &values))]))
}

fn forms() -> Forms {
    type Slots = (usize, usize, usize, usize, usize);
    let random = (1usize..4, 0usize..4, 1usize..70, 1usize..9, 1usize..70);
    let production =
        |_: Model| (1usize..4, 1usize..3, Exactly(v32::TOPK), 1usize..40, Exactly(v32::PAGE));
    Forms::new(random, production, |form: &Slots, rng: &mut Rng| {
        let (requests, next_n, topk, most, page_size) = *form;
        // Pages of a pool of which a few are no pages, and positions of which a few are beyond the last page.
        let pool = 1 + rng.below(1000);
        let bad = [-1, i32::MIN, i32::MAX, pool as i32];
        let mut any = |n: usize, count: usize| -> Vec<i32> {
            (0..count)
                .map(|_| if rng.one_in(5) { rng.choose(&bad) } else { rng.below(n) as i32 })
                .collect()
        };
        let indices = any(most * page_size + 3, requests * next_n * topk);
        let table = any(pool, requests * most);
        let indices = HostTensor::i32(&[requests, next_n, topk], &indices);
        case(indices, HostTensor::i32(&[requests, most], &table), pool, page_size)
    })
}

fn room(axes: &Axes, context: usize) -> (u128, u128) {
    let listed = bytes_of(&[4, axes.batch, axes.topk]);
    (listed + bytes_of(&[4, axes.batch, context.div_ceil(v32::PAGE)]), listed)
}

/// Of the next token of each request.
fn spec(device: &Device, axes: &Axes, context: usize, seed: u64) -> dsa_kernels::Result<Spec> {
    let (rows, topk, most) = (axes.batch, axes.topk, context.div_ceil(v32::PAGE).max(1));
    let pool = rows * most;
    let mut rng = Rng::new(seed);
    let listed: Vec<i32> = (0..rows * topk).map(|_| rng.below(context) as i32).collect();
    let table: Vec<i32> = (0..pool).map(|_| rng.below(pool) as i32).collect();
    let indices = device.upload_i32(&listed, &[rows, 1, topk])?;
    let block_table = device.upload_i32(&table, &[rows, most])?;
    let gate = case(
        HostTensor::i32(&[2, 1, topk.min(7)], &vec![70; 2 * topk.min(7)]),
        HostTensor::i32(&[2, 2], &[4, 7, 0, 9]),
        9,
        v32::PAGE,
    );
    let inputs = [indices.clone(), block_table.clone()];
    Ok(Spec {
        kernel: KERNEL.name,
        stage: Stage::Decode,
        case: String::new(),
        shape: sizes([("batch", rows), ("context", context), ("topk", topk)]),
        dtype: DType::I32.to_string(),
        flop: 0,
        bytes: (12 * rows * topk) as u64,
        gate,
        work: Box::new(move || {
            let slots = cache_read::slots_of_keys(&indices, &block_table, pool, v32::PAGE)?;
            Ok(one("slots", slots))
        }),
        timed: Timed {
            rows,
            heads: 1,
            cost: topk,
            cut: Box::new(move |at, out| {
                let [indices, table] = &inputs;
                let case = case(at.rows(indices)?, at.rows(table)?, pool, v32::PAGE);
                Ok((case, at.outputs(out)?))
            }),
        },
    })
}
