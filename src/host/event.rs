//! The vocabulary between a shard and its host: sockets, what is received into, what is sent, and
//! what happened. Plain data.
//!
//! Refuses to know NBD or a ring: any transport can send lists of pieces, any host can carry them.

use std::ops::Range;

use super::inlet::InletId;
use super::memory::Memory;
use super::zero::ZEROES;
use crate::engine::effect::{EffectId, IoError, Outcome};
use crate::engine::request::Stored;
use crate::engine::units::{ByteLen, Span};

/// Names a socket of the host until its [`Event::Closed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// Names a watched descriptor of the host, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(pub u32);

/// Whether the peer of a socket has hung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    /// It has not, as far as the system knows.
    No,
    /// Nothing more will come from it. It may still listen, or be gone: TCP cannot tell before
    /// something is sent.
    Half,
    /// The connection is over in both directions.
    Whole,
}

/// Where received bytes go.
#[derive(Debug, PartialEq, Eq)]
pub enum ReceiveInto {
    /// Whatever has arrived, at least one byte, at most up to the end of the buffer.
    Buffer {
        /// The buffer; its length is its room. Comes back with the event.
        bytes: Vec<u8>,
        /// How much of it holds bytes already. The event's `filled` counts the new ones too.
        filled: usize,
    },
    /// Lent memory, filled completely before the event comes.
    Span(Span),
}

/// One piece of a list to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendPiece {
    /// A part of the list's own bytes.
    Bytes(Range<usize>),
    /// Lent memory.
    Span(Span),
    /// That many zero bytes; no memory is needed for them.
    Zeroes(ByteLen),
    /// Bytes of an open file that its host lent ([`Outcome::Lent`]); they go out as they are then.
    Stored(Stored),
}

impl SendPiece {
    fn len(&self) -> ByteLen {
        match self {
            Self::Bytes(range) => ByteLen::new(range.len() as u64),
            Self::Span(span) => span.bytes(),
            Self::Zeroes(len) => *len,
            Self::Stored(stored) => stored.len,
        }
    }
}

/// What one send carries, in order: headers of its own and lent memory between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendList {
    bytes: Vec<u8>,
    pieces: Vec<SendPiece>,
    total: ByteLen,
}

impl SendList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), pieces: Vec::new(), total: ByteLen::ZERO }
    }

    /// Appends bytes, copied into the list.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        self.total += ByteLen::new(bytes.len() as u64);
        match self.pieces.last_mut() {
            Some(SendPiece::Bytes(last)) => last.end = end,
            _ => self.pieces.push(SendPiece::Bytes(start..end)),
        }
    }

    /// Appends lent memory. It stays lent until the event with the list comes back (I6).
    pub fn push_span(&mut self, span: Span) {
        if span.len > 0 {
            self.total += span.bytes();
            self.pieces.push(SendPiece::Span(span));
        }
    }

    /// Appends zero bytes.
    pub fn push_zeroes(&mut self, len: ByteLen) {
        if !len.is_zero() {
            self.total += len;
            self.pieces.push(SendPiece::Zeroes(len));
        }
    }

    /// Appends bytes of a file of the same host, which must stay open until they are sent.
    pub fn push_stored(&mut self, stored: Stored) {
        if !stored.len.is_zero() {
            self.total += stored.len;
            self.pieces.push(SendPiece::Stored(stored));
        }
    }

    /// Whether parts of it lie in files.
    pub fn has_stored(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, SendPiece::Stored(_)))
    }

    /// What is left of the piece that comes after `skip` bytes, if it lies in a file.
    pub(super) fn stored_at(&self, skip: ByteLen) -> Option<Stored> {
        let mut skip = skip;
        for piece in &self.pieces {
            let len = piece.len();
            if skip >= len {
                skip = skip - len;
                continue;
            }
            let SendPiece::Stored(Stored { file, at, len }) = *piece else { return None };
            return Some(Stored { file, at: at + skip, len: len - skip });
        }
        None
    }

    /// All bytes of all pieces.
    pub const fn total(&self) -> ByteLen {
        self.total
    }

    /// Bytes of its own that it keeps.
    pub const fn own_len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is to be sent.
    pub const fn is_empty(&self) -> bool {
        self.total.is_zero()
    }

    /// The pieces, in the order they go out.
    pub fn pieces(&self) -> &[SendPiece] {
        &self.pieces
    }

    /// Empties the list and keeps its buffers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pieces.clear();
        self.total = ByteLen::ZERO;
    }

    /// Shows the memory of what is left to send after `skip` bytes, at most `room` slices of it, up
    /// to what lies in a file.
    pub(super) fn slices<'a>(
        &'a self,
        memory: &'a Memory,
        skip: ByteLen,
        room: usize,
        see: &mut dyn FnMut(&'a [u8]),
    ) {
        let mut skip = skip.get();
        let mut room = room;
        for piece in &self.pieces {
            if room == 0 {
                return;
            }
            let len = piece.len().get();
            if skip >= len {
                skip -= len;
                continue;
            }
            room -= match piece {
                SendPiece::Bytes(range) => {
                    see(&self.bytes[range.clone()][skip as usize..]);
                    1
                }
                SendPiece::Span(span) => {
                    see(&memory.bytes(*span)[skip as usize..]);
                    1
                }
                SendPiece::Zeroes(_) => ZEROES.slices(ByteLen::new(len - skip), room, see),
                SendPiece::Stored(_) => return,
            };
            skip = 0;
        }
    }
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// An effect is over.
    Effect {
        /// The tag it was started with: which disk.
        tag: u32,
        /// Its name within the disk.
        id: EffectId,
        /// What came of it.
        outcome: Outcome,
    },
    /// A receive is over. `Ok(0)`: the peer closed, and nothing more will come; a span may then be
    /// filled in part.
    Received {
        /// The socket.
        socket: SocketId,
        /// The place, given back.
        into: ReceiveInto,
        /// New bytes in `into`, or the failure.
        result: Result<u32, IoError>,
    },
    /// A send is over: everything went out, or the connection is broken.
    Sent {
        /// The socket.
        socket: SocketId,
        /// The list, given back.
        list: SendList,
        /// Whether all of it went out.
        result: Result<(), IoError>,
    },
    /// A socket given to `close_socket` is closed and the kernel has let go of its memory: what
    /// was lent to its receive or send may be reused only now (I6).
    Closed {
        /// The socket; the number may be given to another from now on.
        socket: SocketId,
    },
    /// A watched descriptor has something to read, or is broken. Told once for each time it was
    /// armed.
    Readable {
        /// The descriptor.
        poll: PollId,
    },
    /// Requests came through an inlet, or how it stands has changed. Told once until
    /// [`super::Host::next_asked`] finds none.
    Asked {
        /// The inlet.
        inlet: InletId,
    },
    /// Somebody used a [`super::Waker`], once or several times.
    Woken,
}

impl Event {
    /// The number of the socket this event says is closed.
    pub(super) const fn closed_number(&self) -> Option<u32> {
        match self {
            Self::Closed { socket } => Some(socket.0),
            _ => None,
        }
    }
}
