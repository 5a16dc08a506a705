//! What the owner of a disk shares with readers on other threads is made of these: the standard
//! library's here, a schedule explorer's in tests/schedules_guests.rs.

pub(super) use std::sync::Arc;
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
