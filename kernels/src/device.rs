//! The devices kernels run on.

use crate::Result;
use crate::dtype::DType;
use crate::error::KernelError;
use crate::tensor::{Tensor, elements, expect_indexable};
use crate::tile::Machine;
use cubecl::client::Client;
use cubecl::execution::{StreamMode, StreamModeOverride};
use cubecl::ir::{ElemType, features::WgmmaConfig};
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::sync::Arc;
use std::time::Duration;

/// The runtime a device belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// CubeCL's CUDA runtime.
    Cuda,
    /// CubeCL's HIP runtime (ROCm).
    Hip,
    /// CubeCL's CPU runtime.
    Cpu,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cuda => "cuda",
            Self::Hip => "hip",
            Self::Cpu => "cpu",
        })
    }
}

/// Elements that kernels address in 32 bits. Less than 2^32 by more than the last step of a team goes beyond
/// the end of a tensor before it is compared with the end.
const NARROW: usize = (1 << 32) - (1 << 20);

/// An open device.
#[derive(Clone)]
pub struct Device {
    kind: DeviceKind,
    name: Arc<str>,
    client: Client,
    wide: bool,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind, self.name)
    }
}

impl Device {
    /// The device named by the environment variable `DSA_DEVICE`, or else the best there is: CUDA,
    /// then ROCm, then the CPU.
    pub fn best() -> Result<Self> {
        if let Ok(name) = std::env::var("DSA_DEVICE")
            && !name.is_empty()
        {
            return Self::named(&name);
        }
        Self::named("cuda").or_else(|_| Self::named("hip")).or_else(|_| Self::named("cpu"))
    }

    /// The runtime and the index that `name` means, whether or not there is such a device.
    pub fn parse(name: &str) -> Result<(DeviceKind, usize)> {
        let unknown = |reason: &str| {
            Err(KernelError::Device { name: name.to_string(), reason: reason.to_string() })
        };
        let (runtime, index) = name.split_once(':').unwrap_or((name, "0"));
        let kind = match runtime {
            "cuda" => DeviceKind::Cuda,
            "hip" | "rocm" => DeviceKind::Hip,
            "cpu" => DeviceKind::Cpu,
            _ => return unknown("expected cpu, cuda, hip, cuda:N or hip:N"),
        };
        match index.parse() {
            Ok(index) if index == 0 || kind != DeviceKind::Cpu => Ok((kind, index)),
            Ok(_) => unknown("expected cpu: there is one"),
            Err(_) => unknown("expected a number after the colon"),
        }
    }

    /// The device `name`: `cpu`, `cuda`, `hip`, or with an index, `cuda:1`.
    pub fn named(name: &str) -> Result<Self> {
        let unknown = |reason: String| KernelError::Device { name: name.to_string(), reason };
        let (kind, index) = Self::parse(name)?;
        // A runtime whose driver library is missing panics while it counts its devices.
        let opened = std::panic::catch_unwind(|| {
            let device = match kind {
                DeviceKind::Cuda => cubecl::Device::cuda(index),
                DeviceKind::Hip => cubecl::Device::rocm(index),
                DeviceKind::Cpu => cubecl::Device::cpu(),
            };
            device.map(|device| device.client()).map_err(|error| error.to_string())
        });
        match opened {
            Ok(Ok(client)) => Ok(Self::from_client(kind, client)),
            Ok(Err(reason)) => Err(unknown(reason)),
            Err(_) => Err(unknown("the runtime panicked while it opened the device".to_string())),
        }
    }

    /// The device that `client` reaches, whose launches are those of `kind`: one that CubeCL's runtimes have not
    /// opened, such as a device that only compiles.
    pub fn from_client(kind: DeviceKind, client: Client) -> Self {
        let name = client.properties().identity.name.as_str().into();
        Self { kind, name, client, wide: false }
    }

    /// The same device, on which every kernel computes its addresses in 64 bits, whether or not its tensors
    /// need it. Results are the same; it shows what wide addresses cost. Its name says so, so that no
    /// measurement is taken for one of the device as it is.
    pub fn wide(&self) -> Self {
        Self {
            wide: true,
            name: format!("{} (64-bit addresses)", self.name).into(),
            ..self.clone()
        }
    }

