//! The ring host's sockets: receives, sends, and how they end.
//!
//! Refuses to touch memory: it tells addresses to the kernel and owns them by operations, as all
//! of the ring host does.
#![deny(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, squeue};
use nix::libc::{MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL};
use rustix::io::Errno;
use rustix::net::AddressFamily;

use super::{Message, Operation, Socket, TRANSFER_MAX, Takes, Uring, slice_of};
use crate::engine::effect::IoError;
use crate::engine::units::ByteLen;
use crate::host::blocking::SLICES_MAX;
use crate::host::event::{Event, HangUp, ReceiveInto, SendList, SocketId};
use crate::host::{MAX_SOCKETS, hang_up_of};

/// Asks for all of a payload at once, where that can be had. A vsock whose buffer is smaller than
/// what is asked for answers ENOMEM instead of waiting, so there it comes in pieces.
fn whole_flag(fd: &OwnedFd) -> i32 {
    match rustix::net::sockopt::socket_domain(fd) {
        Ok(AddressFamily::VSOCK) => 0,
        _ => MSG_WAITALL,
    }
}

impl Uring {
    pub(in crate::host) fn add_socket(&mut self, fd: OwnedFd) -> io::Result<SocketId> {
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(Errno::MFILE.into());
        }
        let slot = self.take_slot(fd.as_raw_fd())?;
        let (receiving, sending, message) = (None, None, None);
        let whole = whole_flag(&fd);
        let (closing, takes) = (false, Takes::AtOnce);
        let waits_not = false;
        let socket =
            Socket { fd, slot, receiving, sending, closing, message, whole, takes, waits_not };
        Ok(SocketId(self.sockets.insert(socket)))
    }

    pub(in crate::host) fn hang_up(&self, socket: SocketId) -> HangUp {
        self.sockets.of(socket.0).map_or(HangUp::Whole, |state| hang_up_of(&state.fd))
    }

    pub(in crate::host) fn close_socket(&mut self, socket: SocketId) {
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        if std::mem::replace(&mut state.closing, true) {
            return;
        }
        // Tells the peer now, and ends the waiting of whatever the cancel comes too late for.
        let _not_connected = rustix::net::shutdown(&state.fd, rustix::net::Shutdown::Both);
        let in_flight = [state.receiving, state.sending];
        for operation in in_flight.into_iter().flatten() {
            self.cancel(operation);
        }
        self.close_when_idle(socket);
    }

    /// Closes a closing socket once nothing of it is in flight.
    fn close_when_idle(&mut self, socket: SocketId) {
        let Some(state) = self.sockets.of(socket.0) else { return };
        if !state.closing || state.receiving.is_some() || state.sending.is_some() {
            return;
        }
        if let Some(state) = self.sockets.retire(socket.0) {
            self.give_slot(state.slot);
            self.ready.push(Event::Closed { socket });
        }
    }

    pub(in crate::host) fn receive(&mut self, socket: SocketId, into: ReceiveInto) {
        self.counters.transfers += 1;
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        if state.closing {
            return;
        }
        assert!(state.receiving.is_none(), "two receives on {socket:?}");
        let operation = Operation::Receive { socket: socket.0, into, received: 0 };
        let index = self.operations.insert(operation);
        state.receiving = Some(index);
        self.issue_receive(index);
    }

    fn issue_receive(&mut self, index: u32) {
        let Some(Operation::Receive { socket, into, received }) = self.operations.of_mut(index)
        else {
            return;
        };
        let Some(state) = self.sockets.of(*socket) else { return };
        let (bytes, len, flags) = match into {
            ReceiveInto::Buffer { bytes, filled } => {
                let room = &mut bytes[*filled..];
                (room.as_mut_ptr(), room.len().min(TRANSFER_MAX) as u32, 0)
            }
            ReceiveInto::Span(span) => {
                let start = self.memory.pointer(*span);
                let left = span.len - *received;
                (start.wrapping_add(*received as usize), left, state.whole)
            }
        };
        let entry = opcode::Recv::new(state.slot, bytes, len).flags(flags).build();
        self.push(entry, index);
    }

    pub(in crate::host) fn send(&mut self, socket: SocketId, list: SendList) {
        self.counters.transfers += 1;
        if list.is_empty() {
            self.ready.push(Event::Sent { socket, list, result: Ok(()) });
            return;
        }
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        if state.closing {
            return;
        }
        assert!(state.sending.is_none(), "two sends on {socket:?}");
        let (total, stored) = (list.total(), list.has_stored());
        if stored && !state.waits_not {
            // The ring's own sends and receives do not mind. Calls that wait are none of ours.
            if let Err(error) = rustix::io::ioctl_fionbio(&state.fd, true) {
                let _gone = rustix::net::shutdown(&state.fd, rustix::net::Shutdown::Both);
                let result = Err(IoError(error.raw_os_error()));
                self.ready.push(Event::Sent { socket, list, result });
                return;
            }
            state.waits_not = true;
        }
        let message = state.message.take().unwrap_or_else(Message::new);
        let (sent, since, takes) = (ByteLen::ZERO, self.counters.enters, state.takes);
        let operation = Operation::Send { socket: socket.0, list, sent, message, since };
        let index = self.operations.insert(operation);
        state.sending = Some(index);
        if stored {
            self.send_stored(index);
            return;
        }
        let quiet = self.is_quiet(takes, total);
        if quiet {
            self.quiet.push(index);
        }
        self.issue_send(index, quiet);
    }

    fn issue_send(&mut self, index: u32, quiet: bool) {
        let Some(Operation::Send { socket, list, sent, message, .. }) =
            self.operations.of_mut(index)
        else {
            return;
        };
        let Some(state) = self.sockets.of(*socket) else { return };
        let slices = &mut message.slices;
        slices.clear();
        list.slices(&self.memory, *sent, SLICES_MAX, &mut |bytes| slices.push(slice_of(bytes)));
        message.header.msg_iov = slices.as_mut_ptr();
        message.header.msg_iovlen = slices.len() as _;
        let flags = MSG_NOSIGNAL | MSG_WAITALL | if quiet { MSG_DONTWAIT } else { 0 };
        let entry = opcode::SendMsg::new(state.slot, &raw const message.header);
        let entry = entry.flags(flags as u32).build();
        // What is not to wait is over, well or badly, when it is submitted.
        let skip = if quiet { squeue::Flags::SKIP_SUCCESS } else { squeue::Flags::empty() };
        self.push(entry.flags(skip), index);
    }

    pub(super) fn received(&mut self, index: u32, result: Result<usize, IoError>) {
        let Some(Operation::Receive { socket, into, received }) = self.operations.of_mut(index)
        else {
            return;
        };
        let id = SocketId(*socket);
        let closing = self.sockets.of(id.0).is_none_or(|state| state.closing);
        let again = match (&mut *into, result) {
            (ReceiveInto::Buffer { filled, .. }, Ok(got)) => {
                *filled += got;
                false
            }
            (ReceiveInto::Span(span), Ok(got)) => {
                *received += got as u32;
                got > 0 && *received < span.len
            }
            (_, Err(error)) => is_passing(error),
        };
        if again && !closing {
            self.issue_receive(index);
            return;
        }
        let Some(Operation::Receive { into, received, .. }) = self.operations.remove(index) else {
            return;
        };
        if let Some(state) = self.sockets.of_mut(id.0) {
            state.receiving = None;
        }
        if closing {
            self.close_when_idle(id);
            return;
        }
        let result = result.map(|got| match &into {
            ReceiveInto::Buffer { .. } => got as u32,
            ReceiveInto::Span(span) if received == span.len => received,
            ReceiveInto::Span(_) => 0,
        });
        self.ready.push(Event::Received { socket: id, into, result });
    }

    pub(super) fn sent(&mut self, index: u32, result: Result<usize, IoError>) {
        self.quiet.retain(|quiet| *quiet != index);
        let now = self.counters.enters;
        let Some(Operation::Send { socket, list, sent, since, .. }) = self.operations.of_mut(index)
        else {
            return;
        };
        let takes = if now <= *since + 1 { Takes::AtOnce } else { Takes::Later };
        *since = now;
        let id = SocketId(*socket);
        let closing = self.sockets.of(id.0).is_none_or(|state| state.closing);
        if list.has_stored() {
            // There is room, or the socket is being closed.
            match result {
                _ if closing => {
                    let gone = IoError(Errno::CANCELED.raw_os_error());
                    self.send_is_over(index, Err(gone));
                }
                Err(error) if !is_passing(error) => self.send_is_over(index, Err(error)),
                _ => self.send_stored(index),
            }
            return;
        }
        let again = match result {
            Ok(now) => {
                *sent += ByteLen::new(now as u64);
                now > 0 && *sent < list.total()
            }
            Err(error) => is_passing(error),
        };
        let complete = *sent == list.total();
        if again && !closing {
            self.issue_send(index, false);
            return;
        }
        let result = match result {
            Ok(_) if complete => Ok(()),
            Ok(_) => Err(IoError::EIO),
            Err(error) => Err(error),
        };
        if let Some(state) = self.sockets.of_mut(id.0) {
            state.takes = takes;
        }
        self.send_is_over(index, result);
    }

    /// Gives a list back.
    pub(super) fn send_is_over(&mut self, index: u32, result: Result<(), IoError>) {
        let Some(Operation::Send { socket, list, message, .. }) = self.operations.remove(index)
        else {
            return;
        };
        let socket = SocketId(socket);
        let Some(state) = self.sockets.of_mut(socket.0) else { return };
        state.sending = None;
        state.message = Some(message);
        if state.closing {
            self.close_when_idle(socket);
            return;
        }
        self.ready.push(Event::Sent { socket, list, result });
    }
}

/// Whether a transfer is simply tried again.
fn is_passing(error: IoError) -> bool {
    [Errno::INTR, Errno::AGAIN].iter().any(|errno| errno.raw_os_error() == error.0)
}
