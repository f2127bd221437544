//! What CubeCL's CUDA and HIP runtimes report of an H200 and an MI350.

use super::Target;
use cubecl::ir::amd::GfxArch;
use cubecl::ir::features::{Plane, Tma};
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::types::{LdMatrixForm, StMatrixForm};
use cubecl::ir::{
    DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, OpaqueType, TargetProperties, VectorSize,
};
use cubecl_common::profile::TimingMethod;
use cubecl_core::__private::Runtime;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::CudaCmmaCompiler;
use cubecl_cpp::cuda::supported_mma_combinations;
use cubecl_cpp::shared::{register_mma_features, register_wmma_features};
use cubecl_llvm::shared::lowered_features::{GpuTarget, restrict_features};

/// The properties of `target`'s device, and what its runtime says of its instructions.
pub(super) fn of(target: Target) -> (DeviceProperties, TargetProperties) {
    match target {
        Target::Sm90a => (h200(), cubecl_cuda::CudaRuntime::target_properties()),
        Target::Gfx950 => (mi350(), cubecl_hip::HipRuntime::target_properties()),
    }
}

/// An H200 as the CUDA runtime reports it.
fn h200() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: 227 * 1024,
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(132),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let mut properties = device("NVIDIA H200", 141 << 30, 512, hardware);
    properties.register_opaque_type(OpaqueType::Barrier);
    properties.register_opaque_type(OpaqueType::TensorMap);
    properties.features.tma.insert(Tma::Base);
    properties.features.plane.insert(Plane::Sync);
    let arch = CudaArchitecture { version: 90, tensor_cores: true };
    register_wmma_features(
        CudaCmmaCompiler::Cpp.supported_cmma_combinations(&arch),
        &mut properties,
    );
    register_mma_features(supported_mma_combinations(&arch), &mut properties);
    let matmul = &mut properties.features.matmul;
    for elem in [FloatKind::F16, FloatKind::BF16] {
        matmul.ldmatrix.insert(ElemType::Float(elem));
        matmul.stmatrix.insert(ElemType::Float(elem));
    }
    matmul.ldmatrix_forms.insert(LdMatrixForm::M8N8B16);
    matmul.stmatrix_forms.insert(StMatrixForm::M8N8B16);
    restrict_features(&mut properties, GpuTarget::Nvptx { arch: SmArch::new(90, true) });
    properties
}

/// An MI350 as the HIP runtime reports it.
fn mi350() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 64,
        plane_size_max: 64,
        max_bindings: 1024,
        max_shared_memory_size: 160 * 1024,
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 1024),
        num_streaming_multiprocessors: Some(256),
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let mut properties = device("AMD Instinct MI350", 288 << 30, 256, hardware);
    let wmma = GfxArch::parse(Target::Gfx950.name()).wmma();
    restrict_features(&mut properties, GpuTarget::AmdGpu { wmma });
    properties
}

/// What both runtimes report alike; `memory` and `alignment` in bytes.
fn device(
    name: &str,
    memory: u64,
    alignment: u64,
    hardware: HardwareProperties,
) -> DeviceProperties {
    let identity =
        DeviceIdentity { name: name.into(), fingerprint: "offline".into(), physical: None };
    let memory = MemoryDeviceProperties::new(memory / 4, alignment).with_max_memory(memory);
    let mut properties =
        DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::Device, identity);
    cubecl_cpp::register_supported_types(&mut properties);
    properties.features.memory_reinterpret = true;
    properties.features.alignment = true;
    properties.features.device_memory_scope = true;
    properties.features.plane.insert(Plane::Ops);
    properties.features.plane.insert(Plane::NonUniformControlFlow);
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hip_runtime_would_open_an_mi350() {
        // It compares the driver's wavefront with the table's before anything else, and gives up if
        // they differ. The driver appends features to the name.
        assert_eq!(GfxArch::parse("gfx950:sramecc+:xnack-").plane_dim(), Some(64));
        assert_eq!(mi350().hardware.plane_size_max, 64);
    }

    #[test]
    fn an_h200_multiplies_fp8_bf16_and_f16_by_warpgroups_and_an_mi350_does_not() {
        let h200 = h200().features.matmul.wgmma;
        for elem in [FloatKind::E4M3, FloatKind::BF16, FloatKind::F16].map(ElemType::Float) {
            let f32 = ElemType::Float(FloatKind::F32);
            assert!(h200.iter().any(|c| c.elems.a == elem && c.elems.cd == f32), "{elem:?}");
        }
        assert!(mi350().features.matmul.wgmma.is_empty());
    }
}
