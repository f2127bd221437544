//! The files of the weights, written tensor by tensor.

use crate::config::{Config, QUANT_BLOCK};
use crate::error::{Error, Result};
use crate::weights::{Random, Weights, manifest};
use dsa_kernels::upload::Upload;
use dsa_kernels::{DType, Device};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Elements that are made at a time.
const PART: usize = 1 << 24;

/// A tensor to write.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// The matrix whose scales it holds.
    scales_of: Option<(String, [usize; 2])>,
}

impl Entry {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }

    /// Writes the elements.
    fn write(&self, device: &Device, weights: &Random, out: &mut impl Write) -> Result<Written> {
        if let Some((matrix, shape)) = &self.scales_of {
            let mut upload = Upload::new(device, &self.shape, self.dtype)?;
            weights.scales(matrix, *shape, &mut upload)?;
            return Ok(out.write_all(&upload.finish()?.download()?));
        }
        let rows = self.shape.first().copied().unwrap_or(1);
        let row: usize = self.shape.iter().skip(1).product();
        let most = (PART / row.max(1)).max(1);
        for first in (0..rows).step_by(most) {
            let part = first..rows.min(first + most);
            let mut upload = Upload::new(device, &[part.len() * row], self.dtype)?;
            weights.elements(&self.name, &self.shape, part, &mut upload)?;
            let written = out.write_all(&upload.finish()?.download()?);
            if written.is_err() {
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }
}

/// Whether the file took it.
type Written = std::io::Result<()>;

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    file: String,
    header: Vec<u8>,
    /// The widest elements first, so that all are aligned.
    tensors: Vec<Entry>,
}

/// The files of the model of `config`, of `most` bytes each, if no tensor has more.
pub(super) fn shards(weights: &Random, config: &Config, most: u64) -> Result<Vec<Shard>> {
    let (mut files, mut size): (Vec<Vec<Entry>>, u64) = (vec![vec![]], 0);
    for tensor in tensors(weights, config)? {
        // A matrix and its scales are as seldom apart as can be: what does not fit begins a file.
        let bytes = tensor.bytes();
        if size > 0 && size + bytes > most {
            files.push(vec![]);
            size = 0;
        }
        size += bytes;
        if let Some(file) = files.last_mut() {
            file.push(tensor);
        }
    }
    let n = files.len();
    let shard = |(nth, mut tensors): (usize, Vec<Entry>)| {
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
        let file = format!("model-{:05}-of-{n:05}.safetensors", nth + 1);
        Shard { file, header: header(&tensors), tensors }
    };
    Ok(files.into_iter().enumerate().map(shard).collect())
}

/// All tensors, the scales of a matrix behind it.
fn tensors(weights: &Random, config: &Config) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    for (name, shape) in manifest(config) {
        let dtype = weights.stored(&name, &shape)?;
        let scales = match (dtype, &shape[..]) {
            (DType::E4m3, &[out, into]) => Some(Entry {
                name: format!("{name}_scale_inv"),
                dtype: DType::F32,
                shape: [out, into].map(|n| n.div_ceil(QUANT_BLOCK)).to_vec(),
                scales_of: Some((name.clone(), [out, into])),
            }),
            _ => None,
        };
        all.push(Entry { name, dtype, shape, scales_of: None });
        all.extend(scales);
    }
    Ok(all)
}

/// What a file begins with: the length of the header, and the header, whose end is aligned to 8 bytes.
fn header(tensors: &[Entry]) -> Vec<u8> {
    let (mut map, mut end) = (Map::new(), 0);
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes();
        let dtype = match tensor.dtype {
            DType::Bf16 => "BF16",
            DType::E4m3 => "F8_E4M3",
            _ => "F32",
        };
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end] });
        map.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

impl Shard {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(Entry::bytes).sum::<u64>()
    }

    /// Writes the file into `folder`.
    pub fn write(&self, device: &Device, weights: &Random, folder: &Path) -> Result<()> {
        let path = folder.join(&self.file);
        let mut out = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
        out.write_all(&self.header).map_err(Error::io(&path))?;
        for tensor in &self.tensors {
            tensor.write(device, weights, &mut out)?.map_err(Error::io(&path))?;
        }
        let file = out.into_inner().map_err(|error| Error::io(&path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(&path))
    }
}

/// `model.safetensors.index.json`.
pub(super) fn index(shards: &[Shard]) -> Value {
    let places = shards.iter().flat_map(|shard| {
        shard.tensors.iter().map(|tensor| (tensor.name.clone(), json!(shard.file)))
    });
    let size: u64 = shards.iter().flat_map(|shard| &shard.tensors).map(Entry::bytes).sum();
    let map: Map<String, Value> = places.collect();
    json!({ "metadata": { "total_size": size }, "weight_map": map })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::make_tiny::{Like, MakeTiny};
    use crate::weights::Checkpoint;

    #[test]
    fn shards_are_as_large_as_they_may_be_and_one_checkpoint() {
        let made = MakeTiny::like(Like::DeepseekV32).checked().unwrap();
        let most = 300_000;
        let shards = shards(&made.weights, &made.config, most).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let device = Device::named("cpu").unwrap();
        for shard in &shards {
            shard.write(&device, &made.weights, folder.path()).unwrap();
            let written = std::fs::metadata(folder.path().join(&shard.file)).unwrap().len();
            assert_eq!(written, shard.bytes());
            let data = written - shard.header.len() as u64;
            assert!(data <= most || shard.tensors.len() == 1, "{data}");
        }
        assert!(shards.len() as u64 <= 2 * made.bytes() / most + 1, "{} files", shards.len());
        let index = index(&shards).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.expect(&made.config).unwrap();
        for (name, shape) in manifest(&made.config) {
            let expected = made.weights.values(&name, &shape).unwrap();
            assert!(checkpoint.values(&name, &shape).unwrap() == expected, "{name}");
        }
    }

    #[test]
    fn of_true_dimensions_the_size_is_the_published_one() {
        let make = MakeTiny { true_dims: true, ..MakeTiny::like(Like::DeepseekV32) };
        let made = make.checked().unwrap();
        // 671.9 billion parameters, a byte each but for embedding, head, gates and indexers' weights, and the scales.
        let bytes = made.bytes();
        assert!((673_000_000_000..677_000_000_000).contains(&bytes), "{bytes}");
        assert!((134..140).contains(&made.shards()), "{}", made.shards());
        assert!(made.shards.iter().all(|shard| shard.bytes() < 5_100_000_000));
    }
}
