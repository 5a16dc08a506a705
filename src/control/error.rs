//! The specification's nine error codes, and the one table that leads to them.

use std::fmt;

use crate::sr::{Failure, Kind};

/// An error code of the specification ("Error Codes"); the number is its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Operation not permitted.
    Eperm = 1,
    /// I/O error.
    Eio = 5,
    /// Device or resource busy.
    Ebusy = 16,
    /// File exists.
    Eexist = 17,
    /// No such device.
    Enodev = 19,
    /// Invalid argument.
    Einval = 22,
    /// No space left on device.
    Enospc = 28,
    /// No record locks available.
    Enolck = 37,
    /// Function not implemented.
    Enosys = 38,
}

impl Code {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Eio => "EIO",
            Self::Ebusy => "EBUSY",
            Self::Eexist => "EEXIST",
            Self::Enodev => "ENODEV",
            Self::Einval => "EINVAL",
            Self::Enospc => "ENOSPC",
            Self::Enolck => "ENOLCK",
            Self::Enosys => "ENOSYS",
        }
    }

    /// The code of a kind of failure.
    ///
    /// The specification names no code for an SR that still has VDIs: EBUSY, as for what is in use.
    /// Nor for a chain at its greatest length: EPERM, its code for a snapshot that cannot be.
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::NotPermitted | Kind::ChainTooLong => Self::Eperm,
            Kind::Io | Kind::Corrupt => Self::Eio,
            Kind::Busy | Kind::NotEmpty => Self::Ebusy,
            Kind::SrExists | Kind::VdiExists => Self::Eexist,
            Kind::NoSr | Kind::NoVdi | Kind::NoDevice => Self::Enodev,
            Kind::Invalid => Self::Einval,
            Kind::NoSpace => Self::Enospc,
            Kind::Locked => Self::Enolck,
            Kind::Unsupported => Self::Enosys,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct Error {
    /// The specification's code.
    pub code: Code,
    /// What, where, why, and what to do.
    pub failure: Failure,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self { code: Code::of(failure.kind), failure }
    }
}
