//! Inlets of the ring host: connections whose requests come as completions of commands (FUSE over
//! io_uring). Each entry is a place for one request: the kernel fills it, its asker is answered out
//! of it, and the same command that takes the answer waits for the next request.
//!
//! Refuses to know what a request means. I6 here: an entry's block and payload belong to the kernel
//! from a submission to its completion, then to whoever has the [`Asked`] of it, then to the kernel
//! again. The block is touched by this module only.
#![deny(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fixed;
use nix::libc::iovec;
use rustix::io::Errno;

use super::command::{self, BLOCK_BYTES, QueueNo, Request};
use super::{Operation, Uring};
use crate::engine::effect::IoError;
use crate::engine::units::Span;
use crate::host::event::Event;
use crate::host::inlet::{Asked, EntryPlace, InletId, InletState};
use crate::host::memory::Loan;

/// Inlets of a host at most.
const MAX_INLETS: usize = 16;

/// A connection.
pub(super) struct Inlet {
    /// Kept open for as long as a command may name it.
    _fuse: OwnedFd,
    slot: Fixed,
    entries: Vec<Entry>,
    /// Where the kernel finds the memory of each, as it takes the registrations.
    _iovecs: Vec<[iovec; 2]>,
    /// Entries with requests nobody has looked at.
    asked: VecDeque<u32>,
    in_kernel: usize,
    /// Entries with requests that are not answered.
    unanswered: usize,
    over: bool,
    failed: Option<IoError>,
    /// An event says that there is something to look at.
    told: bool,
    closing: bool,
}

struct Entry {
    queue: QueueNo,
    block: Loan,
    payload: Span,
    state: State,
}

enum State {
    /// The kernel has it: it waits for a request, or hands one over.
    Kernel,
    /// Its request is to be answered.
    Asked(Request),
    /// The kernel has given it up.
    Over,
}

impl Uring {
    pub(in crate::host) fn add_inlet(
        &mut self,
        fuse: OwnedFd,
        places: &[EntryPlace],
    ) -> io::Result<InletId> {
        if !self.ring.takes_commands() {
            return Err(io::Error::other("the ring of this shard has no room for commands"));
        }
        if self.inlets.len() >= MAX_INLETS {
            return Err(Errno::MFILE.into());
        }
        let slot = self.take_slot(fuse.as_raw_fd())?;
        let iovecs: Vec<_> = places.iter().map(|place| self.iovecs_of(place)).collect();
        let entries = places.iter().map(|place| Entry {
            queue: QueueNo(place.queue),
            block: self.memory.lend(place.block),
            payload: place.payload,
            state: State::Kernel,
        });
        let entries: Vec<Entry> = entries.collect();
        let registrations: Vec<_> = (entries.iter().zip(&iovecs))
            .map(|(entry, iovecs)| (entry.queue, iovecs.as_ptr() as u64))
            .collect();
        let inlet = self.inlets.insert(Inlet {
            _fuse: fuse,
            slot,
            in_kernel: entries.len(),
            entries,
            _iovecs: iovecs,
            asked: VecDeque::new(),
            unanswered: 0,
            over: false,
            failed: None,
            told: false,
            closing: false,
        });
        for (entry, (queue, iovecs)) in (0_u32..).zip(registrations) {
            let index = self.operations.insert(Operation::Command { inlet, entry });
            self.polling += 1;
            self.push_command(&command::register(slot.0, queue, iovecs, u64::from(index)));
        }
        // A refusal is seen at once: the kernel decides as it takes each.
        self.submit_all()?;
        self.reap();
        Ok(InletId(inlet))
    }

    fn iovecs_of(&self, place: &EntryPlace) -> [iovec; 2] {
        let of = |span: Span| iovec {
            iov_base: self.memory.pointer(span).cast(),
            iov_len: span.len as usize,
        };
        [of(Span { len: BLOCK_BYTES as u32, ..place.block }), of(place.payload)]
    }

    pub(in crate::host) fn next_asked(&mut self, inlet: InletId) -> Option<Asked> {
        let state = self.inlets.of_mut(inlet.0)?;
        let Some(index) = state.asked.pop_front() else {
            state.told = false;
            return None;
        };
        let entry = &state.entries[index as usize];
        let State::Asked(request) = &entry.state else { return None };
        Some(Asked { inlet, index, payload: entry.payload, brought: request.payload_len as u32 })
    }

