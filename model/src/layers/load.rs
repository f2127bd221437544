//! How weights come to the device: in parts, as they are stored, and changed there if they are wanted in another type.
//!
//! Of a tensor, however large, the host holds no more than a part at a time.

use super::linear::Loader;
use crate::config::QUANT_BLOCK;
use crate::error::{Error, Result};
use crate::weights::Weights;
use dsa_kernels::dequantise::dequantise_into;
use dsa_kernels::upload::Upload;
use dsa_kernels::weight::Weight;
use dsa_kernels::{DType, Tensor};
use std::ops::Range;

/// Elements of a part that is changed on the device before it is put in its place.
const PART: usize = 1 << 26;

impl<W: Weights> Loader<'_, W> {
    /// The matrices `name` `[out, in]` of each of `from`, one after the other, as one tensor of `shape`,
    /// `[.., out, in]`. They stay in fp8 if they are stored so and the layer wants it.
    pub(super) fn matrices(&self, from: &[W], name: &str, shape: &[usize]) -> Result<Weight> {
        let &[.., out, into] = shape else {
            return Err(Error::Argument {
                name: "shape",
                value: format!("{shape:?}"),
                expected: "[.., out, in]".into(),
            });
        };
        let matrix = [out, into];
        let mut in_fp8 = 0;
        for weights in from {
            in_fp8 += usize::from(weights.stored(name, &matrix)? == DType::E4m3);
        }
        if !self.precision.fp8 || in_fp8 == 0 {
            return Ok(Weight::Plain(self.plain(from, name, shape, self.precision.dtype)?));
        }
        let right = in_fp8 == from.len();
        let expected = "all in fp8, or none: they are one tensor";
        Error::check(right, "the experts' weights", "in fp8 in part", expected)?;
        let (codes, scale) = (Upload::new(self.device, shape, DType::E4m3)?, blocks(shape));
        let (mut codes, mut scale) = (codes, Upload::new(self.device, &scale, DType::F32)?);
        for weights in from {
            // A scale that is none is found before the codes, of which there are 16,384 times as many.
            weights.scales(name, matrix, &mut scale)?;
            weights.elements(name, &matrix, 0..out, &mut codes)?;
        }
        Ok(Weight::fp8(codes.finish()?, scale.finish()?)?)
    }

    /// The tensor `name` in `dtype`.
    pub(super) fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.plain(std::slice::from_ref(&self.weights), name, shape, dtype)
    }

    /// The tensors `name` of each of `from`, one after the other, as one of `shape` in `dtype`.
    fn plain(&self, from: &[W], name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let each = &shape[shape.len().saturating_sub(2)..];
        let mut as_stored = true;
        for weights in from {
            as_stored &= weights.stored(name, each)? == dtype;
        }
        // A vector is a matrix of one column, so that it has parts too.
        let (rows, cols) = (each.first().copied().unwrap_or(1), each.get(1).copied().unwrap_or(1));
        if as_stored {
            let mut upload = Upload::new(self.device, shape, dtype)?;
            for weights in from {
                weights.elements(name, each, 0..rows, &mut upload)?;
            }
            return Ok(upload.finish()?);
        }
        let whole = self.device.empty(&[from.len() * rows, cols], dtype)?;
        for (nth, weights) in from.iter().enumerate() {
            let to = whole.narrow(0, nth * rows, rows)?;
            self.changed(weights, name, each, &to)?;
        }
        Ok(whole.reshape(shape)?)
    }

    /// Puts the tensor `name` of `shape`, whatever its type, into `to` `[rows, cols]` in the type of that.
    fn changed(&self, weights: &W, name: &str, shape: &[usize], to: &Tensor) -> Result<()> {
        let stored = weights.stored(name, shape)?;
        let (rows, cols) = (to.shape()[0], to.shape()[1]);
        let scale = match (stored, shape) {
            (DType::E4m3, &[out, into]) => {
                let mut scale = Upload::new(self.device, &blocks(shape), DType::F32)?;
                weights.scales(name, [out, into], &mut scale)?;
                Some(scale.finish()?)
            }
            _ => None,
        };
        for part in parts(rows, cols) {
            let mut upload = Upload::new(self.device, &[part.len(), cols], stored)?;
            weights.elements(name, shape, part.clone(), &mut upload)?;
            let covered = part.start / QUANT_BLOCK..part.end.div_ceil(QUANT_BLOCK);
            let scale = scale.as_ref().map(|scale| scale.narrow(0, covered.start, covered.len()));
            let to = to.narrow(0, part.start, part.len())?;
            dequantise_into(&upload.finish()?, scale.transpose()?.as_ref(), &to)?;
        }
        Ok(())
    }
}

/// The shape of the scales of matrices `[.., out, in]`.
fn blocks(shape: &[usize]) -> Vec<usize> {
    let (matrix, mut blocks) = (shape.len().saturating_sub(2), shape.to_vec());
    blocks[matrix..].iter_mut().for_each(|n| *n = n.div_ceil(QUANT_BLOCK));
    blocks
}

