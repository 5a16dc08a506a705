//! What failed both on its way and on its way back, in this process: set right before the next
//! verb.
//!
//! A verb that failed is taken back, however far the taking back came before: a disk that is served
//! still writes to the file that it had then. One that succeeded is finished.

use std::io;
use std::sync::{MutexGuard, PoisonError};

use super::intent::Intent;
use super::names::{VdiUuid, aside_name};
use super::repository::Repository;

/// Something half done.
#[derive(Debug)]
pub(super) enum Stale {
    /// A verb.
    Verb {
        /// What it was about to do.
        intent: Intent,
        /// Whether its caller was told that it failed.
        failed: bool,
        /// Whether this process was serving the files, and so has claimed them.
        served: bool,
    },
    /// A lock that was moved aside.
    Aside(VdiUuid),
}

impl Repository {
    pub(super) fn stale(&self) -> MutexGuard<'_, Vec<Stale>> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_back_later(&self, vdi: VdiUuid) {
        self.stale().push(Stale::Aside(vdi));
    }

    pub(super) fn set_right(&self, stale: &Stale) -> io::Result<()> {
        let (intent, failed, served) = match stale {
            Stale::Aside(vdi) => return self.put_back(*vdi, &aside_name(*vdi, &self.host)),
            Stale::Verb { intent, failed, served } => (intent, *failed, *served),
        };
        let _claims = if served { Vec::new() } else { self.claim_files(intent)? };
        if failed {
            return self.undo(intent);
        }
        self.settle(intent)?;
        self.end(intent)
    }
}
