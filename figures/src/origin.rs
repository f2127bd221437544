//! Where a row comes from: commit, time, command, and how busy the machine was.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Origin;

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can name, in seconds after 1970.
const LAST_SECOND: u64 = 253_402_300_799;

impl Origin {
    /// Now, at the commit of the repository at `root`; "unknown" where there is none.
    ///
    /// `carried`: the commit that a bench was built from, where it runs without its repository; such a
    /// row is not called dirty.
    pub fn now(root: Option<&Path>, carried: Option<String>, command: String) -> Self {
        let (commit, dirty) = match carried {
            Some(commit) => (commit, false),
            None => root.and_then(commit).unwrap_or_else(|| ("unknown".to_string(), true)),
        };
        let created = created(SystemTime::now());
        Origin { commit, dirty, created, command, load_average: load_average() }
    }
}

/// The commit checked out at `root`, and whether the tree differs from it; none where `root` is not the top
/// of a repository. Rows and pictures do not count as a difference: the run itself writes them.
pub fn commit(root: &Path) -> Option<(String, bool)> {
    let root = root.canonicalize().ok()?;
    let top = git(&root, &["rev-parse", "--show-toplevel"])?;
    // A folder that was unpacked inside another repository has no commit of its own.
    if Path::new(&top).canonicalize().ok()? != root {
        return None;
    }
    let commit = git(&root, &["rev-parse", "HEAD"])?;
    let changes = git(&root, &["status", "--porcelain", "--", ":/", ":(top,exclude)figures/*/*"]);
    Some((commit, changes.is_none_or(|changes| !changes.is_empty())))
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    // A hook sets these to its own repository.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"] {
        git.env_remove(name);
    }
    let output = git.arg("-C").arg(root).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// A time as RFC 3339 in UTC. A clock before 1970 or after 9999 is wrong; it gives the nearest time within,
/// and no row is lost to it.
pub fn created(time: SystemTime) -> String {
    let last = UNIX_EPOCH + Duration::from_secs(LAST_SECOND);
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last)).to_string()
}

/// The mean number of running processes over the last minute; none where Linux does not say.
pub fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The command that starts a program with the same arguments and axes again, for a shell: `set` are the
/// environment's variables that decided what ran.
pub fn command(program: &str, arguments: &[String], set: &[(String, String)]) -> String {
    let set = set.iter().map(|(name, value)| format!("{name}={} ", quoted(value)));
    let arguments = arguments.iter().map(|argument| format!(" {}", quoted(argument)));
    format!("{}{program}{}", set.collect::<String>(), arguments.collect::<String>())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn repository(folder: &Path) -> String {
        let run = |arguments: &[&str]| git(folder, arguments).unwrap();
        run(&["init", "-q"]);
        fs::write(folder.join("file"), "text").unwrap();
        run(&["add", "file"]);
        let who = ["-c", "user.name=a", "-c", "user.email=a@b"];
        run(&[&who[..], &["commit", "-q", "-m", "first"]].concat());
        run(&["rev-parse", "HEAD"])
    }

    #[test]
    fn the_commit_is_the_repositorys_own_wherever_the_bench_is_started() {
        let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (repository(mine.path()), repository(other.path()));
        assert_eq!(commit(mine.path()), Some((first.clone(), false)));
        fs::create_dir_all(mine.path().join("figures/rows")).unwrap();
        fs::write(mine.path().join("figures/rows/new.jsonl"), "row").unwrap();
        assert_eq!(commit(mine.path()), Some((first.clone(), false)), "rows make nothing dirty");
        fs::write(mine.path().join("file"), "changed").unwrap();
        assert_eq!(commit(mine.path()), Some((first.clone(), true)));
        assert_eq!(commit(other.path()), Some((second, false)));
        let inside = mine.path().join("figures");
        assert_eq!(commit(&inside), None, "unpacked inside another repository");
        let carried = Origin::now(Some(other.path()), Some("abc".into()), "cargo bench".into());
        assert_eq!((carried.commit.as_str(), carried.dirty), ("abc", false));
        let nowhere = Origin::now(Some(&inside), None, "cargo bench".into());
        assert_eq!((nowhere.commit.as_str(), nowhere.dirty), ("unknown", true));
    }

    #[test]
    fn a_wrong_clock_loses_no_row() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let after = UNIX_EPOCH + Duration::from_secs(LAST_SECOND + 1);
        assert_eq!(created(before), "1970-01-01T00:00:00Z");
        assert_eq!(created(after), "9999-12-31T23:59:59Z");
        let known = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(created(known), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn a_command_can_be_typed_again() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let set = [("DSA_CONTEXTS".to_string(), "256,512".to_string())];
        let found = command("cargo bench --", &words(&["--only", "a b", "--price", "2"]), &set);
        assert_eq!(found, "DSA_CONTEXTS=256,512 cargo bench -- --only 'a b' --price 2");
        assert_eq!(command("x", &words(&["it's", ""]), &[]), r"x 'it'\''s' ''");
    }
}
