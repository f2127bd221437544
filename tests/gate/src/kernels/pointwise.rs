//! The small kernels around the three: rotations, norms, products, copies.

use super::*;

pub(super) fn run_hadamard(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let out = hadamard::hadamard(&case.upload_rows(device, "x")?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_hadamard(case: &Case) -> Result<Outputs, CaseError> {
    let x: Matrix = case.array("x")?;
    let out = HostTensor::of(&reference::hadamard::hadamard(x.view())?);
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

pub(super) fn run_rope(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    use rope::Pairing::{HalfSplit, Interleaved};
    let choices = [("interleaved", Interleaved), ("half_split", HalfSplit)];
    let pairing = choice(case, "pairing", &choices)?;
    let x = case.upload_rows(device, "x")?;
    let (cos, sin) = (case.upload(device, "cos")?, case.upload(device, "sin")?);
    let positions = case.upload(device, "positions")?;
    let out = device.empty(x.shape(), x.dtype())?;
    rope::rope(&x, &cos, &sin, &positions, &out, pairing)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_rope(case: &Case) -> Result<Outputs, CaseError> {
    use reference::rope::Pairing::{HalfSplit, Interleaved};
    let choices = [("interleaved", Interleaved), ("half_split", HalfSplit)];
    let pairing = choice(case, "pairing", &choices)?;
    let x: Cuboid = case.array("x")?;
    let (cos, sin): (Matrix, Matrix) = (case.array("cos")?, case.array("sin")?);
    // A position that the tables have no line of makes its row NaN.
    let positions = case.vec_i32("positions")?;
    let lines = |table: &Matrix| {
        Matrix::from_shape_fn((positions.len(), table.ncols()), |(t, i)| {
            let line = usize::try_from(positions[t]).ok();
            line.and_then(|line| table.get((line, i))).copied().unwrap_or(f32::NAN)
        })
    };
    let (cos, sin) = (lines(&cos), lines(&sin));
    let out = HostTensor::of(&reference::rope::rope(x.view(), cos.view(), sin.view(), pairing));
    Ok(outputs([("out", out.cast(case.tensor("x")?.dtype))]))
}

pub(super) fn run_rms_norm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let out = norm::rms_norm(&x, &weight, case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_rms_norm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let out = reference::norm::rms_norm(x.view(), weight.view(), case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

pub(super) fn run_layer_norm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight) = (case.upload_rows(device, "x")?, case.upload(device, "weight")?);
    let bias = case.upload(device, "bias")?;
    let out = norm::layer_norm(&x, &weight, &bias, case.scalar("eps")?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_layer_norm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, weight): (Matrix, Vector) = (case.array("x")?, case.array("weight")?);
    let bias: Vector = case.array("bias")?;
    let eps = case.scalar("eps")?;
    let out = reference::norm::layer_norm(x.view(), weight.view(), bias.view(), eps)?;
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("x")?.dtype))]))
}

/// The type of a product's output: f32, or what a linear layer of that type rounds it to.
pub(super) fn out_dtype(case: &Case) -> Result<DType, CaseError> {
    choice(case, "out", &[("f32", DType::F32), ("bf16", DType::Bf16), ("f16", DType::F16)])
}

pub(super) fn run_gemm(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, w) = (case.upload_rows(device, "x")?, case.upload_rows(device, "w")?);
    let out = gemm::gemm(&x, &w, out_dtype(case)?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_gemm(case: &Case) -> Result<Outputs, CaseError> {
    let (x, w): (Cuboid, Cuboid) = (case.array("x")?, case.array("w")?);
    let mut out = Cuboid::zeros((x.dim().0, x.dim().1, w.dim().1));
    for b in 0..x.dim().0 {
        let product = reference::linear::linear(x.index_axis(Axis(0), b), w.index_axis(Axis(0), b));
        out.index_axis_mut(Axis(0), b).assign(&product);
    }
    Ok(outputs([("out", HostTensor::of(&out).cast(out_dtype(case)?))]))
}

pub(super) fn run_fold_scales(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale) = (case.upload(device, "weights")?, case.upload(device, "q_scale")?);
    let out = fold_scales::fold_scales(&weights, &q_scale, case.scalar("factor")?)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_fold_scales(case: &Case) -> Result<Outputs, CaseError> {
    let (weights, q_scale): (Matrix, Matrix) = (case.array("weights")?, case.array("q_scale")?);
    let factor: f32 = case.scalar("factor")?;
    // In f64: the product of two may leave f32's range where that of all three does not.
    let out = Matrix::from_shape_fn(weights.dim(), |at| {
        (f64::from(weights[at]) * f64::from(q_scale[at]) * f64::from(factor)) as f32
    });
    Ok(outputs([("out", HostTensor::of(&out))]))
}

pub(super) fn run_place_rows(device: &Device, case: &Case) -> Result<Outputs, CaseError> {
    let (x, slots) = (case.upload_rows(device, "x")?, case.upload(device, "slots")?);
    let out = case.upload(device, "out")?;
    copy::place_rows(&x, &slots, &out)?;
    Ok(outputs([("out", HostTensor::download(&out)?)]))
}

pub(super) fn reference_place_rows(case: &Case) -> Result<Outputs, CaseError> {
    let (x, mut out): (Cuboid, Cuboid) = (case.array("x")?, case.array("out")?);
    let rows = out.dim().0;
    for (t, slot) in case.vec_i32("slots")?.into_iter().enumerate().take(x.dim().0) {
        if let Some(slot) = usize::try_from(slot).ok().filter(|slot| *slot < rows) {
            // One head is repeated for all; anything else must fit.
            let (mut to, from) = (out.index_axis_mut(Axis(0), slot), x.index_axis(Axis(0), t));
            let from = from.broadcast(to.dim()).ok_or_else(|| CaseError::Tensor {
                name: "x".to_string(),
                got: format!("{:?}", x.shape()),
                expected: format!("heads and width of out, or one head: {:?}", to.shape()),
            })?;
            to.assign(&from);
        }
    }
    Ok(outputs([("out", HostTensor::of(&out).cast(case.tensor("out")?.dtype))]))
}
