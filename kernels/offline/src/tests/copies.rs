//! The operations that CubeCL has no name for, compiled for devices that are not here.

use crate::{Offline, Target};
use cubecl::prelude::*;
use dsa_kernels::tile::{commit_copies, copy_async, exp2_fast, wait_copies};
use dsa_kernels::{DType, KernelError};

/// Copies the same bytes `times` times and adds up what it finds: nothing of it may leave the loop.
#[cube(launch_unchecked)]
fn repeated<N: Size>(source: &[Vector<u8, N>], out: &mut [u32], times: u32) {
    let unit = UNIT_POS as usize;
    let mut tile = Shared::<[Vector<u8, Const<8>>]>::new_aligned_slice(64usize, 16usize);
    let mut sum = 0u32.runtime();
    for _ in 0..times {
        copy_async(&mut tile, 2 * unit, source, unit, true);
        commit_copies();
        wait_copies(0usize);
        sum += u32::cast_from(tile[2 * unit].extract(0usize));
    }
    out[unit] = sum;
}

#[cube(launch_unchecked)]
fn powers(out: &mut [f32]) {
    out[UNIT_POS as usize] = exp2_fast(out[UNIT_POS as usize]);
}

/// What compiling [`repeated`] from vectors of `width` bytes for a Hopper comes to.
fn repeated_of(width: usize) -> dsa_kernels::Result<String> {
    let artefacts = Offline::open(Target::Sm90a)?.compile(|device| {
        let source = device.empty(&[32 * width], DType::U8)?;
        let out = device.empty(&[32], DType::I32)?;
        // SAFETY: both buffers hold what 32 units read and write; and nothing runs offline.
        unsafe {
            repeated::launch_unchecked(
                device.client(),
                CubeCount::Static(1, 1, 1),
                CubeDim::new_1d(32),
                width,
                source.arg(width),
                out.arg(1),
                3,
            );
        }
        Ok::<_, KernelError>(())
    })?;
    artefacts[0].assembly()
}

#[test]
fn a_copy_that_looks_invariant_stays_in_its_loop() {
    let ptx = repeated_of(16).unwrap();
    let after = |from: usize, what: &str| {
        from + ptx[from..].find(what).unwrap_or_else(|| panic!("no {what} in {ptx}"))
    };
    let mut at = after(0, "\n$L__BB0_");
    for what in [
        "cp.async.cg.shared.global",
        "cp.async.commit_group",
        "cp.async.wait_group",
        "ld.shared",
        "bra",
    ] {
        at = after(at, what);
    }
    assert_eq!(ptx.matches("ld.shared").count(), ptx.matches("cp.async.cg").count(), "{ptx}");
}

#[test]
fn a_copy_of_other_than_16_bytes_is_refused() {
    let error = repeated_of(8).unwrap_err().to_string();
    assert!(error.contains("not 8 elements of 1 bytes"), "{error}");
}

#[test]
fn another_target_refuses_the_instruction_by_name() {
    let compiled = Offline::open(Target::Gfx950).unwrap().compile(|device| {
        let out = device.empty(&[64], DType::F32)?;
        let (count, dim) = (CubeCount::Static(1, 1, 1), CubeDim::new_1d(64));
        // SAFETY: the buffer holds what 64 units read and write; and nothing runs offline.
        unsafe { powers::launch_unchecked(device.client(), count, dim, out.arg(1)) };
        Ok::<_, KernelError>(())
    });
    let error = compiled.unwrap_err().to_string();
    assert!(error.contains("dsa.exp2_fast") && error.contains("NVIDIA"), "{error}");
}
