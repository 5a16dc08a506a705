//! Reads that are not done: bytes that lie in the page cache are sent from there, which spares two
//! copies of them. For large pieces: a small one costs more in calls than its copies.
//!
//! Refuses to wait for a device: only what the page cache holds in full is lent. Should it be gone
//! by the time it is sent, it is read then.
#![deny(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;

use io_uring::opcode;
use nix::libc::POLLOUT;
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::{Operation, TaskName, Uring};
use crate::engine::effect::{Effect, IoError, Outcome};
use crate::engine::units::ByteLen;
use crate::host::blocking::SLICES_MAX;
use crate::host::files::OpenFile;
use crate::host::residency;

/// The least that is lent.
const LENT_MIN: ByteLen = ByteLen::new(8 << 10);

impl Uring {
    /// Lends what a read asks for, if it may and can; its event is there then.
    pub(in crate::host) fn lend(&mut self, tag: u32, effect: &Effect) -> bool {
        let Effect::Read { id, file, at, into, may_lend: true } = effect else { return false };
        if into.len() < LENT_MIN {
            return false;
        }
        let at_hand = |file: &OpenFile| is_at_hand(file, at.get(), into.len().get());
        if !self.files.file(*file).is_some_and(|file| at_hand(file)) {
            return false;
        }
        self.counters.effects += 1;
        self.counters.lent_reads += 1;
        self.tell(TaskName { tag, id: *id, file: *file }, Outcome::Lent);
        true
    }

    /// Sends as much of a list with parts of files as the socket has room for, and is called again
    /// when there is room for more.
    pub(super) fn send_stored(&mut self, index: u32) {
        loop {
            match self.send_part(index) {
                Some(Ok(true)) | Some(Err(Errno::INTR)) => {}
                Some(Ok(false)) => return self.send_is_over(index, Ok(())),
                Some(Err(Errno::AGAIN)) => return self.await_room(index),
                Some(Err(error)) => return self.give_up_sending(index, error),
                None => return,
            }
        }
    }

    /// Ends a connection whose answer has begun and cannot go on: its peer would wait for the rest
    /// for ever.
    fn give_up_sending(&mut self, index: u32, error: Errno) {
        if let Some(Operation::Send { socket, .. }) = self.operations.of(index)
            && let Some(state) = self.sockets.of(*socket)
        {
            let _gone = rustix::net::shutdown(&state.fd, rustix::net::Shutdown::Both);
        }
        self.send_is_over(index, Err(IoError(error.raw_os_error())));
    }

    /// Sends one part; false if nothing is left.
    fn send_part(&mut self, index: u32) -> Option<Result<bool, Errno>> {
        let Some(Operation::Send { socket, list, sent, .. }) = self.operations.of_mut(index) else {
            return None;
        };
        let socket = self.sockets.of(*socket)?.fd.as_fd();
        if *sent >= list.total() {
            return Some(Ok(false));
        }
        let moved = if let Some(stored) = list.stored_at(*sent) {
            let Some(file) = self.files.file(stored.file) else { return Some(Err(Errno::BADF)) };
            let (mut at, len) = (stored.at.get(), stored.len.get() as usize);
            let moved = rustix::fs::sendfile(socket, file.fd(), Some(&mut at), len);
            match moved {
                // The file ends here: it was cut while it was open.
                Ok(0) => Err(spoilt(file, Errno::IO)),
                Err(Errno::AGAIN | Errno::INTR | Errno::PIPE | Errno::CONNRESET) => moved,
                Err(error) => Err(spoilt(file, error)),
                moved => moved,
            }
        } else {
            let mut slices = Vec::new();
            let see = &mut |bytes| slices.push(IoSlice::new(bytes));
            list.slices(&self.memory, *sent, SLICES_MAX, see);
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg(socket, &slices, &mut nothing, flags)
        };
        Some(moved.map(|moved| {
            *sent += ByteLen::new(moved as u64);
            true
        }))
    }

    /// Asks to be told when a socket takes more.
    fn await_room(&mut self, index: u32) {
        let Some(Operation::Send { socket, .. }) = self.operations.of(index) else { return };
        let Some(state) = self.sockets.of(*socket) else { return };
        let entry = opcode::PollAdd::new(state.slot, POLLOUT as u32).build();
        self.push(entry, index);
    }
}

/// Takes note that a file cannot be sent: what is asked next is read, and told by its error.
fn spoilt(file: &OpenFile, error: Errno) -> Errno {
    file.lends_no_more();
    tracing::warn!(%error, "a file cannot be sent; the connection is ended");
    error
}

/// Whether all of a range of a file is in the page cache and can be sent without waiting. What is
/// only on its way there is told by its ends.
fn is_at_hand(file: &OpenFile, at: u64, len: u64) -> bool {
    if !file.lends() {
        return false;
    }
    match residency::is_cached(file.fd(), at, len) {
        Ok(true) => {}
        Ok(false) => return false,
        Err(_) => {
            file.lends_no_more();
            return false;
        }
    }
    if file.inline_reads() {
        // It is memory: nothing is on its way.
        return true;
    }
    [at, at + len - 1].into_iter().all(|at| {
        let mut byte = [0];
        let into = &mut [IoSliceMut::new(&mut byte)];
        let there = rustix::io::preadv2(file.fd(), into, at, ReadWriteFlags::NOWAIT);
        if there == Err(Errno::OPNOTSUPP) {
            file.lends_no_more();
        }
        there == Ok(1)
    })
}
