//! The languages in which the verbs are asked for: bytes in, a [`Command`]; what came of it, bytes
//! out.
//!
//! Each dialect is one function from a body to an answer, with the verbs as a function in the
//! middle. They open nothing, wait for nothing and decide nothing that the verbs decide; what they
//! cannot understand never becomes a command. Refuses bodies that are deep, wide or self-expanding.

mod jsonrpc;
mod methods;
mod openrpc;

use crate::control::{Command, Error, Outcome};

pub use jsonrpc::{BATCH_MAX, respond as jsonrpc};
pub use openrpc::document as openrpc;

/// Whoever carries commands out.
pub type Verbs<'a> = &'a mut dyn FnMut(Command) -> Result<Outcome, Error>;
