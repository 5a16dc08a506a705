//! A file system and a host that live in memory, follow a seed and lose power: the crash
//! simulator's ground (crash model, 4.1 and 4.2). With sockets that live in memory too, the host
//! of a whole shard.
//!
//! Refuses to know disks and formats; it carries out the same effects as the real hosts.

pub mod atom;
pub mod dir;
pub mod enumerate;
pub mod fault;
pub mod fs;
mod ground;
pub mod host;
pub mod image;
mod line;
pub mod rng;
pub mod script;

#[cfg(test)]
mod tests;
