//! What a repository asks of the place it lies in: a flat set of named byte sequences.
//!
//! A directory is one such place; a volume group is another (data are volumes, renames are
//! `lvrename`, a directory sync is nothing). Everything that changes anything is one [`DirOp`], so
//! a simulator can stand in for the place, lose what was not synced, and fail at any step. No
//! paths here: how a data file is reached is the store's answer, as a [`DataPlace`].

use std::any::Any;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::engine::units::{ByteLen, FileOffset};

/// One change. Names are single components that `names` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirOp<'a> {
    /// A new, empty file; fails with `AlreadyExists` when there is one.
    Create {
        /// Its name.
        name: &'a str,
    },
    /// Store these bytes, growing the file if need be.
    Write {
        /// The file.
        name: &'a str,
        /// Where they start.
        at: FileOffset,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Give the file this length; what is added reads as zeroes.
    SetLength {
        /// The file.
        name: &'a str,
        /// The length.
        len: ByteLen,
    },
    /// Let the range read as zeroes and take no space; the length stays.
    Punch {
        /// The file.
        name: &'a str,
        /// Where it starts.
        at: FileOffset,
        /// How long it is.
        len: ByteLen,
    },
    /// Make the file's bytes and length durable; not its name.
    SyncFile {
        /// The file.
        name: &'a str,
    },
    /// Write these bytes instead of a file's, if it is still in the state that was seen; fails with
    /// `NotFound` when it is not. Cut off, it leaves a file that is neither the old nor the new.
    Overwrite {
        /// The file.
        name: &'a str,
        /// The state it was seen in.
        seen: Stamp,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Give a file a name that none has. Of many that try at once, on whatever hosts, one succeeds,
    /// and the others fail with `AlreadyExists`. A crash may leave the file both names.
    Take {
        /// The name it has.
        from: &'a str,
        /// The name it gets.
        to: &'a str,
    },
    /// Give a file another name, at once and whole. A file never has both: what lies under the one
    /// name may be written to, and what lies under the other never.
    Rename {
        /// The name it has.
        from: &'a str,
        /// The name it gets.
        to: &'a str,
        /// Whether a file of that name goes; without, it fails with `AlreadyExists`, as long as no
        /// other host makes that name in the same moment: not every file system can tell then.
        replace: bool,
    },
    /// Remove a name; fails with `NotFound` when there is none.
    Unlink {
        /// The name.
        name: &'a str,
    },
    /// Make all names durable: what was created, renamed and removed before.
    SyncDirectory,
}

/// What a name is, without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A sequence of bytes.
    Data,
    /// Anything else, in words: "a symbolic link", "a character device".
    Other(&'static str),
    /// The store would have to look.
    Unknown,
    /// A sequence of bytes, or what the store would have to look at, under a name that is no text:
    /// the one told only resembles it, and cannot be opened.
    Nameless,
}

/// A name in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Which file it is, as [`Stamp::file`], where the list tells that.
    pub file: Option<u64>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which file it is, whatever its name.
    pub file: u64,
    /// Its length.
    pub len: ByteLen,
    /// The space it takes.
    pub allocated: ByteLen,
    /// When its bytes changed last, nanoseconds since 1970 by the store's clock.
    pub modified_ns: i128,
}

impl Stamp {
    /// Whether it is the same file, and nobody wrote to it between.
    pub fn is_same_state(&self, other: &Self) -> bool {
        let key = |stamp: &Self| (stamp.file, stamp.len, stamp.modified_ns);
        key(self) == key(other)
    }
}

/// Space of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All there is.
    pub size: ByteLen,
    /// What is taken, by whomever.
    pub used: ByteLen,
}

/// How a data file is reached by whoever serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataPlace {
    /// A file or device node at this canonical path.
    Path(PathBuf),
    /// Only through [`Store`] itself.
    Inside,
}

/// Keeps others from using a data file while it lives.
pub type Claim = Box<dyn Any + Send>;

/// A place that a repository lies in.
pub trait Store: Send + Sync + fmt::Debug {
    /// What the place is called, for messages.
    fn place(&self) -> String;

    /// All names, in any order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<Entry>>;

    /// Looks at a file without reading it. Refuses what is no regular sequence of bytes
    /// (`InvalidInput`).
    ///
    /// # Errors
    /// `NotFound` when there is none.
    fn stamp(&self, name: &str) -> io::Result<Stamp>;

    /// Reads exactly these bytes.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` when the file is shorter.
    fn read(&self, name: &str, at: FileOffset, bytes: &mut [u8]) -> io::Result<()>;

