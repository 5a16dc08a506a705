//! Persistent locks of VDIs: one small file each, in the SR, seen by every host that shares it.
//!
//! A lock is taken by giving a complete file its name where there is none, which only one of many
//! can do. It is renewed and broken by replacing it, and then read again: whoever finds another's
//! there did not get it. Ages are told by the store's own clock, never by comparing two hosts'.
//! Refuses to break what is held, unless forced or past its time.

use std::io;

use super::failure::{Failure, Kind};
use super::fields::FIELDS_MAX_BYTES;
use super::names::{VdiUuid, lease_name};
use super::record::{Lease, TEXT_MAX_BYTES};
use super::repository::{Repository, unix_now};
use super::store::{self, DirOp};
use crate::engine::units::FileOffset;

/// How long past its time a lock still holds: clocks drift, and hosts pause.
const GRACE_SECONDS: u64 = 5;

/// Who wants a lock, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWish {
    /// The user string: who knows it may renew the lock and give it back.
    pub user: String,
    /// Whether another's lock is broken.
    pub force: bool,
    /// How long it holds unless renewed; for ever when `None`.
    pub lease_seconds: Option<u64>,
}

impl Repository {
    /// Takes the lock of a VDI, or renews it.
    ///
    /// # Errors
    /// [`Kind::Locked`] when another holds it.
    pub fn lock(&self, vdi: VdiUuid, wish: &LockWish) -> Result<(), Failure> {
        self.ready()?;
        self.glance(&[vdi])?.visible(vdi)?;
        if wish.user.is_empty() || wish.user.len() > TEXT_MAX_BYTES {
            let why = format!("a user string has 1 to {TEXT_MAX_BYTES} bytes");
            return Err(Failure::new(Kind::Invalid, format!("VDI {vdi}"), why));
        }
        let lease = Lease {
            user: wish.user.clone(),
            host: self.host.clone(),
            seconds: wish.lease_seconds,
            renewed: unix_now(),
        };
        let name = lease_name(vdi);
        let draft = self.temporary(&name);
        let taken = self.take(vdi, &draft, &lease, wish.force);
        // Gone if it became the lock; a leftover otherwise, removed at the next attach at last.
        let _left_behind = store::remove(self.store.as_ref(), &draft);
        taken
    }

    /// Gives the lock of a VDI back; nothing happens when there is none.
    ///
    /// # Errors
    /// [`Kind::Locked`] when it is another's.
    pub fn unlock(&self, vdi: VdiUuid, user: &str) -> Result<(), Failure> {
        self.ready()?;
        self.glance(&[vdi])?.visible(vdi)?;
        match self.lease(vdi)? {
            None => Ok(()),
            Some(lease) if lease.user == user => {
                store::remove(self.store.as_ref(), &lease_name(vdi))
                    .and_then(|()| self.sync_directory())
                    .map_err(|e| as_lock(self.failed("remove its lock", &e)))
            }
            Some(lease) => Err(held(vdi, &lease)),
        }
    }

    fn take(&self, vdi: VdiUuid, draft: &str, lease: &Lease, force: bool) -> Result<(), Failure> {
        let name = lease_name(vdi);
        let failed = |error: &io::Error| as_lock(self.failed("write its lock", error));
        self.write_lease(draft, lease).map_err(|e| failed(&e))?;
        let first = DirOp::Rename { from: draft, to: &name, replace: false };
        match self.store.apply(first) {
            Ok(()) => return self.sync_directory().map_err(|e| failed(&e)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&error)),
        }
        // One that cannot be read is nobody's to renew, but may be broken.
        let holder = self.lease(vdi).or_else(|f| if force { Ok(None) } else { Err(f) })?;
        if let Some(holder) = holder
            && holder.user != lease.user
            && !force
            && !self.is_past(&name, draft, &holder).map_err(|e| failed(&e))?
        {
            return Err(held(vdi, &holder));
        }
        let over = DirOp::Rename { from: draft, to: &name, replace: true };
        self.store.apply(over).and_then(|()| self.sync_directory()).map_err(|e| failed(&e))?;
        match self.lease(vdi)? {
            Some(now) if now == *lease => Ok(()),
            Some(other) => Err(held(vdi, &other)),
            None => Err(Failure::new(Kind::Locked, format!("VDI {vdi}"), "its lock was removed")),
        }
    }

    fn write_lease(&self, draft: &str, lease: &Lease) -> io::Result<()> {
        let store = self.store.as_ref();
        let bytes = lease.to_bytes();
        debug_assert!(bytes.len() <= FIELDS_MAX_BYTES);
        store::remove(store, draft)?;
        store.apply(DirOp::Create { name: draft })?;
        store.apply(DirOp::Write { name: draft, at: FileOffset::new(0), bytes: &bytes })?;
        store.apply(DirOp::SyncFile { name: draft })
    }

    /// Whether a lock's time is over. `draft` was written just now, so its stamp is the store's
    /// present.
    fn is_past(&self, name: &str, draft: &str, holder: &Lease) -> io::Result<bool> {
        const SECOND_NS: i128 = 1_000_000_000;
        let Some(seconds) = holder.seconds else { return Ok(false) };
        let renewed = match self.store.stamp(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            stamp => stamp?.modified_ns,
        };
        let age = self.store.stamp(draft)?.modified_ns - renewed;
        Ok(age > i128::from(seconds.saturating_add(GRACE_SECONDS)) * SECOND_NS)
    }
}

fn held(vdi: VdiUuid, lease: &Lease) -> Failure {
    let user: String = lease.user.chars().take(64).collect();
    let why = format!("it is locked by {user:?} on host {}", lease.host);
    Failure::new(Kind::Locked, format!("VDI {vdi}"), why)
}

/// What the system says about a lock is about the lock, unless the space is gone.
fn as_lock(failure: Failure) -> Failure {
    match failure.kind {
        Kind::NoSpace => failure,
        _ => Failure { kind: Kind::Locked, ..failure },
    }
}
