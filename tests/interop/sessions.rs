//! The images and modes that every session of foreign clients is repeated with.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;

use orlop::host::memory::{Arena, ArenaSize};
use orlop::host::{Aio, Host};
use tempfile::TempDir;

use crate::foreign::{orlop, text};

/// What a served image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Fixed,
    Dynamic,
    /// Three differencing images of different block sizes over a dynamic one.
    Chain,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Raw, Self::Fixed, Self::Dynamic, Self::Chain];
}

/// How the server does its I/O.
pub const MODES: [&[&str]; 4] = [
    &["--aio", "uring", "--cache", "writeback"],
    &["--aio", "uring", "--cache", "none"],
    &["--aio", "threads", "--cache", "writeback"],
    &["--aio", "threads", "--cache", "none"],
];

/// Every kind of image in every mode this machine has.
pub fn each_mode(mut session: impl FnMut(Kind, &[&str])) {
    let ring = has_ring();
    for mode in MODES {
        if mode.contains(&"uring") && !ring {
            continue;
        }
        for kind in Kind::ALL {
            println!("{kind:?} {mode:?}");
            session(kind, mode);
        }
    }
}

/// Whether io_uring is to be had; a machine without it is no reason to fail, not even in CI.
pub fn has_ring() -> bool {
    let arena = Arena::new(ArenaSize::default()).expect("some memory can be mapped");
    match Host::new(Aio::Uring, &arena) {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED io_uring: {error}");
            false
        }
    }
}

/// A new empty image.
pub fn image(folder: &TempDir, kind: Kind, size: u64) -> PathBuf {
    let bytes = size.to_string();
    let number = std::fs::read_dir(folder.path()).expect("the folder is ours").count();
    let path = |name: &str| folder.path().join(format!("{number}-{name}"));
    let top = path(if kind == Kind::Raw { "disk.raw" } else { "disk.vhd" });
    match kind {
        Kind::Raw => drop(orlop(&["create", text(&top), "-s", &bytes])),
        Kind::Fixed => drop(orlop(&["create", text(&top), "-s", &bytes, "-f", "vhd-fixed"])),
        Kind::Dynamic => drop(orlop(&["create", text(&top), "-s", &bytes])),
        Kind::Chain => {
            let below = [path("a.vhd"), path("b.vhd"), path("c.vhd")];
            orlop(&["create", text(&below[0]), "-s", &bytes]);
            let links = [(0, &below[1], "64K"), (1, &below[2], "512K"), (2, &top, "2M")];
            for (parent, child, block) in links {
                let parent = text(&below[parent]);
                orlop(&["create", text(child), "--parent", parent, "--block-size", block]);
            }
        }
    }
    top
}
