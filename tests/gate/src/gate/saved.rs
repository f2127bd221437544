//! Cases that fell once: in a folder beside what was built, and for good under `tests/data/regressions`.

use super::judge_on;
use crate::case::{Case, CaseError};
use crate::kernels::{Kernel, find};
use dsa_kernels::Device;
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Cases of a kernel that are replayed, at most: the newest.
const MOST: usize = 64;

/// Bytes of a case that is kept for good, at most: what shrank is smaller.
const KEPT_BYTES: usize = 1 << 20;

/// The folder of failing cases: `DSA_FAILURES`, or `dsa-failures` in the target folder that this program was
/// built into, or in `CARGO_TARGET_DIR`, or here.
pub fn failures_folder() -> PathBuf {
    let of_env =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = of_env("DSA_FAILURES") {
        return folder;
    }
    let exe = std::env::current_exe().ok();
    // Cargo leaves this file in every target folder.
    let target = exe.as_deref().and_then(|exe| {
        exe.ancestors()
            .find(|folder| folder.join(".rustc_info.json").is_file())
            .map(Path::to_path_buf)
    });
    target.or_else(|| of_env("CARGO_TARGET_DIR")).unwrap_or_default().join("dsa-failures")
}

/// The folder of the cases that are kept for good.
pub fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/regressions")
}

/// What replaying says.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Cases that were judged.
    pub cases: usize,
    /// Those that fell: the file, and why.
    pub fallen: Vec<(PathBuf, String)>,
    /// Files that are no cases of the kernel any more, and why.
    pub unread: Vec<(PathBuf, String)>,
}

/// Judges the cases of `kernel` that are in `folder`, newest first; none if there is no such folder.
///
/// # Errors
/// [`std::io::Error`] if there is one that cannot be read.
pub fn replay(kernel: &Kernel, device: &Device, folder: &Path) -> std::io::Result<Replayed> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Replayed::default()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.rsplit_once('-').map(|(of, _)| of);
        if of == Some(kernel.name) && name.ends_with(".safetensors") {
            match entry.metadata() {
                Ok(metadata) => files.push((metadata.modified()?, entry.path())),
                // Removed since the folder was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    files.sort_by(|a, b| b.cmp(a));
    files.truncate(MOST);
    let mut replayed = Replayed::default();
    let unit = (kernel.machine)(device).matrix;
    for (_, path) in files {
        let case = match Case::load(&path) {
            Ok(case) if case.kernel == kernel.name => case,
            Ok(case) => {
                replayed.unread.push((path, format!("a case of {:?}", case.kernel)));
                continue;
            }
            Err(error) => {
                replayed.unread.push((path, error.to_string()));
                continue;
            }
        };
        replayed.cases += 1;
        let run = |case: &Case| kernel.run(device, case);
        if let Err(reason) = judge_on(unit, kernel, &run, &case) {
            replayed.fallen.push((path, reason));
        }
    }
    Ok(replayed)
}

/// Keeps the case in `file` for good: copies it to `folder`, where the tests replay it. Returns where it is.
///
/// # Errors
/// [`CaseError`] if it is no case of a kernel, is large, or cannot be written.
pub fn keep(file: &Path, folder: &Path) -> Result<PathBuf, CaseError> {
    let case = Case::load(file)?;
    find(&case.kernel)?;
    let bytes: usize = case.tensors.values().map(|tensor| tensor.bytes.len()).sum();
    if bytes > KEPT_BYTES {
        return Err(CaseError::Tensor {
            name: "of all".to_string(),
            got: format!("{bytes} bytes"),
            expected: format!("at most {KEPT_BYTES}: a case is kept as small as it shrank"),
        });
    }
    let path = folder.join(name_of(&case));
    case.save(&path)?;
    Ok(path)
}

/// Writes a failing case where `dsa run` can read it; returns the path.
///
/// # Errors
/// Why there is none.
pub(super) fn save(case: &Case) -> Result<String, String> {
    let path = failures_folder().join(name_of(case));
    case.save(&path).map_err(|error| error.to_string())?;
    Ok(path.display().to_string())
}

/// The name of the file of `case`: the kernel's, and a hash of what the case holds.
fn name_of(case: &Case) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in &case.tensors {
        hash.update(name);
        hash.update(&tensor.bytes);
    }
    hash.update(format!("{:?}", case.scalars));
    let digest: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("{}-{digest}.safetensors", case.kernel)
}
