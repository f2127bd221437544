//! The one table of tolerances: per kernel, output and element type, each with its source.

use crate::kernels::linear;
use dsa_kernels::DType;
use dsa_kernels::tile::MatrixUnit;

/// How far a kernel's output may be from the reference's.
///
/// An element passes if it and its expected value are the same infinity, both NaN, or
/// `|x - y| <= abs + rel · |y|`; the whole tensor passes if also `1 - 2 Σxy / Σ(x² + y²) <= cos`
/// over its finite elements, in f64 (DeepGEMM's calc_diff).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f64,
    /// Relative part.
    pub rel: f64,
    /// Bound of the whole tensor's difference.
    pub cos: f64,
    /// `abs` is meant relative to the largest finite expected element of the same row.
    pub of_row: bool,
    /// Where the numbers come from.
    pub source: &'static str,
}

/// Bit for bit.
pub const EXACT: Tolerance = Tolerance {
    abs: 0.0,
    rel: 0.0,
    cos: 0.0,
    of_row: false,
    source: "exact: the operations are the same, one by one",
};

/// The tolerance of `kernel`'s `output`, whose elements are of type `dtype`, for plain arithmetic.
pub fn tolerance(kernel: &str, output: &str, dtype: DType) -> Tolerance {
    tolerance_on(MatrixUnit::Plain, kernel, output, dtype)
}

/// [`tolerance`] where `unit` multiplies.
pub fn tolerance_on(unit: MatrixUnit, kernel: &str, output: &str, dtype: DType) -> Tolerance {
    if let Some(tolerance) = linear::tolerance(unit, kernel, dtype) {
        return tolerance;
    }
    match (kernel, output) {
        ("indexer_logits" | "indexer_logits_paged", _) if unit == MatrixUnit::Wgmma => Tolerance {
            abs: 2e-3,
            rel: 0.0,
            cos: 5e-6,
            of_row: true,
            source: "DeepGEMM's calc_diff < 5e-6; Hopper's fp8 product accumulates in fewer bits \
                     than f32 and cuts the rest off: on an H200 1.7e-4 of a score with heads of 15 \
                     and 27, 1.24e-3 of the row's largest with 64 heads of 128 and codes of keys up \
                     to 448, whose sums cancel (difference of the whole 1.3e-7)",
        },
        ("sparse_mla" | "sparse_mla_paged" | "dense_mha" | "dense_mla", "out")
            if unit == MatrixUnit::Wgmma && dtype != DType::F32 =>
        {
            let (abs, rel, cos) = match dtype {
                DType::F16 => (5e-4, 1.01 / 1024.0, 1e-6),
                _ => (4e-3, 1.01 / 128.0, 7e-6),
            };
            let source = "FlashMLA: 8e-4, 3.01/128, cosine 7e-6 for bf16. The matrix unit takes \
                          probabilities rounded to the operands' type: half a step (2^-9 of bf16) \
                          of each term, so an element that is left after terms cancelled is held \
                          against its row. On an H200 bf16 was off by 1.2e-3 of the row's largest \
                          (sparse), 8.5e-4 (MHA), 1.3e-3 (MLA), cosine 1.8e-6, before this row was \
                          written; with it 0.8 of what is allowed";
            Tolerance { abs, rel, cos, of_row: true, source }
        }
        ("act_quant" | "store_kv" | "store_index_keys" | "round_trip", _) => EXACT,
        ("top_k" | "shift_indices" | "place_rows" | "embedding" | "dispatch", _) => EXACT,
        ("router", "indices") | ("add_rms_norm", "new_residual") => EXACT,
        ("indexer_logits" | "indexer_logits_paged", _) => Tolerance {
            // Scores are sums of signed shares: what is left after they cancel carries the rounding of
            // the largest, so an element is held against its row.
            abs: 2e-5,
            rel: 0.0,
            cos: 5e-6,
            of_row: true,
            source: "DeepGEMM test_attention.py: calc_diff < 5e-6 against the same fp8 inputs; \
                     2e-5 of the row: f32 sums of 64 x 128 products",
        },
        (_, "lse" | "max_logits") => Tolerance {
            abs: 4e-6,
            rel: 2.01 / 65536.0,
            cos: 1e-9,
            of_row: false,
            source: "FlashMLA tests: lse and max_logits 1e-6 / 2.01/65536; 4e-6 absolute, since \
                     ours also takes inputs of larger magnitude whose scores cancel to near 0",
        },
        _ => rounded(dtype),
    }
}

/// f32 arithmetic rounded once to the output's type.
fn rounded(dtype: DType) -> Tolerance {
    let (abs, rel, cos, source) = match dtype {
        DType::Bf16 => (
            2e-5,
            1.01 / 128.0,
            7e-6,
            "one step of bf16 (2^-7 relative), FlashMLA's cosine 7e-6; FlashMLA itself allows \
             8e-4 and 3.01/128",
        ),
        DType::F16 => (5e-6, 1.01 / 1024.0, 1e-6, "one step of f16 (2^-10 relative)"),
        _ => (5e-6, 2e-5, 1e-9, "PyTorch assert_close for f32 (1e-5), doubled for long sums"),
    };
    // An element that is what large terms left after they cancelled carries their rounding, so the
    // absolute part is held against the row.
    Tolerance { abs, rel, cos, of_row: true, source }
}
