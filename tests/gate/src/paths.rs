//! Which code of a kernel a case runs: the choices that its launcher makes while a kernel is compiled.
//!
//! A path is one way that one choice can fall, as "records by vectors" or "bf16". The list of a kernel is
//! fixed; what a case runs is computed from its sizes and options by the launcher's own rules. The gate fails
//! if its cases leave one out, so that no code goes ungated because nobody happened to draw it.

use crate::case::Case;
use crate::kernels::{find_moe, linear};
use dsa_kernels::tile::{Machine, load_width};
use dsa_kernels::{DType, Device, dense_attention, gemm, indexer, sparse_attention};

/// The paths of `kernel` on `device`.
pub fn all(kernel: &str, device: &Device) -> Vec<&'static str> {
    if let Some(paths) = linear::paths(kernel) {
        return paths;
    }
    const FLOATS: &[&str] = &["f32", "bf16", "f16"];
    const LOADS: &[&str] = &["vectors", "elements"];
    const FMT: &[&str] = &["plain", "ue8m0"];
    const SCORES: &[&str] = &["relu", "sigmoid"];
    const SPLITS: &[&str] = &["one split", "splits"];
    const LISTS: &[&str] =
        &["lengths", "whole lists", "no sink", "sink in the kernel", "sink in the merge"];
    const RECORDS: &[&str] = &["records by vectors", "records by bytes"];
    const POLICIES: &[&str] = &["fixed", "fraction", "window"];
    let moe = find_moe(kernel);
    let parts: &[&[&'static str]] = match kernel {
        "act_quant" | "round_trip" => &[FLOATS, FMT],
        "store_kv" | "store_index_keys" | "hadamard" | "rms_norm" | "layer_norm" => &[FLOATS],
        "rope" => &[FLOATS, &["interleaved", "half_split"]],
        "place_rows" => &[FLOATS, &["a head each", "one head for all"]],
        "gemm" => &[FLOATS, LOADS, GEMM_TILES, GEMM_OUTS],
        "indexer_logits" => {
            &[&["e4m3"], FLOATS, LOADS, SCORES, &["keys without gaps", "keys with gaps"]]
        }
        "indexer_logits_paged" => {
            &[LOADS, SCORES, &["one token", "two tokens", "scales in words", "scales in bytes"]]
        }
        "top_k" => &[POLICIES, LOADS, &["sifted", "not sifted"]],
        "sparse_mla" => &[FLOATS, LOADS, SPLITS, LISTS, &["rows", "pages"]],
        "sparse_mla_paged" => &[FLOATS, SPLITS, LISTS, RECORDS],
        "dense_mla" => &[FLOATS, LOADS, SPLITS],
        "dense_mha" => &[FLOATS, LOADS],
        // One kernel, whatever it is given.
        _ => moe.as_ref().map_or(&[&["any"]], |moe| moe.paths),
    };
    let mut all: Vec<_> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    // Tiles whose height depends on what there is to do, where a team is one unit.
    if device.machine(64).team == 1 {
        all.extend_from_slice(match kernel {
            "sparse_mla" | "sparse_mla_paged" | "dense_mla" => &HEAD_TILES[..4],
            "dense_mha" => QUERY_TILES,
            _ => &[],
        });
    }
    all
}

const GEMM_TILES: &[&str] =
    &["to 4 rows", "to 8 rows", "to 64 rows", "to 128 columns", "more columns"];
const GEMM_OUTS: &[&str] = &["to f32", "to bf16", "to f16"];
const HEAD_TILES: &[&str] = &["4 heads", "8 heads", "16 heads", "32 heads"];
const QUERY_TILES: &[&str] = &["4 queries", "8 queries", "16 queries", "32 queries", "64 queries"];

