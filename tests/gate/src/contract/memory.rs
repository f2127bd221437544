//! How much memory a run may ask for.

/// No file of more bytes is read and no outputs of more are made, on however large a machine: 64 GiB.
pub const MOST_BYTES: u64 = 1 << 36;

/// How often a run holds its outputs: as the reference's numbers or on a CPU device, as they come from
/// there, as tensors, and as the file's bytes.
pub(crate) const COPIES_OF_OUTPUTS: u64 = 4;
/// How often it holds its inputs: as the file's bytes, as tensors, as strided rows, twice on the way to a CPU
/// device and there; not always all at once.
pub(crate) const COPIES_OF_INPUTS: u64 = 6;

/// Whether a run may hold so many bytes so many times: at most [`MOST_BYTES`], and no more than the free
/// memory has room for, so that a file of 200 bytes cannot bring the process down. The error is how many
/// there may be.
pub(crate) fn expect_room(bytes: u128, copies: u64) -> Result<(), u64> {
    let mut most = (free_bytes() / copies).min(MOST_BYTES);
    let has_room = |bytes| has_room(bytes, copies);
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= most && has_room(bytes) => Ok(()),
        _ => {
            while most > 0 && !has_room(most) {
                most /= 2;
            }
            Err(most)
        }
    }
}

/// Whether the allocator would give room for so many bytes so many times: it knows limits of the process
/// (`ulimit -v`) that the system's free memory does not show.
fn has_room(bytes: u64, copies: u64) -> bool {
    let room = bytes.checked_mul(copies).and_then(|bytes| usize::try_from(bytes).ok());
    let reserve = |room| {
        let mut bytes = Vec::<u8>::new();
        let reserved = bytes.try_reserve_exact(room).is_ok();
        // What nobody looks at, the compiler may leave out, and say that there is room.
        std::hint::black_box(&bytes);
        reserved
    };
    room.is_some_and(reserve)
}

/// What the system has left, or the whole of this process's control group if that is less; without bound
/// where neither says.
fn free_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    available.min(group.trim().parse().unwrap_or(u64::MAX))
}
