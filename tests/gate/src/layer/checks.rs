//! The single comparisons that a section is made of.

use super::error::Result;
use super::report::{Bound, Section};
use super::thresholds::{KERNEL, worst_row};
use crate::case::HostTensor;
use crate::compare::close;
use crate::tolerance::tolerance_on;
use dsa_kernels::{Device, dense_attention};
use dsa_model::layers::Trace;
use dsa_reference::sparse_attention::AttentionOut as Expected;
use ndarray::{Array2, ArrayView1, Axis, Zip};
use std::collections::BTreeSet;

/// The keys that both sides select for the last n tokens of a sequence.
pub(super) struct Selected<'a> {
    /// What follows the checks' names: which step selected.
    pub when: &'a str,
    /// Tokens of the sequence.
    pub tokens: usize,
    /// The kernels' keys: `[n, k]`.
    pub got: &'a Array2<i32>,
    /// The reference's keys: `[n, k]`.
    pub want: &'a Array2<i32>,
    /// lse of the attention to all keys that a token may see: `[n, h]`.
    pub of_all: &'a Array2<f32>,
}

/// Which share of their keys both sides select, and how much of the attention lies on those that only
/// the reference selects.
///
/// - `lse_of`: the attention to any keys `[n, k]`; with `of_all` the share of the attention they hold;
/// - `bounds`: of the recall and of that share, each a mean of the tokens.
///
/// A token must list as many keys as it sees, at most k, each once and none after itself. If the kernels'
/// list is another, the recall is NaN, which fails.
pub(super) fn selection(
    section: &mut Section,
    Selected { when, tokens, got, want, of_all }: Selected,
    lse_of: impl Fn(&Array2<i32>) -> std::result::Result<Expected, dsa_reference::Error>,
    (recall_bound, mass_bound): (Bound, Bound),
) -> Result<()> {
    let name = format!("top-k recall{when}");
    let mass_name = format!("attention on the keys that differ{when}");
    if got.dim() != want.dim() {
        let shapes = format!("lists of {:?} for {:?}", got.dim(), want.dim());
        section.check(&name, f64::NAN, recall_bound, shapes);
        section.check(&mass_name, f64::NAN, mass_bound, String::new());
        return Ok(());
    }
    let n = got.nrows();
    let token = |row: usize| tokens - n + row;
    let mut recalls = Vec::with_capacity(n);
    let mut lost = Array2::from_elem(want.dim(), -1); // [n, k]
    let mut misplaced = None;
    for (row, (got, want)) in got.axis_iter(Axis(0)).zip(want.axis_iter(Axis(0))).enumerate() {
        let (listed, expected) = (keys(got), keys(want));
        let count = got.iter().filter(|key| **key >= 0).count();
        let late = listed.last().is_some_and(|key| *key as usize > token(row));
        if late || count != listed.len() || count != got.len().min(token(row) + 1) {
            misplaced.get_or_insert((token(row), listed.len()));
        }
        let both = expected.intersection(&listed).count();
        recalls.push(both as f64 / count.max(expected.len()).max(1) as f64);
        for (place, key) in lost.row_mut(row).iter_mut().zip(expected.difference(&listed)) {
            *place = *key;
        }
    }
    let mean = recalls.iter().sum::<f64>() / n as f64;
    let worst = recalls.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
    let worst = worst.filter(|(_, recall)| **recall < 1.0 && n > 1);
    let worst =
        worst.map_or(String::new(), |(row, r)| format!("worst {r:.4}, token {}", token(row)));
    match misplaced {
        None => section.check(&name, mean, recall_bound, worst),
        Some((token, listed)) => {
            let expected = want.ncols().min(token + 1);
            let worst = format!(
                "token {token} lists {listed} keys, expected {expected} up to itself, each once"
            );
            section.check(&name, f64::NAN, recall_bound, worst);
        }
    }
    let equal = recalls.iter().filter(|recall| **recall == 1.0).count();
    section.fact(&format!("tokens with exactly the same keys{when}"), format!("{equal} of {n}"));

    let of_lost = lse_of(&lost)?.lse; // [n, h]
    let mut masses = Array2::zeros(of_lost.dim()); // [n, h]
    Zip::from(&mut masses).and(&of_lost).and(of_all).for_each(|mass, lost, all| {
        // A row without keys has lse +inf.
        *mass = if *lost == f32::INFINITY { 0.0 } else { f64::from(lost - all).exp() };
    });
    let by_token = masses.mean_axis(Axis(1)).unwrap_or_default(); // [n]
    let mean = by_token.mean().unwrap_or(f64::NAN);
    let worst = by_token.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let worst = worst.filter(|(_, mass)| **mass > 0.0 && n > 1);
    let worst =
        worst.map_or(String::new(), |(row, m)| format!("worst {m:.4}, token {}", token(row)));
    section.check(&mass_name, mean, mass_bound, worst);
    Ok(())
}

