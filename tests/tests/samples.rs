//! One small case of every kernel, whose shapes are all different.

use crate::support::*;
use dsa_gate::Case;
use dsa_gate::kernels::{ALL, find};

/// The small case of `kernel`.
pub fn sample(kernel: &str) -> Case {
    (find(kernel).unwrap().sample)()
}

#[test]
fn the_sample_of_every_kernel_agrees_with_the_reference() {
    for kernel in ALL {
        let outputs = holds(&sample(kernel.name));
        let promised: Vec<&str> =
            kernel.contract.outputs.iter().map(|o| o.split(':').next().unwrap_or(o)).collect();
        let mut given: Vec<&str> = outputs.keys().copied().collect();
        given.sort_by_key(|name| promised.iter().position(|p| p == name));
        assert_eq!(given, promised, "outputs of {}", kernel.name);
    }
}
