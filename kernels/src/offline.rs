//! Compiling kernels for devices that are not here: what the tests of generated code stand on.

use crate::tile::Machine;
use crate::{KernelError, Result};
use cubecl::ir::features::{Features, WgmmaConfig, WgmmaElems};
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, HardwareProperties,
    MemoryDeviceProperties, TargetProperties, VectorSize,
};
use cubecl::prelude::*;
use cubecl_core::Compiler;
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};
use std::sync::Arc;

/// What a kernel that multiplies `elem` on `machine` is told of an H200.
pub fn hopper(
    machine: Machine,
    elem: ElemType,
) -> (KernelSettings, Arc<DeviceProperties>, Arc<TargetProperties>) {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 32,
        max_shared_memory_size: 227 * 1024,
        max_cube_count: (u32::MAX, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(132),
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity =
        DeviceIdentity { name: "H200".into(), fingerprint: "offline".into(), physical: None };
    let mut properties = DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 256),
        hardware,
        cubecl_common::profile::TimingMethod::Device,
        identity,
    );
    let cd = f32::elem_type_native();
    let k = 32 / elem.size() as u32;
    properties.features.matmul.wgmma.insert(WgmmaConfig {
        elems: WgmmaElems { a: elem, b: elem, cd },
        m: 64,
        n_granularity: 8,
        n_max: 256,
        k,
    });
    let settings =
        KernelSettings::new(*machine.cube_dim(), ExecutionMode::Unchecked, AddressType::U32);
    (settings, Arc::new(properties), Arc::new(TargetProperties::default()))
}

/// The PTX of a kernel for sm_90a and driver 13.0.
pub fn compile_ptx(kernel: cubecl_core::prelude::KernelDefinition) -> Result<String> {
    let failed = |reason: String| KernelError::Launch { device: "sm_90a".to_string(), reason };
    let options = PlironOptions {
        sm_arch: Some(SmArch::new(90, true)),
        ptx_version: PtxVersion::for_driver(13000),
        grid_constants: true,
        ..Default::default()
    };
    match (PlironCompiler { target: LlvmTarget::Nvptx }).compile(kernel, &options) {
        Ok(PlironArtifact::NvptxCode(module)) => {
            let bytes = module.ptx.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
            String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
        }
        Ok(_) => Err(failed("the compiler made something else than PTX".to_string())),
        Err(error) => Err(failed(format!("{error:?}"))),
    }
}
