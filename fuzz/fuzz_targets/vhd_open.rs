//! libFuzzer over `vhd_open`: any bytes as a VHD image.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz/mod.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::vhd_open(bytes));
