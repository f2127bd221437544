//! Whether what is to be measured fits the device, asked before anything is made.

use super::{D_QK, INDEX_DIM, KV_LORA_RANK, QK_HEAD, RECORD, V_HEAD};
use crate::args::Axes;
use dsa_kernels::{Device, KernelError, Result};

/// What is measured at each context: the kernel, and the bytes of its inputs and of its outputs.
type Bytes = (&'static str, u128, u128);

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
        for (kernel, input, output) in bytes(axes, *context) {
            if !kernel.contains(only) {
                continue;
            }
            inputs += input;
            outputs = output.max(outputs);
            if inputs + outputs > u128::from(memory) {
                let gb = |bytes: u128| format!("{:.1} GB", bytes as f64 / 1e9);
                return Err(KernelError::Value {
                    name: "contexts",
                    got: format!(
                        "{context}, where {kernel} brings the tensors to {}",
                        gb(inputs + outputs)
                    ),
                    expected: format!("at most the {} of the device", gb(u128::from(memory))),
                });
            }
        }
    }
    Ok(())
}

/// The measurements at `context`.
fn bytes(axes: &Axes, context: usize) -> [Bytes; 9] {
    let size = axes.dtype.size();
    let of = |factors: &[usize]| {
        factors.iter().fold(1u128, |product, factor| product.saturating_mul(*factor as u128))
    };
    let Axes { s_q, batch, heads, index_heads, topk, .. } = *axes;
    let index = |rows| of(&[rows, index_heads, INDEX_DIM + 4]);
    let latent = |rows| of(&[rows, heads, D_QK, size]) + of(&[4, rows, topk]);
    let attended = |rows, width| of(&[rows, heads, width, size]) + of(&[8, rows, heads]);
    let s = s_q.min(context);
    [
        ("indexer_logits", index(s_q) + of(&[context, INDEX_DIM + 4]), of(&[4, s_q, context])),
        (
            "indexer_logits_paged",
            index(batch) + of(&[batch, context, INDEX_DIM + 4]),
            of(&[4, batch, context]),
        ),
        ("top_k", of(&[4, s_q, context]), of(&[4, s_q, topk])),
        ("top_k", of(&[4, batch, context]), of(&[4, batch, topk])),
        ("sparse_mla", latent(s_q) + of(&[context, D_QK, size]), attended(s_q, KV_LORA_RANK)),
        ("sparse_mla", latent(batch) + of(&[context, D_QK, size]), attended(batch, KV_LORA_RANK)),
        (
            "sparse_mla_paged",
            latent(batch) + of(&[context, RECORD.bytes()]),
            attended(batch, KV_LORA_RANK),
        ),
        (
            "dense_mha",
            of(&[s, heads, QK_HEAD, size]) + of(&[context, heads, QK_HEAD + V_HEAD, size]),
            attended(s, V_HEAD),
        ),
        ("dense_mla", latent(batch) + of(&[context, D_QK, size]), attended(batch, KV_LORA_RANK)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specs::all;
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
    fn what_is_measured_at_a_context_is_what_is_counted() {
        let device = Device::named("cpu").unwrap();
        let axes = axes(&[64]);
        let made = all(&device, &axes, 1, "").unwrap();
        let of_context = made.iter().filter(|spec| {
            ["context", "s_kv"].iter().any(|name| spec.shape.get(*name) == Some(&64))
        });
        let made: Vec<_> = of_context.map(|spec| spec.kernel).collect();
        assert_eq!(made, bytes(&axes, 64).map(|(kernel, ..)| kernel));
    }
}
