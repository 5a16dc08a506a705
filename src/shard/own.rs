//! Requests the shard makes for itself and for those outside who need a few bytes of a disk: they
//! go through the engine as every other request does.

use std::collections::VecDeque;
use std::io;

use slab::Slab;
use tokio::sync::oneshot;

use super::disks::Last;
use super::mailbox::DiskTag;
use super::run::Shard;
use crate::engine::request::{Answer, Fault, FaultKind, Request, RequestId, Segment};
use crate::engine::units::{ByteLen, Extent};
use crate::host::memory::Lease;

/// The longest range one [`super::Mailbox::read`] may ask for.
pub const READ_MAX: ByteLen = ByteLen::new(1 << 20);
/// Reads that may wait for memory.
const MAX_WAITING: usize = 64;
/// The key of requests the shard makes for itself.
pub(super) const OWN: u32 = u32::MAX;

pub(super) type ReadAnswer = oneshot::Sender<io::Result<Vec<u8>>>;

/// A request of the shard's own that was not answered yet.
pub(super) enum Own {
    /// A commit of metadata that has been dirty for long.
    Age,
    /// The commit of a disk that goes.
    Last,
    Told(oneshot::Sender<io::Result<()>>),
    Read(Lease, ReadAnswer),
}

/// A read that waits for memory.
struct Waiting {
    disk: usize,
    extent: Extent,
    answer: ReadAnswer,
}

/// The shard's own requests.
#[derive(Default)]
pub(super) struct OwnRequests {
    under_way: Slab<Own>,
    waiting: VecDeque<Waiting>,
}

pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the disk is gone, or about to go")
}

impl Shard {
    /// The place of a disk that is there to stay.
    pub(super) fn lasting(&self, tag: DiskTag) -> Option<usize> {
        if !self.is_serving() {
            return None;
        }
        self.disks.place_of(tag).filter(|place| self.disks[*place].detach().is_none())
    }

    pub(super) fn read(&mut self, tag: DiskTag, extent: Extent, answer: ReadAnswer) {
        // Who asked may have gone; then nobody minds what is told here.
        let Some(disk) = self.lasting(tag) else {
            let _ = answer.send(Err(gone()));
            return;
        };
        let size = self.disks[disk].disk.size().get();
        let end = extent.at.get().checked_add(extent.len.get());
        if extent.len > READ_MAX || end.is_none_or(|end| end > size) {
            let why = format!(
                "{} bytes at {} are not within the disk's {size}, or more than {READ_MAX}",
                extent.len, extent.at
            );
            let _ = answer.send(Err(io::Error::new(io::ErrorKind::InvalidInput, why)));
        } else if extent.len.is_zero() {
            let _ = answer.send(Ok(Vec::new()));
        } else if self.own.waiting.len() >= MAX_WAITING {
            let _ = answer.send(Err(io::Error::other("too many reads wait for memory")));
        } else {
            self.own.waiting.push_back(Waiting { disk, extent, answer });
            self.start_reads();
        }
    }

    /// Whether reads wait for memory.
    pub(super) fn reads_wait(&self) -> bool {
        !self.own.waiting.is_empty()
    }

    /// Starts the reads there is memory for, in their order. True when there was one.
    pub(super) fn start_reads(&mut self) -> bool {
        let mut started = false;
        while let Some(first) = self.own.waiting.front() {
            let Some(lease) = self.arena.take(first.extent.len.get() as u32) else { break };
            let Some(first) = self.own.waiting.pop_front() else { break };
            let into = lease.span();
            let request = Request::Read { extent: first.extent, into };
            self.submit_own(first.disk, Own::Read(lease, first.answer), request);
            started = true;
        }
        started
    }

    /// Gives up the reads of a disk that have no memory yet.
    pub(super) fn forget_reads(&mut self, disk: usize) {
        let waiting = std::mem::take(&mut self.own.waiting);
        let (lost, kept): (VecDeque<_>, _) = waiting.into_iter().partition(|it| it.disk == disk);
        self.own.waiting = kept;
        for read in lost {
            let _ = read.answer.send(Err(gone()));
        }
    }

    pub(super) fn flush(&mut self, tag: DiskTag, answer: oneshot::Sender<io::Result<()>>) {
        match self.lasting(tag) {
            Some(disk) => self.submit_own(disk, Own::Told(answer), Request::Flush),
            None => drop(answer.send(Err(gone()))),
        }
    }

    /// Starts the commit after which a disk may go.
    pub(super) fn commit_last(&mut self, disk: usize) {
        let seat = self.disks.touch(disk);
        if seat.disk.is_guest() {
            // Its owner has what is to be made durable.
            seat.last = Last::Over(Ok(()));
            return;
        }
        seat.last = Last::UnderWay;
        self.submit_own(disk, Own::Last, Request::Flush);
    }

    pub(super) fn submit_own(&mut self, disk: usize, own: Own, request: Request) {
        let slot = self.own.under_way.insert(own);
        let seat = self.disks.touch(disk);
        seat.own += 1;
        seat.disk.submit(RequestId(u64::from(OWN) << 32 | slot as u64), request);
    }

    /// Takes a disk's answer to a request of the shard's own.
    pub(super) fn own_answered(&mut self, disk: usize, slot: u32, result: Result<Answer, Fault>) {
        let own = self.own.under_way.remove(slot as usize);
        let seat = self.disks.touch(disk);
        seat.own -= 1;
        if let Err(fault) = &result {
            tracing::warn!(%fault, "a request of the shard itself failed");
        }
        match own {
            Own::Age => {
                seat.committing = false;
                seat.commit_failed = result.is_err();
            }
            Own::Last => {
                seat.last = Last::Over(result.map(drop).map_err(|fault| fault.to_string()));
            }
            Own::Told(answer) => drop(answer.send(result.map(drop).map_err(as_system_error))),
            Own::Read(lease, answer) => {
                let bytes = result.map(|told| self.bytes_of(&lease, &told));
                self.arena.give(lease);
                self.freed = true;
                let _ = answer.send(bytes.map_err(as_system_error));
            }
        }
    }

    /// The bytes of a read, holes filled with zeroes.
    fn bytes_of(&self, lease: &Lease, told: &Answer) -> Vec<u8> {
        let Answer::Segments(segments) = told else {
            return self.arena.bytes(lease.span()).to_vec();
        };
        let mut bytes = Vec::with_capacity(lease.len() as usize);
        for segment in segments {
            match segment {
                Segment::Data(span) => bytes.extend_from_slice(self.arena.bytes(*span)),
                Segment::Hole(len) => bytes.resize(bytes.len() + len.get() as usize, 0),
            }
        }
        bytes
    }

    /// Commits metadata that has been dirty for long, or that nobody is left to ask for.
    pub(super) fn age(&mut self) {
        for disk in self.disks.fall_due(self.now, self.is_serving()) {
            self.submit_own(disk, Own::Age, Request::Flush);
        }
        if self.disks.are_stirred() {
            self.pump();
        }
    }
}

/// A fault in the system's kind, for whoever answers with errnos.
fn as_system_error(fault: Fault) -> io::Error {
    let kind = match &fault.kind {
        FaultKind::Io(error) if error.is_space() => io::ErrorKind::StorageFull,
        FaultKind::NoSpace(_) => io::ErrorKind::StorageFull,
        FaultKind::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
        FaultKind::Unsupported(_) => io::ErrorKind::Unsupported,
        FaultKind::Io(_) | FaultKind::Corrupt(_) | FaultKind::Stopped(_) => io::ErrorKind::Other,
    };
    io::Error::new(kind, fault)
}
