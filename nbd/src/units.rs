//! The units of the NBD protocol as types, so that a length cannot be taken for a position.
//!
//! They carry no arithmetic on purpose: whoever computes with a peer's numbers must unwrap them in
//! sight of the reader and use checked operations.

use std::fmt::{Display, Formatter, Result};

/// A count of bytes: an export's size or the length of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A byte position inside an export, as the client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// The client's own name for a request, returned unchanged with the reply. Clients may repeat one
/// while it is in flight, so it must never be used as a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// The number by which one connection knows a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextId(pub u32);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} bytes", self.0)
    }
}

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "offset {}", self.0)
    }
}
