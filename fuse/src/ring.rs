//! A second way to the kernel, beside `fuser`'s: rings that the program around this crate owns
//! (FUSE over io_uring). This module says what such a ring is given, answers what it reads, and
//! sees to it that a connection whose ring has gone is ended instead of hanging.
//!
//! Knows no ring itself: that needs memory shared with the kernel, which this crate may not have.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;

use crate::attach::{KIND, unmount_at};
use crate::ended::Ended;
use crate::manner::Manner;
use crate::mountinfo::{table, topmost};
use crate::ops::{Attributes, Fit, Opened, Opening, Ops, fit};
use crate::port::{Errno, ReadReply, Reply};
pub use crate::wire::Frame;
use crate::wire::{self, Ask, Small};

/// The least a request of a ring may carry, in bytes.
pub const REQUEST_BYTES_MIN: u32 = 256 << 10;
/// The most: the kernel's own ceiling.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Bytes of the header in a block, and of the operation behind it.
const BLOCK_PART_BYTES: usize = 128;

/// Something that can serve connections through rings.
pub trait RingHost: fmt::Debug + Send + Sync {
    /// How many bytes one request may carry: what each entry has room for. Taken to the nearest
    /// of [`REQUEST_BYTES_MIN`]`..=`[`REQUEST_BYTES_MAX`], and told to [`Self::start`].
    fn request_bytes(&self) -> u32;

    /// Registers with every queue of the kernel, then serves until the kernel ends the connection;
    /// reads the device as well, to which forgotten inodes and interrupts come. Returns when all
    /// is registered.
    ///
    /// # Errors
    ///
    /// Where any queue is without an entry. The connection cannot be used then: the kernel has
    /// agreed to a ring that is not there. The caller ends it.
    fn start(&self, connection: Connection) -> io::Result<()>;
}

/// What a ring serves. Dropping it ends the connection, if the kernel has not, and with it every
/// request that waits.
pub struct Connection {
    fuse: OwnedFd,
    requests: Requests,
    request_bytes: u32,
    ending: Arc<Ending>,
    ended: Arc<Ended>,
}

impl Connection {
    pub(crate) fn new(
        fuse: OwnedFd,
        requests: Requests,
        request_bytes: u32,
        ending: Arc<Ending>,
        ended: Arc<Ended>,
    ) -> Self {
        ended.expect();
        Self { fuse, requests, request_bytes, ending, ended }
    }

    /// The connection's descriptor, for the ring to send its commands to.
    #[must_use]
    pub fn fuse(&self) -> BorrowedFd<'_> {
        self.fuse.as_fd()
    }

    /// What answers the requests.
    #[must_use]
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Bytes each entry must have room for.
    #[must_use]
    pub fn request_bytes(&self) -> u32 {
        self.request_bytes
    }

    /// Ends the connection: what waits fails, and nothing more comes. For a ring that is broken.
    pub fn abort(&self) {
        // One that is over may have given its number to another mount at the same place.
        if !self.is_over() {
            self.ending.abort();
        }
    }

    /// Whether the kernel has let go of it.
    fn is_over(&self) -> bool {
        let mut asked = [PollFd::new(&self.fuse, PollFlags::IN)];
        let told = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        told.is_ok() && asked[0].revents().contains(PollFlags::ERR)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.abort();
        self.ended.tell();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("request_bytes", &self.request_bytes).finish()
    }
}

/// How a connection is ended from our side.
#[derive(Debug)]
pub(crate) struct Ending {
    /// The control file, opened while the connection certainly was ours: its number may be given
    /// to another mount, but this file never leads there.
    control: Option<File>,
    at: PathBuf,
    /// The mount's device number in the table of mounts, `major:minor`.
    device: String,
}

impl Ending {
    pub(crate) fn new(at: PathBuf, device: String) -> Self {
        let minor = device.split(':').nth(1).unwrap_or_default();
        let path = format!("/sys/fs/fuse/connections/{minor}/abort");
        // Not there where nobody has mounted the control file system.
        let control = File::options().write(true).open(path).ok();
        Self { control, at, device }
    }

    /// Never waits. Does nothing where the connection is over.
    pub(crate) fn abort(&self) {
        let told = self.control.as_ref().map(|mut control| control.write_all(b"1"));
        if !matches!(told, Some(Ok(()))) {
            let found = topmost(&table(), &self.at).filter(|mount| mount.kind == KIND);
            if found.is_some_and(|mount| mount.device == self.device) {
                let _ = unmount_at(&self.at, UnmountFlags::DETACH | UnmountFlags::FORCE);
            }
        }
    }
}

/// The answer to a write of so many bytes (`fuse_write_out`).
#[must_use]
pub fn written(count: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&count.to_ne_bytes());
    bytes
}

/// The header and the structure of the operation in an entry's block
/// (`fuse_uring_req_header`): 128 bytes each.
#[must_use]
pub fn parts(block: &[u8]) -> (&[u8], &[u8]) {
    let (head, rest) = block.split_at_checked(BLOCK_PART_BYTES).unwrap_or((block, &[]));
    (head, rest.get(..BLOCK_PART_BYTES).unwrap_or(rest))
}

