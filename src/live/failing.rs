//! Why a VDI is not attached, in a repository's words.

use std::io::ErrorKind;

use super::about::Key;
use crate::image::{Cause, ImageError};
use crate::server::{ControlError, DiskError};
use crate::sr::{Failure, Kind};

/// Why an attach failed.
pub(super) enum Refusal {
    /// An image does not open: there is something to be told of the VDI.
    Image(ImageError),
    /// Anything else.
    Other(Failure),
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

/// An image of a VDI does not open.
pub(super) fn of_image(key: Key, error: &ImageError) -> Failure {
    let place = format!("VDI {}", key.vdi);
    let kind = match &error.cause {
        Cause::Io { doing, error: cause } => {
            // What the system said decides; its words are those of the image.
            let kind = Failure::io(&place, doing, cause).kind;
            if cause.kind() == ErrorKind::NotFound { Kind::Corrupt } else { kind }
        }
        Cause::Lock(lock) if lock.code() == "no-locks" => Kind::Locked,
        Cause::Lock(_) => Kind::Busy,
        Cause::WriteRefused(_) | Cause::HasChildren { .. } | Cause::Hidden => Kind::NotPermitted,
        Cause::NoDirect => Kind::Unsupported,
        _ => Kind::Corrupt,
    };
    Failure::new(kind, place, error).advise(error.hint())
}

/// It opens, but is not to be served.
pub(super) fn of_control(key: Key, error: ControlError) -> Failure {
    let place = format!("VDI {}", key.vdi);
    match error {
        ControlError::Disk(DiskError::Image(error)) => of_image(key, &error),
        ControlError::Disk(DiskError::Shard { error, .. }) => {
            Failure::io(place, "serve it", &error)
        }
        ControlError::Name(error) => Failure::new(Kind::Busy, place, error)
            .advise("detach the VDI of the same uuid in another SR first (vdi_detach)"),
        error => Failure::new(Kind::Io, place, error),
    }
}

/// It is not used by name alone.
pub(super) fn busy(key: Key, who: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Busy, format!("VDI {}", key.vdi), format!("it is in use by {who}"))
        .advise("let them disconnect and close its files, and detach it again (vdi_detach)")
}

/// Everything has been stopped.
pub(super) fn ended(key: Key) -> Failure {
    let why = "the server is ending";
    Failure::new(Kind::Busy, format!("VDI {}", key.vdi), why).advise("start it again")
}
