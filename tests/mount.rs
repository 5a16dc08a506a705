//! `orlop mount` and `orlop umount` as an admin meets them: what they make, what they undo, and
//! what they say when it cannot be. After each test, and after each refusal, neither a mount nor a
//! loop device nor a process may be left.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "mount/endings.rs"]
mod endings;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "mount/inside.rs"]
mod inside;
#[path = "mount/place.rs"]
mod place;
#[path = "mount/refusals.rs"]
mod refusals;
#[path = "support/ring_switch.rs"]
mod ring_switch;
#[path = "mount/rings.rs"]
mod rings;
#[path = "mount/ways.rs"]
mod ways;
