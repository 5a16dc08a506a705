//! The ways into a shard: what a client asks becomes engine requests, and answers become bytes for
//! its socket or for a mount's reader.

pub mod files;
pub mod nbd;
