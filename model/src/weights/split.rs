//! From a checkpoint in Hugging Face's layout to that of DeepSeek-V3.2's inference demo: one file for each rank of model
//! parallelism, `model0-mp4.safetensors` and its like.
//!
//! ```text
//! let split = Split::plan(&checkpoint, &config, 4, false)?;     // everything is refused here or by write, before it writes
//! split.write(from, to, |done, all| …)?;
//! ```
//!
//! Embedding, head and the projections of heads and feed-forward layers are cut in equal parts, experts go to the rank
//! that owns them, all else every rank has. Layers of multi-token prediction are left out.
//!
//! Source: `convert.py` of the DeepSeek-V3.2-Exp inference demo, which holds the whole checkpoint in memory; this reads and
//! writes piece by piece.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::demo_names::{Share, share, to_demo};
use super::ranks::{MAX_RANKS, file_name};
use super::{Checkpoint, Dtype, convert, manifest};
use crate::config::{Config, Family, QUANT_BLOCK};
use crate::error::{Error, Result};

mod write;

#[cfg(test)]
mod tests;

/// A conversion that was checked and can be written.
#[derive(Debug)]
pub struct Split<'a> {
    checkpoint: &'a Checkpoint,
    files: Vec<RankFile>,
}

/// What a rank's file will hold.
#[derive(Debug)]
struct RankFile {
    name: String,
    /// The length of the header, and the header.
    header: Vec<u8>,
    /// In the order of their bytes.
    tensors: Vec<Out>,
}

/// A tensor of a rank's file.
#[derive(Debug)]
struct Out {
    name: String,
    /// Its name in the checkpoint.
    source: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// What of each row of `row` bytes is taken; the checkpoint's `bytes` are rows.
    cut: Range<u64>,
    row: u64,
    bytes: Range<u64>,
    /// The type it is stored in, if it is made f32.
    widened: Option<Dtype>,
    /// Its place behind the header.
    place: Range<u64>,
}

impl RankFile {
    fn bytes(&self) -> u64 {
        let data = self.tensors.last().map_or(0, |last| last.place.end);
        self.header.len() as u64 + data
    }
}

impl<'a> Split<'a> {
    /// The conversion of `checkpoint`, that of `config`, to the files of `ranks` ranks. The head and the indexer's
    /// `weights_proj` become f32, which the demo loads them as, unless `keep_dtypes`.
    ///
    /// # Errors
    /// As [`Checkpoint::expect`]; [`Error::Config`] for a family that the demo does not run; [`Error::Argument`] for a
    /// number of ranks that does not divide the experts, or an axis or the blocks of scales of a tensor, which it names.
    pub fn plan(
        checkpoint: &'a Checkpoint,
        config: &Config,
        ranks: usize,
        keep_dtypes: bool,
    ) -> Result<Self> {
        if config.family != Family::DeepseekV32 {
            let expected = "deepseek_v32: the demo runs no other family";
            return Err(Error::config("model_type", config.family.model_type(), expected));
        }
        let expected = |what: &str| format!("a number of ranks that divides {what}");
        let few = (1..=MAX_RANKS).contains(&ranks);
        Error::check(few, "model-parallel", ranks, format!("1 to {MAX_RANKS} ranks"))?;
        let experts = config.n_routed_experts;
        let what = format!("the {experts} experts");
        Error::check(experts.is_multiple_of(ranks), "model-parallel", ranks, expected(&what))?;
        checkpoint.expect(config)?;
        let mut sources = Vec::new();
        for (name, _) in manifest(config) {
            if checkpoint.form(&name)?.0 == Dtype::F8_E4M3 {
                sources.push(checkpoint.scale_name(&name));
            }
            sources.push(name);
        }
        let files = (0..ranks).map(|rank| {
            let mut tensors = Vec::new();
            for source in &sources {
                tensors.extend(out(checkpoint, source, rank, ranks, experts, keep_dtypes)?);
            }
            Ok(RankFile::new(file_name(rank, ranks), tensors))
        });
        Ok(Self { checkpoint, files: files.collect::<Result<_>>()? })
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(RankFile::bytes).sum()
    }

