//! A shard: one thread, one host, the disks it owns and the clients that use them. No locks in the
//! data path; the outside reaches it through a bounded mailbox.
//!
//! Refuses to know a wire protocol: a client is whoever implements [`Client`].

mod belfry;
mod client;
mod cut;
mod disks;
mod ending;
mod guests;
mod line;
mod mailbox;
mod nudge;
mod own;
mod reader;
mod run;
mod seats;
mod stalled;
mod stepped;
mod steward;
mod sync;
mod watch;

pub use client::{Client, Context, Fate};
pub use cut::NewLeaf;
pub use guests::GuestAttachment;

pub use mailbox::{
    Attachment, DiskTag, ExportKey, Link, Mailbox, NewClient, Refused, spawn, spawn_with_inlets,
    spawn_within,
};
pub use nudge::Nudge;
pub use own::READ_MAX;
pub use reader::{NewReader, Progress, Reader, Reading};
pub use stepped::Stepped;
pub use watch::Watch;