/// The paths that `case` runs on `device`; none if there is nothing to compute.
pub fn of(case: &Case, device: &Device) -> Vec<&'static str> {
    if let Some(paths) = linear::paths_of(case, device) {
        return paths;
    }
    let shape = |name: &str| case.tensors.get(name).map_or(&[][..], |tensor| &tensor.shape[..]);
    if let Some(moe) = find_moe(&case.kernel) {
        let nothing = case.tensors.values().any(|tensor| tensor.shape.contains(&0));
        return if nothing { vec![] } else { (moe.paths_of)(case) };
    }
    let word = |name: &str| case.scalars.get(name).map(String::as_str);
    let either = |a: bool, yes: &'static str, no: &'static str| if a { yes } else { no };
    let score = || either(word("score_fn") == Some("sigmoid"), "sigmoid", "relu");
    let splits = || word("splits").and_then(|n| n.parse::<usize>().ok());
    let plain = device.machine(64).team == 1;
    let first = match case.kernel.as_str() {
        "act_quant" | "round_trip" | "hadamard" | "rms_norm" | "layer_norm" | "rope" | "gemm" => {
            "x"
        }
        "place_rows" => "x",
        "store_kv" => "c",
        "store_index_keys" => "k",
        "top_k" => "logits",
        "shift_indices" => "indices",
        "fold_scales" => "weights",
        _ => "q",
    };
    let dtype = case.tensors.get(first).map_or(DType::F32, |tensor| tensor.dtype);
    let mut paths = vec![];
    if shape(first).contains(&0) {
        return paths;
    }
    let loads = |machine: Machine, names: &[&str]| {
        let width = load_width(machine, dtype.size());
        either(names.iter().all(|name| in_vectors(case, name, width)), "vectors", "elements")
    };
    // These take one type.
    if !["top_k", "indexer_logits_paged"].contains(&case.kernel.as_str()) {
        paths.push(name_of(dtype));
    }
    match case.kernel.as_str() {
        "act_quant" | "round_trip" => {
            paths.push(either(word("fmt") == Some("plain"), "plain", "ue8m0"));
        }
        "rope" => {
            paths.push(either(word("pairing") == Some("half_split"), "half_split", "interleaved"));
        }
        "place_rows" => {
            paths.push(either(shape("x")[1] == 1, "one head for all", "a head each"));
        }
        "gemm" => {
            let (m, n) = (shape("x")[1], shape("w")[1]);
            paths.push(loads(gemm::machine(device, dtype), &["x", "w"]));
            paths.push(match word("out") {
                Some("bf16") => GEMM_OUTS[1],
                Some("f16") => GEMM_OUTS[2],
                _ => GEMM_OUTS[0],
            });
            paths.push(match m {
                0..=4 => GEMM_TILES[0],
                5..=8 => GEMM_TILES[1],
                9..=64 => GEMM_TILES[2],
                _ => either(n <= 128, GEMM_TILES[3], GEMM_TILES[4]),
            });
        }
        "indexer_logits" => {
            paths.push(loads(indexer::machine(device, dtype), &["q", "k"]));
            paths.push(score());
            paths.push(either(gap(case, dtype) == 0, "keys without gaps", "keys with gaps"));
        }
        "indexer_logits_paged" => {
            let (machine, dim) = (indexer::machine(device, dtype), shape("q")[3]);
            let page: usize = case.scalar("page_size").unwrap_or(1);
            let width = load_width(machine, 1);
            let whole = [dim, shape("cache")[1] + gap(case, DType::U8)];
            paths.push(either(whole.iter().all(|n| n % width == 0), "vectors", "elements"));
            paths.push(score());
            paths.push(either(shape("q")[1] == 1, "one token", "two tokens"));
            let words = in_vectors(case, "cache", 4) && (page * dim).is_multiple_of(4);
            paths.push(either(words, "scales in words", "scales in bytes"));
        }
        "top_k" => {
            let (rows, length) = (shape("logits")[0], shape("logits")[1]);
            let whole = (rows * (length + gap(case, DType::F32))).is_multiple_of(4);
            let pieces = word("pieces").map_or(length > 16_384, |pieces| pieces != "0");
            paths.push(either(whole, "vectors", "elements"));
            paths.push(either(pieces, "sifted", "not sifted"));
            paths.push(match word("policy") {
                Some("fraction") => "fraction",
                Some("window") => "window",
                _ => "fixed",
            });
        }
        "sparse_mla" | "sparse_mla_paged" | "dense_mla" => {
            let machine = sparse_attention::machine(device, dtype);
            let heads = shape("q")[1].next_power_of_two().clamp(4, 32);
            if plain {
                paths.push(HEAD_TILES[heads.ilog2() as usize - 2]);
            }
            if case.kernel != "sparse_mla_paged" {
                paths.push(loads(machine, &["q", "kv"]));
            }
            // Without the scalar the launcher chooses by the device's cores.
            let one = splits().map(|splits| splits == 1);
            paths.extend(one.map(|one| either(one, "one split", "splits")));
            if case.kernel != "dense_mla" {
                let sink = case.tensors.contains_key("attn_sink");
                paths.push(either(
                    case.tensors.contains_key("topk_length"),
                    "lengths",
                    "whole lists",
                ));
                match one {
                    _ if !sink => paths.push("no sink"),
                    Some(one) => {
                        paths.push(either(one, "sink in the kernel", "sink in the merge"));
                    }
                    None => {}
                }
            }
            if case.kernel == "sparse_mla" {
                paths.push(either(shape("kv").len() == 3, "pages", "rows"));
            }
            if case.kernel == "sparse_mla_paged" {
                let rank: usize = case.scalar("kv_lora_rank").unwrap_or(1);
                let page: usize = case.scalar("page_size").unwrap_or(1);
                let record = shape("cache")[1] / page.max(1);
                let rope_at = rank + 4 * rank.div_ceil(128);
                let whole = [rank, rope_at, record].iter().all(|n| n % 8 == 0);
                let whole = whole && in_vectors(case, "cache", 8);
                paths.push(either(whole, "records by vectors", "records by bytes"));
            }
        }
        "dense_mha" => {
            let machine = dense_attention::machine(device, dtype);
            paths.push(loads(machine, &["q", "k", "v"]));
            let queries = shape("q")[0].next_power_of_two().clamp(4, 64);
            if plain {
                paths.push(QUERY_TILES[queries.ilog2() as usize - 2]);
            }
        }
        _ => {}
    }
    if all(&case.kernel, device) == ["any"] { vec!["any"] } else { paths }
}

pub(crate) fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::E4m3 => "e4m3",
        _ => "f32",
    }
}

/// Elements of `dtype` behind each row of the case's tensors.
fn gap(case: &Case, dtype: DType) -> usize {
    case.gap(dtype).unwrap_or(0)
}

/// Whether rows of `name` begin and end at multiples of `width` elements.
pub(crate) fn in_vectors(case: &Case, name: &str, width: usize) -> bool {
    case.tensors.get(name).is_some_and(|tensor| {
        let cols = tensor.shape.last().copied().unwrap_or(0);
        cols % width == 0 && gap(case, tensor.dtype).is_multiple_of(width)
    })
}
