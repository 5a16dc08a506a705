//! Wire protocols inside a shard: what a client asks becomes engine requests, and answers become
//! bytes for its socket.

pub mod fuse_ring;
pub mod nbd;
