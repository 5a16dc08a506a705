//! What a shard shares with other threads is made of these: the standard library's here, a schedule
//! explorer's in tests/schedules.rs.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
