//! What loading a model takes of the host's memory beside the weights themselves.

use dsa_kernels::DType;
use dsa_kernels::Device;
use dsa_model::Model;
use dsa_model::config::Config;
use dsa_model::layers::Precision;
use dsa_model::weights::{Checkpoint, manifest};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Set to what is loaded in the process that is measured: no other test allocates there.
const CHILD: &str = "DSA_TEST_WEIGHTS_MEMORY";
/// Bytes that the host may hold beside the weights: a fraction of one matrix of all experts, and of what the program
/// promises.
const MOST: u64 = 300 << 20;

/// One layer whose experts have matrices of 2^30 bytes, all together, in the type that is loaded: buffers of that size
/// take the pages that are written and no others (`sparse_memory.rs`), so that the weights can be told from the rest.
fn config(precision: Precision) -> Config {
    let size = if precision.fp8 { 1 } else { precision.dtype.size() };
    let config = Config {
        vocab_size: 16,
        hidden_size: 4096 / size,
        moe_intermediate_size: 1024,
        first_k_dense_replace: 0,
        ..Config::scaled(64).unwrap()
    };
    config.validate().unwrap();
    config
}

/// A checkpoint of the configuration, all zeros, with every matrix in fp8: a file of holes.
fn write(folder: &Path, config: &Config) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    let mut add = |name: &str, dtype: &str, shape: &[usize], size: usize| {
        let begin = end;
        end += size * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.to_string(), entry);
    };
    for (name, shape) in manifest(config) {
        match shape[..] {
            [out, into] => {
                let blocks = [out, into].map(|n| n.div_ceil(128));
                add(&name, "F8_E4M3", &shape, 1);
                add(&format!("{name}_scale_inv"), "F32", &blocks, 4);
            }
            _ => add(&name, "F32", &shape, 4),
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// A line of what the system knows of this process, in bytes.
fn status(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Loads, and says how much memory that took at its peak beside the weights. On the CPU the device's memory is the
/// host's: it is taken off.
fn beside(precision: Precision) -> u64 {
    let (folder, config) = (tempfile::tempdir().unwrap(), config(precision));
    write(folder.path(), &config);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let device = Device::named("cpu").unwrap();
    // The most that was ever in memory, from now on.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS") - status("RssFile");
    let model = Model::new(&device, &config, checkpoint.root(), precision).unwrap();
    let most = status("VmHWM") - status("RssFile");
    let elements: usize =
        manifest(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let of_weights = (elements * if precision.fp8 { 1 } else { precision.dtype.size() }) as u64;
    drop(model);
    assert!(most > before + of_weights, "the weights are not in memory: {most} after {before}");
    most - before - of_weights
}

#[test]
fn of_experts_the_host_holds_parts_and_never_one_matrix_of_all() {
    if let Ok(loaded) = std::env::var(CHILD) {
        let precision = match loaded.as_str() {
            "fp8" => Precision::STORED,
            _ => Precision::dequantised(DType::Bf16),
        };
        let beside = beside(precision);
        assert!(beside < MOST, "{loaded}: {beside} bytes beside the weights");
        eprintln!("{loaded}: {} MB beside the weights", beside / 1_000_000);
        return;
    }
    for loaded in ["fp8", "bf16"] {
        let name = "weights_memory::of_experts_the_host_holds_parts_and_never_one_matrix_of_all";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(CHILD, loaded);
        let done = child.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        assert!(said.contains("MB beside the weights"), "nothing was measured: {said}");
        eprintln!("{}", said.lines().last().unwrap_or_default());
    }
}
