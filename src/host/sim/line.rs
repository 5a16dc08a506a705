//! A connection in memory, as a kernel would keep it: what has arrived, what has been taken off,
//! and how each side has left. It moves bytes only in the steps its owner asks for.
//!
//! Refuses to know what the bytes mean.

use std::collections::VecDeque;
use std::sync::Arc;

use super::rng::Rng;
use crate::engine::effect::IoError;
use crate::engine::units::ByteLen;
use crate::host::memory::Memory;
use crate::host::{Event, HangUp, ReceiveInto, SendList, SocketId};

/// What a receive in flight leaves in its memory when its socket is closed: the kernel may write
/// until it said that it let go.
const LATE: u8 = 0x5A;
/// Connection broken by the peer.
const EPIPE: IoError = IoError(32);
const ECONNRESET: IoError = IoError(104);
/// Slices of a list shown at once.
const SLICES: usize = 64;

/// How the peer has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// It has not.
    #[default]
    No,
    /// It said that nothing more will come, and still listens.
    Half,
    /// It closed: what it sent can still be read, what is sent to it fails.
    Closed,
    /// It reset the connection: what was not read yet is lost.
    Reset,
}

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Line {
    inbound: VecDeque<u8>,
    outbound: Vec<u8>,
    /// Bytes the peer has room for.
    room: u64,
    leave: Leave,
    receive: Option<(ReceiveInto, usize)>,
    send: Option<(SendList, u64)>,
    closing: bool,
    /// It was given to a shard.
    pub(super) joined: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { room: u64::MAX, ..Self::default() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.inbound.extend(bytes);
    }

    pub(super) fn drain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbound)
    }

    pub(super) fn set_room(&mut self, bytes: u64) {
        self.room = bytes;
    }

    pub(super) fn leave(&mut self, how: Leave) {
        self.leave = how;
        if how == Leave::Reset {
            self.inbound.clear();
        }
    }

    pub(super) fn unread(&self) -> usize {
        self.inbound.len()
    }

    pub(super) fn hang_up(&self) -> HangUp {
        match self.leave {
            Leave::No => HangUp::No,
            Leave::Half => HangUp::Half,
            Leave::Closed | Leave::Reset => HangUp::Whole,
        }
    }

    pub(super) fn receive(&mut self, into: ReceiveInto) {
        assert!(self.receive.is_none(), "one receive at a time");
        if let ReceiveInto::Buffer { bytes, filled } = &into {
            assert!(bytes.len() > *filled, "a receive needs room");
        }
        self.receive = Some((into, 0));
    }

    pub(super) fn send(&mut self, list: SendList) {
        assert!(self.send.is_none(), "one send at a time");
        assert!(!list.is_empty(), "a send carries something");
        self.send = Some((list, 0));
    }

    pub(super) fn close(&mut self) {
        assert!(!self.closing, "a socket is closed once");
        self.closing = true;
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Operations whose events have not come.
    pub(super) fn in_flight(&self) -> usize {
        usize::from(self.receive.is_some()) + usize::from(self.send.is_some())
    }

    pub(super) fn can_receive(&self) -> bool {
        let told = !self.inbound.is_empty() || self.leave != Leave::No;
        !self.closing && self.receive.is_some() && told
    }

    pub(super) fn can_send(&self) -> bool {
        let moves = self.room > 0 || matches!(self.leave, Leave::Closed | Leave::Reset);
        !self.closing && self.send.is_some() && moves
    }

    /// Lets go of all memory, at the last moment that is allowed.
    pub(super) fn let_go(&mut self, memory: &Arc<Memory>) {
        if let Some((ReceiveInto::Span(span), _)) = self.receive.take() {
            memory.lend(span).bytes_mut().fill(LATE);
        }
        if let Some((list, _)) = self.send.take() {
            // Reads what it names, as a kernel may until now.
            list.slices(memory, ByteLen::ZERO, usize::MAX, &mut |_| {});
        }
    }

    /// Moves some of what has arrived; tells when the receive is over.
    pub(super) fn step_receive(
        &mut self,
        socket: SocketId,
        memory: &Arc<Memory>,
        rng: &mut Rng,
    ) -> Option<Event> {
        let (mut into, got) = self.receive.take()?;
        if self.inbound.is_empty() {
            let result = match self.leave {
                Leave::No => {
                    self.receive = Some((into, got));
                    return None;
                }
                Leave::Half | Leave::Closed => Ok(0),
                Leave::Reset => Err(ECONNRESET),
            };
            return Some(Event::Received { socket, into, result });
        }
        match &mut into {
            ReceiveInto::Buffer { bytes, filled } => {
                let count = some(rng, self.inbound.len().min(bytes.len() - *filled));
                let place = &mut bytes[*filled..*filled + count];
                place.iter_mut().zip(self.inbound.drain(..count)).for_each(|(to, byte)| *to = byte);
                *filled += count;
                Some(Event::Received { socket, into, result: Ok(count as u32) })
            }
            ReceiveInto::Span(span) => {
                let span = *span;
                let count = some(rng, self.inbound.len().min(span.len as usize - got));
                let mut loan = memory.lend(span);
                let place = &mut loan.bytes_mut()[got..got + count];
                place.iter_mut().zip(self.inbound.drain(..count)).for_each(|(to, byte)| *to = byte);
                if got + count == span.len as usize {
                    return Some(Event::Received { socket, into, result: Ok(span.len) });
                }
                self.receive = Some((into, got + count));
                None
            }
        }
    }

    /// Moves some of what is to be sent; tells when the send is over.
    pub(super) fn step_send(
        &mut self,
        socket: SocketId,
        memory: &Arc<Memory>,
        rng: &mut Rng,
    ) -> Option<Event> {
        let (list, done) = self.send.take()?;
        if matches!(self.leave, Leave::Closed | Leave::Reset) {
            return Some(Event::Sent { socket, list, result: Err(EPIPE) });
        }
        let left = list.total().get() - done;
        let most = usize::try_from(left.min(self.room)).unwrap_or(usize::MAX);
        if most == 0 {
            self.send = Some((list, done));
            return None;
        }
        let mut wanted = some(rng, most);
        let mut moved = 0;
        list.slices(memory, ByteLen::new(done), SLICES, &mut |bytes| {
            let count = bytes.len().min(wanted);
            self.outbound.extend_from_slice(&bytes[..count]);
            wanted -= count;
            moved += count as u64;
        });
        self.room -= if self.room == u64::MAX { 0 } else { moved };
        if done + moved == list.total().get() {
            return Some(Event::Sent { socket, list, result: Ok(()) });
        }
        self.send = Some((list, done + moved));
        None
    }
}

/// Everything, one byte, or something between.
fn some(rng: &mut Rng, most: usize) -> usize {
    match rng.below(8) {
        0 => 1,
        1 | 2 => 1 + rng.below(most),
        _ => most,
    }
}
