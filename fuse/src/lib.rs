//! The FUSE front: attached disks as plain files under a mount point.
//!
//! [`mount()`] serves a tree of disks: for each a directory with `disk`, `p1`.. (windows of it),
//! and small texts about it. What the bytes are is asked of a [`Port`]: every question carries a
//! reply object that is answered from any thread, once, whenever the answer is there. The threads
//! that read the kernel's requests only look up, check and pass on; they never wait for a disk.
//!
//! [`ops`] holds what is true of any FUSE transport (names, attributes, bounds, permissions, error
//! numbers) and knows no wire; [`mount`](mod@mount) speaks through the `fuser` crate, or through
//! rings that the program brings along ([`ring`]). This crate knows no image format and no engine,
//! and holds no guest data beyond a request.
#![forbid(unsafe_code)]

mod attach;
pub mod channel;
mod connect;
mod disk;
mod ended;
mod filesystem;
mod manner;
pub mod mount;
mod mountinfo;
mod name;
pub mod ops;
pub mod port;
pub mod ring;
mod shape;
pub mod tree;
mod wire;

pub use attach::{
    KIND, MountError, Options, Route, UnmountError, check_place, clear_stale, is_stale, mounted_at,
    resolved, unmount_foreign,
};
pub use channel::ChannelHost;
pub use connect::Transport;
pub use mount::{Mounted, UnmountHow, mount};
pub use mountinfo::{Mount, mounts};
pub use port::{
    Bytes, DiskId, Errno, Extent, Fact, Offset, Port, ReadReply, Reply, Run, RunKind, Text,
};
pub use ring::RingHost;
pub use tree::{Layout, NewDisk, TreeError, Usage, Window};
