//! Cases that are files in good order, but not what their kernel takes, or just so.

use super::mutator::Mutator;
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;

const TYPES: [DType; 6] = [DType::F32, DType::Bf16, DType::F16, DType::E4m3, DType::I32, DType::U8];

/// What may stand where a scalar stood.
const SCALARS: [&str; 20] = [
    "",
    "0",
    "1",
    "2",
    "3",
    "5",
    "7",
    "-1",
    "0.5",
    "1e-50",
    "1e39",
    "NaN",
    "inf",
    "true",
    "wide",
    "window",
    "fraction",
    "1048576",
    "4294967295",
    "18446744073709551616",
];

/// Names that a kernel may read, and some that none does.
const NAMES: [&str; 12] = [
    "attn_sink",
    "attn_sinks",
    "topk_length",
    "splits",
    "pieces",
    "policy",
    "window",
    "sinks",
    "min",
    "per_mille",
    "strided",
    "score_fn",
];

const INTEGERS: [i32; 8] = [-1, 0, 1, 5, i32::MIN, i32::MAX, 1 << 20, -2];

/// `case` with one to three things changed.
pub fn damaged(mutator: &mut Mutator, mut case: Case) -> Case {
    for _ in 0..=mutator.rng.below(3) {
        let names: Vec<String> = case.tensors.keys().cloned().collect();
        let Some(name) = names.get(mutator.rng.below(names.len())) else { break };
        match mutator.rng.below(9) {
            0 => drop(case.tensors.remove(name)),
            1 => {
                let tensor = case.tensors[name].clone();
                case = case.with(NAMES[mutator.rng.below(3)], tensor);
            }
            2 | 3 => {
                let scalars: Vec<&str> = case.scalars.keys().map(String::as_str).collect();
                let known = scalars.get(mutator.rng.below(2 * scalars.len() + 1)).copied();
                let name = known.unwrap_or(NAMES[mutator.rng.below(NAMES.len())]).to_string();
                case = case.set(&name, SCALARS[mutator.rng.below(SCALARS.len())]);
            }
            4 => {
                let dtype = TYPES[mutator.rng.below(TYPES.len())];
                let tensor = case.tensors[name].cast(dtype);
                case = case.with(name, tensor);
            }
            5 => {
                let tensor = case.tensors.get_mut(name).unwrap();
                if tensor.dtype == DType::I32 && !tensor.bytes.is_empty() {
                    let at = mutator.rng.below(tensor.bytes.len() / 4) * 4;
                    let value = INTEGERS[mutator.rng.below(INTEGERS.len())];
                    tensor.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
            }
            _ => {
                let tensor = &case.tensors[name];
                let mut shape = tensor.shape.clone();
                reshape(mutator, &mut shape);
                let elements = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
                if let Some(elements) = elements.filter(|elements| *elements <= 1 << 20) {
                    let (dtype, bytes) = (tensor.dtype, elements * tensor.dtype.size());
                    let bytes =
                        tensor.bytes.iter().copied().chain(std::iter::repeat(0)).take(bytes);
                    let bytes = bytes.collect();
                    case = case.with(name, HostTensor { dtype, shape, bytes });
                }
            }
        }
    }
    case
}

fn reshape(mutator: &mut Mutator, shape: &mut Vec<usize>) {
    let rng = &mut mutator.rng;
    let at = rng.below(shape.len());
    match rng.below(8) {
        0 => shape.insert(at, 1),
        1 => shape.extend([1; 9]),
        2 if !shape.is_empty() => drop(shape.remove(at)),
        // Rows without columns are free.
        3 if shape.len() > 1 => {
            let rows = [1 << 20, (1 << 31) - 1, 3][rng.below(3)];
            shape[at] = 0;
            let other = (at + 1) % shape.len();
            shape[other] = rows;
        }
        _ => {
            if let Some(axis) = shape.get_mut(at) {
                *axis = [0, 1, *axis + 1, axis.saturating_sub(1), 2 * *axis][rng.below(5)];
            }
        }
    }
}
