//! A VDI goes: at once when nobody depends on it, else it is hidden and its data stay for its
//! children until `gc` finds that nobody needs them.

use std::io;

use super::catalogue::Vdi;
use super::change;
use super::failure::{Failure, Kind};
use super::intent::Intent;
use super::names::{DataFormat, VdiUuid, data_name};
use super::record::VdiRecord;
use super::repository::Repository;
use super::store::{self, DirOp, Entry};

impl Repository {
    /// Deletes a VDI; nothing happens when there is none. Whoever holds its lock keeps it.
    ///
    /// # Errors
    /// When it is locked, or the store fails.
    pub fn delete(&self, vdi: VdiUuid) -> Result<(), Failure> {
        self.ready()?;
        let catalogue = self.scan()?;
        let found = match catalogue.visible(vdi) {
            Ok(found) => found,
            Err(failure) if failure.kind == Kind::NoVdi => return Ok(()),
            // Broken, but somebody's: its data may still be saved.
            Err(failure) => return Err(failure),
        };
        catalogue.unfinished.check(vdi)?;
        found.unlocked_for(|_| false)?;
        if !found.children.is_empty() {
            // Whoever reads its children reads it too, which a flag does not disturb.
            return self.hide(found);
        }
        // Another program may be serving it: hidden, it would get its flag in the middle of a file
        // that grows, and the next collection would take it. Also where an image that is no VDI is
        // its child: whoever made that may know nothing of parents that must not change.
        let claim = self.store.claim(&found.data_name());
        let _claim = claim.map_err(|error| self.failed("claim it", &error))?;
        // Looked at again under the claim: a list of names is no picture of one moment, and another
        // host may just have been giving it children.
        let catalogue = self.scan()?;
        let found = match catalogue.visible(vdi) {
            Err(failure) if failure.kind == Kind::NoVdi => return Ok(()),
            found => found?,
        };
        catalogue.unfinished.check(vdi)?;
        if catalogue.obscure.is_some() || found.is_needed() {
            return self.hide(found);
        }
        self.remove(vdi, found.format)
    }

    /// Removes the data of a VDI that nobody depends on, and what lies beside them.
    pub(super) fn remove(&self, vdi: VdiUuid, format: DataFormat) -> Result<(), Failure> {
        let steps = || {
            self.store.apply(DirOp::Unlink { name: &data_name(vdi, format) })?;
            self.remove_sides(vdi)?;
            self.sync_directory()
        };
        match self.carry_out(&Intent::Delete { vdi, format }, steps) {
            // A full disk has no room to say what is about to happen. Who deletes wants room; and
            // what a crash leaves beside data that are gone is swept at the next attach.
            Err(failure) if failure.kind == Kind::NoSpace => {
                match store::remove(self.store.as_ref(), &data_name(vdi, format)) {
                    Ok(()) => {
                        self.forget(vdi);
                        let done = self.remove_sides(vdi).and_then(|()| self.sync_directory());
                        done.map_err(|e| self.failed("delete it", &e))
                    }
                    Err(error) => Err(self.failed("delete it", &error)),
                }
            }
            done => done,
        }
    }

    /// One step either way: a VHD has a flag of its own for it, what is raw has only our record.
    fn hide(&self, found: &Vdi) -> Result<(), Failure> {
        let (vdi, format) = (found.uuid, found.format);
        let mut record = VdiRecord::default();
        if format == DataFormat::Raw {
            record.clone_from(found.known_record()?);
        }
        self.carry_out(&Intent::Hide { vdi, format }, || match format {
            DataFormat::Vhd => {
                let name = data_name(vdi, format);
                self.forget(vdi);
                change::set_hidden(self.store.as_ref(), &name, true)
            }
            DataFormat::Raw => {
                self.write_record(vdi, &VdiRecord { hidden: true, ..record })?;
                self.sync_directory()
            }
        })
    }

    /// Removes everything of ours from a store without VDIs: the last thing an SR lives to see.
    ///
    /// # Errors
    /// When there is a VDI that somebody sees, or data that cannot be read; or the store fails.
    pub fn dismantle(&self) -> Result<(), Failure> {
        self.ready()?;
        let mut left = Vec::new();
        self.prune(&|_| false, &mut left)?;
        let catalogue = self.scan()?;
        let place = format!("SR {}", self.sr);
        let visible = catalogue.vdis.values().filter(|vdi| !vdi.hidden).count();
        let broken = catalogue.findings.iter().filter(|f| f.broken.is_some()).count();
        if visible + broken > 0 {
            let why = format!("it still has {visible} VDIs, and {broken} that cannot be read");
            return Err(Failure::new(Kind::NotEmpty, place, why));
        }
        catalogue.unfinished.check_none(&place)?;
        if let Some((vdi, why)) = left.first() {
            let why = format!("the data of the deleted VDI {vdi} are still there: {why}");
            return Err(Failure::new(Kind::Busy, place, why)
                .advise("wait until they are no longer used, or move such a file out of the SR"));
        }
        if let (Some(why), Some((vdi, _))) = (&catalogue.obscure, catalogue.vdis.first_key_value())
        {
            let why = format!("the data of the deleted VDI {vdi} are still there: {why}");
            return Err(Failure::new(Kind::NotEmpty, place, why)
                .advise("mend that file, or move it out of the SR"));
        }
        self.remove_ours().map_err(|error| self.failed("remove what is left of it", &error))
    }

    fn remove_ours(&self) -> io::Result<()> {
        use super::names::{Named, SR_RECORD};
        let entries = self.store.list()?;
        let appeared =
            |entry: &&Entry| matches!(Named::of(&entry.name), Named::Data(..) | Named::Intent(_));
        if let Some(entry) = entries.iter().find(appeared) {
            let why = format!("another host has begun to use it: there is {}", entry.name);
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        let ours = |name: &str| !matches!(Named::of(name), Named::Foreign | Named::Sr);
        for entry in entries.iter().filter(|entry| ours(&entry.name)) {
            store::remove(self.store.as_ref(), &entry.name)?;
        }
        // Last: while it is there, this is an SR.
        store::remove(self.store.as_ref(), SR_RECORD)?;
        self.sync_directory()
    }
}