/// The keys of a list, without the places that hold none.
fn keys(list: ArrayView1<i32>) -> BTreeSet<i32> {
    list.iter().copied().filter(|key| *key >= 0).collect()
}

/// Output and lse of an attention kernel, as shares of its tolerances.
pub(super) fn kernel_checks(
    section: &mut Section,
    device: &Device,
    kernel: &str,
    trace: &Trace,
    want: &Expected,
    when: &str,
) -> Result<()> {
    let got = &trace.attention;
    for (output, got, want) in
        [("out", &got.out, HostTensor::of(&want.out)), ("lse", &got.lse, HostTensor::of(&want.lse))]
    {
        // The operands' type decides the lowering; lse is f32 whatever they are.
        let machine = dense_attention::machine(device, trace.attention.out.dtype());
        let by = tolerance_on(machine.matrix, kernel, output, got.dtype());
        let (got, want) = (HostTensor::download(got)?, want.cast(got.dtype()));
        let name = format!("{kernel} {output}{when}, share of its tolerance");
        if got.shape != want.shape {
            let shapes = format!("shape {:?}, expected {:?}", got.shape, want.shape);
            section.check(&name, f64::NAN, Bound::AtMost(KERNEL), shapes);
            continue;
        }
        let closeness = close(output, &got, &want, by);
        let at = match *closeness.worst_at {
            [t, head, ..] => format!("token {t}, head {head}"),
            _ => String::new(),
        };
        let used = closeness.worst.max(closeness.cos / by.cos);
        section.check(&name, used, Bound::AtMost(KERNEL), at);
    }
    Ok(())
}

/// The worst row of a layer's output among those that count; a failure if none does.
pub(super) fn layer_check(
    section: &mut Section,
    name: &str,
    got: &Array2<f32>,
    want: &Array2<f32>,
    bound: Bound,
    counts: impl Fn(usize) -> bool,
) {
    let (worst, at) = match worst_row(got.view(), want.view(), counts) {
        Some((worst, _)) if got.nrows() == 1 => (worst, String::new()),
        Some((worst, t)) => (worst, format!("token {t}")),
        None => (f64::NAN, "no token was compared".to_string()),
    };
    section.check(name, worst, bound, at);
}

/// Mass that the dense probabilities give to the selected keys: `e^(lse of them - lse of all)`.
pub(super) fn mass_fact(section: &mut Section, selected: &Expected, all: &Expected, topk: usize) {
    let mass =
        |(at, lse): ((usize, usize), &f32)| ((f64::from(*lse) - f64::from(all.lse[at])).exp(), at);
    let masses: Vec<_> =
        selected.lse.indexed_iter().filter(|((t, _), _)| *t >= topk).map(mass).collect();
    let name = "attention mass on the selected keys, tokens with more";
    let Some((least, (t, head))) = masses.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return section.fact(name, "1: every token keeps all its keys".to_string());
    };
    let mean = masses.iter().map(|(mass, _)| mass).sum::<f64>() / masses.len() as f64;
    section.fact(name, format!("mean {mean:.4}, least {least:.4} (token {t}, head {head})"));
}
