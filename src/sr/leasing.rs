//! Persistent locks of VDIs: one small file each, in the SR, seen by every host that shares it.
//!
//! A lock is taken by giving a complete file its name where there is none, which only one of many
//! can do. One that is there goes by being moved aside, under a name of this host's, and only there
//! it is looked at whether it is the one that was to go; if not, it gets its name back. The holder
//! renews it in the file itself, so that it is never away. So of two who take over an expired lock
//! one gets it, and a holder who slept too long renews what nobody looks at any more. Ages are told
//! by the store's own clock, never by comparing two hosts'.
//!
//! Refuses to break what is held, unless forced or past its time, and takes what it cannot read for
//! held. What remains: who is moved aside by mistake has no lock for a moment.

use std::cell::OnceCell;
use std::io;

use super::catalogue::Lock;
use super::failure::{Failure, Kind};
use super::fields::FIELDS_MAX_BYTES;
use super::names::{VdiUuid, aside_name, aside_of, lease_name};
use super::record::{Lease, TEXT_MAX_BYTES};
use super::repository::{Repository, since_epoch, unix_now};
use super::store::{self, DirOp, Stamp};
use crate::engine::units::FileOffset;

/// How long past its time a lock still holds: clocks drift, and hosts pause.
const GRACE_SECONDS: u64 = 5;
/// How often a lock is looked at that changes while it is to be taken or given back.
const LOOKS_MAX: usize = 4;

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

/// A lock as it was seen.
struct Seen {
    stamp: Stamp,
    bytes: Vec<u8>,
    /// What it says, or why that cannot be told.
    lease: Result<Lease, String>,
}