    /// How wide the addresses are that a launch on `tensors` computes: 64 bits where one of them has more
    /// elements than 32 bits count, and otherwise 32, which take fewer registers. What a kernel reads as
    /// bytes is named as such ([`Tensor::reinterpret`]).
    pub(crate) fn addresses<'a>(
        &self,
        tensors: impl IntoIterator<Item = &'a Tensor>,
    ) -> AddressType {
        let far = tensors.into_iter().any(|tensor| tensor.reach() > NARROW);
        if self.wide || far { AddressType::U64 } else { AddressType::U32 }
    }

    /// Whether the other is this device, so that a kernel of one reaches the memory of both.
    pub fn is(&self, other: &Self) -> bool {
        self.client.service_id() == other.client.service_id()
    }

    /// The runtime.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The device's own name, e.g. `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CubeCL's handle of the device.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Processor cores that run programs side by side; 1 program a cube on a GPU.
    pub fn cores(&self) -> usize {
        let hardware = &self.client.properties().hardware;
        hardware.num_cpu_cores.or(hardware.num_streaming_multiprocessors).unwrap_or(1) as usize
    }

    /// How a kernel whose body suits any number of units runs here: teams of `team` units on a GPU
    /// (rounded to whole planes), one unit on the CPU.
    pub fn machine(&self, team: usize) -> Machine {
        let plane = self.client.properties().hardware.plane_size_max as usize;
        if self.kind == DeviceKind::Cpu {
            Machine::plain(1, 1, self.cores())
        } else {
            Machine::plain(team.next_multiple_of(plane), plane, 1)
        }
    }

    /// How a kernel that multiplies tiles of `elem` with `warpgroups` warpgroups runs here, if CubeCL can
    /// drive the device's matrix unit for that type.
    pub fn matrix_machine(&self, elem: ElemType, warpgroups: usize) -> Option<Machine> {
        let f32_type = f32::elem_type_native();
        let wgmma = &self.client.properties().features.matmul.wgmma;
        let fits =
            |c: &WgmmaConfig| c.elems.a == elem && c.elems.b == elem && c.elems.cd == f32_type;
        wgmma.iter().any(fits).then(|| Machine::of_warpgroups(warpgroups))
    }

    /// Bytes of memory that the device has, if it says.
    pub fn memory(&self) -> Option<u64> {
        self.client.properties().memory.max_memory()
    }

    /// Bytes of memory that a team may have.
    pub fn shared_memory(&self) -> usize {
        self.client.properties().hardware.max_shared_memory_size
    }

    /// Parts into which each of `programs` programs of `machine` is worth splitting to keep every core busy.
    pub fn splits_of(&self, machine: Machine, programs: usize) -> usize {
        if machine.can().fills_core {
            // One team fills a core: one more than there are cores would make all wait for a second turn.
            self.cores() / programs
        } else {
            (4 * self.cores()).div_ceil(programs)
        }
    }

    /// A new tensor of `shape` with the given little-endian `bytes`.
    pub fn upload(&self, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Tensor> {
        let expected = elements(shape).and_then(|n| n.checked_mul(dtype.size()));
        if Some(bytes.len()) != expected {
            return Err(KernelError::Value {
                name: "bytes",
                got: format!("{} bytes", bytes.len()),
                expected: format!("the bytes of {dtype} of shape {shape:?}"),
            });
        }
        // An empty tensor still needs a buffer to bind.
        let handle = if bytes.is_empty() {
            self.client.empty(dtype.size())
        } else {
            self.client.create_from_slice(bytes)
        };
        Ok(Tensor::contiguous(self, handle, shape, dtype))
    }

    /// A new tensor of `shape`, its elements rounded from `values` to `dtype`.
    pub fn upload_f32(&self, values: &[f32], shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.upload(&dtype.encode(values), shape, dtype)
    }

    /// A new vector of i32.
    pub fn upload_i32(&self, values: &[i32], shape: &[usize]) -> Result<Tensor> {
        self.upload(i32::as_bytes(values), shape, DType::I32)
    }

    /// A new tensor with arbitrary content, for a kernel to write.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if kernels could not index it, or the device has no memory of this size.
    pub fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.output("tensor", shape, dtype)
    }

    /// [`Device::empty`] for the output `tensor` of a launcher, which an error names.
    pub(crate) fn output(
        &self,
        tensor: &'static str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        expect_indexable(tensor, shape)?;
        let most = self.client.properties().memory.max_page_size;
        // A tensor without elements still needs a buffer to bind.
        let bytes = elements(shape).and_then(|n| n.max(1).checked_mul(dtype.size()));
        match bytes.filter(|bytes| *bytes as u64 <= most) {
            Some(bytes) => Ok(Tensor::contiguous(self, self.client.empty(bytes), shape, dtype)),
            None => {
                let expected =
                    format!("{dtype} of at most {most} bytes, what the device allocates");
                Err(KernelError::Shape { tensor, got: shape.to_vec(), expected })
            }
        }
    }

    /// The bytes behind `handle`. Waits for the kernels that write them.
    pub(crate) fn read(&self, handle: Handle) -> Result<Vec<u8>> {
        let bytes = self.client.read_one(handle).map_err(|e| self.failed(e))?;
        Ok(bytes.to_vec())
    }

    /// Waits until everything launched so far is done.
    pub fn sync(&self) -> Result<()> {
        pollster::block_on(self.client.sync()).map_err(|e| self.failed(e))
    }

    /// Compiles the kernels that `work` launches from this thread, on all cores at once, and discards the
    /// launches: what `work` reads back is arbitrary. A kernel that does not compile says so when it is launched.
    pub fn compile_ahead(&self, work: impl FnOnce()) {
        let discarded = StreamModeOverride::new(StreamMode::Discard, &self.client);
        work();
        drop(discarded);
        self.client.compile_queued();
    }

    /// Device time that the kernels launched by `work` take.
    pub fn time(&self, work: impl FnOnce() -> Result<()> + Send) -> Result<Duration> {
        let failed = |reason: String| KernelError::Launch { device: self.name.to_string(), reason };
        let (result, ticks) =
            self.client.profile(work, "dsa").map_err(|error| failed(format!("{error:?}")))?;
        result?;
        pollster::block_on(ticks.resolve())
            .map(|ticks| ticks.duration())
            .ok_or_else(|| failed("the profiler returned no time".to_string()))
    }

    fn failed(&self, error: impl std::fmt::Display) -> KernelError {
        KernelError::Launch { device: self.name.to_string(), reason: causes(&error.to_string()) }
    }
}

