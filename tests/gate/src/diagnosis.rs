//! Where a kernel's outputs are wrong: how many elements, at which places of each axis, for which inputs.

use crate::case::{Case, HostTensor, Outputs};
use crate::compare::{close, shares};
use crate::kernels::Kernel;
use crate::tolerance::tolerance_on;
use dsa_kernels::DType;
use dsa_kernels::tile::MatrixUnit;
use std::collections::BTreeSet;

/// Numbers of a case that are shown whole, at most.
const SHOWN: usize = 64;
/// Places along an axis that are listed, at most.
const LISTED: usize = 6;

/// Sentences on what of the outputs of `case` is wrong and what is right, by the tolerances of `unit`.
pub(crate) fn diagnose(
    unit: MatrixUnit,
    kernel: &Kernel,
    case: &Case,
    got: &Outputs,
    expected: &Outputs,
) -> Vec<String> {
    let (mut lines, mut right) = (Vec::new(), Vec::new());
    for (name, want) in expected {
        let Some(have) = got.get(name).filter(|have| have.shape == want.shape) else {
            lines.push(format!("{name}: of another form"));
            continue;
        };
        let by = tolerance_on(unit, kernel.name, name, want.dtype);
        let wrong: Vec<bool> = shares(have, want, by).iter().map(|share| *share > 1.0).collect();
        let count = wrong.iter().filter(|wrong| **wrong).count();
        if count > 0 {
            let all = wrong.len();
            let percent = 100.0 * count as f64 / all as f64;
            lines.push(format!("{name}: {count} of {all} elements are wrong ({percent:.2} %)"));
            lines.extend(places(&axes(kernel, name, want.shape.len()), &want.shape, &wrong));
            lines.extend(inputs_that_tell(case, &want.shape, &wrong));
        } else if close(name, have, want, by).cos > by.cos {
            lines.push(format!("{name}: no element by itself, but the whole"));
        } else {
            right.push(*name);
        }
    }
    if !right.is_empty() {
        lines.push(format!("right: {}", right.join(", ")));
    }
    lines.extend(shown(case));
    lines
}

/// The names of an output's axes, as the kernel's contract has them, or their numbers.
fn axes(kernel: &Kernel, output: &str, rank: usize) -> Vec<String> {
    let line = kernel
        .contract
        .outputs
        .iter()
        .find(|line| line.split_once(':').is_some_and(|(name, _)| name.trim() == output));
    let named = line.and_then(|line| {
        let (_, after) = line.split_once('[')?;
        let (inside, _) = after.split_once(']')?;
        Some(inside.split(',').map(|axis| axis.trim().to_string()).collect::<Vec<_>>())
    });
    let numbered = || (0..rank).map(|axis| format!("axis {axis}")).collect();
    named.filter(|names| names.len() == rank).unwrap_or_else(numbered)
}

/// Along which axes what is wrong has a pattern, and which.
fn places(names: &[String], shape: &[usize], wrong: &[bool]) -> Vec<String> {
    let mut lines = Vec::new();
    for (axis, name) in names.iter().enumerate() {
        let inner: usize = shape[axis + 1..].iter().product();
        let at = |i: usize| i / inner.max(1) % shape[axis];
        let hit: BTreeSet<usize> = (0..wrong.len()).filter(|i| wrong[*i]).map(at).collect();
        if let Some(pattern) = pattern(&hit, shape[axis]) {
            lines.push(format!("  only at {name} {pattern}"));
        }
    }
    lines
}

/// Which of `0..n` the numbers of `hit` are; `None` if they are all.
fn pattern(hit: &BTreeSet<usize>, n: usize) -> Option<String> {
    let (first, last) = (*hit.first()?, *hit.last()?);
    if hit.len() == n {
        return None;
    }
    let range = |first: usize, last: usize| match first == last {
        true => format!("{first}"),
        false => format!("{first} to {last}"),
    };
    if last - first + 1 == hit.len() {
        return Some(format!("{} of {n}", range(first, last)));
    }
    // The smallest period of which they take one stretch.
    let periodic = (2..=n / 2).find_map(|period| {
        let rest: BTreeSet<usize> = hit.iter().map(|i| i % period).collect();
        let (first, last) = (*rest.first()?, *rest.last()?);
        let stretch = last - first + 1 == rest.len() && rest.len() < period;
        let all = || (0..n).filter(|i| rest.contains(&(i % period))).count() == hit.len();
        (stretch && all()).then(|| format!("{} of every {period}", range(first, last)))
    });
    periodic.or_else(|| {
        let listed: Vec<_> = hit.iter().take(LISTED).map(usize::to_string).collect();
        let others = hit.len() - listed.len();
        let more = if others > 0 { format!(" and {others} others") } else { String::new() };
        Some(format!("{}{more} of {n}", listed.join(", ")))
    })
}

