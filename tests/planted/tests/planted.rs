//! The gate kills every planted bug within its default cases, and lets the kernels without one pass.
//!
//! All bugs are in one build; the variable `DSA_PLANTED` chooses one for a whole process. So each is tried in a
//! process of its own: this program again, told to run the one test that passes where no bug is.

use dsa_planted::dsa_gate::gate::{DEFAULT_CASES, gate_once, seed};
use dsa_planted::dsa_gate::kernels::find;
use dsa_planted::dsa_gate::layer::verify_random;
use dsa_planted::dsa_kernels::tile::MatrixUnit;
use dsa_planted::dsa_kernels::{DType, Device, Tensor, planted};
use dsa_planted::dsa_model::layers::Precision;
use dsa_planted::dsa_model::run::Mode;
use dsa_planted::dsa_model::weights::Checkpoint;
use dsa_planted::dsa_model::{Config, Model};
use dsa_planted::{BUGS, Bug, dsa_kernels, dsa_model};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Cases of each kernel where no bug is planted: the other tests judge the same sources on more.
const CASES_WITHOUT: u32 = 32;

/// Tokens of the layer: more than it selects.
const TOKENS: usize = 96;

/// How far a logit of the golden model may be off.
const MODEL_BOUND: f32 = 1e-4;

/// What a process says of a bug that the gate killed.
const KILLED: &str = "the gate says:";

/// Why `gate` falls, if it does.
fn fallen(gate: &str, cases: u32) -> Option<String> {
    let device = Device::best().unwrap();
    if gate == "model" {
        return golden_model(&device).err();
    }
    if gate != "layer" {
        let judged = gate_once(find(gate).unwrap(), &device, cases, seed().unwrap());
        return judged.err().map(|failure| failure.reason);
    }
    let config = Config::scaled(32).unwrap();
    match verify_random(&device, &config, TOKENS, seed().unwrap()) {
        Ok(report) => (!report.passed()).then(|| report.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Runs the golden model of GLM-5.2, whose layers 2 and 3 share the keys of layer 1; says how far its logits are from
/// those stored beside it if that is too far, or why it does not run.
fn golden_model(device: &Device) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/glm");
    let said = |error: dsa_model::Error| error.to_string();
    let config = Config::read(&folder).map_err(said)?;
    let weights = Checkpoint::open(&folder).map_err(said)?;
    let stored = Checkpoint::open_files(vec![folder.join("expected.safetensors")]).map_err(said)?;
    let ids = stored.tensor("input_ids").map_err(said)?.bytes;
    let ids: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    let expected = stored.values("logits", &[ids.len(), config.vocab_size]).map_err(said)?;
    let exact = Precision::dequantised(DType::F32);
    let model = Model::new(device, &config, weights.root(), exact).map_err(said)?;
    let mut cache = model.cache(1, ids.len()).map_err(said)?;
    let mut logits = Vec::new();
    let take = |chunk: Tensor| {
        logits.extend(chunk.download_f32()?);
        Ok(())
    };
    model.prefill(&ids, 0, ids.len(), Mode::Sparse, &mut cache, take).map_err(said)?;
    let off = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0f32, |most, off| if off.is_nan() { off } else { most.max(off) });
    if off < MODEL_BOUND { Ok(()) } else { Err(format!("the logits are off by {off}")) }
}

#[test]
fn without_a_bug_the_gates_pass() {
    let planted: Vec<&Bug> = BUGS.iter().filter(|bug| planted(bug.name)).collect();
    let gates: BTreeSet<_> = match &planted[..] {
        [] => BUGS.iter().map(|bug| bug.gate).collect(),
        bugs => bugs.iter().map(|bug| bug.gate).collect(),
    };
    let cases = if planted.is_empty() { CASES_WITHOUT } else { DEFAULT_CASES };
    for gate in gates {
        if let Some(reason) = fallen(gate, cases) {
            println!("{KILLED} {reason}");
            panic!("{gate} fell");
        }
    }
}

#[test]
fn every_bug_has_its_place_in_the_sources() {
    let missing: Vec<_> = dsa_kernels::MISSING.iter().chain(dsa_model::MISSING).collect();
    let lost: Vec<_> = BUGS
        .iter()
        .filter(|bug| missing.contains(&&bug.name))
        .map(|bug| format!("{:?}: {} has not once the text {}", bug.name, bug.file, bug.right))
        .collect();
    assert!(lost.is_empty(), "mend tests/planted/bugs.rs:\n{}", lost.join("\n"));
    let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
    assert_eq!(names.len(), BUGS.len(), "two bugs of one name");
}

#[test]
fn every_planted_bug_is_killed_by_the_gate() {
    // A process that runs one bug runs no others.
    if std::env::var_os("DSA_PLANTED").is_some() {
        return;
    }
    let device = Device::best().unwrap();
    let here = |bug: &&Bug| {
        let unit = || (find(bug.gate).unwrap().machine)(&device).matrix;
        !bug.matrix_unit || unit() != MatrixUnit::Plain
    };
    let bugs: Vec<&Bug> = BUGS.iter().filter(here).collect();
    say(format!("planted bugs: {} of {} run on {}", bugs.len(), BUGS.len(), device.kind()));
    let (next, alive) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = killed(bug) {
                        alive.lock().unwrap().push(format!("{} ({}): {why}", bug.name, bug.gate));
                    }
                }
            });
        }
    });
    let alive = alive.into_inner().unwrap();
    assert!(alive.is_empty(), "not killed:\n{}", alive.join("\n"));
}

/// Whether the gate kills `bug`; if not, what happened.
fn killed(bug: &Bug) -> Result<(), String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_a_bug_the_gates_pass", "--nocapture"])
        .env("DSA_PLANTED", bug.name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let reason = said.lines().find_map(|line| line.split_once(KILLED));
    match reason {
        _ if output.status.success() => Err("the gate passed".to_string()),
        // Cases that leave code out would kill anything.
        Some((_, reason)) if reason.contains("no case ran") => Err(reason.to_string()),
        Some(_) => Ok(()),
        None => {
            Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
        }
    }
}

/// Prints to the stream itself, since the harness keeps what a passing test prints.
fn say(line: String) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
