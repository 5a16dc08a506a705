//! What is counted about requests, and what slows them down on purpose: counters and latencies
//! that anyone may read while one thread writes them, and limits anyone may change.
//!
//! Refuses to lock where nothing is limited: the data path pays plain loads and stores, and a
//! reader never makes it wait.

mod counts;
mod histogram;
mod meters;
mod op;
mod snapshot;
mod throttle;

pub use counts::Meter;
pub use meters::Meters;
pub use op::Op;
pub use snapshot::{OpSnapshot, Snapshot};
pub use throttle::{Admission, Rates, Throttle, Ticket};
