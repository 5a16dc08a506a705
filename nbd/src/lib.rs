//! The server side of the NBD protocol as a sans-IO state machine: bytes in, decisions out.
//!
//! A connection starts as a [`Handshake`]: the caller feeds it what the socket gave and sends what
//! [`Handshake::take_output`] returns, until a [`Session`] comes back; in between it may be asked
//! to start TLS and say so with [`Handshake::secured`]. From then on [`Transmission::parse`] turns
//! request headers into validated [`Request`]s, and [`reply`] writes the frames that answer them.
//! [`wire`] holds the layouts, for clients too.
//!
//! This crate opens nothing, waits for nothing and asks no clock: sockets, deadlines, TLS and disks
//! belong to the caller. It trusts no length, count or string that came from a peer.
#![forbid(unsafe_code)]

pub mod export;
pub mod fuzz;
pub mod handshake;
mod options;
pub mod reply;
pub mod transmission;
mod units;
mod violation;
pub mod wire;

pub use export::{BlockSize, BlockSizeError, Capabilities, Export, ExportEntry, Exports, Lookup};
pub use handshake::{
    CONTEXTS_MAX, Context, ContextName, Handshake, HandshakeLimits, LimitError, Progress, Session,
    TlsOffer, Violation,
};
pub use reply::{Body, Echo, Extent, Head, Piece, ReplyError, ReplyStyle, Segment};
pub use transmission::{Command, ContextSet, Parsed, Request, Transmission};
pub use units::{Bytes, ContextId, Cookie, Offset};
pub use wire::{Errno, HeaderFormat};
