//! The one table of tolerances: per kind of result, output and element type, each with its source. A kernel names the
//! kind it is of.

use crate::kernels::find;
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

/// [`tolerance`] where `unit` multiplies: that of the row of this table which the kernel names. What is no kernel must
/// be exact.
pub fn tolerance_on(unit: MatrixUnit, kernel: &str, output: &str, dtype: DType) -> Tolerance {
    find(kernel).map_or(EXACT, |kernel| (kernel.tolerance)(unit, output, dtype))
}

/// Bit for bit.
pub fn exact(_: MatrixUnit, _: &str, _: DType) -> Tolerance {
    EXACT
}

/// Index scores.
pub fn scores(unit: MatrixUnit, _: &str, _: DType) -> Tolerance {
    if unit == MatrixUnit::Wgmma {
        return Tolerance {
            abs: 2e-3,
            rel: 0.0,
            cos: 5e-6,
            of_row: true,
            source: "DeepGEMM's calc_diff < 5e-6; Hopper's fp8 product accumulates in fewer bits \
                     than f32 and cuts the rest off: on an H200 1.7e-4 of a score with heads of 15 \
                     and 27, 1.24e-3 of the row's largest with 64 heads of 128 and codes of keys up \
                     to 448, whose sums cancel (difference of the whole 1.3e-7)",
        };
    }
    Tolerance {
        // Scores are sums of signed shares: what is left after they cancel carries the rounding of
        // the largest, so an element is held against its row.
        abs: 2e-5,
        rel: 0.0,
        cos: 5e-6,
        of_row: true,
        source: "DeepGEMM test_attention.py: calc_diff < 5e-6 against the same fp8 inputs; \
                 2e-5 of the row: f32 sums of 64 x 128 products",
    }
}

/// Attention: its output, and the logarithm of the sum and the largest of its scores.
pub fn attention(unit: MatrixUnit, output: &str, dtype: DType) -> Tolerance {
    if output != "out" {
        return Tolerance {
            abs: 4e-6,
            rel: 2.01 / 65536.0,
            cos: 1e-9,
            of_row: false,
            source: "FlashMLA tests: lse and max_logits 1e-6 / 2.01/65536; 4e-6 absolute, since \
                     ours also takes inputs of larger magnitude whose scores cancel to near 0",
        };
    }
    if unit != MatrixUnit::Wgmma || dtype == DType::F32 {
        return rounded(unit, output, dtype);
    }
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

/// Products of fp8 codes, summed in f32 block by block.
pub fn fp8_products(unit: MatrixUnit, output: &str, dtype: DType) -> Tolerance {
    if unit == MatrixUnit::Plain {
        return rounded(unit, output, dtype);
    }
    let rel = match dtype {
        DType::Bf16 => 1.01 / 128.0,
        DType::F16 => 1.01 / 1024.0,
        _ => 0.0,
    };
    Tolerance {
        abs: 2e-3,
        rel,
        cos: 7e-6,
        of_row: true,
        source: "as the indexer's: Hopper's fp8 product accumulates in fewer bits than f32 and cuts the rest off, \
                 here within a block of 128; its sum is f32",
    }
}

/// f32 arithmetic rounded once to the output's type.
pub fn rounded(_: MatrixUnit, _: &str, dtype: DType) -> Tolerance {
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
