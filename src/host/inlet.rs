//! The vocabulary of inlets: connections whose requests the kernel puts into lent memory. Plain
//! data, but for the question how many queues the kernel makes.

use std::io;

use crate::engine::effect::IoError;
use crate::engine::units::Span;

/// Where the system says which processors may ever be there.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Names a connection of the host, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InletId(pub u32);

/// Bytes of the block that goes with each entry.
pub const ENTRY_BLOCK_BYTES: u32 = super::uring::ENTRY_BLOCK_BYTES;

/// A place for requests of one of the kernel's queues. Both spans are lent from the moment the
/// place is given to a host until [`InletState::in_kernel`] is zero, the payload while the kernel
/// has it.
#[derive(Clone, Copy, Debug)]
pub struct EntryPlace {
    /// Which queue.
    pub queue: u16,
    /// The block, of at least [`ENTRY_BLOCK_BYTES`].
    pub block: Span,
    /// What comes along, and what goes back.
    pub payload: Span,
}

/// A request to be answered, and the right to its payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub(super) inlet: InletId,
    pub(super) index: u32,
    pub(super) payload: Span,
    pub(super) brought: u32,
}

impl Asked {
    /// The payload: room for an answer.
    pub const fn room(&self) -> Span {
        self.payload
    }

    /// The part of it that came with the request.
    pub const fn brought(&self) -> Span {
        Span { region: self.payload.region, start: self.payload.start, len: self.brought }
    }
}

/// How an inlet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InletState {
    /// The kernel has ended the connection.
    pub is_over: bool,
    /// Why it cannot go on, where the kernel has not ended it.
    pub failed: Option<IoError>,
    /// Entries the kernel has.
    pub in_kernel: usize,
    /// Requests that are not answered.
    pub unanswered: usize,
    /// Those of them that nobody has looked at.
    pub unseen: usize,
}

/// How many queues the kernel makes for a connection: one for each processor that may ever be
/// there.
///
/// # Errors
/// Where the system does not say.
pub fn queues() -> io::Result<u16> {
    let possible = std::fs::read_to_string(POSSIBLE)?;
    super::uring::queues(&possible)
        .ok_or_else(|| io::Error::other(format!("{POSSIBLE}: not a list: {possible:?}")))
}
