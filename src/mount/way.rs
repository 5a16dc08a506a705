//! How the bytes of a mount come and go: by passing, through the FUSE device, or through rings.
//!
//! Decides what is wished from the kernel, and says afterwards what came of it and why.

use std::sync::Arc;

use orlop_fuse::RingHost;

use super::about::Way;
use super::failure::MountFailure;
use super::opening::Opened;
use super::{Transport, Wish};
use crate::shard::Mailbox;
use crate::transport::files::{Files, Rings};

/// Rings, where they are asked for.
pub(super) fn rings_for(
    wish: &Wish,
    mailbox: &Mailbox,
    files: &Arc<Files>,
) -> Option<Arc<dyn RingHost>> {
    let (mailbox, files) = (mailbox.clone(), Arc::clone(files));
    wants_rings(wish).then(|| Arc::new(Rings { mailbox, files, request_bytes: None }) as _)
}

/// Whether the shard is to be one with inlets.
pub(super) const fn wants_rings(wish: &Wish) -> bool {
    match wish.transport {
        Transport::Uring => true,
        // Rings take less CPU time for small requests of many, but are behind elsewhere.
        Transport::Auto | Transport::Classic => false,
    }
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

/// What came of it.
///
/// # Errors
/// Rings were asked for and are not to be had.
pub(super) fn taken(
    wish: &Wish,
    passes: bool,
    came: &orlop_fuse::Transport,
) -> Result<Way, MountFailure> {
    use orlop_fuse::Transport as Came;
    let way = |name, why: &str| Ok(Way { name, why: why.to_owned() });
    match (came, wish.transport) {
        (Came::Classic, _) if passes => way("passthrough", "the raw file is the disk"),
        (Came::Classic, Transport::Auto) => {
            way("classic", "FUSE over io_uring is not faster everywhere")
        }
        (Came::Classic, _) => way("classic", "asked for"),
        (Came::Threads(why), _) => way("classic", &format!("read by threads of the mount: {why}")),
        (Came::Ring, _) => way("uring", "asked for"),
        (Came::Fallback(why), _) => {
            Err(MountFailure::Transport { asked: "uring", why: why.clone() })
        }
    }
}