    /// Makes one change. It is durable only after the sync that covers it.
    ///
    /// # Errors
    /// What the system says; the change may then have happened in part.
    fn apply(&self, op: DirOp<'_>) -> io::Result<()>;

    /// The space there is.
    ///
    /// # Errors
    /// What the system says.
    fn space(&self) -> io::Result<Space>;

    /// Keeps others from using the place as an SR at the same time, until the store is dropped:
    /// everybody, or those who do not share it with other hosts.
    ///
    /// # Errors
    /// `ResourceBusy` when somebody does.
    fn occupy(&self, shared: bool) -> io::Result<()> {
        let _nobody_else = shared;
        Ok(())
    }

    /// Claims a data file for writing, so that no other program serves it meanwhile.
    ///
    /// # Errors
    /// `ResourceBusy` with who has it, when somebody does.
    fn claim(&self, name: &str) -> io::Result<Claim>;

    /// How whoever serves a data file reaches it.
    fn data_place(&self, name: &str) -> DataPlace;
}

/// The whole of a small file, at most `most` bytes.
///
/// # Errors
/// Those of [`Store::read`]; `InvalidData` when it is longer.
pub fn read_small(store: &dyn Store, name: &str, most: usize) -> io::Result<Vec<u8>> {
    read_stamped(store, name, most).map(|(bytes, _)| bytes)
}

/// The same, with the stamp of the very file that was read. One that is replaced meanwhile is read
/// again: half of the old and half of the new would look damaged.
///
/// # Errors
/// As [`read_small`].
pub fn read_stamped(store: &dyn Store, name: &str, most: usize) -> io::Result<(Vec<u8>, Stamp)> {
    const READS_MAX: usize = 4;
    for _ in 1..READS_MAX {
        let stamp = store.stamp(name)?;
        match read_whole(store, name, &stamp, most) {
            Ok(bytes) => {
                if store.stamp(name)?.is_same_state(&stamp) {
                    return Ok((bytes, stamp));
                }
            }
            Err(error) if has_raced(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let stamp = store.stamp(name)?;
    Ok((read_whole(store, name, &stamp, most)?, stamp))
}

/// Whether a file that is replaced, or shortened, between a look at it and a read gives that.
fn has_raced(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == io::ErrorKind::UnexpectedEof
        || Errno::from_io_error(error) == Some(Errno::STALE)
}

fn read_whole(store: &dyn Store, name: &str, stamp: &Stamp, most: usize) -> io::Result<Vec<u8>> {
    let len = stamp.len.get();
    let len = usize::try_from(len).ok().filter(|len| *len <= most);
    let Some(len) = len else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    };
    let mut bytes = vec![0; len];
    store.read(name, FileOffset::new(0), &mut bytes)?;
    Ok(bytes)
}

/// Whether there is such a name, whatever it is.
///
/// # Errors
/// What the system says.
pub fn exists(store: &dyn Store, name: &str) -> io::Result<bool> {
    match store.stamp(name) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(true),
        Err(error) => Err(error),
    }
}

/// Removes a name; nothing happens when there is none.
///
/// # Errors
/// What the system says.
pub fn remove(store: &dyn Store, name: &str) -> io::Result<()> {
    match store.apply(DirOp::Unlink { name }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes a small file so that whoever looks sees all of the old or all of the new. The caller
/// syncs the directory before it relies on the new one.
///
/// # Errors
/// What the system says; the temporary is gone then, as far as that was possible.
pub fn replace(store: &dyn Store, name: &str, temporary: &str, bytes: &[u8]) -> io::Result<()> {
    write_as(store, temporary, bytes, DirOp::Rename { from: temporary, to: name, replace: true })
}

/// The same where there is no such file yet.
///
/// # Errors
/// As [`replace`]; `AlreadyExists` when there is one.
pub fn place(store: &dyn Store, name: &str, temporary: &str, bytes: &[u8]) -> io::Result<()> {
    write_as(store, temporary, bytes, DirOp::Take { from: temporary, to: name })
}

fn write_as(store: &dyn Store, temporary: &str, bytes: &[u8], named: DirOp<'_>) -> io::Result<()> {
    remove(store, temporary)?;
    let written = store
        .apply(DirOp::Create { name: temporary })
        .and_then(|()| {
            let at = FileOffset::new(0);
            store.apply(DirOp::Write { name: temporary, at, bytes })
        })
        .and_then(|()| store.apply(DirOp::SyncFile { name: temporary }))
        .and_then(|()| store.apply(named));
    if written.is_err() {
        // The first failure is the one to tell; a leftover is removed at the next attach.
        let _left_behind = remove(store, temporary);
    }
    written
}
