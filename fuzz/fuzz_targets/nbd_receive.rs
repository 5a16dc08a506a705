//! libFuzzer over `nbd_receive`: any bytes from an NBD peer.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/fuzz/mod.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::nbd_receive(bytes));
