//! What goes wrong in a repository: what was to be done, where, why it was not, and what to do.
//!
//! Knows no error numbers: each dialect has its own table of kinds.

use std::fmt;
use std::io;

/// What kind of failure it is. Dialects translate it; see `control::error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// There is no such SR, or it is not attached here.
    NoSr,
    /// There is no such VDI in the SR.
    NoVdi,
    /// What an SR is to be made on, or lies on, is not there.
    NoDevice,
    /// There is an SR already.
    SrExists,
    /// There is a VDI of that identity already.
    VdiExists,
    /// Somebody uses it, or another operation on it runs.
    Busy,
    /// The SR still has VDIs.
    NotEmpty,
    /// An argument or a parameter cannot be right.
    Invalid,
    /// No space is left.
    NoSpace,
    /// Another holds the lock, or it could not be taken or given back.
    Locked,
    /// This SR cannot do that at all.
    Unsupported,
    /// This cannot be done to this object.
    NotPermitted,
    /// The chain of parents has its greatest length.
    ChainTooLong,
    /// The system failed.
    Io,
    /// What is stored breaks its own rules.
    Corrupt,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// What was to be done: a verb and its object.
    pub what: String,
    /// Where: the SR, the VDI or the file.
    pub place: String,
    /// Why it was not done.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

impl Failure {
    /// A failure; `what` is filled in by the verb that failed.
    pub fn new(kind: Kind, place: impl fmt::Display, why: impl fmt::Display) -> Self {
        let remedy = remedy_of(kind).to_owned();
        Self { kind, what: String::new(), place: place.to_string(), why: why.to_string(), remedy }
    }

    /// A failure of the system.
    pub fn io(place: impl fmt::Display, doing: &str, error: &io::Error) -> Self {
        Self::new(kind_of(error), place, format!("cannot {doing}: {error}"))
    }

    /// The same with a remedy of its own.
    #[must_use]
    pub fn advise(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The same, said of this undertaking unless a closer one was named.
    #[must_use]
    pub fn during(mut self, what: impl Into<String>) -> Self {
        if self.what.is_empty() {
            self.what = what.into();
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, place, why, remedy, .. } = self;
        let (place, why) = (Plain(place), Plain(why));
        if what.is_empty() {
            write!(f, "{place}: {why}; {remedy}")
        } else {
            write!(f, "cannot {what}: {place}: {why}; {remedy}")
        }
    }
}

impl std::error::Error for Failure {}

/// Text that may come from anybody: what would move a terminal or begin a line is escaped.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0.chars().try_for_each(|c| match c {
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

fn kind_of(error: &io::Error) -> Kind {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Kind::NoSpace,
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Kind::NotPermitted,
        Some(Errno::BUSY | Errno::TXTBSY) => Kind::Busy,
        Some(_) => Kind::Io,
        // Whoever serves a disk tells the kind and adds words.
        None => match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Kind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Kind::NotPermitted
            }
            io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy => Kind::Busy,
            _ => Kind::Io,
        },
    }
}

fn remedy_of(kind: Kind) -> &'static str {
    match kind {
        Kind::NoSr => "check the uuid, and attach the SR first (sr_attach)",
        Kind::NoVdi => "check the uuid; sr_scan lists what is there",
        Kind::NoDevice => "check the device_config, and that the storage is connected",
        Kind::SrExists => "choose another place, or delete the SR that is there",
        Kind::VdiExists => "choose another uuid",
        Kind::Busy => "wait until it is no longer used, and try again",
        Kind::NotEmpty => "delete its VDIs first; sr_scan lists them",
        Kind::Invalid => "correct the argument",
        Kind::NoSpace => "delete something, or run 'orlop sr gc' to get back what nobody needs",
        Kind::Locked => "let the holder unlock it, or force the lock if the holder is dead",
        Kind::Unsupported => "use an SR of another type",
        Kind::NotPermitted => "use another VDI, or change its permissions",
        Kind::ChainTooLong => "delete snapshots and run 'orlop sr gc', which shortens chains",
        Kind::Io => "check the storage and the kernel's log",
        Kind::Corrupt => "run 'orlop check' on the file; restore it from a backup",
    }
}
