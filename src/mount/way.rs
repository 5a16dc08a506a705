//! How the bytes of a mount come and go: by passing, through the FUSE device, or through rings.
//!
//! Decides what is wished from the kernel, and says afterwards what came of it and why.

use std::sync::Arc;

use orlop_fuse::RingHost;

use super::about::Way;
use super::failure::MountFailure;
use super::opening::Opened;
use super::{Transport, Wish};
use crate::host::Aio;
use crate::shard::Mailbox;
use crate::transport::files::{Files, Rings};

/// Says whether the kernel will agree to rings.
const OFFERED: &str = "/sys/module/fuse/parameters/enable_uring";
const NOT_OFFERED: &str = "the kernel does not offer FUSE over io_uring";

/// Whether requests are to come through the shard's ring; why not, where that is left to us.
/// `passes`: the kernel reads and writes the file by itself.
pub(super) fn wants_rings(wish: &Wish, passes: bool) -> Result<(), &'static str> {
    match wish.transport {
        Transport::Uring => Ok(()),
        Transport::Classic => Err("asked for"),
        Transport::Auto if passes => Err("files are passed"),
        Transport::Auto if wish.aio == Aio::Threads => Err("there is no ring with --aio threads"),
        Transport::Auto if !std::fs::read(OFFERED).is_ok_and(|told| told.starts_with(b"Y")) => {
            Err(NOT_OFFERED)
        }
        Transport::Auto if !Rings::are_roomy() => {
            Err("on so many processors rings have less room than the FUSE device")
        }
        Transport::Auto => Ok(()),
    }
}

/// Rings over this shard.
pub(super) fn rings(mailbox: &Mailbox, files: &Arc<Files>) -> Arc<dyn RingHost> {
    let (mailbox, files) = (mailbox.clone(), Arc::clone(files));
    Arc::new(Rings { mailbox, files, request_bytes: None })
}

/// Takes back the leave to pass where it cannot be used; gives the reason why nothing passes.
pub(super) fn why_not_passed(wish: &Wish, opened: &mut Opened) -> Option<String> {
    if wish.transport == Transport::Uring && matches!(opened.passed, Some(Ok(_))) {
        let why = "the kernel passes files only without --transport uring";
        opened.passed = Some(Err(why.to_owned()));
    }
    match &opened.passed {
        None | Some(Ok(_)) => None,
        Some(Err(why)) => {
            let why = why.clone();
            opened.passed = None;
            Some(why)
        }
    }
}

/// What came of it. `wanted`: whether there were to be rings, as [`wants_rings`] told.
///
/// # Errors
/// Rings were asked for and are not to be had.
pub(super) fn taken(
    wish: &Wish,
    passes: bool,
    wanted: Result<(), &str>,
    came: &orlop_fuse::Transport,
) -> Result<Way, MountFailure> {
    use orlop_fuse::Transport as Came;
    let way = |name, why: &str| Ok(Way { name, why: why.to_owned() });
    match (came, wish.transport) {
        (Came::Classic, _) if passes => way("passthrough", "the raw file is the disk"),
        (Came::Classic, _) => way("classic", wanted.err().unwrap_or("asked for")),
        (Came::Threads(why), _) => way("classic", &format!("read by threads of the mount: {why}")),
        (Came::Ring, Transport::Auto) => way("uring", "the kernel offers it"),
        (Came::Ring, _) => way("uring", "asked for"),
        (Came::Fallback(why), Transport::Uring) => {
            Err(MountFailure::Transport { asked: "uring", why: why.clone() })
        }
        (Came::Fallback(why), _) => way("classic", why),
    }
}
