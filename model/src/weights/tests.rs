//! The golden checkpoint, conversions, and hostile files.

use super::*;
use dsa_kernels::DType;
use half::{bf16, f16};
use safetensors::tensor::{TensorView, serialize};
use std::fs;
use tempfile::{TempDir, tempdir};

mod mutants;
mod scales;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny");

/// Name, type, shape and bytes of a tensor to write.
type Made<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

/// The bytes of a safetensors file.
fn file(tensors: &[Made]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize(views, None).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A file with a header written by hand.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; data]].concat()
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn one(bytes: &[u8]) -> Result<Checkpoint> {
    Checkpoint::open(folder(&[("model.safetensors", bytes)]).path())
}

fn index(pairs: &str) -> Vec<u8> {
    format!(r#"{{"metadata": {{"total_size": 4}}, "weight_map": {{{pairs}}}}}"#).into_bytes()
}

#[test]
fn golden_tiny_opens_and_has_the_shapes_of_its_configuration() {
    let checkpoint = Checkpoint::open(Path::new(TINY)).unwrap();
    let layer = checkpoint.root().at("model.layers").at(1);
    let q_a = layer.at("self_attn").values("q_a_proj.weight", &[48, 64]).unwrap();
    assert!(q_a.iter().all(|v| v.is_finite()) && q_a.iter().any(|v| *v != 0.0));
    assert_eq!(layer.values("input_layernorm.weight", &[64]).unwrap().len(), 64);
    assert!(layer.contains("mlp.gate.e_score_correction_bias"));
    assert!(!layer.contains("mlp.gate.bias"));
    let head = checkpoint.tensor("lm_head.weight").unwrap();
    assert_eq!((head.dtype, head.shape, head.bytes.len()), (Dtype::BF16, &[320, 64][..], 40960));
    assert!(checkpoint.names().is_sorted() && checkpoint.names().count() == 106);
    assert_eq!((checkpoint.files().count(), checkpoint.tensor_bytes() > 600_000), (1, true));
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let checkpoint = Checkpoint::open(Path::new(TINY)).unwrap();
    let attention = checkpoint.root().at("model.layers.0.self_attn");
    let error = attention.values("q_a.weight", &[48, 64]).unwrap_err().to_string();
    assert!(error.contains("\"model.layers.0.self_attn.q_a_proj.weight\""), "{error}");
    let error = checkpoint.tensor("zzz").unwrap_err().to_string();
    assert!(error.contains("no name there is like it"), "{error}");
}

#[test]
fn wrong_shapes_and_types_are_refused() {
    let ids = [1u8, 0, 0, 0].repeat(3);
    let checkpoint =
        one(&file(&[("ids", Dtype::I32, vec![3], ids), ("x", Dtype::F32, vec![0, 2], vec![])]));
    let checkpoint = checkpoint.unwrap();
    let error = checkpoint.values("ids", &[3]).unwrap_err().to_string();
    assert!(error.contains("elements I32, expected F32"), "{error}");
    let error = checkpoint.values("ids", &[3, 1]).unwrap_err().to_string();
    assert!(error.contains("shape [3], expected [3, 1]"), "{error}");
    assert!(checkpoint.values("x", &[0, usize::MAX]).is_err());
    assert_eq!(checkpoint.values("x", &[0, 2]).unwrap(), Vec::<f32>::new());
}

#[test]
fn every_float_type_becomes_f32() {
    let values = [0.0, -1.5, 448.0, 0.0625];
    let half = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let brain = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let checkpoint = one(&file(&[
        ("a", Dtype::F32, vec![4], f32s(&values)),
        ("b", Dtype::F16, vec![4], half),
        ("c", Dtype::BF16, vec![4], brain),
    ]));
    for name in ["a", "b", "c"] {
        let array = checkpoint.as_ref().unwrap().values(name, &[4]).unwrap();
        assert_eq!(array.to_vec(), values, "{name}");
    }
}

#[test]
fn fp8_is_scaled_block_by_block() {
    // 130 × 200: the last row of blocks has 2 rows, the last column of blocks 72 columns.
    let scales = f32s(&[1.0, 2.0, 4.0, 8.0]);
    let weight = ("w.weight", Dtype::F8_E4M3, vec![130, 200], vec![0x3c; 130 * 200]);
    let scale = ("w.weight_scale_inv", Dtype::F32, vec![2, 2], scales);
    let good = one(&file(&[weight.clone(), scale.clone()])).unwrap();
    let array = good.root().at("w").values("weight", &[130, 200]).unwrap();
    for (at, value) in
        [([0, 0], 1.5), ([127, 127], 1.5), ([0, 128], 3.0), ([128, 0], 6.0), ([129, 199], 12.0)]
    {
        assert_eq!(array[at[0] * 200 + at[1]], value, "{at:?}");
    }
    let error = one(&file(std::slice::from_ref(&weight))).unwrap().values("w.weight", &[130, 200]);
    assert!(matches!(error, Err(Error::MissingTensor { name, .. }) if name.ends_with("_inv")));
    let scale = (scale.0, scale.1, vec![4, 1], scale.3);
    let error = one(&file(&[weight, scale])).unwrap().values("w.weight", &[130, 200]);
    assert!(matches!(error, Err(Error::Shape { expected, .. }) if expected == [2, 2]));
    let vector = ("v", Dtype::F8_E4M3, vec![2], vec![0; 2]);
    let error = one(&file(&[vector])).unwrap().values("v", &[2]);
    assert!(matches!(error, Err(Error::Dtype { .. })));
    let empty = ("e", Dtype::F8_E4M3, vec![3, 0], vec![]);
    let scale = ("e_scale_inv", Dtype::F32, vec![1, 0], vec![]);
    assert!(one(&file(&[empty, scale])).unwrap().values("e", &[3, 0]).is_ok());
}

#[test]
fn scales_are_of_any_float_type_or_e8m0() {
    let weight = || ("w", Dtype::F8_E4M3, vec![130, 2], vec![0x3c; 260]);
    let bf16s = [2.0, 0.25].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    for (dtype, bytes) in
        [(Dtype::F32, f32s(&[2.0, 0.25])), (Dtype::BF16, bf16s), (Dtype::F8_E8M0, vec![128, 125])]
    {
        let scale = ("w_scale_inv", dtype, vec![2, 1], bytes);
        let array = one(&file(&[weight(), scale])).unwrap().values("w", &[130, 2]).unwrap();
        assert_eq!((array[127 * 2 + 1], array[128 * 2]), (3.0, 0.375), "{dtype}");
    }
    for (dtype, size) in [(Dtype::F8_E4M3, 2), (Dtype::I32, 8)] {
        let scale = ("w_scale_inv", dtype, vec![2, 1], vec![0; size]);
        let error = one(&file(&[weight(), scale])).unwrap().values("w", &[130, 2]).unwrap_err();
        assert!(error.to_string().contains("F8_E8M0"), "{error}");
    }
    // A scale that is NaN or infinite would make its whole block so.
    for (dtype, bytes) in
        [(Dtype::F8_E8M0, vec![128, 255]), (Dtype::F32, f32s(&[1.0, f32::INFINITY]))]
    {
        let scale = ("w_scale_inv", dtype, vec![2, 1], bytes);
        let error = one(&file(&[weight(), scale])).unwrap().values("w", &[130, 2]);
        assert!(matches!(error, Err(Error::Element { .. })), "{dtype}");
    }
    // Only a scale is e8m0.
    let alone = one(&file(&[("x", Dtype::F8_E8M0, vec![1], vec![127])])).unwrap().values("x", &[1]);
    assert!(matches!(alone, Err(Error::Dtype { .. })));
}

#[test]
fn of_a_tensor_in_two_shards_the_index_says_which() {
    let shard = |x: f32, other: &str| {
        file(&[("x", Dtype::F32, vec![1], f32s(&[x])), (other, Dtype::F32, vec![1], f32s(&[9.0]))])
    };
    let (one, two) = (shard(1.0, "y"), shard(2.0, "z"));
    for (name, value) in [("1.safetensors", 1.0), ("2.safetensors", 2.0)] {
        let pairs = format!(r#""x": "{name}", "y": "1.safetensors", "z": "2.safetensors""#);
        let index = index(&pairs);
        let files = [
            ("model.safetensors.index.json", &index[..]),
            ("1.safetensors", &one),
            ("2.safetensors", &two),
        ];
        let opened = Checkpoint::open(folder(&files).path()).unwrap();
        assert_eq!(opened.values("x", &[1]).unwrap()[0], value);
    }
    let index = index(r#""y": "1.safetensors", "z": "2.safetensors""#);
    let files = [
        ("model.safetensors.index.json", &index[..]),
        ("1.safetensors", &one),
        ("2.safetensors", &two),
    ];
    let error = Checkpoint::open(folder(&files).path());
    assert!(matches!(error, Err(Error::DuplicateTensor { name, .. }) if name == "x"));
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_an_error() {
    let folder =
        folder(&[("model.safetensors", &file(&[("x", Dtype::U8, vec![99], vec![7; 99])]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensor("x").unwrap().bytes, [7; 99]);
    let path = folder.path().join("model.safetensors");
    let size = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size - 9).unwrap();
    let error = checkpoint.tensor("x").unwrap_err();
    assert!(matches!(error, Error::Truncated { missing: 9, .. }), "{error}");
}

#[test]
fn more_tensors_than_any_model_has_are_refused_early() {
    let mut header = String::from("{");
    for i in 0..=file::MAX_TENSORS {
        header += &format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    }
    header += r#""z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    let error = one(&raw(&header, 0)).unwrap_err().to_string();
    assert!(error.contains("more than 262144 tensors"), "{error}");
}

#[test]
#[cfg(unix)]
fn what_is_there_but_cannot_be_opened_is_not_taken_for_absent() {
    let index = index(r#""x": "a.safetensors""#);
    let x = file(&[("x", Dtype::F32, vec![1], f32s(&[3.0]))]);
    let files = [("model.safetensors.index.json", &index[..]), ("a.safetensors", &x)];
    let folder = folder(&files);
    assert!(Checkpoint::open(folder.path()).is_ok());
    std::os::unix::fs::symlink("/nowhere/x", folder.path().join("model.safetensors")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::File(_)), "{error}");
    assert!(error.to_string().contains("model.safetensors: No such file"), "{error}");
}

#[test]
fn a_tensor_of_the_attention_that_nobody_reads_is_refused() {
    use crate::layers::Attention;
    let config = crate::config::Config::read(Path::new(TINY)).unwrap();
    let read = |extra: &str| {
        let golden = fs::read(Path::new(TINY).join("model.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
        let mut views = golden.tensors();
        let bytes = f32s(&[1.0]);
        views.push((extra.to_string(), TensorView::new(Dtype::F32, vec![1], &bytes).unwrap()));
        let checkpoint = one(&serialize(views, None).unwrap()).unwrap();
        let device = dsa_kernels::Device::named("cpu").unwrap();
        let weights = checkpoint.root().at("model.layers.0.self_attn");
        Attention::new(&device, &config, weights, DType::F32).map(|_| ())
    };
    for name in ["q_a_proj.bias", "attn_sinks", "q_b_proj.weight_scale_inv", "k_scale"] {
        let error = read(&format!("model.layers.0.self_attn.{name}")).unwrap_err();
        assert!(matches!(&error, Error::Unread(unread) if unread.ends_with(name)), "{error}");
    }
    assert!(read("model.layers.0.self_attn.rotary_emb.inv_freq").is_ok());
    assert!(read("model.layers.1.self_attn.attn_sinks").is_ok(), "another layer's");
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    let whole = file(&[("x", Dtype::F32, vec![100], vec![0; 400])]);
    for cut in [1, 17, 400, 401, whole.len() - 8, whole.len() - 7, whole.len()] {
        let error = one(&whole[..whole.len() - cut]).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{cut}: {error}");
        let error = error.to_string();
        assert!(error.contains("model.safetensors"), "{cut}: {error}");
        let missing = format!("{cut} more");
        assert!(cut > 400 || error.contains(&missing), "{cut}: {error}");
    }
    let longer = [whole, vec![0; 3]].concat();
    assert!(matches!(one(&longer), Err(Error::Safetensors { .. })));
}

#[test]
fn hostile_headers_are_refused() {
    let max = u64::MAX;
    for header in [
        String::new(),
        "[]".into(),
        "\u{ff}".into(),
        r#"{"x": 1}"#.into(),
        r#"{"x": {"dtype": "F32", "shape": [1]}}"#.into(),
        r#"{"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#.into(),
        r#"{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#.into(),
        r#"{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#.into(),
        r#"{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#.into(),
        r#"{"x": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}}"#.into(),
        format!(r#"{{"x": {{"dtype": "U8", "shape": [{max}], "data_offsets": [0, {max}]}}}}"#),
        format!(r#"{{"x": {{"dtype": "U8", "shape": [{max}, 9], "data_offsets": [0, 4]}}}}"#),
    ] {
        assert!(matches!(one(&raw(&header, 4)), Err(Error::Safetensors { .. })), "{header}");
    }
    let tensor = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    let twice = format!(r#"{{"x": {tensor}, "x": {tensor}}}"#);
    assert!(matches!(one(&raw(&twice, 4)), Err(Error::DuplicateTensor { .. })));
    for header in [
        r#"{"x": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
        r#"{"__metadata__": {"a": "1", "a": "2"}}"#,
    ] {
        let error = one(&raw(header, 4)).unwrap_err().to_string();
        assert!(error.contains("is there twice"), "{error}");
    }
    let mut long = raw("{}", 0);
    long[..8].copy_from_slice(&max.to_le_bytes());
    assert!(matches!(one(&long), Err(Error::Safetensors { .. })));
    assert!(one(&raw(r#"{"__metadata__": {"format": "pt"}}"#, 0)).is_ok());
}

#[test]
fn shards_are_found_through_the_index() {
    let x = file(&[("x", Dtype::F32, vec![1], f32s(&[3.0]))]);
    let y = file(&[("y", Dtype::F32, vec![1], f32s(&[4.0]))]);
    let pairs = index(r#""x": "1.safetensors", "y": "2.safetensors""#);
    let name = "model.safetensors.index.json";
    let both = [(name, &pairs[..]), ("1.safetensors", &x), ("2.safetensors", &y)];
    let opened = Checkpoint::open(folder(&both).path()).unwrap();
    assert_eq!(opened.values("y", &[1]).unwrap()[0], 4.0);
    assert_eq!(opened.files().count(), 2);

    let missing = Checkpoint::open(folder(&both[..2]).path()).unwrap_err();
    assert!(matches!(&missing, Error::Index { value, .. } if value == "2.safetensors"));
    let same = [both[0], both[1], ("2.safetensors", &x)];
    let error = Checkpoint::open(folder(&same).path());
    assert!(matches!(error, Err(Error::Index { value, .. }) if value == "y"));
    let swapped = [both[0], ("1.safetensors", &y[..]), ("2.safetensors", &x)];
    let error = Checkpoint::open(folder(&swapped).path());
    assert!(matches!(error, Err(Error::Index { value, .. }) if value == "x"));
}

#[test]
fn hostile_indexes_are_refused() {
    let x = file(&[("x", Dtype::F32, vec![1], f32s(&[3.0]))]);
    let outside = folder(&[("x.safetensors", &x)]);
    let absolute = outside.path().join("x.safetensors").display().to_string();
    let open = |index: &[u8]| {
        let files = [("model.safetensors.index.json", index), ("a.safetensors", &x)];
        Checkpoint::open(folder(&files).path())
    };
    for shard in [
        "../a.safetensors",
        "./a.safetensors",
        "b/../a.safetensors",
        "a.safetensors/",
        "..",
        ".",
        "",
        "..\\\\a.safetensors",
        "C:a.safetensors",
        "a\\u0000.safetensors",
        "a.txt",
        "none.safetensors",
        &absolute,
    ] {
        let error = open(&index(&format!(r#""x": "{shard}""#)));
        assert!(matches!(error, Err(Error::Index { .. })), "{shard}: {error:?}");
    }
    let twice = index(r#""x": "a.safetensors", "x": "b.safetensors""#);
    assert!(open(&twice).unwrap_err().to_string().contains("\"x\" is there twice"));
    let maps = br#"{"weight_map": {"x": "a.safetensors"}, "weight_map": {}}"#;
    assert!(open(maps).unwrap_err().to_string().contains("\"weight_map\" is there twice"));
    let marked = [&b"\xef\xbb\xbf"[..], &index(r#""x": "a.safetensors""#)].concat();
    assert!(open(&marked).unwrap_err().to_string().contains("byte order mark"));
    let long = index(&format!(r#""x": "{}""#, "s".repeat(5000)));
    assert!(open(&long).unwrap_err().to_string().len() < 1000);
    assert!(matches!(open(&index("")), Err(Error::Index { .. })));
    assert!(matches!(open(&index(r#""x": "a.bin""#)), Err(Error::Pickle(_))));
    for text in ["", "{}", "[]", r#"{"weight_map": 3}"#, r#"{"weight_map": {"x": 3}}"#] {
        assert!(matches!(open(text.as_bytes()), Err(Error::Json { .. })), "{text}");
    }
}

#[test]
fn pickles_and_empty_folders_are_refused() {
    let open = |name| Checkpoint::open(folder(&[(name, &b""[..])]).path()).unwrap_err();
    for name in ["pytorch_model.bin", "model.pt", "MODEL.PTH"] {
        let error = open(name);
        assert!(matches!(error, Error::Pickle(_)), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(matches!(open("readme.md"), Error::NoWeights(_)));
    let nowhere = Checkpoint::open(Path::new("/nowhere/at/all"));
    assert!(matches!(nowhere, Err(Error::File(_))));
    let device = Checkpoint::open_files(vec!["/dev/zero".into()]);
    assert!(matches!(device, Err(Error::File(_))));
}
