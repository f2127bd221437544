//! The types of a tensor's elements.

use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl_common::e4m3;
use half::{bf16, f16};

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// OCP E4M3FN: 4 exponent and 3 mantissa bits, largest 448, no infinity.
    E4m3,
    /// 32-bit integer.
    I32,
    /// Bytes: caches whose records mix types.
    U8,
}

impl DType {
    /// The floating-point types that activations come in.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

    /// All types.
    pub const ALL: [DType; 6] = [Self::F32, Self::Bf16, Self::F16, Self::E4m3, Self::I32, Self::U8];

    /// The type's name: `f32`, `bf16`, `f16`, `e4m3`, `i32`, `u8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::E4m3 => "e4m3",
            Self::I32 => "i32",
            Self::U8 => "u8",
        }
    }

    /// The type of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::E4m3 | Self::U8 => 1,
        }
    }

    /// CubeCL's name of the type.
    pub fn elem(self) -> ElemType {
        match self {
            Self::F32 => f32::elem_type_native(),
            Self::Bf16 => bf16::elem_type_native(),
            Self::F16 => f16::elem_type_native(),
            Self::E4m3 => e4m3::elem_type_native(),
            Self::I32 => i32::elem_type_native(),
            Self::U8 => u8::elem_type_native(),
        }
    }

    /// Little-endian bytes of `values`, each rounded to nearest even in this type.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::E4m3 => values.iter().map(|v| e4m3::from_f32(*v).to_bits()).collect(),
            Self::I32 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            Self::U8 => values.iter().map(|v| *v as u8).collect(),
        }
    }

    /// The values of little-endian `bytes`, widened to f32.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let four = |c: &[u8]| [c[0], c[1], c[2], c[3]];
        let two = |c: &[u8]| [c[0], c[1]];
        match self {
            Self::F32 => bytes.chunks_exact(4).map(|c| f32::from_le_bytes(four(c))).collect(),
            Self::Bf16 => {
                bytes.chunks_exact(2).map(|c| bf16::from_le_bytes(two(c)).to_f32()).collect()
            }
            Self::F16 => {
                bytes.chunks_exact(2).map(|c| f16::from_le_bytes(two(c)).to_f32()).collect()
            }
            Self::E4m3 => bytes.iter().map(|b| e4m3::from_bits(*b).to_f32()).collect(),
            Self::I32 => {
                bytes.chunks_exact(4).map(|c| i32::from_le_bytes(four(c)) as f32).collect()
            }
            Self::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