/// Rows of a matrix in parts of about [`PART`] elements, each of which begins where a block of scales does.
fn parts(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (PART / cols.max(1) / QUANT_BLOCK).max(1) * QUANT_BLOCK;
    (0..rows).step_by(most).map(move |first| first..rows.min(first + most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Precision;
    use crate::weights::{Checkpoint, Dtype};
    use dsa_kernels::Device;
    use dsa_kernels::quant::ScaleFmt;
    use dsa_kernels::random::Rng;
    use safetensors::tensor::{TensorView, serialize};

    #[test]
    fn parts_begin_with_blocks_and_are_all_of_the_rows() {
        for (rows, cols) in [(300, 7168), (129_280, 7168), (1, 1), (0, 5), (200, 1 << 26)] {
            let parts: Vec<_> = parts(rows, cols).collect();
            assert!(parts.iter().all(|part| part.start % 128 == 0 && !part.is_empty()));
            assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), rows);
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            assert!(
                parts.iter().all(|part| part.len() <= QUANT_BLOCK || part.len() * cols <= PART)
            );
        }
    }

    const SHAPE: [usize; 2] = [130, 200];

    /// Experts 0 to 2 with `a.weight` in e4m3 and `b.weight` in one type after the other.
    fn checkpoint() -> Checkpoint {
        let (mut rng, n) = (Rng::new(5), SHAPE[0] * SHAPE[1]);
        let mut tensors = Vec::new();
        for (expert, dtype) in [Dtype::F32, Dtype::BF16, Dtype::F16].into_iter().enumerate() {
            let codes: Vec<u8> =
                (0..n).map(|_| (rng.below(0x7f) ^ (0x80 * rng.below(2))) as u8).collect();
            let scales: Vec<f32> = (0..4).map(|_| rng.unit()).collect();
            let numbers: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
            let of = [DType::F32, DType::Bf16, DType::F16][expert];
            let at = |name: &str| format!("{expert}.{name}");
            tensors.push((at("a.weight"), Dtype::F8_E4M3, SHAPE.to_vec(), codes));
            let name = if expert == 1 { "a.weight_scale" } else { "a.weight_scale_inv" };
            tensors.push((at(name), Dtype::F32, vec![2, 2], DType::F32.encode(&scales)));
            tensors.push((at("b.weight"), dtype, SHAPE.to_vec(), of.encode(&numbers)));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        Checkpoint::open(folder.path()).unwrap()
    }

    /// The numbers of matrix `part` of all experts, as the host reads them, in `dtype`.
    fn expected(checkpoint: &Checkpoint, part: &str, dtype: DType) -> Vec<u8> {
        let of = |expert: usize| checkpoint.values(&format!("{expert}.{part}.weight"), &SHAPE);
        (0..3).flat_map(|expert| dtype.encode(&of(expert).unwrap())).collect()
    }

    #[test]
    fn experts_are_on_the_device_what_they_are_in_the_file_whatever_their_types() {
        let (device, checkpoint) = (Device::named("cpu").unwrap(), checkpoint());
        let shape = [3, SHAPE[0], SHAPE[1]];
        for dtype in [DType::F32, DType::Bf16] {
            let precision = Precision::dequantised(dtype);
            let weights = checkpoint.root();
            let to = Loader { device: &device, weights, precision, scale_fmt: ScaleFmt::Plain };
            for part in ["a", "b"] {
                let Weight::Plain(stack) = to.stack(part, shape).unwrap() else { panic!("{part}") };
                assert_eq!((stack.shape(), stack.dtype()), (&shape[..], dtype));
                assert!(
                    stack.download().unwrap() == expected(&checkpoint, part, dtype),
                    "{part} in {dtype}"
                );
            }
        }
        let (weights, precision) = (checkpoint.root(), Precision::STORED);
        let to = Loader { device: &device, weights, precision, scale_fmt: ScaleFmt::Plain };
        let Weight::Fp8 { codes, scale } = to.stack("a", shape).unwrap() else { panic!() };
        let stored = |name: &str| -> Vec<u8> {
            (0..3)
                .flat_map(|expert| checkpoint.tensor(&format!("{expert}.{name}")).unwrap().bytes)
                .collect()
        };
        assert_eq!((codes.shape(), scale.shape()), (&shape[..], &[3, 2, 2][..]));
        assert!(codes.download().unwrap() == stored("a.weight"));
        let of = |n: usize, name: &str| checkpoint.tensor(&format!("{n}.{name}")).unwrap().bytes;
        let scales =
            [of(0, "a.weight_scale_inv"), of(1, "a.weight_scale"), of(2, "a.weight_scale_inv")];
        assert!(scale.download().unwrap() == scales.concat());
    }

    #[test]
    fn matrices_of_which_some_are_in_fp8_are_no_one_tensor() {
        let (device, checkpoint) = (Device::named("cpu").unwrap(), checkpoint());
        let (weights, precision) = (checkpoint.root(), Precision::STORED);
        let to = Loader { device: &device, weights, precision, scale_fmt: ScaleFmt::Plain };
        let from = [checkpoint.root().at("0.a"), checkpoint.root().at("0.b")];
        let shape = [2, SHAPE[0], SHAPE[1]];
        let error = to.matrices(&from, "weight", &shape).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            error,
            "the experts' weights is in fp8 in part, expected all in fp8, or none: they are one tensor"
        );
    }
}
