//! Devices that are not here: kernels launched on one are compiled and recorded, and nothing runs.
//!
//! The launchers, tilings and shapes are those of the real device, because to a launcher an offline
//! device is one: it has its properties and takes the same launches. Its buffers hold nothing; what is
//! read from them is zeros.
//!
//! ```text
//! Offline::open(target)?.compile(|device| { launchers })?   ->   Artefact: IR, PTX or code object
//! Artefact::usage()?                                        ->   registers, spills, matrix instructions
//! Budget::of(file, target)?                                 ->   what the kernel's header allows
//! ```

mod amdgpu;
mod artefact;
mod budget;
mod properties;
mod ptxas;
mod server;

pub use artefact::{Artefact, Code, Usage};
pub use budget::Budget;

use cubecl::client::Client;
use cubecl_common::device::DeviceId;
use dsa_kernels::{Device, DeviceKind, KernelError, Result};
use server::{OfflineServer, Record};
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// NVIDIA Hopper (H200), driver 13.0.
    Sm90a,
    /// AMD CDNA 4 (MI350).
    Gfx950,
}

impl Target {
    /// All of them.
    pub const ALL: [Target; 2] = [Target::Sm90a, Target::Gfx950];

    /// The name LLVM and the vendor's tools have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm90a => "sm_90a",
            Self::Gfx950 => "gfx950",
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Target {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name).ok_or_else(|| {
            let reason = "expected sm_90a or gfx950".to_string();
            KernelError::Device { name: name.to_string(), reason }
        })
    }
}

/// A device that compiles what is launched on it and runs nothing.
pub struct Offline {
    device: Device,
    record: Record,
    /// Held while a caller's launches are compiled, so that a record is one caller's.
    turn: Mutex<()>,
}

impl Offline {
    /// A new offline device. CubeCL keeps every device it has opened until the process ends: open one
    /// and keep it.
    ///
    /// # Errors
    /// [`KernelError::Device`] if CubeCL does not take one more device.
    pub fn open(target: Target) -> Result<Self> {
        static OPENED: AtomicU16 = AtomicU16::new(0);
        let index = OPENED.fetch_add(1, Ordering::Relaxed);
        let id = DeviceId::new(target as u16, index);
        let record = Record::default();
        let server = OfflineServer::new(target, id, record.clone());
        let client = Client::try_init(id, server).map_err(|error| KernelError::Device {
            name: target.to_string(),
            reason: format!("{error:?}"),
        })?;
        let kind = match target {
            Target::Sm90a => DeviceKind::Cuda,
            Target::Gfx950 => DeviceKind::Hip,
        };
        let device = Device::from_client(kind, client);
        Ok(Self { device, record, turn: Mutex::new(()) })
    }

    /// What the launches of `work` on this device were compiled to: each kernel once, in the order of its
    /// first launch. A kernel that was compiled before is not compiled again.
    ///
    /// # Errors
    /// Those of `work`, any error of this crate among them; [`KernelError::Launch`] if a kernel does
    /// not compile.
    pub fn compile<E: From<KernelError>>(
        &self,
        work: impl FnOnce(&Device) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<Arc<Artefact>>, E> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.take();
        let worked = work(&self.device);
        let synced = self.device.sync();
        let compiled: Result<Vec<_>> = self.take().into_iter().collect();
        // A kernel that does not compile says more than what came of it.
        let compiled = compiled?;
        worked?;
        synced?;
        Ok(compiled)
    }

    fn take(&self) -> Vec<Result<Arc<Artefact>>> {
        std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    mod copies;
    mod indexer;
    mod products;
    mod top_k;

    use super::*;
    use cubecl::prelude::*;

    /// Fills `kb` KB of shared memory.
    #[cube(launch)]
    fn greedy(out: &mut [f32], #[comptime] kb: usize) {
        let mut block = Shared::<[f32]>::new_slice(comptime![kb * 256]);
        block[UNIT_POS as usize] = 1.0f32;
        sync_cube();
        out[UNIT_POS as usize] = block[(UNIT_POS ^ 1) as usize];
    }

    fn launch(device: &Device, kb: usize) {
        let out = device.empty(&[64], dsa_kernels::DType::F32).expect("an output");
        let (count, dim) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(64));
        greedy::launch(device.client(), count, dim, out.arg(1), kb);
    }

    #[test]
    fn a_kernel_is_compiled_once_and_recorded_for_each_caller() {
        let offline = Offline::open(Target::Gfx950).expect("a device");
        let compile = || {
            offline.compile(|device| {
                launch(device, 1);
                launch(device, 1);
                Ok::<_, KernelError>(())
            })
        };
        let (first, second) = (compile().expect("compiled"), compile().expect("compiled"));
        assert_eq!(first.len(), 1);
        assert!(Arc::ptr_eq(&first[0], &second[0]));
        assert_eq!((first[0].function(), first[0].units), ("greedy", 64));
        assert_eq!(first[0].shared_memory, 1024);
        let assembly = first[0].assembly().expect("assembly");
        assert!(assembly.contains("amdgcn-amd-amdhsa--gfx950"), "{assembly}");
        assert!(assembly.contains("ds_write") && assembly.contains("ds_read"), "{assembly}");
    }

    #[test]
    fn a_kernel_that_takes_more_shared_memory_than_there_is_does_not_compile() {
        for (target, kb) in [(Target::Sm90a, 228), (Target::Gfx950, 161)] {
            let offline = Offline::open(target).expect("a device");
            let compile = |kb| {
                offline.compile(|device| {
                    launch(device, kb);
                    Ok::<_, KernelError>(())
                })
            };
            let error = compile(kb).expect_err("too much").to_string();
            assert!(error.contains("greedy") && error.contains(target.name()), "{error}");
            compile(kb - 1).expect("as much as there is");
        }
    }
}