/// Which numbers of the case divide the rows that are wrong from those that are right: lengths of lists and ranges.
fn inputs_that_tell(case: &Case, shape: &[usize], wrong: &[bool]) -> Vec<String> {
    let Some(n) = shape.first().copied().filter(|n| *n > 1) else { return Vec::new() };
    let row: usize = shape[1..].iter().product();
    let fell: Vec<bool> = wrong.chunks(row.max(1)).map(|row| row.contains(&true)).collect();
    let of_rows = |name: &str, tensor: &HostTensor| {
        let own = tensor.dtype == DType::I32 && tensor.shape.first() == Some(&n);
        match tensor.shape.len() {
            1 if own => Some((name.to_string(), tensor.to_i32())),
            2 if own && tensor.shape[1] > 0 => {
                let listed = |row: &[i32]| row.iter().filter(|key| **key >= 0).count() as i32;
                let counts = tensor.to_i32().chunks(tensor.shape[1]).map(listed).collect();
                Some((format!("the number of {name}"), counts))
            }
            _ => None,
        }
    };
    let mut numbers: Vec<_> =
        case.tensors.iter().filter_map(|(name, tensor)| of_rows(name, tensor)).collect();
    let of = |name: &str| numbers.iter().find(|(of, _)| of == name).map(|(_, values)| values);
    if let (Some(ks), Some(ke)) = (of("ks"), of("ke")) {
        let lengths = ks.iter().zip(ke).map(|(ks, ke)| ke.saturating_sub(*ks)).collect();
        numbers.push(("ke - ks".to_string(), lengths));
    }
    numbers.iter().filter_map(|(name, values)| divides(name, values, &fell)).collect()
}

/// The bound that has all `values` of what fell on one side and all others on the other.
fn divides(name: &str, values: &[i32], fell: &[bool]) -> Option<String> {
    let of = |which: bool| values.iter().zip(fell).filter(move |(_, fell)| **fell == which);
    let (low, high) = (of(true).map(|(v, _)| *v).min()?, of(true).map(|(v, _)| *v).max()?);
    let (least, most) = (of(false).map(|(v, _)| *v).min()?, of(false).map(|(v, _)| *v).max()?);
    if low > most {
        return Some(format!("  only where {name} is {low} or more; right up to {most}"));
    }
    (high < least).then(|| format!("  only where {name} is {high} or less; right from {least} on"))
}

/// The tensors of a case that is small.
fn shown(case: &Case) -> Vec<String> {
    let count = |tensor: &HostTensor| tensor.shape.iter().product::<usize>();
    if case.tensors.values().map(count).sum::<usize>() > SHOWN {
        return Vec::new();
    }
    let values = |tensor: &HostTensor| match tensor.dtype {
        DType::I32 => format!("{:?}", tensor.to_i32()),
        DType::U8 => format!("{:?}", tensor.bytes),
        _ => format!("{:?}", tensor.to_f32()),
    };
    let line = |(name, tensor): (&String, &HostTensor)| format!("{name} = {}", values(tensor));
    case.tensors.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::find;

    fn of(n: usize, is: impl Fn(usize) -> bool) -> Option<String> {
        pattern(&(0..n).filter(|i| is(*i)).collect(), n)
    }

    #[test]
    fn stretches_periods_and_lists_are_told_apart() {
        assert_eq!(of(256, |_| true), None);
        assert_eq!(of(256, |i| i % 128 >= 120).unwrap(), "120 to 127 of every 128");
        assert_eq!(of(200, |i| i % 128 >= 120).unwrap(), "120 to 127 of 200");
        assert_eq!(of(10, |i| i % 2 == 1).unwrap(), "1 of every 2");
        assert_eq!(of(64, |i| i >= 33).unwrap(), "33 to 63 of 64");
        assert_eq!(of(64, |i| i == 5).unwrap(), "5 of 64");
        let squares = |i: usize| [0, 1, 4, 9, 16, 25, 36, 49].contains(&i);
        assert_eq!(of(64, squares).unwrap(), "0, 1, 4, 9, 16, 25 and 2 others of 64");
    }

    #[test]
    fn lengths_that_divide_right_from_wrong_are_found() {
        let fell = [false, true, true, false];
        let found = divides("topk_length", &[32, 33, 90, 7], &fell).unwrap();
        assert_eq!(found, "  only where topk_length is 33 or more; right up to 32");
        let found = divides("ke - ks", &[9, 3, 2, 4], &fell).unwrap();
        assert_eq!(found, "  only where ke - ks is 3 or less; right from 4 on");
        assert_eq!(divides("ks", &[1, 2, 1, 2], &fell), None);
        assert_eq!(divides("ks", &[1, 2, 3, 4], &[true; 4]), None);
    }

    #[test]
    fn a_diagnosis_names_axes_and_what_is_right() {
        let kernel = find("fold_scales").unwrap();
        let case = (kernel.sample)();
        let expected = kernel.reference(&case).unwrap();
        let mut got = expected.clone();
        let out = got.get_mut("out").unwrap();
        let (shape, mut values) = (out.shape.clone(), out.to_f32());
        values[shape[1] - 1] += 1.0;
        *out = HostTensor::new(out.dtype, &shape, &values);
        let lines = diagnose(MatrixUnit::Plain, kernel, &case, &got, &expected);
        let all = values.len();
        assert!(lines[0].starts_with(&format!("out: 1 of {all} elements are wrong")), "{lines:?}");
        let of = &axes(kernel, "out", 2)[0];
        assert!(!of.starts_with("axis"), "{of}");
        assert_eq!(lines[1], format!("  only at {of} 0 of {}", shape[0]));
        assert!(lines.iter().any(|line| line.starts_with("weights = [")), "{lines:?}");
    }
}