    /// The pieces of a tensor's bytes, each from at most about `most` bytes of the checkpoint.
    fn pieces(&self, out: &Out, most: u64) -> impl Iterator<Item = Result<Vec<u8>>> {
        // Rows that are taken whole are one stretch, which is cut anywhere but in an element.
        let whole = out.cut == (0..out.row);
        let step = if whole { most } else { (most / out.row).max(1) * out.row };
        let starts = (out.bytes.start..out.bytes.end).step_by(step as usize);
        starts.map(move |start| {
            let range = start..out.bytes.end.min(start + step);
            let mut bytes = self.checkpoint.part(&out.source, range)?;
            if !whole {
                let cut = out.cut.start as usize..out.cut.end as usize;
                let rows = bytes.chunks_exact(out.row as usize);
                bytes = rows.flat_map(|row| &row[cut.clone()]).copied().collect();
            }
            let Some(dtype) = out.widened else {
                return Ok(bytes);
            };
            // The type was looked at when the conversion was planned.
            let values = convert::plain(dtype, &bytes).unwrap_or_default();
            Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
    }
}

/// What `rank` holds of the tensor `source`, without its place.
fn out(
    checkpoint: &Checkpoint,
    source: &str,
    rank: usize,
    ranks: usize,
    experts: usize,
    keep_dtypes: bool,
) -> Result<Option<Out>> {
    let (dtype, shape) = checkpoint.form(source)?;
    let (mut shape, element) = (shape.to_vec(), (dtype.bitsize() / 8) as u64);
    let all = shape.iter().product::<usize>() as u64 * element;
    let (mut row, mut cut, mut bytes) = (all, 0..all, 0..all);
    match share(source) {
        Share::Expert(expert) if expert / (experts / ranks) != rank => return Ok(None),
        Share::Axis(axis) => {
            let length = shape.get(axis).copied().unwrap_or(0);
            let what = format!("axis {axis} of tensor \"{source}\", {length}");
            let expected = format!("a number of ranks that divides {what}");
            let divides = length.is_multiple_of(ranks);
            Error::check(divides, "model-parallel", ranks, expected)?;
            let of_rank = length / ranks;
            // A rank's first row begins a block of scales, or its scales would be those of other rows.
            let aligned =
                dtype != Dtype::F8_E4M3 || ranks == 1 || of_rank.is_multiple_of(QUANT_BLOCK);
            let expected =
                format!("a number of ranks that divides the blocks of {QUANT_BLOCK} in {what}");
            Error::check(aligned, "model-parallel", ranks, expected)?;
            shape[axis] = of_rank;
            let part = all / ranks as u64;
            if axis == 0 {
                bytes = rank as u64 * part..(rank as u64 + 1) * part;
                (row, cut) = (part, 0..part);
            } else {
                row = length as u64 * element;
                let of_row = of_rank as u64 * element;
                cut = rank as u64 * of_row..(rank as u64 + 1) * of_row;
            }
        }
        _ => {}
    }
    let widen = source == "lm_head.weight" || source.ends_with(".indexer.weights_proj.weight");
    let widened = (widen && !keep_dtypes && dtype != Dtype::F32).then_some(dtype);
    let right = widened.is_none_or(|dtype| convert::plain(dtype, &[]).is_some());
    if !right {
        let expected = "F32, BF16 or F16, or --keep-dtypes";
        return Err(Error::Dtype { name: source.into(), found: dtype, expected });
    }
    let dtype = if widened.is_some() { Dtype::F32 } else { dtype };
    let (name, source) = (to_demo(source), source.to_string());
    Ok(Some(Out { name, source, dtype, shape, cut, row, bytes, widened, place: 0..0 }))
}

impl RankFile {
    /// The file `name` of `tensors`, which are laid out here: the widest elements first, so that each is aligned.
    fn new(name: String, mut tensors: Vec<Out>) -> Self {
        tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then(a.name.cmp(&b.name)));
        let mut entries = Map::new();
        entries.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut end = 0;
        for out in &mut tensors {
            let elements = out.shape.iter().product::<usize>() as u64;
            out.place = end..end + elements * (out.dtype.bitsize() / 8) as u64;
            end = out.place.end;
            let offsets = [out.place.start, out.place.end];
            let entry = json!({"dtype": out.dtype, "shape": out.shape, "data_offsets": offsets});
            entries.insert(out.name.clone(), entry);
        }
        let mut text = Value::Object(entries).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [(text.len() as u64).to_le_bytes().to_vec(), text].concat();
        Self { name, header, tensors }
    }
}
