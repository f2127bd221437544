use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/demo"))
}

fn opened() -> (Config, Checkpoint) {
    (Config::read(demo()).unwrap(), Checkpoint::open(demo()).unwrap())
}

fn write(split: &Split, to: &Path) -> Result<()> {
    split.write(demo(), to, |_, _| {})
}

fn bytes_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn what_was_begun_is_gone_on_with_and_what_is_there_stays() {
    let (config, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let split = Split::plan(&checkpoint, &config, 2, false).unwrap();
    let once = folder.path().join("once");
    write(&split, &once).unwrap();
    let expected = bytes_below(&once);
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", "model0-mp2.safetensors", "model1-mp2.safetensors"]);
    let sizes = expected.iter().filter(|(name, _)| name.starts_with("model"));
    assert_eq!(sizes.map(|(_, bytes)| bytes.len() as u64).sum::<u64>(), split.bytes());
    // The second file was cut short in the middle of a tensor, in its header, and at nothing.
    let second = once.join("model1-mp2.safetensors");
    let whole = expected["model1-mp2.safetensors"].clone();
    for length in [whole.len() / 2, 100, 0] {
        fs::remove_file(&second).unwrap();
        fs::write(once.join("model1-mp2.safetensors.part"), &whole[..length]).unwrap();
        let written =
            fs::metadata(once.join("model0-mp2.safetensors")).unwrap().modified().unwrap();
        let mut told = Vec::new();
        split.write(demo(), &once, |done, all| told.push((done, all))).unwrap();
        assert_eq!(bytes_below(&once), expected);
        let again = fs::metadata(once.join("model0-mp2.safetensors")).unwrap().modified().unwrap();
        assert_eq!(written, again, "a file that is whole is not written again");
        assert!(told.is_sorted() && told.last() == Some(&(split.bytes(), split.bytes())));
        // What is there counts from the beginning.
        assert!(told[0].0 >= (split.bytes() - whole.len() as u64) && told[0].0 < split.bytes());
    }
}

#[test]
fn a_disk_without_room_for_what_is_missing_is_refused_before_anything_is_written() {
    let (config, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path();
    let split = Split::plan(&checkpoint, &config, 2, false).unwrap();
    let all = split.bytes();
    let error = split.begin(demo(), to, all - 1).unwrap_err().to_string();
    let said = format!("{all} bytes to write, and the disk has room for {}", all - 1);
    assert!(error.ends_with(&said) && bytes_below(to).is_empty(), "{error}");
    split.begin(demo(), to, all).unwrap();
    // What is there takes no more room.
    write(&split, to).unwrap();
    fs::remove_file(to.join("model1-mp2.safetensors")).unwrap();
    let second = split.files[1].bytes();
    assert!(split.begin(demo(), to, second - 1).is_err());
    split.begin(demo(), to, second).unwrap();
}

#[test]
fn another_target_is_refused_and_stays_as_it_is() {
    let (config, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let split = Split::plan(&checkpoint, &config, 2, false).unwrap();
    let to = folder.path().join("to");
    write(&split, &to).unwrap();
    let before = bytes_below(&to);
    let refused = |split: &Split, said: &str| {
        let error = write(split, &to).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    for (ranks, keep, said) in [
        (2, true, "model0-mp2.safetensors: holds other weights"),
        (4, false, "-mp2.safetensors: is not of this conversion"),
    ] {
        refused(&Split::plan(&checkpoint, &config, ranks, keep).unwrap(), said);
    }
    assert_eq!(bytes_below(&to), before);
    // The same shapes with other numbers, whole and begun.
    let mut other = before["model0-mp2.safetensors"].clone();
    let header = split.files[0].header.len();
    other[header] ^= 1;
    fs::write(to.join("model0-mp2.safetensors"), &other).unwrap();
    refused(&split, "model0-mp2.safetensors: holds other weights");
    fs::rename(to.join("model0-mp2.safetensors"), to.join("model0-mp2.safetensors.part")).unwrap();
    refused(&split, "model0-mp2.safetensors.part: holds other weights");
    fs::remove_file(to.join("model0-mp2.safetensors.part")).unwrap();
    fs::write(to.join("config.json"), "{}").unwrap();
    refused(&split, "config.json: is not the checkpoint's");
    assert!(!to.join("model0-mp2.safetensors").exists(), "nothing is written before a refusal");
    let error = write(&split, demo()).unwrap_err().to_string();
    assert!(error.contains("is the checkpoint's own folder"), "{error}");
    let error = write(&split, &folder.path().join("none/to")).unwrap_err().to_string();
    assert!(error.contains("none/to"), "{error}");
}

#[test]
fn scales_by_their_other_name_are_converted_too() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in bytes_below(demo()) {
        let ours = name.starts_with("model") && !name.ends_with("index.json");
        let bytes = if ours { with_other_scales(&bytes) } else { bytes };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let bytes = match name.ends_with("index.json") {
            true => text(&bytes).replace("weight_scale_inv", "weight_scale").into_bytes(),
            false => bytes,
        };
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let (config, usual) = opened();
    let other = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(other.notes().len(), 1);
    let headers = |checkpoint: &Checkpoint| -> Vec<Vec<u8>> {
        let split = Split::plan(checkpoint, &config, 2, false).unwrap();
        split.files.iter().map(|file| file.header.clone()).collect()
    };
    assert!(headers(&other) == headers(&usual));
}

/// A safetensors file whose scales are named `weight_scale`: as many spaces behind its header as that is shorter.
fn with_other_scales(file: &[u8]) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(file[8..end].to_vec()).unwrap();
    let header = format!("{:1$}", header.replace("weight_scale_inv", "weight_scale"), end - 8);
    [&file[..8], header.as_bytes(), &file[end..]].concat()
}

#[test]
fn a_number_of_ranks_that_cuts_what_is_one_is_refused_by_the_tensors_name() {
    let (config, checkpoint) = opened();
    for (ranks, said) in [
        (0, "model-parallel is 0, expected 1 to 1024 ranks"),
        (3, "model-parallel is 3, expected a number of ranks that divides the 8 experts"),
        (
            8,
            "model-parallel is 8, expected a number of ranks that divides axis 1 of tensor \
             \"model.layers.0.self_attn.o_proj.weight_scale_inv\", 4",
        ),
    ] {
        let error = Split::plan(&checkpoint, &config, ranks, false).unwrap_err().to_string();
        assert_eq!(error, said);
    }
    let mut glm = config;
    glm.family = Family::GlmMoeDsa;
    let error = Split::plan(&checkpoint, &glm, 1, false).unwrap_err().to_string();
    assert!(error.contains("model_type is glm_moe_dsa, expected deepseek_v32"), "{error}");
}

/// What the ranks hold, joined, is what was cut: by [`Checkpoint::open`], whole and in pieces at any place.
#[test]
fn a_converted_checkpoint_is_read_as_the_one_it_was_made_of() {
    let (config, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    for ranks in [1, 2, 4] {
        let to = folder.path().join(ranks.to_string());
        write(&Split::plan(&checkpoint, &config, ranks, true).unwrap(), &to).unwrap();
        let joined = Checkpoint::open(&to).unwrap();
        joined.expect(&config).unwrap();
        assert_eq!(joined.files().count(), ranks);
        assert_eq!(
            joined.names().count(),
            manifest(&config).len() + joined.names().filter(|n| n.ends_with("_scale_inv")).count()
        );
        for name in joined.names() {
            let (there, here) = (joined.tensor(name).unwrap(), checkpoint.tensor(name).unwrap());
            assert_eq!((there.dtype, there.shape), (here.dtype, here.shape), "{name}");
            assert!(there.bytes == here.bytes, "{name} of {ranks} ranks");
            let length = here.bytes.len();
            for (start, end) in
                [(0, length / 3), (length / 3, length / 2 + 1), (length - 1, length)]
            {
                let part = joined.part(name, start as u64..end as u64).unwrap();
                assert!(part == here.bytes[start..end], "{name} {start}..{end} of {ranks} ranks");
            }
        }
    }
    let to = folder.path().join("4");
    fs::remove_file(to.join("model2-mp4.safetensors")).unwrap();
    let error = Checkpoint::open(&to).unwrap_err().to_string();
    assert!(
        error.contains("\"model2-mp4.safetensors\", expected a file of each of the 4 ranks"),
        "{error}"
    );
    fs::copy(folder.path().join("1/model0-mp1.safetensors"), to.join("model0-mp1.safetensors"))
        .unwrap();
    let error = Checkpoint::open(&to).unwrap_err().to_string();
    assert!(error.contains("expected the files of one conversion"), "{error}");
}

#[test]
fn head_and_weights_proj_become_f32_and_nothing_else_changes() {
    let (config, checkpoint) = opened();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    write(&Split::plan(&checkpoint, &config, 2, false).unwrap(), &to).unwrap();
    let joined = Checkpoint::open(&to).unwrap();
    let mut widened = Vec::new();
    for name in joined.names() {
        let (dtype, shape) = joined.form(name).unwrap();
        if dtype == checkpoint.form(name).unwrap().0 {
            continue;
        }
        assert_eq!(dtype, Dtype::F32);
        assert_eq!(joined.values(name, shape).unwrap(), checkpoint.values(name, shape).unwrap());
        widened.push(name.to_string());
    }
    let proj = |layer| format!("model.layers.{layer}.self_attn.indexer.weights_proj.weight");
    assert_eq!(widened, ["lm_head.weight".to_string(), proj(0), proj(1), proj(2)]);
}

/// `converted.json` holds type, shape and SHA-256 of every tensor of every file that the demo's `convert.py` makes of this
/// checkpoint; 1 stands for what its file of a single rank holds under the same name.
#[test]
fn every_tensor_is_what_the_demos_convert_py_makes() {
    let (config, checkpoint) = opened();
    let text = dsa_files::read_text(&demo().join("converted.json"), 1 << 20).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut files, mut tensors) = (0, 0);
    for ranks in [1, 2, 4] {
        let to = folder.path().join(ranks.to_string());
        write(&Split::plan(&checkpoint, &config, ranks, true).unwrap(), &to).unwrap();
        for rank in 0..ranks {
            let name = file_name(rank, ranks);
            let expected = golden[&name].as_object().unwrap();
            let written = Checkpoint::open_files(vec![to.join(&name)]).unwrap();
            let names: Vec<&str> = written.names().collect();
            assert_eq!(names, expected.keys().map(String::as_str).collect::<Vec<_>>(), "{name}");
            for tensor in names {
                let found = written.tensor(tensor).unwrap();
                let hash: String =
                    Sha256::digest(&found.bytes).iter().map(|b| format!("{b:02x}")).collect();
                let expected = match &expected[tensor] {
                    Value::Number(_) => &golden[&file_name(0, 1)][tensor],
                    own => own,
                };
                let found = json!([found.dtype, found.shape, hash]);
                assert_eq!(&found, expected, "{tensor} in {name}");
                tensors += 1;
            }
            files += 1;
        }
    }
    assert_eq!((files, tensors), (7, 904));
}
