//! Shards with several disks and exports: what each client sees of its disk, what is counted, who
//! is slowed, who is cut, and how exports and disks go while others stay.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "shard/copies.rs"]
mod copies;
#[path = "shard/going.rs"]
mod going;
#[path = "shard/patience.rs"]
mod patience;
#[path = "shard/rig.rs"]
mod rig;
#[path = "shard/slowing.rs"]
mod slowing;
#[path = "shard/windows.rs"]
mod windows;
