//! How large the tensors of a step may be.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::run::Mode;
use dsa_kernels::DType;
use std::ops::Range;

/// The parts of `n` tokens that are scored together, so that their logits of `columns` keys each take at most `budget`
/// bytes; one token at a time if it is less than that.
pub(super) fn logits_parts(
    n: usize,
    columns: usize,
    budget: usize,
) -> impl ExactSizeIterator<Item = Range<usize>> {
    let row = columns.saturating_mul(DType::F32.size()).max(1);
    let most = (budget / row).clamp(1, n.max(1));
    (0..n).step_by(most).map(move |first| first..n.min(first + most))
}

/// Refuses a step of `n` tokens that see `rows` rows whose largest tensors have more rows than the kernels can
/// number.
pub(super) fn check_rows(
    config: &Config,
    n: usize,
    rows: usize,
    mode: Mode,
    expanded: bool,
) -> Result<()> {
    let (heads, sparse) = (config.num_attention_heads, mode == Mode::Sparse);
    let counts = [
        ("the rows of q", true, n, heads),
        ("the rows of the keys, expanded", expanded, rows, heads),
        ("the rows of the index queries", sparse, n, config.index_n_heads),
        ("the columns of the index logits", sparse && !expanded, rows, 1),
    ];
    for (name, _, rows, each) in counts.into_iter().filter(|(_, made, ..)| *made) {
        let fits = (rows as u64).checked_mul(each as u64).is_some_and(|rows| rows < 1 << 31);
        let got = format!("{rows} times {each}");
        Error::check(fits, name, got, "fewer than 2^31: take shorter chunks")?;
    }
    Ok(())
}
