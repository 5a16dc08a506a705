//! The ring host's watched descriptors: one poll at a time for each, asked for again by whoever
//! has read all there was.
//!
//! Refuses to read: a poll names no memory, and what is there to read is its owner's business.
#![deny(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::opcode;
use nix::libc::POLLIN;
use rustix::io::Errno;

use super::{Operation, Poll, Uring};
use crate::host::event::{Event, PollId};
use crate::host::{MAX_POLLS, MAX_SOCKETS};

const _: () = assert!(MAX_POLLS <= MAX_SOCKETS);

impl Uring {
    pub(in crate::host) fn add_poll(&mut self, fd: OwnedFd) -> io::Result<PollId> {
        if self.polls.len() >= MAX_POLLS {
            return Err(Errno::MFILE.into());
        }
        let slot = self.take_slot(fd.as_raw_fd())?;
        let poll = Poll { _fd: fd, slot, waiting: None, closing: false };
        Ok(PollId(self.polls.insert(poll)))
    }

    pub(in crate::host) fn arm_poll(&mut self, poll: PollId) {
        let Some(state) = self.polls.of(poll.0).filter(|s| s.waiting.is_none() && !s.closing)
        else {
            return;
        };
        let entry = opcode::PollAdd::new(state.slot, POLLIN as u32).build();
        let index = self.operations.insert(Operation::Poll { poll: poll.0 });
        if let Some(state) = self.polls.of_mut(poll.0) {
            state.waiting = Some(index);
        }
        self.polling += 1;
        self.push(entry, index);
    }

    pub(in crate::host) fn remove_poll(&mut self, poll: PollId) {
        let Some(state) = self.polls.of_mut(poll.0) else { return };
        state.closing = true;
        match state.waiting {
            Some(operation) => self.cancel(operation),
            None => self.forget_poll(poll.0),
        }
    }

    /// Readable or broken, which a read will tell apart; or cancelled.
    pub(super) fn polled(&mut self, index: u32) {
        let Some(Operation::Poll { poll }) = self.operations.remove(index) else { return };
        self.polling -= 1;
        let Some(state) = self.polls.of_mut(poll) else { return };
        state.waiting = None;
        if state.closing {
            self.forget_poll(poll);
        } else {
            self.ready.push(Event::Readable { poll: PollId(poll) });
        }
    }

    fn forget_poll(&mut self, poll: u32) {
        if let Some(state) = self.polls.remove(poll) {
            self.give_slot(state.slot);
        }
    }
}
