//! A shard: one thread, one host, the disks it owns and the clients that use them. No locks in the
//! data path; the outside reaches it through a bounded mailbox.
//!
//! Refuses to know a wire protocol: a client is whoever implements [`Client`].

mod client;
mod mailbox;
mod run;

pub use client::{Client, Context, Fate};
pub use mailbox::{Attachment, DiskTag, Mailbox, NewClient, Refused, spawn};
