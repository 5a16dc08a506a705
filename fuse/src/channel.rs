//! The FUSE device, read by the program itself instead of this crate's threads: what it reads is
//! sorted here into reads and writes of disks, which it carries out by itself, and the rest, which
//! [`Requests`] answers. Answers go back through a [`Line`], from any thread.
//!
//! Reads nothing and waits for nothing: when the device is read, and into which memory, is its
//! reader's affair.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno as OsError;

use crate::ops::Reading;
use crate::port::{DiskId, Errno, Extent, Offset};
use crate::ring::{Connection, Requests, Slot};
use crate::tree::Disk;
use crate::wire::{self, Frame};

/// What stands before the data of a write (`fuse_in_header` and `fuse_write_in`), in bytes. A
/// reader gives the device so much room for it, and room for the data behind.
pub const HEAD_BYTES: usize = 80;
/// The most that comes behind it: `max_write`.
pub const DATA_BYTES_MAX: u32 = 1 << 20;

/// Somebody who reads the devices of connections.
pub trait ChannelHost: fmt::Debug + Send + Sync {
    /// Reads requests until the kernel ends the connection, each at once, and answers them.
    ///
    /// # Errors
    /// When it cannot. The connection is ended then.
    fn start(&self, connection: Connection) -> io::Result<()>;
}

/// The way back to the kernel.
pub struct Line {
    fuse: OwnedFd,
}

impl Line {
    /// That of a connection.
    ///
    /// # Errors
    /// What the system says when a descriptor cannot be doubled.
    pub fn of(connection: &Connection) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { fuse: connection.fuse().try_clone_to_owned()? }))
    }

    fn send(&self, unique: u64, errno: i32, bytes: &[u8]) {
        let head = wire::out_header(unique, errno, bytes.len());
        let pieces = [IoSlice::new(&head), IoSlice::new(bytes)];
        let sent = rustix::io::retry_on_intr(|| rustix::io::writev(self.fuse.as_fd(), &pieces));
        match sent {
            // Who asked was killed meanwhile, or the connection is over.
            Ok(_) | Err(OsError::NOENT | OsError::NODEV | OsError::CONNABORTED) => {}
            // The kernel took none of it, and the asker must not wait for ever.
            Err(_) if !bytes.is_empty() => self.send(unique, -Errno::Io.number(), &[]),
            Err(_) => {}
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// A request that waits for its answer. Dropped unanswered it answers "input/output error".
#[derive(Debug)]
pub struct Mail {
    line: Option<Arc<Line>>,
    unique: u64,
}

impl Mail {
    /// The request with this number.
    #[must_use]
    pub fn new(line: &Arc<Line>, unique: u64) -> Self {
        Self { line: Some(Arc::clone(line)), unique }
    }

    /// Answers a read.
    pub fn read(self, result: Result<&[u8], Errno>) {
        match result {
            Ok(bytes) => self.finish(0, bytes),
            Err(errno) => self.finish(errno.number(), &[]),
        }
    }

    /// Answers a write of so many bytes.
    pub fn wrote(self, result: Result<u32, Errno>) {
        match result {
            Ok(count) => self.finish(0, wire::count(count).bytes()),
            Err(errno) => self.finish(errno.number(), &[]),
        }
    }
}

impl Slot for Mail {
    fn finish(mut self, errno: i32, bytes: &[u8]) {
        if let Some(line) = self.line.take() {
            line.send(self.unique, -errno, bytes);
        }
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.send(self.unique, -Errno::Io.number(), &[]);
        }
    }
}

/// Notes that a disk was written.
#[derive(Clone)]
pub struct Stamp(pub(crate) Arc<Disk>);

impl Stamp {
    /// It was, just now.
    pub fn touch(&self) {
        self.0.touch();
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stamp").field(&self.0.id).finish()
    }
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Order {
    /// Nothing; it takes no answer.
    Nothing,
    /// To be answered so at once: a write of nothing, or a refusal.
    Answer(Result<u32, Errno>),
    /// A read of a disk.
    Read {
        /// Which.
        disk: DiskId,
        /// What part of it; never empty.
        extent: Extent,
    },
    /// A write to a disk. All of it goes there, and then its stamp is touched.
    Write {
        /// Which.
        disk: DiskId,
        /// Where to.
        at: Offset,
        /// So many bytes of the data; never none.
        count: u32,
        /// Whether it is to be durable before it is answered.
        durable: bool,
        /// To be touched when it is over.
        stamp: Stamp,
    },
    /// Anything else: see [`Requests::answer`].
    Other,
}

/// The number of a request.
#[must_use]
pub fn unique(head: &[u8; HEAD_BYTES]) -> u64 {
    wire::unique(head)
}

impl Requests {
    /// Looks at a request: `head` as it was read, and how many bytes came behind it.
    #[must_use]
    pub fn order(&self, head: &[u8; HEAD_BYTES], data_bytes: u32) -> Order {
        match wire::hot(head) {
            wire::Hot::Nothing => Order::Nothing,
            wire::Hot::Other => Order::Other,
            wire::Hot::Read { handle, at, len } => match self.ops().reading(handle, at, len) {
                Ok(Reading::Disk(disk, extent)) => Order::Read { disk, extent },
                Ok(_) | Err(_) => Order::Other,
            },
            wire::Hot::Write { len, .. } if len > data_bytes => Order::Answer(Err(Errno::Invalid)),
            wire::Hot::Write { handle, at, len, durable } => {
                match self.ops().writing(handle, at, len as usize) {
                    Err(errno) => Order::Answer(Err(errno)),
                    Ok(writing) if writing.count == 0 => Order::Answer(Ok(0)),
                    Ok(writing) => {
                        let (disk, stamp) = (writing.disk.id, Stamp(writing.disk));
                        let (at, count) = (writing.at, writing.count);
                        Order::Write { disk, at, count, durable, stamp }
                    }
                }
            }
        }
    }

    /// Looks at a request in an entry of a ring, and how many bytes of payload came along.
    #[must_use]
    pub fn order_in(&self, block: &[u8], data_bytes: u32) -> Order {
        let (request, operation) = crate::ring::parts(block);
        let mut head = [0; HEAD_BYTES];
        let (front, behind) = head.split_at_mut(wire::HEAD);
        match (request.get(..front.len()), operation.get(..behind.len())) {
            (Some(request), Some(operation)) => {
                front.copy_from_slice(request);
                behind.copy_from_slice(operation);
                self.order(&head, data_bytes)
            }
            _ => Order::Answer(Err(Errno::Invalid)),
        }
    }

    /// Answers a request as [`Self::serve`] does: all its bytes, as they were read.
    pub fn answer(&self, request: &[u8], mail: Mail) {
        let (head, rest) = request.split_at_checked(wire::HEAD).unwrap_or((request, &[]));
        let payload = rest.get(wire::operation_bytes(head)..).unwrap_or_default();
        self.serve(&Frame { head, operation: rest, payload }, mail);
    }
}
