//! libFuzzer over `engine_requests`: any bytes as a life of a disk.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz/mod.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::engine_requests(bytes));
