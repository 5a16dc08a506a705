//! FUSE over io_uring, against the kernel: what a mount answers, what becomes of failures, and that
//! no mount is ever left hanging.
//!
//! Needs root, /dev/fuse and the fuse module's parameter `enable_uring`; that is set to Y while
//! these tests run and put back. One lock keeps them apart from each other.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../fuse/tests/common/mod.rs"]
mod common;

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::{DISK, Fixture, Memory, Mood, can_mount, new_disk};
use orlop::transport::fuse_ring::Rings;
use orlop_fuse::ring::{Connection, RingHost};
use orlop_fuse::{Layout, Options, Transport};

fn main_options(ring: Arc<dyn RingHost>) -> Options {
    Options { layout: Layout::Single, ring: Some(ring), ..Options::default() }
}

#[test]
fn t() {}
