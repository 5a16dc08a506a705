//! What the fuzz targets feed with bytes: one function each, used by libFuzzer (`fuzz/`) and by the
//! test that replays the corpus. Each takes any bytes at all and panics only on a finding.
#![allow(dead_code, unreachable_pub)]

mod engine_requests;
mod management;
mod nbd_session;
mod ram;
mod seeds;
mod sessions;
mod vhd_open;
#[path = "../../nbd_model/wire.rs"]
mod wire;

pub use engine_requests::engine_requests;
pub use management::management;
pub use nbd_session::nbd_session;
pub use seeds::seeds;
pub use vhd_open::vhd_open;

/// A target: its name, which is its folder in the corpus too, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] = [
    ("vhd_open", vhd_open),
    ("nbd_receive", nbd_receive),
    ("engine_requests", engine_requests),
    ("nbd_session", nbd_session),
    ("management", management),
];

/// Bytes from a peer: as a handshake, and as the stream behind one.
pub fn nbd_receive(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, stream)) => nbd::fuzz::transmission(stream),
        Some((_, said)) => nbd::fuzz::handshake(said),
        None => {}
    }
}
