//! orlop serves virtual disk images: VHD (fixed, dynamic, differencing) and raw, with their
//! copy-on-write parent chains, over NBD. See ARCHITECTURE.md for the rooms and their rules.
#![deny(unsafe_code)]

pub mod admin;
pub mod api;
pub mod bench;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod dialect;
pub mod engine;
pub mod format;
pub mod host;
pub mod image;
pub mod live;
pub mod meter;
pub mod mount;
pub mod partition;
pub mod sandbox;
pub mod server;
pub mod shard;
pub mod size;
pub mod sr;
pub mod tls;
pub mod transport;
