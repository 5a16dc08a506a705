//! The memory a simulated host works on: its own, or what an arena lends, and then with an eye on
//! those who touch what is in flight (I6).
//!
//! Refuses to lend: that is the arena.

use std::sync::Arc;

use crate::engine::effect::{Piece, Source};
use crate::engine::units::Span;
use crate::host::memory::Memory;

/// What a span in flight is filled with, so that nobody takes it for data.
const SPOILT: u8 = 0xA5;

/// Where spans lie.
#[derive(Debug)]
pub(in crate::host) enum Ground {
    /// In one region of the host's own.
    Own(Vec<u8>),
    /// In the regions of an arena.
    Lent(Arc<Memory>),
}

impl Ground {
    /// The bytes of a span.
    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        match self {
            Self::Own(bytes) => &bytes[span.start as usize..][..span.len as usize],
            Self::Lent(memory) => memory.bytes(span),
        }
    }

    /// The bytes of a span of the host's own memory.
    ///
    /// # Panics
    /// When the memory belongs to an arena.
    pub(super) fn own_mut(&mut self, span: Span) -> &mut [u8] {
        match self {
            Self::Own(bytes) => &mut bytes[span.start as usize..][..span.len as usize],
            Self::Lent(_) => unreachable!("{span:?} belongs to whoever has its lease"),
        }
    }

    /// Fills the start of a span that is lent to an operation in flight.
    pub(super) fn put(&mut self, span: Span, found: &[u8]) {
        match self {
            Self::Own(_) => self.own_mut(span)[..found.len()].copy_from_slice(found),
            Self::Lent(memory) => {
                memory.lend(span).bytes_mut()[..found.len()].copy_from_slice(found)
            }
        }
    }

    /// Fills lent memory with rubbish: from now on its bytes belong to the operation in flight.
    pub(super) fn spoil(&mut self, span: Span) {
        if let Self::Lent(memory) = self {
            memory.lend(span).bytes_mut().fill(SPOILT);
        }
    }

    /// Takes prints of the lent memory a write comes from.
    pub(super) fn watch(&self, from: &Source, into: &mut Vec<(Span, u64)>) {
        if let Self::Own(_) = self {
            return;
        }
        match from {
            Source::Span(span) => into.push((*span, self.print(*span))),
            Source::Owned(_) => {}
            Source::Pieces(pieces) => into.extend(pieces.iter().filter_map(|piece| match piece {
                Piece::Span(span) => Some((*span, self.print(*span))),
                Piece::Owned(_) => None,
            })),
        }
    }

    /// The print of a span's bytes (FNV-1a).
    pub(super) fn print(&self, span: Span) -> u64 {
        let start = 0xCBF2_9CE4_8422_2325_u64;
        let bytes = self.bytes(span).iter();
        bytes.fold(start, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
    }
}
