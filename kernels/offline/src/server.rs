//! The server behind an offline device: CubeCL's contract of a device, of which only compiling is kept.

use super::artefact::{Artefact, Code};
use super::{Target, properties};
use cubecl::ir::amd::GfxArch;
use cubecl::ir::nvidia::SmArch;
use cubecl::prelude::CubeCount;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_common::profile::ProfileDuration;
use cubecl_core::{Compiler, define_kernel};
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::execution::LaunchMode;
use cubecl_server::id::KernelId;
use cubecl_server::kernel::CubeKernel;
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_server::server::{
    BufferBinding, CopyDescriptor, IoError, KernelArguments, LaunchError, ProfileError,
    ProfilingToken, Server, ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_server::storage::{BytesStorage, ComputeStorage, ManagedResource};
use cubecl_server::validation::{validate_cube_dim, validate_shared_memory, validate_units};
use dsa_kernels::{KernelError, Result};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The driver whose PTX version is emitted: CUDA 13.0.
const DRIVER: i32 = 13000;

/// What was compiled since the record was last taken, each kernel once.
pub(super) type Record = Arc<Mutex<Vec<Result<Arc<Artefact>>>>>;

/// Compiles every kernel it is told to launch; allocates, copies and runs nothing.
pub(super) struct OfflineServer {
    target: Target,
    utilities: Arc<ServerUtilities>,
    compiled: HashMap<KernelId, Arc<Artefact>>,
    record: Record,
}

impl std::fmt::Debug for OfflineServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OfflineServer({})", self.target)
    }
}

impl OfflineServer {
    pub(super) fn new(target: Target, id: DeviceId, record: Record) -> Self {
        let (properties, target_properties) = properties::of(target);
        let alignment = properties.memory.alignment as usize;
        let (utilities, _captures) = ServerUtilities::init(
            ServiceId::of::<Self>(id),
            target.name(),
            properties,
            target_properties,
            Arc::new(ServerLogger::default()),
            ContiguousMemoryLayoutPolicy::new(alignment),
        );
        Self { target, utilities: Arc::new(utilities), compiled: HashMap::new(), record }
    }

    /// [`Self::compile`], a panic of the compiler included: CubeCL would only log it, and the kernel would
    /// be missing from the record without a word.
    fn compile_or_say_why(&self, kernel: &dyn CubeKernel, id: &KernelId) -> Result<Artefact> {
        let compiled = catch_unwind(AssertUnwindSafe(|| self.compile(kernel, id)));
        compiled.unwrap_or_else(|panic| {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("it did not say why");
            let device = self.target.to_string();
            let reason = format!("{}: the compiler panicked: {said}", kernel.name());
            Err(KernelError::Launch { device, reason })
        })
    }

    /// Compiles `kernel` as the target's own runtime does, its limits included.
    fn compile(&self, kernel: &dyn CubeKernel, id: &KernelId) -> Result<Artefact> {
        let failed = |reason: String| KernelError::Launch {
            device: self.target.to_string(),
            reason: format!("{}: {reason}", kernel.name()),
        };
        let refused = |error: LaunchError| failed(error.to_string());
        let properties = &self.utilities.properties;
        validate_cube_dim(properties, id).map_err(refused)?;
        validate_units(properties, id).map_err(refused)?;
        let definition = define_kernel(kernel).map_err(|error| failed(error.to_string()))?;
        let (target, options) = match self.target {
            Target::Sm90a => {
                let options = PlironOptions {
                    sm_arch: Some(SmArch::new(90, true)),
                    ptx_version: PtxVersion::for_driver(DRIVER),
                    grid_constants: true,
                    ..Default::default()
                };
                (LlvmTarget::Nvptx, options)
            }
            Target::Gfx950 => {
                let arch = Some(GfxArch::parse(self.target.name()));
                (LlvmTarget::AmdGpu, PlironOptions { arch, ..Default::default() })
            }
        };
        let compiled = PlironCompiler { target }
            .compile(definition, &options)
            .map_err(|error| failed(error.to_string()))?;
        let (entry, ir, shared_memory, code) = match compiled {
            PlironArtifact::NvptxCode(module) => {
                let bytes: Vec<u8> =
                    module.ptx.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
                let ptx = String::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
                (module.entrypoint, module.ir, module.shared_memory_size, Code::Ptx(ptx))
            }
            PlironArtifact::AmdGpuCode(module) => {
                let code = Code::AmdGpu(module.code_object.to_vec());
                (module.entrypoint, module.ir, module.shared_memory_size, code)
            }
            PlironArtifact::Jit(_) => {
                return Err(failed("it was compiled for the CPU".to_string()));
            }
        };
        validate_shared_memory(properties, Some(shared_memory)).map_err(refused)?;
        Ok(Artefact {
            target: self.target,
            kernel: kernel.name(),
            entry,
            units: id.cube_dim.num_elems() as usize,
            shared_memory,
            ir,
            code,
            usage: OnceLock::new(),
        })
    }
}

