//! Damaged and hostile files for each of the five readers: case files, rows, configurations, indexes and
//! checkpoints. Whatever a file holds, its reader ends soon, in little memory, with a result or with one
//! short printable error; it does not panic and writes nothing. A case that is read is taken by the kernel
//! and by the reference, or by neither.
//!
//! `DSA_MUTANTS` is the number for each reader, `DSA_SEED` their seed; `make fuzz` runs many.

use crate::cli::dsa;
use crate::samples::sample;
use crate::support::device;
use dsa_figures::{Options, draw, latest};
use dsa_gate::Case;
use dsa_gate::kernels::{ALL, find};
use dsa_kernels::DType;
use dsa_model::config::Config;
use dsa_model::layers::Attention;
use dsa_model::weights::Checkpoint;
use mutator::Mutator;
use reader::{Outcome, Reader, environment};
use std::fs;
use std::path::{Path, PathBuf};

mod cases;
mod mutator;
mod reader;

/// Mutants for each reader, if `DSA_MUTANTS` says nothing: some seconds of them.
const MUTANTS: u64 = 600;
const SEED: u64 = 9;

/// The folder of the tiny checkpoint.
fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")
}

/// Runs `reader` on as many mutants as are asked for.
fn all(reader: Reader) {
    let (mutants, seed) = (environment("DSA_MUTANTS", MUTANTS), environment("DSA_SEED", SEED));
    let accepted = reader.run(mutants, seed);
    println!("{mutants} mutants (DSA_SEED={seed}), of which {accepted} were accepted");
    assert!(accepted > 0 || mutants < MUTANTS, "no mutant got past its first check");
}

fn refused(error: impl ToString) -> Outcome {
    Outcome::Refused(error.to_string())
}

#[test]
fn no_case_file_does_harm_and_both_sides_take_the_same_ones() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |case: &Case| {
        let path = folder.path().join("case");
        case.save(&path).unwrap();
        fs::read(path).unwrap()
    };
    all(Reader {
        name: "case.safetensors",
        beside: &|_| {},
        mutant: &|mutator: &mut Mutator| {
            let case = sample(ALL[mutator.rng.below(ALL.len())].name);
            match mutator.rng.below(3) {
                0 => mutator.safetensors(&saved(&case)),
                _ => saved(&cases::damaged(mutator, case)),
            }
        },
        read: &|path| {
            let case = match Case::load(path) {
                Ok(case) => case,
                Err(error) => return refused(error),
            };
            let kernel = match find(&case.kernel) {
                Ok(kernel) => kernel,
                Err(error) => return refused(error),
            };
            match (kernel.reference(&case), kernel.run(&device(), &case)) {
                (Err(by_reference), Err(by_kernel)) => {
                    assert_eq!(by_reference.to_string(), by_kernel.to_string(), "{case:?}");
                    refused(by_kernel)
                }
                (Ok(by_reference), Ok(by_kernel)) => {
                    assert_eq!(format!("{by_reference:?}"), format!("{by_kernel:?}"), "{case:?}");
                    Outcome::Accepted
                }
                (Ok(_), Err(error)) => panic!("only the kernel refuses {case:?}: {error}"),
                (Err(error), Ok(_)) => panic!("only the reference refuses {case:?}: {error}"),
            }
        },
    });
}

#[test]
fn no_case_file_makes_the_command_line_write_or_print_what_it_should_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case");
    sample("gemm").save(&path).unwrap();
    let original = fs::read(&path).unwrap();
    all(Reader {
        name: "case.safetensors",
        beside: &|_| {},
        mutant: &|mutator: &mut Mutator| mutator.safetensors(&original),
        read: &|path| {
            let out = path.with_file_name("out");
            let (inputs, to) = (path.to_str().unwrap(), out.to_str().unwrap());
            let run = ["run", "gemm", "--reference", "--inputs", inputs, "--out", to];
            match dsa(&run) {
                Ok(_) => {
                    fs::remove_file(out).unwrap();
                    Outcome::Accepted
                }
                Err(error) => refused(error.trim_end()),
            }
        },
    });
}