/// Where the answer to one request goes. One that is dropped answers "input/output error".
pub trait Slot: Send + 'static {
    /// Answers with an error number (0: none) and, without one, these bytes.
    fn finish(self, errno: i32, bytes: &[u8]);
}

/// Answers the requests of one connection.
#[derive(Clone)]
pub struct Requests {
    ops: Arc<Ops>,
    manner: Manner,
}

impl Requests {
    pub(crate) fn new(ops: Arc<Ops>, manner: Manner) -> Self {
        Self { ops, manner }
    }

    /// Answers requests without a connection to any kernel: to measure what they cost.
    #[must_use]
    pub fn apart(ops: Arc<Ops>) -> Self {
        Self { ops, manner: Manner { uid: 0, gid: 0, passthrough: false } }
    }

    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Answers a request, now or later and then from any thread. Never waits.
    pub fn serve<S: Slot>(&self, frame: &Frame<'_>, slot: S) {
        let (inode, ask) = frame.parse();
        let (ops, manner) = (&self.ops, self.manner);
        match ask {
            Ask::Read { handle, at, len } => {
                let answer = move |result: Result<&[u8], Errno>| match result {
                    Ok(bytes) => slot.finish(0, bytes),
                    Err(errno) => slot.finish(errno.number(), &[]),
                };
                ops.read(handle, at, len, ReadReply::new(answer));
            }
            Ask::Write { handle, at, data, durable } => {
                ops.write(handle, at, data, durable, small(slot, wire::count));
            }
            Ask::Flush(handle) => ops.flush(handle, nothing(slot)),
            Ask::Sync(handle) => ops.sync(handle, nothing(slot)),
            Ask::Release(handle) => {
                ops.close(handle);
                slot.finish(0, &[]);
            }
            Ask::Lookup(name) => {
                let found = ops.lookup(inode, name);
                give(slot, found.as_ref().map(|shape| wire::entry(shape, manner)));
            }
            Ask::Attributes => ops.attributes(inode, attributes(slot, manner)),
            Ask::Change(change) => ops.set_attributes(inode, change, attributes(slot, manner)),
            Ask::Open(how) => match ops.open(inode, how, false) {
                Ok(opening) => self.open(opening, slot),
                Err(errno) => slot.finish(errno.number(), &[]),
            },
            Ask::OpenDirectory => slot.finish(0, wire::opened_directory().bytes()),
            Ask::List { after, room } => match ops.list(inode, after.saturating_sub(2)) {
                Ok(entries) => slot.finish(0, &wire::listing(inode, after, &entries, room)),
                Err(errno) => slot.finish(errno.number(), &[]),
            },
            Ask::Sizes => slot.finish(0, wire::sizes(&ops.room()).bytes()),
            Ask::Allocate { handle, at, len, mode } => {
                ops.allocate(handle, at, len, mode, nothing(slot));
            }
            Ask::Seek { handle, at, want } => ops.seek(handle, at, want, small(slot, wire::place)),
            Ask::Attribute { name, room } => ops.attribute(inode, name, value(slot, room)),
            Ask::AttributeNames { room } => ops.attribute_names(inode, value(slot, room)),
            Ask::Nothing => slot.finish(0, &[]),
            Ask::Alter => slot.finish(ops.refusal().number(), &[]),
            Ask::Fails(number) => slot.finish(number, &[]),
        }
    }

    fn open<S: Slot>(&self, opening: Opening, slot: S) {
        match opening {
            Opening::Image(opening) => {
                let opened = self.ops.open_image(opening, false);
                let opened = opened.map(|o| wire::opened_image(o.handle, o.flush_on_close));
                give(slot, opened.as_ref().copied());
            }
            Opening::Text(opening) => {
                let layout = |o: Opened| wire::opened_text(o.handle, o.flush_on_close);
                self.ops.open_text(opening, small(slot, layout));
            }
        }
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("manner", &self.manner).finish_non_exhaustive()
    }
}

fn give<S: Slot>(slot: S, result: Result<Small, &Errno>) {
    match result {
        Ok(answer) => slot.finish(0, answer.bytes()),
        Err(errno) => slot.finish(errno.number(), &[]),
    }
}

/// A reply laid out in a fixed number of bytes.
fn small<T: 'static>(
    slot: impl Slot,
    layout: impl FnOnce(T) -> Small + Send + 'static,
) -> Reply<T> {
    Reply::new(move |result: Result<T, Errno>| give(slot, result.map(layout).as_ref().copied()))
}

fn nothing(slot: impl Slot) -> Reply<()> {
    Reply::new(move |result: Result<(), Errno>| {
        slot.finish(result.err().map_or(0, Errno::number), &[]);
    })
}

fn attributes(slot: impl Slot, manner: Manner) -> Reply<Attributes> {
    small(slot, move |shape| wire::attributes(&shape, manner))
}

/// A value, or how long it is, as the asker's buffer has it.
fn value(slot: impl Slot, room: u32) -> Reply<Vec<u8>> {
    Reply::new(move |result: Result<Vec<u8>, Errno>| {
        match result.and_then(|value| Ok((fit(&value, room)?, value))) {
            Ok((Fit::Size(len), _)) => slot.finish(0, wire::count(len).bytes()),
            Ok((Fit::Whole, value)) => slot.finish(0, &value),
            Err(errno) => slot.finish(errno.number(), &[]),
        }
    })
}
