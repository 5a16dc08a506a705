//! One effect on its way: which call to make next, and what its result means. Short transfers,
//! interruptions, fallbacks and the bouncing of direct I/O are decided here, so both hosts only
//! make calls.
//!
//! Refuses to make a call itself, except to ask a file for its size.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::direct::{Claim, Ticket};
use super::files::{INLINE_MAX_BYTES, OpenFile};
use super::memory::{Loan, Memory, REGISTERED};
use super::read::Read;
use super::write::{Origin, Write};
use crate::engine::effect::{
    Effect, EffectId, FileId, FileRun, IoError, Outcome, Piece, Source, Target,
};
use crate::engine::units::{ByteLen, FileOffset};

/// Which descriptor of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// The one that was handed over.
    Main,
    /// The one through the page cache.
    Cached,
}

/// A call to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Read into [`Task::read_into`].
    Read { at: FileOffset },
    /// Write what [`Task::write_from`] shows.
    Write { at: FileOffset, via: Via, durable: bool },
    /// Make a range read as zeroes.
    Erase { how: Erase, at: FileOffset, len: ByteLen },
    /// Find holes, at most so many runs; see [`Task::found`].
    Extents { at: FileOffset, len: ByteLen, most: u32 },
    /// ftruncate.
    SetLength { len: ByteLen },
    /// fdatasync.
    Sync,
}

/// How a range is made to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Erase {
    /// Give the space back; never change the size.
    Punch,
    /// Keep the space; a range behind the end makes the file longer, as writing zeroes would.
    Zero,
}

/// What an effect asks for, apart from its names.
#[derive(Debug)]
pub(super) enum Work {
    Read { at: FileOffset, into: Target },
    Write { at: FileOffset, from: Source, durable: bool },
    Erase { how: Erase, at: FileOffset, len: ByteLen },
    SetLength { len: ByteLen },
    Extents { at: FileOffset, len: ByteLen, most: u32 },
    Sync,
}

/// Names of an effect: which disk, which effect, which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskName {
    pub(super) tag: u32,
    pub(super) id: EffectId,
    pub(super) file: FileId,
}

/// Splits an effect into its names and its work.
pub(super) fn split(tag: u32, effect: Effect) -> (TaskName, Work) {
    let name = TaskName { tag, id: effect.id(), file: effect.file() };
    let work = match effect {
        Effect::Read { at, into, .. } => Work::Read { at, into },
        Effect::Write { at, from, durable, .. } => Work::Write { at, from, durable },
        Effect::Zero { at, len, .. } => Work::Erase { how: Erase::Zero, at, len },
        Effect::Punch { at, len, .. } => Work::Erase { how: Erase::Punch, at, len },
        Effect::SetLength { len, .. } => Work::SetLength { len },
        Effect::Extents { at, len, most, .. } => Work::Extents { at, len, most },
        Effect::Sync { .. } => Work::Sync,
    };
    (name, work)
}

/// An effect in flight. Owns or lends all memory its calls name, so it must live until they return.
#[derive(Debug)]
pub(super) struct Task {
    name: TaskName,
    file: Arc<OpenFile>,
    state: State,
    claim: Option<Claim>,
    /// The range a task changes through the page cache.
    changes: Option<(u64, u64)>,
    ticket: Option<Ticket>,
}

#[derive(Debug)]
enum State {
    Read(Read),
    Write(Write),
    Erase { how: Erase, at: FileOffset, len: ByteLen },
    SetLength { len: ByteLen },
    Extents { at: FileOffset, len: ByteLen, most: u32, found: Vec<FileRun> },
    Sync,
}

/// Invalid argument: what fallocate says to a range or mode a device cannot do.
const EINVAL: i32 = 22;
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