#[test]
fn no_file_of_rows_does_harm_and_what_is_read_can_be_drawn() {
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("../figures/rows/");
    let some = |file: &str, n: usize| {
        let text = fs::read_to_string(rows.join(file)).unwrap();
        text.lines().take(n).flat_map(|line| [line, "\n"]).collect::<String>()
    };
    let originals = [some("kernels-cuda.jsonl", 3), some("cost_vs_context-cuda.jsonl", 4)];
    let drawn = tempfile::tempdir().unwrap();
    // A picture takes longer than a hundred mutants that are refused.
    let pictures = std::cell::Cell::new(0);
    all(Reader {
        name: "rows.jsonl",
        beside: &|_| {},
        mutant: &|mutator: &mut Mutator| {
            let of = mutator.rng.below(originals.len());
            mutator.lines(&originals[of])
        },
        read: &|path| {
            let rows = match dsa_figures::read(path) {
                Ok(rows) => latest(&rows),
                Err(error) => return refused(error),
            };
            pictures.set(pictures.get() + 1);
            if pictures.get() % 8 != 1 {
                return Outcome::Accepted;
            }
            let options = Options { allow_mixed: true, ..Options::default() };
            match draw(&rows, drawn.path(), &options) {
                Ok(_) => Outcome::Accepted,
                Err(error) => refused(error),
            }
        },
    });
}

#[test]
fn no_configuration_does_harm() {
    let original = fs::read(tiny().join("config.json")).unwrap();
    all(Reader {
        name: "config.json",
        beside: &|_| {},
        mutant: &|mutator: &mut Mutator| mutator.json_or_bytes(&original),
        read: &|path| match Config::read(path) {
            Ok(config) => {
                // What is derived of it must not overflow.
                let _ = (config.qk_head_dim(), config.latent_dim(), config.softmax_scale());
                Outcome::Accepted
            }
            Err(error) => refused(error),
        },
    });
}

/// Reads the checkpoint in the folder of `path`, as `dsa verify` does.
fn read_checkpoint(path: &Path) -> Outcome {
    let read = || {
        let folder = path.parent().unwrap();
        let config = Config::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
        names.iter().try_for_each(|name| checkpoint.tensor(name).map(|_| ()))?;
        let layer = checkpoint.root().at("model.layers").at(0).at("self_attn");
        Attention::new(&device(), &config, layer, DType::F32).map(|_| ())
    };
    read().map_or_else(refused, |()| Outcome::Accepted)
}

#[test]
fn no_index_of_shards_does_harm() {
    let whole = fs::read(tiny().join("model.safetensors")).unwrap();
    let names = mutator::tensor_names(&whole);
    let map: Vec<String> =
        names.iter().map(|name| format!("{name:?}:\"model-00001-of-00001.safetensors\"")).collect();
    let original = format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map.join(","));
    all(Reader {
        name: "model.safetensors.index.json",
        beside: &|folder| {
            fs::copy(tiny().join("config.json"), folder.join("config.json")).unwrap();
            let shard = folder.join("model-00001-of-00001.safetensors");
            fs::copy(tiny().join("model.safetensors"), shard).unwrap();
        },
        mutant: &|mutator: &mut Mutator| mutator.json_or_bytes(original.as_bytes()),
        read: &read_checkpoint,
    });
}

#[test]
fn no_checkpoint_does_harm() {
    let original = fs::read(tiny().join("model.safetensors")).unwrap();
    all(Reader {
        name: "model.safetensors",
        beside: &|folder| {
            fs::copy(tiny().join("config.json"), folder.join("config.json")).unwrap();
        },
        mutant: &|mutator: &mut Mutator| mutator.safetensors(&original),
        read: &read_checkpoint,
    });
}
