//! The thinking: requests in, effects out, completions in, replies out. Knows no format, does no
//! I/O, asks no clock. See `commit` for the invariants I1-I7.

mod chain;
mod commit;
mod disk;
mod edges;
pub mod effect;
mod erase;
mod guest;
pub mod layer;
mod map;
mod pivot;
pub mod published;
mod read;
pub mod request;
mod resize;
mod sync;
mod task;
pub mod units;
mod write;

pub use chain::FrozenLayer;
pub use disk::Disk;
pub use pivot::PivotError;
