//! Numbers out of range are refused by name, and nothing panics on a number a user can write.

use crate::samples::sample;
use crate::support::*;
use dsa_gate::kernels::{ALL, find};
use dsa_gate::{Case, HostTensor};
use dsa_kernels::DType;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a user may write where a number or a word is expected.
const WORDS: [&str; 12] = [
    "",
    "0",
    "-1",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "nonsense",
];

#[test]
fn a_view_beyond_its_tensor_is_refused() {
    let tensor = device().empty(&[4, 6], DType::F32).unwrap();
    for (axis, start, length) in
        [(0, 3, 2), (0, 5, 0), (2, 0, 1), (1, usize::MAX, 2), (1, 2, usize::MAX)]
    {
        let error = tensor.narrow(axis, start, length).unwrap_err().to_string();
        assert!(error.contains("a range within shape [4, 6]"), "{error}");
    }
    assert!(tensor.transpose(0, 2).unwrap_err().to_string().contains("axes of shape [4, 6]"));
    assert!(tensor.reshape(&[5, 5]).unwrap_err().to_string().contains("[5, 5]"));
    assert!(tensor.transpose(0, 1).unwrap().reshape(&[24]).is_err(), "no copy behind the back");
}

#[test]
fn an_upload_whose_bytes_do_not_fill_its_shape_is_refused() {
    let device = device();
    for (bytes, shape) in [
        (15, &[2, 2][..]),
        (17, &[2, 2]),
        (0, &[1]),
        (4, &[0]),
        (0, &[1 << 62, 4]),
        (0, &[1 << 62]),
    ] {
        let error = device.upload(&vec![0; bytes], shape, DType::F32).unwrap_err().to_string();
        assert!(error.contains(&format!("{shape:?}")), "{error}");
    }
}

#[test]
fn memory_that_a_device_does_not_have_is_one_error() {
    let device = device();
    // 32 TiB: refused by its size, or by the device when it is read.
    let asked = device.empty(&[1 << 45], DType::U8).and_then(|tensor| tensor.download());
    let error = asked.unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    // And the device is as good as before.
    holds(&sample("gemm"));
}

/// Runs the case both ways; what comes out does not matter, that it comes out does.
fn survives(case: &Case) {
    let kernel = find(&case.kernel).unwrap();
    let device = device();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let _ = kernel.run(&device, case);
    }));
    assert!(ran.is_ok(), "the kernel panicked on {case:?}");
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let _ = kernel.reference(case);
    }));
    assert!(ran.is_ok(), "the reference panicked on {case:?}");
}

#[test]
fn no_word_in_place_of_a_scalar_makes_anything_panic() {
    for kernel in ALL {
        for scalar in sample(kernel.name).scalars.keys() {
            for word in WORDS {
                survives(&sample(kernel.name).set(scalar, word));
            }
        }
    }
    for scalar in ["per_mille", "min"] {
        let case = sample("top_k").set("policy", "fraction").set("per_mille", 5).set("min", 1);
        WORDS.iter().for_each(|word| survives(&case.clone().set(scalar, word)));
    }
    for scalar in ["window", "sinks"] {
        let case = sample("top_k").set("policy", "window").set("window", 5).set("sinks", 1);
        WORDS.iter().for_each(|word| survives(&case.clone().set(scalar, word)));
    }
}

#[test]
fn no_shape_of_any_tensor_makes_anything_panic() {
    for kernel in ALL {
        let whole = sample(kernel.name);
        for (name, tensor) in &whole.tensors {
            let mut longer = tensor.shape.clone();
            longer[0] += 1;
            let mut shorter = tensor.shape.clone();
            shorter[0] -= 1;
            let mut wider = tensor.shape.clone();
            *wider.last_mut().unwrap() += 1;
            let mut none = tensor.shape.clone();
            none[0] = 0;
            // Axes of any length are free where there is no element.
            let mut long = vec![1; tensor.shape.len().max(2)];
            long[0] = 1 << 20;
            *long.last_mut().unwrap() = 0;
            let huge = [long.iter().rev().copied().collect(), long];
            for shape in [longer, shorter, wider, none, vec![], vec![0]].into_iter().chain(huge) {
                let bytes = shape.iter().product::<usize>() * tensor.dtype.size();
                let (dtype, bytes) = (tensor.dtype, vec![0; bytes]);
                let case = whole.clone().with(name, HostTensor { dtype, shape, bytes });
                survives(&case);
                survives(&case.set("strided", true));
            }
        }
    }
}