/// The store's present, as far as it was asked for.
#[derive(Default)]
pub(super) struct StoreClock(OnceCell<Option<i128>>);

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
        let draft = self.temporary(&lease_name(vdi));
        let written = self.write_lease(&draft, &lease);
        let taken = written
            .map_err(|error| as_lock(self.failed("write its lock", &error)))
            .and_then(|()| self.take(vdi, &draft, &lease, wish.force));
        if taken.is_ok() && self.shared {
            self.drop_asides(vdi);
        }
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
        let failed = |error: &io::Error| as_lock(self.failed("remove its lock", error));
        for _ in 0..LOOKS_MAX {
            let Some(seen) = self.seen_lock(vdi).map_err(|e| failed(&e))? else { return Ok(()) };
            match &seen.lease {
                Ok(lease) if lease.user == user => {}
                Ok(lease) => return Err(held(vdi, lease)),
                Err(why) => return Err(unreadable(vdi, why)),
            }
            if self.set_aside(vdi, &seen).map_err(|e| failed(&e))? {
                let aside = aside_name(vdi, &self.host);
                let removed = store::remove(self.store.as_ref(), &aside);
                return removed.and_then(|()| self.sync_directory()).map_err(|error| {
                    self.put_back_later(vdi);
                    failed(&error)
                });
            }
        }
        Err(changing(vdi))
    }

    /// Who holds the lock in this file now.
    pub(super) fn lock_in(&self, name: &str, clock: &StoreClock) -> Lock {
        let seen = match self.seen_in(name) {
            Ok(None) => return Lock::Free,
            Ok(Some(seen)) => seen,
            Err(error) => return Lock::Unknown(error.to_string()),
        };
        match seen.lease {
            Err(why) => Lock::Unknown(why),
            Ok(lease) => {
                let now = lease.seconds.and_then(|_| *clock.0.get_or_init(|| self.store_now()));
                let past = now.is_some_and(|now| is_past(&lease, &seen.stamp, now));
                if past { Lock::Free } else { Lock::Held(lease) }
            }
        }
    }

    /// The present by the clock that stamps files; `None` when it could not be asked for. Another
    /// machine's is told by what it stamps, and so is ours where nobody else writes.
    fn store_now(&self) -> Option<i128> {
        if !self.shared {
            return i128::try_from(since_epoch().as_nanos()).ok();
        }
        let (store, name) = (self.store.as_ref(), self.fresh_temporary("orlop-clock"));
        let stamp = store.apply(DirOp::Create { name: &name }).and_then(|()| store.stamp(&name));
        // A leftover is removed at the next attach.
        let _left_behind = store::remove(store, &name);
        stamp.ok().map(|stamp| stamp.modified_ns)
    }

    fn seen_lock(&self, vdi: VdiUuid) -> io::Result<Option<Seen>> {
        self.seen_in(&lease_name(vdi))
    }

    fn seen_in(&self, name: &str) -> io::Result<Option<Seen>> {
        match store::read_stamped(self.store.as_ref(), name, FIELDS_MAX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok((bytes, stamp)) => {
                let lease = Lease::from_bytes(&bytes);
                let lease = lease.map_err(|error| format!("its lock {name}: {error}"));
                Ok(Some(Seen { stamp, bytes, lease }))
            }
        }
    }

    /// Gives what was drafted the lock's name, if need be after what is there was moved away.
    fn take(&self, vdi: VdiUuid, draft: &str, lease: &Lease, force: bool) -> Result<(), Failure> {
        let name = lease_name(vdi);
        let failed = |error: &io::Error| as_lock(self.failed("write its lock", error));
        for _ in 0..LOOKS_MAX {
            match self.store.apply(DirOp::Take { from: draft, to: &name }) {
                Ok(()) => return self.sync_directory().map_err(|e| failed(&e)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&error)),
            }
            let seen = match self.seen_lock(vdi) {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(error) => return Err(failed(&error)),
            };
            // It was written just now, so its stamp is the store's present.
            let now = self.store.stamp(draft).map_err(|e| failed(&e))?.modified_ns;
            match &seen.lease {
                Ok(holder) if is_past(holder, &seen.stamp, now) => {}
                Ok(holder) if holder.user == lease.user && holder.host == lease.host => {
                    if self.renew(vdi, &seen, lease).map_err(|e| failed(&e))? {
                        return Ok(());
                    }
                    continue;
                }
                Ok(holder) if holder.user == lease.user || force => {}
                Ok(holder) => return Err(held(vdi, holder)),
                // One that cannot be read is nobody's to renew, but may be broken.
                Err(_) if force => {}
                Err(why) => return Err(unreadable(vdi, why)),
            }
            if self.set_aside(vdi, &seen).map_err(|e| failed(&e))? {
                return self.take_over(vdi, draft).map_err(|e| failed(&e));
            }
        }
        Err(changing(vdi))
    }

    /// Writes a lock's new time into the file that was seen; not if that is the lock no more.
    fn renew(&self, vdi: VdiUuid, seen: &Seen, lease: &Lease) -> io::Result<bool> {
        let (name, bytes) = (lease_name(vdi), lease.to_bytes());
        let over = DirOp::Overwrite { name: &name, seen: seen.stamp, bytes: &bytes };
        match self
            .store
            .apply(over)
            .and_then(|()| self.store.apply(DirOp::SyncFile { name: &name }))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            written => written?,
        }
        // It may have been moved aside while it was written.
        Ok(self.seen_lock(vdi)?.is_some_and(|now| now.bytes == bytes))
    }

    /// Moves a lock out of the way, if it is the one that was seen; another gets its name back.
    fn set_aside(&self, vdi: VdiUuid, seen: &Seen) -> io::Result<bool> {
        let (name, aside) = (lease_name(vdi), aside_name(vdi, &self.host));
        match self.store.apply(DirOp::Rename { from: &name, to: &aside, replace: true }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            moved => moved?,
        }
        // By its bytes too: of another host's writes a stamp may be told late.
        let found = store::read_stamped(self.store.as_ref(), &aside, FIELDS_MAX_BYTES);
        let same = |(bytes, stamp): &(Vec<u8>, Stamp)| {
            *bytes == seen.bytes && stamp.is_same_state(&seen.stamp)
        };
        if found.as_ref().is_ok_and(same) {
            return Ok(true);
        }
        self.put_back(vdi, &aside).inspect_err(|_| self.put_back_later(vdi))?;
        found.map(|_| false)
    }

    /// What was moved aside goes for good, if nobody else took the lock meanwhile.
    fn take_over(&self, vdi: VdiUuid, draft: &str) -> io::Result<()> {
        let (name, aside) = (lease_name(vdi), aside_name(vdi, &self.host));
        let taken = self
            .store
            .apply(DirOp::Take { from: draft, to: &name })
            .and_then(|()| self.sync_directory());
        let settled = match &taken {
            Ok(()) => store::remove(self.store.as_ref(), &aside),
            // Where the sync failed the new one is there, and stays.
            Err(_) => self.put_back(vdi, &aside),
        };
        if settled.is_err() {
            self.put_back_later(vdi);
        }
        taken
    }

    /// Gives a lock that was moved aside its name back, if that is still free, and lets it go if
    /// not.
    pub(super) fn put_back(&self, vdi: VdiUuid, aside: &str) -> io::Result<()> {
        let name = lease_name(vdi);
        match self.store.apply(DirOp::Take { from: aside, to: &name }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                store::remove(self.store.as_ref(), aside)?;
            }
            moved => moved?,
        }
        self.sync_directory()
    }

    /// What hosts that died have left aside of a lock is nobody's once it was taken anew.
    fn drop_asides(&self, vdi: VdiUuid) {
        for entry in self.store.list().unwrap_or_default() {
            if aside_of(&entry.name) == Some(vdi) {
                // At worst it seems to be held once more, when it was given back.
                let _left_behind = store::remove(self.store.as_ref(), &entry.name);
            }
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
}

/// Whether a lock's time was over at that moment of the store's clock.
fn is_past(lease: &Lease, stamp: &Stamp, now_ns: i128) -> bool {
    const SECOND_NS: i128 = 1_000_000_000;
    let Some(seconds) = lease.seconds else { return false };
    let age = now_ns - stamp.modified_ns;
    age > i128::from(seconds.saturating_add(GRACE_SECONDS)) * SECOND_NS
}

fn held(vdi: VdiUuid, lease: &Lease) -> Failure {
    Failure::new(Kind::Locked, format!("VDI {vdi}"), lease.in_words())
}

fn unreadable(vdi: VdiUuid, why: &str) -> Failure {
    Failure::new(Kind::Locked, format!("VDI {vdi}"), format!("its lock cannot be read: {why}"))
        .advise("force the lock if its holder is dead")
}

fn changing(vdi: VdiUuid) -> Failure {
    let why = "others take and leave its lock at this moment";
    Failure::new(Kind::Locked, format!("VDI {vdi}"), why).advise("try again")
}

/// What the system says about a lock is about the lock, unless the space is gone.
fn as_lock(failure: Failure) -> Failure {
    match failure.kind {
        Kind::NoSpace => failure,
        _ => Failure { kind: Kind::Locked, ..failure },
    }
}