    pub(in crate::host) fn block_of(&self, asked: &Asked) -> &[u8] {
        let entry = self.inlets.of(asked.inlet.0).and_then(|i| i.entries.get(asked.index as usize));
        entry.map_or(&[], |entry| entry.block.bytes())
    }

    pub(in crate::host) fn answer(&mut self, asked: Asked, errno: i32, payload_bytes: u32) {
        let Asked { inlet, index, .. } = asked;
        let Some(state) = self.inlets.of_mut(inlet.0) else { return };
        let Some(entry) = state.entries.get_mut(index as usize) else { return };
        let State::Asked(request) = entry.state else { return };
        state.unanswered -= 1;
        if state.over || state.failed.is_some() {
            entry.state = State::Over;
            return self.tell_inlet(inlet.0);
        }
        command::answer(entry.block.bytes_mut(), request, errno, payload_bytes);
        entry.state = State::Kernel;
        state.in_kernel += 1;
        let (slot, queue) = (state.slot.0, entry.queue);
        let name = self.operations.insert(Operation::Command { inlet: inlet.0, entry: index });
        self.polling += 1;
        self.push_command(&command::commit(slot, queue, request.commit_id, u64::from(name)));
    }

    pub(in crate::host) fn inlet_state(&self, inlet: InletId) -> InletState {
        self.inlets.of(inlet.0).map_or_else(InletState::default, |inlet| InletState {
            is_over: inlet.over,
            failed: inlet.failed,
            in_kernel: inlet.in_kernel,
            unanswered: inlet.unanswered,
            unseen: inlet.asked.len(),
        })
    }

    pub(in crate::host) fn remove_inlet(&mut self, inlet: InletId) {
        let Some(state) = self.inlets.of_mut(inlet.0) else { return };
        state.closing = true;
        self.forget_inlet(inlet.0);
    }

    /// Lets one go that is closing and of which the kernel has nothing.
    fn forget_inlet(&mut self, inlet: u32) {
        let idle = |inlet: &&Inlet| inlet.closing && inlet.in_kernel == 0;
        if self.inlets.of(inlet).filter(idle).is_some()
            && let Some(state) = self.inlets.remove(inlet)
        {
            self.give_slot(state.slot);
        }
    }

    /// A command is over: it brings a request, or an entry home.
    pub(super) fn commanded(&mut self, index: u32, result: Result<usize, IoError>) {
        let Some(Operation::Command { inlet, entry }) = self.operations.remove(index) else {
            return;
        };
        self.polling -= 1;
        let Some(state) = self.inlets.of_mut(inlet) else { return };
        state.in_kernel -= 1;
        let Some(place) = state.entries.get_mut(entry as usize) else { return };
        place.state = State::Over;
        match result {
            Ok(_) => match command::request(place.block.bytes()) {
                Some(request) if request.payload_len <= place.payload.len as usize => {
                    place.state = State::Asked(request);
                    state.unanswered += 1;
                    state.asked.push_back(entry);
                }
                _ => state.failed = state.failed.or(Some(IoError(Errno::BADMSG.raw_os_error()))),
            },
            Err(error) => {
                let ended = [Errno::NOTCONN, Errno::CONNABORTED, Errno::NODEV];
                if ended.iter().any(|errno| errno.raw_os_error() == error.0) {
                    state.over = true;
                } else {
                    state.failed = state.failed.or(Some(error));
                }
            }
        }
        self.tell_inlet(inlet);
        self.forget_inlet(inlet);
    }

    fn tell_inlet(&mut self, inlet: u32) {
        if let Some(state) = self.inlets.of_mut(inlet)
            && !state.closing
            && !std::mem::replace(&mut state.told, true)
        {
            self.ready.push(Event::Asked { inlet: InletId(inlet) });
        }
    }

    /// Commands the kernel has. Nothing cancels them but the end of their connections.
    pub(super) fn commands(&self) -> usize {
        self.inlets.numbers().filter_map(|n| self.inlets.of(n)).map(|i| i.in_kernel).sum()
    }
}
