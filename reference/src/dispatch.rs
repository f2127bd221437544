//! Pairs of tokens and experts in the order of the experts.
use ndarray::ArrayView2;

/// What [`dispatch`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// `[n · top_k]`: the pairs `t · top_k + j`, sorted by expert, then by number.
    pub order: Vec<i32>,
    /// `[experts]`: where in `order` each expert's pairs end.
    pub ends: Vec<i32>,
}

/// Sorts the pairs of tokens and `indices` `[n, top_k]` by expert. What names none of the `experts` comes last, and no
/// end counts it.
pub fn dispatch(indices: ArrayView2<i32>, experts: usize) -> Dispatch {
    let expert = |index: i32| usize::try_from(index).unwrap_or(experts).min(experts);
    let of: Vec<usize> = indices.iter().map(|&index| expert(index)).collect(); // [n · top_k]
    let mut order: Vec<usize> = (0..of.len()).collect(); // [n · top_k]
    order.sort_by_key(|&pair| of[pair]);
    let ends = (0..experts).map(|e| of.iter().filter(|&&of| of <= e).count() as i32).collect(); // [experts]
    Dispatch { order: order.into_iter().map(|pair| pair as i32).collect(), ends }
}
