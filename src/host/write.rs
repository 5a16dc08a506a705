//! A write on its way: straight, or through aligned memory in pieces whose ragged units are read
//! first, with a ragged end of the file left to the page cache.
//!
//! Refuses to grow a file beyond the last byte it was asked to write.

use super::direct::{Bounce, Grid};
use super::files::OpenFile;
use super::memory::Loan;
use super::task::{Call, Via, errno};
use super::zero::ZEROES;
use crate::engine::effect::IoError;
use crate::engine::units::{ByteLen, FileOffset};

/// Where the bytes come from.
#[derive(Debug)]
pub(super) enum Origin {
    Loan(Loan),
    Owned(Vec<u8>),
    /// Loans and owned bytes one behind the other; never nested.
    Pieces(Vec<Origin>),
    Zeroes(ByteLen),
}

impl Origin {
    fn len(&self) -> u64 {
        match self {
            Self::Loan(loan) => loan.bytes().len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
            Self::Pieces(pieces) => pieces.iter().map(Self::len).sum(),
            Self::Zeroes(len) => len.get(),
        }
    }

    /// Shows `len` bytes from `skip`, or less when `room` slices are not enough. Tells how many
    /// slices it showed.
    fn slices<'a>(
        &'a self,
        skip: u64,
        len: u64,
        room: usize,
        see: &mut dyn FnMut(&'a [u8]),
    ) -> usize {
        let mut one = |bytes: &'a [u8]| {
            see(&bytes[skip as usize..][..len as usize]);
            1
        };
        match self {
            Self::Loan(loan) => one(loan.bytes()),
            Self::Owned(bytes) => one(bytes),
            Self::Zeroes(_) => ZEROES.slices(ByteLen::new(len), room, see),
            Self::Pieces(pieces) => {
                let (mut skip, mut len, mut shown) = (skip, len, 0);
                for piece in pieces {
                    let whole = piece.len();
                    if skip >= whole {
                        skip -= whole;
                        continue;
                    }
                    if len == 0 || shown == room {
                        break;
                    }
                    let now = (whole - skip).min(len);
                    shown += piece.slices(skip, now, room - shown, see);
                    len -= now;
                    skip = 0;
                }
                shown
            }
        }
    }

    /// Copies the bytes from `skip` on to `target`.
    fn copy_to(&self, skip: u64, target: &mut [u8]) {
        let mut at = 0;
        self.slices(skip, target.len() as u64, usize::MAX, &mut |bytes| {
            target[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        });
    }

    /// Whether every slice from the start on fits the grid.
    fn is_aligned(&self, len: u64, grid: Grid, mem_align: usize) -> bool {
        if let Self::Zeroes(_) = self {
            return true;
        }
        let mut aligned = true;
        self.slices(0, len, usize::MAX, &mut |bytes| {
            let address = bytes.as_ptr() as usize;
            aligned &= address.is_multiple_of(mem_align) && grid.is_whole(bytes.len() as u64);
        });
        aligned
    }
}

/// Progress of a write.
#[derive(Debug)]
pub(super) struct Write {
    from: Origin,
    at: FileOffset,
    len: u64,
    done: u64,
    durable: bool,
    grid: Option<Grid>,
    /// Bytes before the cut; what is behind goes through the page cache.
    body: u64,
    bounce: Option<Piece>,
}

/// The aligned piece that is written at present.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    stage: Stage,
    got: usize,
    bounce: Bounce,
}

/// Which part of the piece the next call moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ReadFirst,
    ReadLast,
    Put,
}

impl Write {
    pub(super) fn new(at: FileOffset, from: Origin, durable: bool) -> Self {
        let len = from.len();
        Self { from, at, len, done: 0, durable, grid: None, body: len, bounce: None }
    }

    /// Decides where the write is cut and whether it goes straight. Asks for the file's size when
    /// the end is ragged, which is why the claim must be granted before.
    pub(super) fn plan(&mut self, file: &OpenFile) -> Result<(), IoError> {
        self.grid = file.grid();
        let Some(grid) = self.grid else { return Ok(()) };
        let (at, len) = (self.at, ByteLen::new(self.len));
        if !grid.is_whole(at.get() + self.len) {
            let size = file.size().map_err(|error| errno(&error))?;
            self.body = grid.cut(at, len, size).get() - at.get();
        }
        let straight = grid.is_whole(at.get())
            && grid.is_whole(self.body)
            && self.from.is_aligned(self.body, grid, file.mem_align());
        if !straight && self.body > 0 {
            let range = grid.ceil(at.get() + self.body) - grid.floor(at.get());
            let room = range.min(Bounce::MAX_BYTES) as usize;
            let bounce = Bounce::new(room, file.mem_align().max(grid.unit()));
            let stage = Stage::Put;
            self.bounce = Some(Piece { start: 0, end: 0, stage, got: 0, bounce });
            self.next_piece(grid);
        }
        Ok(())
    }

    pub(super) const fn is_over(&self) -> bool {
        self.done == self.len
    }

