//! A written disk on two shards: its owner's, and one where it has a guest. Peers on both ask for
//! everything at once, over real files, rings and threads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "guest_shards/ends.rs"]
mod ends;
#[path = "guest_shards/house.rs"]
mod house;
#[path = "guest_shards/mixed.rs"]
mod mixed;
#[allow(dead_code)]
#[path = "guests/oracle.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "shard/rig.rs"]
mod rig;
