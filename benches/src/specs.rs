//! What is measured: the benches of every kernel of [`dsa_gate::kernels`], and whether they fit the device.

use dsa_gate::bench::{Axes, Bench, Spec};
use dsa_gate::kernels::{ALL, Kernel};
use dsa_kernels::{Device, KernelError, Result};

/// The benches of the kernels whose name contains `only`.
fn benches(only: &str) -> impl Iterator<Item = (&'static Kernel, &'static Bench)> {
    let kernels = ALL.iter().filter(move |kernel| kernel.name.contains(only));
    kernels.flat_map(|kernel| kernel.bench.iter().map(move |bench| (kernel, bench)))
}

/// The names of the benches of the kernels whose name contains `only`, as criterion lists them.
pub fn names(only: &str) -> impl Iterator<Item = String> {
    benches(only)
        .map(|(kernel, bench)| format!("{}/{}: benchmark", kernel.name, bench.stage.name()))
}

/// Every measurement the axes ask for of the kernels whose name contains `only`; the inputs of others, which
/// may be large, are not made.
pub fn all(device: &Device, axes: &Axes, seed: u64, only: &str) -> Result<Vec<Spec>> {
    let made = |(_, bench): (&Kernel, &Bench), context| (bench.spec)(device, axes, context, seed);
    let once = benches(only).filter(|(_, bench)| bench.room.is_none());
    let mut specs: Vec<Spec> = once.map(|bench| made(bench, 0)).collect::<Result<_>>()?;
    for context in &axes.contexts {
        for bench in benches(only).filter(|(_, bench)| bench.room.is_some()) {
            specs.push(made(bench, *context)?);
        }
    }
    Ok(specs)
}

/// Refuses sizes that nothing can be measured at, and those whose tensors the device has no room for: the inputs of
/// all measurements, which are made first, and the largest outputs.
///
/// # Errors
/// [`KernelError::Value`] naming the size.
pub fn check(device: &Device, axes: &Axes, only: &str) -> Result<()> {
    let counts = [
        ("s_q", axes.s_q),
        ("batch", axes.batch),
        ("heads", axes.heads),
        ("index_heads", axes.index_heads),
        ("topk", axes.topk),
    ];
    let contexts = axes.contexts.iter().map(|context| ("contexts", *context));
    for (name, count) in counts.into_iter().chain(contexts) {
        if !(1..=i32::MAX as usize).contains(&count) {
            let (got, expected) = (count.to_string(), "1 to 2^31 - 1".to_string());
            return Err(KernelError::Value { name, got, expected });
        }
    }
    let Some(memory) = device.memory() else { return Ok(()) };
    let (mut inputs, mut outputs) = (0, 0);
    for context in &axes.contexts {
        for (kernel, bench) in benches(only) {
            let Some(room) = bench.room else { continue };
            let (input, output) = room(axes, *context);
            inputs += input;
            outputs = output.max(outputs);
            if inputs + outputs > u128::from(memory) {
                let gb = |bytes: u128| format!("{:.1} GB", bytes as f64 / 1e9);
                return Err(KernelError::Value {
                    name: "contexts",
                    got: format!(
                        "{context}, where {} brings the tensors to {}",
                        kernel.name,
                        gb(inputs + outputs)
                    ),
                    expected: format!("at most the {} of the device", gb(u128::from(memory))),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsa_kernels::DType;

    fn axes(contexts: &[usize]) -> Axes {
        let contexts = contexts.to_vec();
        Axes { contexts, s_q: 8, batch: 2, heads: 4, index_heads: 4, topk: 16, dtype: DType::Bf16 }
    }

    #[test]
    fn sizes_that_nothing_can_be_measured_at_are_refused_by_name() {
        let device = Device::named("cpu").unwrap();
        assert!(check(&device, &axes(&[1, 64]), "").is_ok());
        let refused = |axes: Axes| check(&device, &axes, "").unwrap_err().to_string();
        for context in [0, usize::MAX, 1 << 31] {
            let message = refused(axes(&[64, context]));
            assert!(
                message.contains("contexts") && message.contains(&context.to_string()),
                "{message}"
            );
        }
        assert!(refused(Axes { topk: 0, ..axes(&[64]) }).contains("topk"));
        assert!(refused(Axes { s_q: 0, ..axes(&[64]) }).contains("s_q"));
        assert!(refused(Axes { batch: 0, ..axes(&[64]) }).contains("batch"));
    }

    #[test]
    fn tensors_that_the_device_has_no_room_for_are_refused_before_they_are_made() {
        let device = Device::named("cpu").unwrap();
        let many = Axes { s_q: 1 << 20, ..axes(&[1 << 28]) };
        let message = check(&device, &many, "").unwrap_err().to_string();
        assert!(
            message.contains("268435456, where indexer_logits brings the tensors to"),
            "{message}"
        );
        assert!(message.contains("GB of the device"), "{message}");
        // What is not measured needs no room.
        assert!(check(&device, &many, "sparse_mla_paged").is_err());
        assert!(check(&device, &Axes { s_q: 1 << 20, ..axes(&[64]) }, "dense_mla").is_ok());
    }

    #[test]
    fn what_is_counted_at_a_context_is_at_least_the_inputs_and_outputs_that_are_there() {
        let device = Device::named("cpu").unwrap();
        let axes = axes(&[64]);
        for (kernel, bench) in benches("") {
            let spec = (bench.spec)(&device, &axes, 64, 1).unwrap();
            assert_eq!((spec.kernel, spec.stage), (kernel.name, bench.stage));
            let of_context = ["context", "s_kv"].iter().any(|name| spec.shape.contains_key(*name));
            assert_eq!(bench.room.is_some(), of_context, "{}", kernel.name);
            let Some(room) = bench.room else { continue };
            let outputs = (spec.work)().unwrap();
            let bytes: usize = outputs.iter().map(|(_, t)| t.len() * t.dtype().size()).sum();
            assert_eq!(room(&axes, 64).1, bytes as u128, "outputs of {}", kernel.name);
        }
    }
}
