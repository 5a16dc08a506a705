//! A read on its way: straight into its target, or through aligned memory in pieces.
//!
//! Refuses to invent bytes: a file that ends inside the range is a failure.

use super::direct::{Bounce, Grid};
use super::files::OpenFile;
use super::memory::Loan;
use crate::engine::effect::{IoError, Outcome, Target};
use crate::engine::units::{FileOffset, Span};

/// Progress of a read.
#[derive(Debug)]
pub(super) struct Read {
    into: Into,
    at: FileOffset,
    len: u64,
    done: u64,
    grid: Option<Grid>,
    bounce: Option<Piece>,
}

#[derive(Debug)]
enum Into {
    Loan(Loan),
    Owned(Vec<u8>),
}

impl Into {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Loan(loan) => loan.bytes_mut(),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The aligned piece that is read at present.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    got: usize,
    bounce: Bounce,
}

impl Read {
    pub(super) fn new(at: FileOffset, into: Target, lend: impl Fn(Span) -> Loan) -> Self {
        let len = into.len().get();
        let into = match into {
            Target::Span(span) => Into::Loan(lend(span)),
            Target::Owned(bytes) => Into::Owned(bytes),
        };
        Self { into, at, len, done: 0, grid: None, bounce: None }
    }

    /// Decides whether the read goes straight.
    pub(super) fn plan(&mut self, file: &OpenFile) {
        self.grid = file.grid();
        let Some(grid) = self.grid else { return };
        let address = self.into.bytes_mut().as_ptr() as usize;
        let straight = grid.is_whole(self.at.get())
            && grid.is_whole(self.len)
            && address.is_multiple_of(file.mem_align());
        if straight || self.len == 0 {
            return;
        }
        let range = grid.ceil(self.at.get() + self.len) - grid.floor(self.at.get());
        let room = range.min(Bounce::MAX_BYTES) as usize;
        let bounce = Bounce::new(room, file.mem_align().max(grid.unit()));
        self.bounce = Some(Piece { start: 0, end: 0, got: 0, bounce });
        self.next_piece(grid);
    }

    pub(super) const fn is_over(&self) -> bool {
        self.done == self.len
    }

    /// Bytes still to be read.
    pub(super) const fn left(&self) -> u64 {
        self.len - self.done
    }

    pub(super) fn take_outcome(&mut self) -> Outcome {
        match &mut self.into {
            Into::Loan(_) => Outcome::Done,
            Into::Owned(bytes) => Outcome::Bytes(std::mem::take(bytes)),
        }
    }

    pub(super) fn position(&self) -> FileOffset {
        match &self.bounce {
            Some(piece) => FileOffset::new(piece.start + piece.got as u64),
            None => FileOffset::new(self.at.get() + self.done),
        }
    }

    pub(super) fn buffer(&mut self) -> &mut [u8] {
        match &mut self.bounce {
            Some(piece) => {
                let len = (piece.end - piece.start) as usize;
                &mut piece.bounce.bytes_mut()[piece.got..len]
            }
            None => &mut self.into.bytes_mut()[self.done as usize..],
        }
    }

    /// The lent memory, when the read goes straight into it.
    pub(super) const fn straight_loan(&self) -> Option<&Loan> {
        match (&self.into, &self.bounce) {
            (Into::Loan(loan), None) => Some(loan),
            _ => None,
        }
    }

    /// Takes note of bytes read.
    pub(super) fn moved(&mut self, moved: usize) -> Result<(), IoError> {
        // A direct read that stops off the grid has met the end of the file; going on from there
        // would be refused as unaligned.
        let ended = moved == 0 || self.grid.is_some_and(|grid| !grid.is_whole(moved as u64));
        let end = self.at.get() + self.len;
        let Some(piece) = &mut self.bounce else {
            self.done += moved as u64;
            return if ended && !self.is_over() { Err(IoError::UNEXPECTED_EOF) } else { Ok(()) };
        };
        piece.got += moved;
        let wanted_end = end.min(piece.end);
        if piece.start + (piece.got as u64) < wanted_end {
            return if ended { Err(IoError::UNEXPECTED_EOF) } else { Ok(()) };
        }
        let from = (self.at.get() + self.done - piece.start) as usize;
        let to = (wanted_end - piece.start) as usize;
        let target = &mut self.into.bytes_mut()[self.done as usize..][..to - from];
        target.copy_from_slice(&piece.bounce.bytes()[from..to]);
        self.done += (to - from) as u64;
        if let Some(grid) = self.grid
            && !self.is_over()
        {
            self.next_piece(grid);
        }
        Ok(())
    }

    fn next_piece(&mut self, grid: Grid) {
        let start = grid.floor(self.at.get() + self.done);
        let end = grid.ceil(self.at.get() + self.len).min(start + Bounce::MAX_BYTES);
        if let Some(piece) = &mut self.bounce {
            (piece.start, piece.end, piece.got) = (start, end, 0);
        }
    }
}
