//! The thinking: requests in, effects out, completions in, replies out. Knows no format, does no
//! I/O, asks no clock. See `commit` for the invariants I1-I7.

pub mod effect;
pub mod layer;
pub mod request;
pub mod units;
