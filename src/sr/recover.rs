//! Finishes or undoes what an intent announced, after a crash or after a failure.
//!
//! Decides by what is there, not by how far somebody says to have come: names appear and go in a
//! known order, so which of them exist tells how far it came. Each settling may itself be cut off
//! anywhere and is then done again. Refuses to touch another host's unfinished work in a shared SR,
//! and files that another program has claimed: what they name stays untouched until they let go.

use std::collections::BTreeSet;
use std::io;

use super::change;
use super::facts;
use super::failure::Failure;
use super::fields::FIELDS_MAX_BYTES;
use super::intent::Intent;
use super::names::{
    DataFormat, Named, VdiUuid, aside_of, data_name, intent_name, is_temporary_of, lease_name,
    mentioned_in, record_name,
};
use super::repository::Repository;
use super::store::{self, Claim, DirOp, Entry};

impl Repository {
    /// Settles every intent, then removes what nothing refers to. The subjects of our own intents
    /// that could not be settled.
    pub(super) fn recover(&self) -> Result<BTreeSet<VdiUuid>, Failure> {
        self.settle_all().map_err(|error| self.failed("settle what was left unfinished", &error))
    }

    fn settle_all(&self) -> io::Result<BTreeSet<VdiUuid>> {
        let entries = self.store.list()?;
        let (mut left, mut damaged) = (BTreeSet::new(), false);
        for entry in &entries {
            let Named::Intent(subject) = Named::of(&entry.name) else { continue };
            let bytes = store::read_small(self.store.as_ref(), &entry.name, FIELDS_MAX_BYTES)?;
            let (intent, host) = match Intent::from_bytes(&bytes) {
                Ok(read) => read,
                Err(error) => {
                    // It was whole when it got its name, so this is no crash but damage.
                    tracing::error!(sr = %self.sr, file = entry.name, %error,
                        "an unfinished operation cannot be read; its files stay as they are");
                    damaged = true;
                    continue;
                }
            };
            if self.shared && host != self.host {
                continue;
            }
            // Whoever serves them has bytes in them that settling would not see.
            let _claims = match self.claim_files(&intent) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tracing::error!(sr = %self.sr, vdi = %subject, verb = intent.verb(), %error,
                        "an unfinished operation is not settled: its files are in use");
                    left.insert(subject);
                    continue;
                }
                claims => claims?,
            };
            tracing::info!(sr = %self.sr, vdi = %subject, verb = intent.verb(),
                "settling an operation that was not finished");
            self.settle(&intent)?;
            self.end(&intent)?;
        }
        for entry in &entries {
            let ours = !self.shared || is_temporary_of(&entry.name, &self.host);
            if let Some(vdi) = aside_of(&entry.name).filter(|_| ours) {
                self.put_back(vdi, &entry.name)?;
            }
        }
        self.sweep(damaged || !left.is_empty())?;
        Ok(left)
    }

    /// Keeps other programs from the files that settling an intent may change.
    pub(super) fn claim_files(&self, intent: &Intent) -> io::Result<Vec<Claim>> {
        let (mut claims, mut files) = (Vec::new(), BTreeSet::new());
        for name in intent.files() {
            let stamp = match self.store.stamp(&name) {
                // Also what is no regular file: nobody will change that.
                Err(error) if is_absent(&error) => continue,
                stamp => stamp?,
            };
            // One file may have two names in the middle of a rename.
            if files.insert(stamp.file) {
                claims.push(self.store.claim(&name)?);
            }
        }
        Ok(claims)
    }

    /// Removes an intent whose operation is settled, durably.
    pub(super) fn end(&self, intent: &Intent) -> io::Result<()> {
        // First of all that what was settled stays settled.
        self.sync_directory()?;
        self.forget(intent.subject());
        store::remove(self.store.as_ref(), &intent_name(intent.subject()))?;
        self.sync_directory()
    }

    /// Removes temporaries, unless an intent that is left may still need them, and records and
    /// locks of VDIs that are gone. Not of those whose data somebody may have moved aside: a
    /// snapshot without its record would come back as a disk to write to.
    fn sweep(&self, needed: bool) -> io::Result<()> {
        let entries = self.store.list()?;
        let data: BTreeSet<VdiUuid> = entries.iter().filter_map(data_of).collect();
        let intents: BTreeSet<VdiUuid> = entries.iter().filter_map(intent_of).collect();
        let aside: BTreeSet<VdiUuid> =
            entries.iter().flat_map(|entry| mentioned_in(&entry.name)).collect();
        let mut swept = false;
        for entry in &entries {
            let goes = match Named::of(&entry.name) {
                Named::Temporary => {
                    !needed && (!self.shared || is_temporary_of(&entry.name, &self.host))
                }
                // Another host may have written its record a moment before its data.
                Named::Record(vdi) | Named::Lease(vdi) => {
                    let here = data.contains(&vdi) || aside.contains(&vdi);
                    !self.shared && intents.is_empty() && !here
                }
                _ => false,
            };
            if goes {
                store::remove(self.store.as_ref(), &entry.name)?;
                swept = true;
            }
        }
        if swept { self.sync_directory() } else { Ok(()) }
    }

    /// Finishes or undoes, whichever what is there allows.
    pub(super) fn settle(&self, intent: &Intent) -> io::Result<()> {
        match intent {
            Intent::Create { vdi, format } => self.settle_create(*vdi, *format),
            Intent::Delete { vdi, format } => {
                if self.has(*vdi, *format)? {
                    Ok(())
                } else {
                    self.remove_sides(*vdi)
                }
            }
            Intent::Hide { vdi, format } => {
                let name = data_name(*vdi, *format);
                match change::is_hidden(self.store.as_ref(), &name, *format)? {
                    Some(hidden) => change::set_hidden(self.store.as_ref(), &name, hidden),
                    None => Ok(()),
                }
            }
            Intent::Fork { .. } => self.settle_fork(intent),
            Intent::Resize { vdi, format, .. } => self.mend(*vdi, *format),
            Intent::Merge { parent, format, .. } => self.mend(*parent, *format),
            Intent::Succeed { .. } => self.succeed(intent),
        }
    }

    /// Takes back what a verb did before it failed.
    pub(super) fn undo(&self, intent: &Intent) -> io::Result<()> {
        match intent {
            Intent::Create { vdi, format } => self.settle_create(*vdi, *format)?,
            Intent::Hide { vdi, format } => {
                let name = data_name(*vdi, *format);
                let store = self.store.as_ref();
                if change::is_hidden(store, &name, *format)? == Some(true) {
                    change::set_hidden(store, &name, false)?;
                }
            }
            Intent::Fork { .. } => self.undo_fork(intent)?,
            // Not to be taken back: what is gone is gone, what succeeded has heirs.
            Intent::Delete { .. } | Intent::Succeed { .. } => self.settle(intent)?,
            // The image was undone by whoever changed it.
            Intent::Resize { vdi, format, .. } => self.mend(*vdi, *format)?,
            Intent::Merge { parent, format, .. } => self.mend(*parent, *format)?,
        }
        self.end(intent)
    }

    /// What has its name stays; without it the rest goes. A data file is never removed here: one
    /// that is there may be another host's, which made it in the same moment.
    fn settle_create(&self, vdi: VdiUuid, format: DataFormat) -> io::Result<()> {
        let draft = self.temporary(&data_name(vdi, format));
        store::remove(self.store.as_ref(), &draft)?;
        if self.has(vdi, format)? { Ok(()) } else { self.remove_sides(vdi) }
    }

    /// Removes what lies beside the data of a VDI.
    pub(super) fn remove_sides(&self, vdi: VdiUuid) -> io::Result<()> {
        let (record, lease) = (record_name(vdi), lease_name(vdi));
        for name in [&self.temporary(&record), &record, &lease] {
            store::remove(self.store.as_ref(), name)?;
        }
        Ok(())
    }

    pub(super) fn has(&self, vdi: VdiUuid, format: DataFormat) -> io::Result<bool> {
        store::exists(self.store.as_ref(), &data_name(vdi, format))
    }

    /// Whether a child of a fork is there, or can still be put there.
    fn child_is_safe(&self, child: VdiUuid) -> io::Result<bool> {
        let name = data_name(child, DataFormat::Vhd);
        Ok(store::exists(self.store.as_ref(), &name)?
            || store::exists(self.store.as_ref(), &self.temporary(&name))?)
    }

    /// Whether a file is a VHD that names this parent; one that makes no sense is not ours.
    fn is_child(&self, name: &str, parent: &str) -> io::Result<bool> {
        let stamp = match self.store.stamp(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            stamp => stamp?,
        };
        match facts::read(self.store.as_ref(), name, DataFormat::Vhd, &stamp) {
            // Nothing is known of it, so nothing may be decided.
            Err(facts::FactsError::Io(error)) => Err(error),
            Err(_) => Ok(false),
            Ok(facts) => Ok(facts.parent.is_some_and(|claim| claim.name == parent)),
        }
    }

    /// Whether the source of a fork lies where it always did, so that what is called its base is
    /// another host's, which made it in the same moment. Where both are one file the base is only a
    /// second name, of a rename that was made of a link and an unlink; it goes.
    fn is_uncut(&self, source: VdiUuid, base: VdiUuid, format: DataFormat) -> io::Result<bool> {
        let (from, to) = (data_name(source, format), data_name(base, format));
        let file = |name: &str| match self.store.stamp(name) {
            Ok(stamp) => Ok(Some(stamp.file)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(lies) = file(&from)? else { return Ok(false) };
        if file(&to)? == Some(lies) {
            store::remove(self.store.as_ref(), &to)?;
            self.sync_directory()?;
        }
        Ok(format == DataFormat::Raw || !self.is_child(&from, &to)?)
    }

    fn settle_fork(&self, intent: &Intent) -> io::Result<()> {
        let Intent::Fork { source, base, copy, format, hide } = intent else { return Ok(()) };
        if self.is_uncut(*source, *base, *format)? || !self.has(*base, *format)? {
            return self.undo_fork(intent);
        }
        let children: Vec<VdiUuid> = [Some(*source), *copy].into_iter().flatten().collect();
        for child in &children {
            if !self.child_is_safe(*child)? {
                // It was being taken back.
                return self.undo_fork(intent);
            }
        }
        for child in children {
            let name = data_name(child, DataFormat::Vhd);
            let draft = self.temporary(&name);
            if self.has(child, DataFormat::Vhd)? {
                store::remove(self.store.as_ref(), &draft)?;
            } else {
                self.store.apply(DirOp::Rename { from: &draft, to: &name, replace: false })?;
            }
            self.forget(child);
        }
        self.forget(*base);
        if *hide && *format == DataFormat::Vhd {
            change::set_hidden(self.store.as_ref(), &data_name(*base, *format), true)?;
        }
        Ok(())
    }

    /// The children go, the base gets its old name back. In this order, so that `settle_fork` sees
    /// that it was begun.
    fn undo_fork(&self, intent: &Intent) -> io::Result<()> {
        let Intent::Fork { source, base, copy, format, .. } = intent else { return Ok(()) };
        let store = self.store.as_ref();
        let child = data_name(*source, DataFormat::Vhd);
        let uncut = self.is_uncut(*source, *base, *format)?;
        if let Some(copy) = copy {
            let name = data_name(*copy, DataFormat::Vhd);
            store::remove(store, &self.temporary(&name))?;
            if self.is_child(&name, &data_name(*base, *format))? {
                store::remove(store, &name)?;
            }
            if !self.has(*copy, DataFormat::Vhd)? {
                self.remove_sides(*copy)?;
            }
            self.forget(*copy);
        }
        store::remove(store, &self.temporary(&child))?;
        let (from, to) = (data_name(*base, *format), data_name(*source, *format));
        let there = self.has(*base, *format)?;
        if uncut && there {
            return Ok(());
        }
        if there {
            if change::is_hidden(store, &from, *format)? == Some(true) {
                change::set_hidden(store, &from, false)?;
            }
            if child != to {
                store::remove(store, &child)?;
            }
            store.apply(DirOp::Rename { from: &from, to: &to, replace: true })?;
        }
        self.forget(*source);
        self.forget(*base);
        self.remove_sides(*base)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
}

fn data_of(entry: &Entry) -> Option<VdiUuid> {
    match Named::of(&entry.name) {
        Named::Data(vdi, _) => Some(vdi),
        _ => None,
    }
}

fn intent_of(entry: &Entry) -> Option<VdiUuid> {
    match Named::of(&entry.name) {
        Named::Intent(vdi) => Some(vdi),
        _ => None,
    }
}
