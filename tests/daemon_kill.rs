//! The daemon is killed in the middle of what changes a repository: at every step of every verb, and
//! at random under many callers. The next one finds a sound SR without help, each VDI with its old
//! or its new content, and nothing left over.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "daemon/house.rs"]
mod house;
#[path = "daemon_kill/looking.rs"]
mod looking;
#[path = "daemon_kill/random.rs"]
mod random;
#[path = "daemon_kill/steps.rs"]
mod steps;