impl Task {
    /// A task for the work. Ranges beyond the largest file position fail with EINVAL.
    pub(super) fn new(
        name: TaskName,
        file: Arc<OpenFile>,
        memory: &Arc<Memory>,
        work: Work,
    ) -> Result<Self, IoError> {
        let bytes = |span| memory.lend(span);
        let (mut claim, mut changes) = (None, None);
        let mut checked = |at: FileOffset, len: ByteLen, writes: bool| {
            // A page less than the limit of the system, so that rounding up cannot overflow.
            let limit = i64::MAX as u64 - 128 * 1024;
            if at.get().checked_add(len.get()).is_none_or(|end| end > limit) {
                return Err(IoError(EINVAL));
            }
            match file.grid() {
                Some(grid) if writes => claim = Some(grid.claim(at, len)),
                None if writes => changes = Some((at.get(), len.get())),
                _ => {}
            }
            Ok(())
        };
        let state = match work {
            Work::Read { at, into } => {
                checked(at, into.len(), false)?;
                State::Read(Read::new(at, into, bytes))
            }
            Work::Write { at, from, durable } => {
                checked(at, from.len(), true)?;
                State::Write(Write::new(at, origin(from, bytes), durable))
            }
            Work::Erase { how, at, len } => {
                checked(at, len, true)?;
                State::Erase { how, at, len }
            }
            Work::SetLength { len } => {
                // Claims nothing: whoever changes the length lets nothing else run.
                checked(FileOffset::new(0), len, false)?;
                changes = Some((len.get(), u64::MAX)).filter(|_| file.grid().is_none());
                State::SetLength { len }
            }
            Work::Extents { at, len, most } => {
                checked(at, len, false)?;
                State::Extents { at, len, most, found: Vec::new() }
            }
            Work::Sync => State::Sync,
        };
        Ok(Self { name, file, state, claim, changes, ticket: None })
    }

    pub(super) const fn name(&self) -> TaskName {
        self.name
    }