    pub(super) const fn is_durable(&self) -> bool {
        self.durable
    }

    pub(super) const fn left(&self) -> ByteLen {
        ByteLen::new(self.len - self.done)
    }

    pub(super) fn call(&self) -> Call {
        let durable = self.durable;
        if let Some(piece) = &self.bounce {
            let unit = self.grid.map_or(0, Grid::unit) as u64;
            let got = piece.got as u64;
            return match piece.stage {
                Stage::ReadFirst => Call::Read { at: FileOffset::new(piece.start + got) },
                Stage::ReadLast => Call::Read { at: FileOffset::new(piece.end - unit + got) },
                Stage::Put => {
                    let at = FileOffset::new(piece.start + got);
                    Call::Write { at, via: Via::Main, durable }
                }
            };
        }
        let via =
            if self.done < self.body || self.grid.is_none() { Via::Main } else { Via::Cached };
        Call::Write { at: FileOffset::new(self.at.get() + self.done), via, durable }
    }

    /// Shows what the current call writes.
    pub(super) fn slices<'a>(&'a self, room: usize, see: &mut dyn FnMut(&'a [u8])) {
        if let Some(piece) = &self.bounce {
            let len = (piece.end - piece.start) as usize;
            see(&piece.bounce.bytes()[piece.got..len]);
            return;
        }
        let end = if self.done < self.body { self.body } else { self.len };
        self.from.slices(self.done, end - self.done, room, see);
    }

    /// Where the current call reads the rest of a ragged unit.
    pub(super) fn ragged_buffer(&mut self) -> &mut [u8] {
        let (Some(piece), Some(grid)) = (&mut self.bounce, self.grid) else { return &mut [] };
        let unit = grid.unit();
        let start = match piece.stage {
            Stage::ReadFirst | Stage::Put => 0,
            Stage::ReadLast => (piece.end - piece.start) as usize - unit,
        };
        &mut piece.bounce.bytes_mut()[start + piece.got..start + unit]
    }

    /// The lent memory, when all that is left goes straight from it.
    pub(super) const fn straight_loan(&self) -> Option<&Loan> {
        match (&self.from, &self.bounce) {
            (Origin::Loan(loan), None) => Some(loan),
            _ => None,
        }
    }

    /// Takes note of bytes moved by the current call.
    pub(super) fn moved(&mut self, moved: usize) -> Result<(), IoError> {
        let Some(grid) = self.grid else {
            self.done += moved as u64;
            return progress(moved as u64);
        };
        let Some(piece) = &mut self.bounce else {
            // A direct write that stops off the grid goes on from the line before.
            let body = self.done < self.body;
            let whole = if body { grid.floor(moved as u64) } else { moved as u64 };
            self.done += whole;
            return progress(whole);
        };
        if piece.stage != Stage::Put {
            piece.got += moved;
            // Behind the end of the file the unit keeps the zeroes it was filled with.
            if moved == 0 || !grid.is_whole(moved as u64) || piece.got >= grid.unit() {
                self.next_stage(grid);
            }
            return Ok(());
        }
        let whole = grid.floor(moved as u64);
        piece.got += whole as usize;
        if piece.start + piece.got as u64 == piece.end {
            self.done = (piece.end - self.at.get()).min(self.body);
            if self.done < self.body {
                self.next_piece(grid);
            } else {
                self.bounce = None;
            }
        }
        progress(whole)
    }

    /// Turns to the piece that holds the next byte to write.
    fn next_piece(&mut self, grid: Grid) {
        let next = self.at.get() + self.done;
        let body_end = self.at.get() + self.body;
        let Some(piece) = &mut self.bounce else { return };
        piece.start = grid.floor(next);
        piece.end = grid.ceil(body_end).min(piece.start + Bounce::MAX_BYTES);
        piece.got = 0;
        piece.bounce.bytes_mut().fill(0);
        let first_ragged = piece.start < next;
        piece.stage = Stage::ReadFirst;
        if !first_ragged {
            self.next_stage(grid);
        }
    }

    /// Goes on after the first unit was read, or needs not be.
    fn next_stage(&mut self, grid: Grid) {
        let next = self.at.get() + self.done;
        let body_end = self.at.get() + self.body;
        let Some(piece) = &mut self.bounce else { return };
        piece.got = 0;
        let first_read = piece.start < next;
        let one_unit = piece.end - piece.start == grid.unit() as u64;
        if piece.stage == Stage::ReadFirst && piece.end > body_end && !(one_unit && first_read) {
            piece.stage = Stage::ReadLast;
            return;
        }
        piece.stage = Stage::Put;
        let from = (next - piece.start) as usize;
        let to = (body_end.min(piece.end) - piece.start) as usize;
        self.from.copy_to(self.done, &mut piece.bounce.bytes_mut()[from..to]);
    }
}

fn progress(moved: u64) -> Result<(), IoError> {
    // A write that moves nothing would be tried for ever.
    if moved == 0 { Err(IoError::EIO) } else { Ok(()) }
}
