//! What this crate asks of the program around it, and the replies that carry the answers back.
//!
//! A port is called on the threads that read the kernel's requests: it hands the question to
//! whoever can answer it and returns at once. Each reply is answered exactly once; one that is
//! dropped unanswered (a panic, a lost queue) answers "input/output error", so that no process
//! waits for ever. Nothing here knows a kernel structure.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A place on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// A length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// The program's name of a disk. Never given to another disk while a mount lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u64);

/// Bytes of a disk. Those handed to a port lie within the disk as the tree knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub at: Offset,
    /// How many.
    pub len: Bytes,
}

impl Extent {
    /// The first byte behind it; none where that is no number.
    #[must_use]
    pub fn end(self) -> Option<Offset> {
        self.at.0.checked_add(self.len.0).map(Offset)
    }
}

/// Whether bytes are stored somewhere or read as zeroes without being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Stored in some layer.
    Data,
    /// Stored in none: reads as zeroes.
    Hole,
}

/// Neighbouring bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What they are.
    pub kind: RunKind,
    /// How many; never zero.
    pub len: Bytes,
}

/// The small files beside a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// `info.json`: what the disk is.
    Info,
    /// `stats.json`: what it did so far.
    Stats,
    /// `chain.txt`: its layers, for people.
    Chain,
    /// `status`: one line, whether it is well.
    Status,
}

impl Text {
    /// All of them, in the order a directory shows them.
    pub const ALL: [Self; 4] = [Self::Info, Self::Stats, Self::Chain, Self::Status];

    /// The file's name.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Info => "info.json",
            Self::Stats => "stats.json",
            Self::Chain => "chain.txt",
            Self::Status => "status",
        }
    }
}

/// One extended attribute, `user.orlop.<key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The part behind `user.orlop.`: graphic ASCII, or it is left out.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// Why something was refused or failed, as the kernel's callers will see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: this tree does not do that.
    NotPermitted = 1,
    /// ENOENT.
    NotFound = 2,
    /// EIO.
    Io = 5,
    /// ENXIO: no such place in the file.
    NoSuchPlace = 6,
    /// EBADF: no such open file, or not open for this.
    BadHandle = 9,
    /// ENOMEM.
    NoMemory = 12,
    /// EACCES.
    Access = 13,
    /// EBUSY.
    Busy = 16,
    /// ENODEV: the disk was taken away.
    Gone = 19,
    /// ENOTDIR.
    NotDirectory = 20,
    /// EISDIR.
    IsDirectory = 21,
    /// EINVAL.
    Invalid = 22,
    /// ENFILE: too many open files in this mount.
    TooManyOpen = 23,
    /// EFBIG: past the end of what cannot grow.
    TooBig = 27,
    /// ENOSPC: the image cannot grow any more.
    NoSpace = 28,
    /// EROFS.
    ReadOnly = 30,
    /// ENODATA: no such attribute.
    NoData = 61,
    /// ERANGE: the caller's buffer is too small.
    Range = 34,
    /// ENOSYS: the kernel is to do it by itself.
    NotImplemented = 38,
    /// EOPNOTSUPP.
    NotSupported = 95,
    /// ETIMEDOUT.
    TimedOut = 110,
    /// EDQUOT.
    Quota = 122,
}

impl Errno {
    /// The number Linux gives it (the generic table: x86, ARM, RISC-V).
    #[must_use]
    pub fn number(self) -> i32 {
        self as i32
    }
}

type Act<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;
type ActOnData = Box<dyn for<'a> FnOnce(Result<&'a [u8], Errno>) + Send>;

/// A question waiting for a value. Dropped unanswered it answers [`Errno::Io`].
pub struct Reply<T>(Option<Act<T>>);

impl<T> Reply<T> {
    /// A reply that ends in this act.
    pub fn new(act: impl FnOnce(Result<T, Errno>) + Send + 'static) -> Self {
        Self(Some(Box::new(act)))
    }

    /// Answers.
    pub fn answer(mut self, result: Result<T, Errno>) {
        if let Some(act) = self.0.take() {
            act(result);
        }
    }

    /// Answers that it was done.
    pub fn done(self, value: T) {
        self.answer(Ok(value));
    }

