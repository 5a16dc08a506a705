//! Dynamic and differencing VHDs behind `Layer` and `Leaf`: block allocation table and sector
//! bitmaps on demand in bounded caches, allocation at the tail, and the two waves of a commit.

mod bitmaps;
mod fixed;
mod grow;
mod layer;
mod leaf;
mod publish;
mod relocate;
mod table;
mod tail;

pub use fixed::FixedLeaf;
pub use layer::VhdLayer;
pub use leaf::VhdLeaf;
pub use tail::Backing;

use crate::engine::units::{ByteLen, DiskOffset, FileOffset};

/// The VHD crate's file offset as the engine's.
fn file_at(at: ::vhd::FileOffset) -> FileOffset {
    FileOffset::new(at.get())
}

/// The VHD crate's length as the engine's.
fn len_of(len: ::vhd::ByteLen) -> ByteLen {
    ByteLen::new(len.get())
}

/// The engine's disk offset as the VHD crate's.
fn disk_at(at: DiskOffset) -> ::vhd::DiskOffset {
    ::vhd::DiskOffset::new(at.get())
}
