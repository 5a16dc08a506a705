//! libFuzzer over `management`: any bytes as a management request, in every dialect.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz/mod.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::management(bytes));
