//! Vectors of a row's elements, as wide as the tensors of a launch allow.

use super::convert::round_to;
use super::machine::Machine;
use cubecl::prelude::*;
use half::bf16;

/// [`round_to`] of each element.
#[cube]
pub fn round_vector<O: Numeric, N: Size>(
    x: Vector<f32, N>,
    #[comptime] machine: Machine,
) -> Vector<O, N> {
    let elem = elem_type_of::<O>();
    if comptime![elem == bf16::elem_type_native() && machine.team == 1] {
        let mut out = Vector::<O, N>::cast_from(Vector::<f32, N>::new(0.0f32));
        #[unroll]
        for i in 0..N::value() {
            out.insert(i, round_to::<O>(x.extract(i), machine));
        }
        out
    } else {
        Vector::cast_from(x)
    }
}

/// The vectors of a row that one program walks over, and a part of a row that it works on.
///
/// On a GPU a program has as many columns as its team takes in one step, so that one row keeps many cores busy; on the
/// CPU, where a team is one unit, it has the whole row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowParts {
    /// Programs of a row.
    pub parts: usize,
    /// Steps of a unit in its part.
    pub steps: usize,
}

impl RowParts {
    /// The parts of rows of `vectors` vectors on `machine`.
    pub fn new(machine: Machine, vectors: usize) -> Self {
        if machine.team == 1 {
            Self { parts: 1, steps: vectors }
        } else {
            Self { parts: vectors.div_ceil(machine.team).max(1), steps: 1 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_row_are_all_of_it() {
        let machine = |team| Machine::plain(team, 1, 1);
        for (team, vectors) in [(1, 7), (1, 0), (128, 0), (128, 1), (128, 128), (128, 129)] {
            let RowParts { parts, steps } = RowParts::new(machine(team), vectors);
            assert!(parts >= 1 && parts * steps * team >= vectors, "{team} {vectors}");
            assert!(parts == 1 || (parts - 1) * steps * team < vectors, "{team} {vectors}");
        }
    }
}
