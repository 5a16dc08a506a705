//! The bytes of one connection in the transmission phase: requests out in as few writes, replies
//! in by as few reads as the server allows.
//!
//! Never waits to send while replies could be taken: a server whose own socket is full reads
//! nothing, and both would wait for ever. Knows no frames.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::client::{PATIENCE, Socket};

/// Bytes of replies taken by one read. Fits a core's second-level cache with what it is made of.
const INPUT_BYTES: usize = 256 << 10;

/// A missing rest of read data above this is waited for in one call rather than piece by piece.
const WHOLE_REST_BYTES: usize = 32 << 10;

/// The two directions of one connection.
#[derive(Debug)]
pub(super) struct Pipe<'a> {
    socket: &'a Socket,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    filled: usize,
}

impl<'a> Pipe<'a> {
    /// Empty in both directions.
    pub(super) fn new(socket: &'a Socket) -> Pipe<'a> {
        Pipe { socket, out: Vec::new(), sent: 0, input: vec![0; INPUT_BYTES], filled: 0 }
    }

    /// Bytes queued and not yet taken by the kernel.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Queues bytes.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Queues `len` bytes for the caller to fill in.
    pub(super) fn queue_room(&mut self, len: usize) -> &mut [u8] {
        let start = self.out.len();
        self.out.resize(start + len, 0);
        &mut self.out[start..]
    }

    /// Hands the kernel what it takes without waiting.
    pub(super) fn push(&mut self) -> io::Result<()> {
        while self.unsent() > 0 {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(self.socket, &self.out[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Waits until replies come or, if bytes are unsent, until more can be sent; says whether the
    /// server still keeps its end open. `rest` is how much of the current reply is missing.
    ///
    /// # Errors
    /// A failing socket, and a server that does nothing for too long.
    pub(super) fn wait(&mut self, rest: usize) -> io::Result<bool> {
        if self.unsent() == 0 {
            return self.receive(rest);
        }
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN | PollFlags::OUT)];
        match poll(&mut fds, Some(&timespec(PATIENCE))) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let ready = fds[0].revents();
        if ready.contains(PollFlags::OUT) {
            self.push()?;
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return self.receive(0);
        }
        Ok(true)
    }

    /// Takes out what was received, for parsing; [`Pipe::put_back`] must follow.
    pub(super) fn take_input(&mut self) -> (Vec<u8>, usize) {
        (std::mem::take(&mut self.input), self.filled)
    }

    /// Returns the buffer, of which the first `used` bytes are done with.
    pub(super) fn put_back(&mut self, mut input: Vec<u8>, used: usize) {
        input.copy_within(used..self.filled, 0);
        self.filled -= used;
        self.input = input;
    }

    fn receive(&mut self, rest: usize) -> io::Result<bool> {
        let room = &mut self.input[self.filled..];
        let (room, flags) = if rest >= WHOLE_REST_BYTES {
            let len = rest.min(room.len());
            (&mut room[..len], RecvFlags::WAITALL)
        } else {
            (room, RecvFlags::empty())
        };
        match recv(self.socket.as_fd(), room, flags) {
            Ok((_, 0)) => Ok(false),
            Ok((_, count)) => {
                self.filled += count;
                Ok(true)
            }
            Err(Errno::INTR) => Ok(true),
            // The socket has a time limit, which shows as this.
            Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Our own constant, far below what fits.
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}
