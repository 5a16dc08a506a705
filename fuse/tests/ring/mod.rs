//! Which ring the mounts of these tests use: none. The root package runs the same tests over its
//! own (`tests/fuse_ring.rs`).
#![allow(dead_code)]

use std::sync::Arc;

use orlop_fuse::RingHost;

pub(crate) fn chosen() -> Option<Arc<dyn RingHost>> {
    None
}
