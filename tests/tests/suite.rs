//! The one integration-test binary (every binary links LLVM, so there is only one).

mod properties;
