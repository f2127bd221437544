//! What a device's memory holds.

use crate::Result;
use crate::device::Device;
use cubecl::MemoryScope;

/// Bytes of the buffers that this thread made on `device` and that are still held, when everything launched so far is
/// done. What the allocator keeps in reserve is not among them.
///
/// # Errors
/// If something that was launched failed.
pub fn in_use(device: &Device) -> Result<u64> {
    device.sync()?;
    Ok(device.client().memory_report(MemoryScope::CurrentStream).usage().bytes_in_use)
}
