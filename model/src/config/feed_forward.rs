//! Reading which layers have a dense feed-forward, and which have experts.

use super::fields::Fields;
use crate::error::Result;

/// The first layers that are dense: `first_k_dense_replace`, or what `mlp_layer_types` says, which must be
/// the same where both are there. Experts come after the dense layers, never between them.
pub(super) fn dense_layers(f: &Fields, layers: usize) -> Result<usize> {
    let (name, list) = ("first_k_dense_replace", "mlp_layer_types");
    let count: Option<usize> = f.optional(name)?;
    let Some(types) = f.optional::<Vec<String>>(list)? else {
        let expected = format!("a value, or {list} (neither has a default)");
        return count.ok_or_else(|| f.error(name, "missing", &expected));
    };
    let sparse = |kind: &String| kind == "sparse";
    if let Some(other) = types.iter().find(|kind| *kind != "dense" && !sparse(kind)) {
        let value = format!("{other:?} for one of them");
        return Err(f.error(list, value, "\"dense\" or \"sparse\" for each layer"));
    }
    let expected = format!("one for each of {layers} layers");
    f.check(types.len() == layers, list, format!("a list of {}", types.len()), &expected)?;
    let dense = types.iter().position(sparse).unwrap_or(layers);
    if let Some(layer) = (dense..layers).find(|layer| !sparse(&types[*layer])) {
        let value = format!("dense in layer {layer}");
        return Err(f.error(list, value, &format!("sparse, as in layer {dense} before it")));
    }
    let expected = format!("{dense}, as {list} says, or one of them alone");
    let count = count.unwrap_or(dense);
    f.check(count == dense, name, count, &expected)?;
    Ok(dense)
}
