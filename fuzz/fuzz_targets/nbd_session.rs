//! libFuzzer over `nbd_session`: any bytes as a whole connection.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz/mod.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::nbd_session(bytes));