/// What every operation that needs a real device answers.
fn nothing_runs() -> ServerError {
    ServerError::Generic {
        reason: "an offline device only compiles".to_string(),
        backtrace: BackTrace::capture(),
    }
}

impl DeviceService for OfflineServer {
    fn init(id: DeviceId) -> Self {
        // Reached only for a device that was not opened, which no one holds a record of.
        let target = if id.type_id == 0 { Target::Sm90a } else { Target::Gfx950 };
        Self::new(target, id, Record::default())
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone() as ServerUtilitiesHandle
    }
}

impl Server for OfflineServer {
    fn initialize_memory(
        &mut self,
        _memory: ManagedMemoryHandle,
        _size: u64,
        _stream: StreamId,
    ) -> std::result::Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<std::result::Result<Vec<Bytes>, ServerError>> {
        let zeros = |copy: CopyDescriptor| {
            Bytes::from_bytes_vec(vec![0; copy.shape.iter().product::<usize>() * copy.elem_size])
        };
        let bytes = descriptors.into_iter().map(zeros).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, _descriptors: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {}

    fn sync(
        &mut self,
        _handles: Vec<BufferBinding>,
        _stream: StreamId,
    ) -> DynFut<std::result::Result<(), ServerError>> {
        Box::pin(async move { Ok(()) })
    }

    fn check(
        &mut self,
        _handles: Vec<BufferBinding>,
        _stream: StreamId,
    ) -> std::result::Result<(), ServerError> {
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        _count: CubeCount,
        _bindings: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let id = kernel.id();
        let compiled = match self.compiled.get(&id) {
            Some(artefact) => Ok(artefact.clone()),
            None => self.compile_or_say_why(kernel.as_ref(), &id).map(Arc::new),
        };
        if let Ok(artefact) = &compiled {
            self.compiled.insert(id, artefact.clone());
        }
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |other: &Result<Arc<Artefact>>| match (other, &compiled) {
            (Ok(a), Ok(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if !record.iter().any(same) {
            record.push(compiled);
        }
    }

    fn flush(&mut self, _stream: StreamId) -> std::result::Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _stream: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _stream: StreamId) -> std::result::Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(
        &mut self,
        _stream: StreamId,
    ) -> std::result::Result<ProfilingToken, ServerError> {
        Err(nothing_runs())
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        _token: ProfilingToken,
    ) -> std::result::Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _mode: MemoryAllocationMode, _stream: StreamId) {}
}

impl ServerCommunication for OfflineServer {}

impl ServerStorage for OfflineServer {
    type Storage = BytesStorage;

    fn get_resource(
        &mut self,
        _binding: BufferBinding,
        _stream: StreamId,
    ) -> std::result::Result<ManagedResource<<BytesStorage as ComputeStorage>::Resource>, ServerError>
    {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() }.into())
    }
}
