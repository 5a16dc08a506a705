//! The VHD image format: bytes to checked types and back. Never opens, reads, waits or asks the
//! time: where bytes are needed, a step says which, and the caller brings them.
#![forbid(unsafe_code)]

pub mod bat;
pub mod batmap;
pub mod bitmap;
pub mod check;
pub mod create;
pub mod error;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod image;
pub mod locator;
pub mod repair;
pub mod units;

mod draft;
mod facts;
mod survey;
mod table;

pub use bat::BatEntry;
pub use check::{Check, CheckError, CheckOptions, Finding, Report, Rule, Severity};
pub use create::{
    CreateError, CreateOptions, NewLayout, NewParent, Piece, Plan, create, footer_for,
};
pub use error::{OpenError, Reason, Region, Warning};
pub use footer::{Chs, Creator, DiskKind, Footer, FooterError};
pub use geometry::Geometry;
pub use header::{DynamicHeader, HeaderError};
pub use image::{Body, Image, Limits, Opening, ParentLink, Sparse, Step, TailState};
pub use locator::{LocatorError, LocatorPath, Platform};
pub use repair::{Backing, RepairStep, recovered_len, recovery_plan};
pub use units::{BlockIndex, ByteLen, DiskOffset, FileOffset, SECTOR_BYTES, SectorNo};
