//! How much memory a run may ask for.

/// No outputs of more bytes than this are made, on however large a machine: 64 GiB.
pub const MOST_OUTPUT_BYTES: u64 = 1 << 36;

/// A run holds its outputs up to four times: as it computes them, as bytes, as the file's bytes, and on a CPU
/// device once more.
const COPIES: u64 = 4;

/// Whether a run may have so many bytes of outputs: at most [`MOST_OUTPUT_BYTES`], and no more than the
/// free memory has room for, so that a file of 200 bytes cannot bring the process down. The error is how
/// many there may be.
pub(super) fn expect_room(bytes: u128) -> Result<(), u64> {
    let mut most = (free_bytes() / COPIES).min(MOST_OUTPUT_BYTES);
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

/// Bytes of a file that a case may be read from: it is held twice, as read and as tensors, and the tensors
/// go to the device.
pub(crate) fn most_file_bytes() -> u64 {
    free_bytes() / COPIES
}

/// Whether the allocator would give room for a run with so many bytes of outputs: it knows limits of the
/// process (`ulimit -v`) that the system's free memory does not show.
fn has_room(bytes: u64) -> bool {
    let room = bytes.checked_mul(COPIES).and_then(|bytes| usize::try_from(bytes).ok());
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
