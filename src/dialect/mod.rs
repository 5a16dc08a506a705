//! The languages in which the verbs are asked for: bytes in, a [`Command`]; what came of it, bytes
//! out.
//!
//! Each dialect is one function from a body to an answer, with the verbs as a function in the
//! middle. They open nothing, wait for nothing and decide nothing that the verbs decide; what they
//! cannot understand never becomes a command. Refuses bodies that are deep, wide or self-expanding.

pub mod argv;
mod attachment;
mod base64;
mod documents;
mod faults;
mod jsonrpc;
mod methods;
mod openrpc;
mod request;
mod sm;
mod smapi;
mod xml;
mod xmlrpc;

use crate::control::{Command, Error, Outcome};

pub use jsonrpc::{BATCH_MAX, respond as jsonrpc};
pub use openrpc::document as openrpc;
pub use sm::respond as sm;
pub use smapi::respond as smapi;

/// Whoever carries commands out.
pub type Verbs<'a> = &'a mut dyn FnMut(Command) -> Result<Outcome, Error>;