    pub(super) const fn file_id(&self) -> FileId {
        self.name.file
    }

    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }

    /// The file, to hold while the task itself is changed.
    pub(super) fn shared_file(&self) -> Arc<OpenFile> {
        Arc::clone(&self.file)
    }

    /// What a write to a direct file must claim before it runs.
    pub(super) const fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// The range it changes through the page cache: where it begins, how long it is.
    pub(super) const fn changes(&self) -> Option<(u64, u64)> {
        self.changes
    }

    /// The range it takes out of the page cache.
    pub(super) fn erases(&self) -> Option<(u64, u64)> {
        let erases = matches!(self.state, State::Erase { .. } | State::SetLength { .. });
        self.changes.filter(|_| erases)
    }

    pub(super) const fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    pub(super) const fn set_ticket(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// Gets ready for the first call, once the claim is granted. An outcome means that none is
    /// needed.
    pub(super) fn start(&mut self) -> Option<Outcome> {
        match &mut self.state {
            State::Read(read) => {
                read.plan(&self.file);
                read.is_over().then(|| read.take_outcome())
            }
            State::Write(write) => match write.plan(&self.file) {
                Err(error) => Some(Outcome::Failed(error)),
                Ok(()) => write.is_over().then_some(Outcome::Done),
            },
            State::Erase { len, .. } if len.is_zero() => Some(Outcome::Done),
            State::Erase { how, .. } => {
                let refused = match how {
                    Erase::Punch => self.file.no_punch(),
                    Erase::Zero => self.file.no_zero(),
                };
                if refused.load(Ordering::Relaxed) { self.write_zeroes() } else { None }
            }
            State::SetLength { .. } | State::Extents { .. } | State::Sync => None,
        }
    }

    /// The call to make now.
    pub(super) fn call(&self) -> Call {
        match &self.state {
            State::Read(read) => Call::Read { at: read.position() },
            State::Write(write) => write.call(),
            State::Erase { how, at, len } => Call::Erase { how: *how, at: *at, len: *len },
            State::SetLength { len } => Call::SetLength { len: *len },
            State::Extents { at, len, most, .. } => {
                Call::Extents { at: *at, len: *len, most: *most }
            }
            State::Sync => Call::Sync,
        }
    }

    /// Where the read of the current call puts its bytes.
    pub(super) fn read_into(&mut self) -> &mut [u8] {
        match &mut self.state {
            State::Read(read) => read.buffer(),
            State::Write(write) => write.ragged_buffer(),
            _ => &mut [],
        }
    }

    /// Shows where the write of the current call takes its bytes from, in at most `room` slices.
    pub(super) fn write_from<'a>(&'a self, room: usize, see: &mut dyn FnMut(&'a [u8])) {
        if let State::Write(write) = &self.state {
            write.slices(room, see);
        }
    }

    /// Whether the current call works on memory registered with the ring, and nothing else.
    pub(super) fn is_registered(&self) -> bool {
        let loan = match &self.state {
            State::Read(read) => read.straight_loan(),
            State::Write(write) => write.straight_loan(),
            _ => None,
        };
        loan.is_some_and(|loan| loan.span().region == REGISTERED)
    }

    /// Whether the task is better done at once than by the ring: a small cached transfer; a change
    /// of the file's length, which is rare and which older rings cannot do; a look for holes, which
    /// no ring can.
    pub(super) fn is_inline(&self) -> bool {
        if matches!(self.state, State::SetLength { .. } | State::Extents { .. }) {
            return true;
        }
        match &self.state {
            State::Read(read) => self.file.inline_reads() && read.left() <= INLINE_MAX_BYTES,
            State::Write(write) => {
                let small = write.left().get() <= INLINE_MAX_BYTES;
                self.file.inline_writes() && !write.is_durable() && small
            }
            _ => false,
        }
    }

    /// Whether it reads a file through the page cache, which may hold the bytes.
    pub(super) fn reads_cached(&self) -> bool {
        matches!(self.state, State::Read(_)) && self.file.lone_reads()
    }

    /// Takes the result of the call: the number of bytes moved, or the failure. No outcome means
    /// that another call follows.
    pub(super) fn result(&mut self, result: Result<usize, IoError>) -> Option<Outcome> {
        let moved = match result {
            Ok(moved) => moved,
            Err(IoError(EINTR)) => return None,
            // EAGAIN to a sync would not be a promise to try again; a failed sync stays failed.
            Err(IoError(EAGAIN)) if !matches!(self.state, State::Sync) => return None,
            Err(IoError(EINVAL | ENOSYS | EOPNOTSUPP))
                if matches!(self.state, State::Erase { .. }) =>
            {
                return self.refused(result == Err(IoError(EINVAL)));
            }
            Err(error) => return Some(Outcome::Failed(error)),
        };
        match &mut self.state {
            State::Read(read) => match read.moved(moved) {
                Err(error) => Some(Outcome::Failed(error)),
                Ok(()) => read.is_over().then(|| read.take_outcome()),
            },
            State::Write(write) => match write.moved(moved) {
                Err(error) => Some(Outcome::Failed(error)),
                Ok(()) => write.is_over().then_some(Outcome::Done),
            },
            State::Extents { found, .. } => Some(Outcome::Extents(std::mem::take(found))),
            State::Erase { .. } | State::SetLength { .. } | State::Sync => Some(Outcome::Done),
        }
    }

    /// Takes what a look for holes has found.
    pub(super) fn found(&mut self, runs: Vec<FileRun>) {
        if let State::Extents { found, .. } = &mut self.state {
            *found = runs;
        }
    }

    /// The file system cannot erase; EINVAL may be about this range only (a device's grain).
    fn refused(&mut self, this_range: bool) -> Option<Outcome> {
        if let State::Erase { how, .. } = &self.state
            && !this_range
        {
            let flag = match how {
                Erase::Punch => self.file.no_punch(),
                Erase::Zero => self.file.no_zero(),
            };
            flag.store(true, Ordering::Relaxed);
        }
        self.write_zeroes()
    }

    /// Becomes a write of zeroes over the same range.
    fn write_zeroes(&mut self) -> Option<Outcome> {
        let State::Erase { how, at, len } = self.state else { return None };
        let mut len = len;
        if how == Erase::Punch {
            // A punch never changes the size, so zeroes behind the end are left out.
            let size = match self.file.size() {
                Ok(size) => size,
                Err(error) => return Some(Outcome::Failed(errno(&error))),
            };
            len = len.min(ByteLen::new(size.get().saturating_sub(at.get())));
        }
        self.state = State::Write(Write::new(at, Origin::Zeroes(len), false));
        self.start()
    }
}

/// The errno of a system error; EIO for one that has none.
pub(super) fn errno(error: &std::io::Error) -> IoError {
    error.raw_os_error().map_or(IoError::EIO, IoError)
}

fn origin(source: Source, lend: impl Fn(crate::engine::units::Span) -> Loan) -> Origin {
    match source {
        Source::Span(span) => Origin::Loan(lend(span)),
        Source::Owned(bytes) => Origin::Owned(bytes),
        Source::Pieces(pieces) => Origin::Pieces(
            pieces
                .into_iter()
                .map(|piece| match piece {
                    Piece::Span(span) => Origin::Loan(lend(span)),
                    Piece::Owned(bytes) => Origin::Owned(bytes),
                })
                .collect(),
        ),
    }
}