    /// Answers that it failed.
    pub fn fail(self, errno: Errno) {
        self.answer(Err(errno));
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(act) = self.0.take() {
            act(Err(Errno::Io));
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Reply(open)" } else { "Reply(answered)" })
    }
}

/// A read waiting for its bytes, which are lent and not kept.
/// Dropped unanswered it answers [`Errno::Io`].
pub struct ReadReply {
    act: Option<ActOnData>,
    expected: Option<usize>,
}

impl ReadReply {
    /// A reply that ends in this act.
    pub fn new(act: impl for<'a> FnOnce(Result<&'a [u8], Errno>) + Send + 'static) -> Self {
        Self { act: Some(Box::new(act)), expected: None }
    }

    /// Lets only this many bytes pass as an answer.
    #[must_use]
    pub fn expecting(mut self, len: usize) -> Self {
        self.expected = Some(len);
        self
    }

    /// Answers with all bytes asked for. A port that has fewer has failed: a short answer would be
    /// filled up with zeroes by the kernel, and is refused as [`Errno::Io`].
    pub fn data(self, bytes: &[u8]) {
        self.answer(Ok(bytes));
    }

    /// Answers that it failed.
    pub fn fail(self, errno: Errno) {
        self.answer(Err(errno));
    }

    /// Answers.
    pub fn answer(mut self, result: Result<&[u8], Errno>) {
        let wrong = |bytes: &[u8]| self.expected.is_some_and(|len| len != bytes.len());
        let result = result.and_then(|b| if wrong(b) { Err(Errno::Io) } else { Ok(b) });
        if let Some(act) = self.act.take() {
            act(result);
        }
    }
}

impl Drop for ReadReply {
    fn drop(&mut self) {
        if let Some(act) = self.act.take() {
            act(Err(Errno::Io));
        }
    }
}

impl fmt::Debug for ReadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.act.is_some() { "ReadReply(open)" } else { "ReadReply(answered)" })
    }
}

/// What the program answers for its disks. No method may wait: see the module.
///
/// The kernel bounds what is outstanding: the mount's `max_background` asynchronous requests and
/// one for each waiting thread, each of at most 1 MiB.
pub trait Port: Send + Sync + 'static {
    /// Reads the extent.
    fn read(&self, disk: DiskId, extent: Extent, reply: ReadReply);

    /// Writes all of `data` at this place. The bytes are lent for the call only: the port takes
    /// its copy before it returns. With `durable` they are on disk before the answer.
    fn write(&self, disk: DiskId, at: Offset, data: &[u8], durable: bool, reply: Reply<()>);

    /// Makes durable whatever was answered before, passthrough writes included.
    fn flush(&self, disk: DiskId, reply: Reply<()>);

    /// Makes the extent read as zeroes and gives its space back where that can be done.
    fn punch(&self, disk: DiskId, extent: Extent, reply: Reply<()>);

    /// Makes the extent read as zeroes; its space may stay.
    fn zero(&self, disk: DiskId, extent: Extent, reply: Reply<()>);

    /// What the extent is made of, from its start: at least one run, as many as is cheap,
    /// neighbours of one kind merged. It may stop early or overshoot.
    fn map(&self, disk: DiskId, extent: Extent, reply: Reply<Vec<Run>>);

    /// How many bytes of the extent are stored.
    fn allocated(&self, disk: DiskId, extent: Extent, reply: Reply<Bytes>);

    /// One of the texts, made when its file is opened. At most [`crate::ops::TEXT_MAX`] bytes.
    fn text(&self, disk: DiskId, which: Text, reply: Reply<Vec<u8>>);

    /// The disk's extended attributes.
    fn facts(&self, disk: DiskId, reply: Reply<Vec<Fact>>);

    /// The file the kernel may read and write by itself, asked at each open of the whole disk when
    /// the mount allows it. Only where that file is exactly the disk, byte for byte and no longer:
    /// the kernel does not stop at the disk's end. None means the normal path.
    fn passthrough(&self, disk: DiskId, write: bool) -> Option<Arc<OwnedFd>> {
        let _ = (disk, write);
        None
    }
}