/// What a runtime's error says, in one line and at most 1,500 characters: its causes one after the other,
/// without the backtraces that follow.
fn causes(error: &str) -> String {
    let is_frame =
        |line: &str| line.split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let begins_trace = |line: &str| {
        line.starts_with("Backtrace")
            || line.starts_with("No backtrace")
            || line.starts_with("Asked at")
            || is_frame(line)
    };
    let lines: Vec<&str> = error
        .lines()
        .map(str::trim)
        .take_while(|line| !begins_trace(line))
        .filter(|line| !line.is_empty() && *line != "Caused by:")
        .collect();
    lines.join(": ").chars().take(1_500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_error_is_one_line_of_causes() {
        let error = "Several failures at once\nCaused by:\n  never written\nCaused by:\n  no memory\n\
                     No backtrace available\nAsked at:\n   0: frame\n";
        assert_eq!(causes(error), "Several failures at once: never written: no memory");
        assert_eq!(causes("plain: 3 of 4"), "plain: 3 of 4");
        assert_eq!(causes(&"x".repeat(9_000)).len(), 1_500);
    }

    #[test]
    fn a_device_has_one_name_and_there_is_one_cpu() {
        assert_eq!(Device::parse("cpu").unwrap(), (DeviceKind::Cpu, 0));
        assert_eq!(Device::parse("cuda:3").unwrap(), (DeviceKind::Cuda, 3));
        for wrong in ["cpu:7", "tpu", "", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu "] {
            let error = Device::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("device {wrong}: expected ")), "{error}");
        }
    }
}
