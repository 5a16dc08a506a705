//! Snapshots and clones: the data of a disk become a base that nobody writes, and what goes on
//! being written are children of it.
//!
//! The children are complete and durable under names that do not count before the base gets its
//! new name; then they get theirs, and one sync makes all of it durable. While a disk is served
//! its writes are held from the first rename until the new leaf is in place ([`Cut`]), so no
//! acknowledged write ever lies in a file that a recovery would remove.

use std::io;

use vhd::{CreateOptions, NewLayout, NewParent, Plan};

use super::catalogue::{CHAIN_MAX, Catalogue, Vdi};
use super::change;
use super::failure::{Failure, Kind};
use super::intent::Intent;
use super::names::{DataFormat, VdiUuid, data_name, record_name};
use super::record::VdiRecord;
use super::repository::{DataFile, Repository, unix_now, vhd_now};
use super::store::{Claim, DirOp};

/// Whoever serves a disk while it is cut.
pub trait Cut {
    /// Whether somebody serves it, and so has claimed its files. Where nobody does, the cut claims
    /// them: another program might be writing.
    fn is_served(&self) -> bool {
        true
    }

    /// Whether it may be written to while it is cut.
    fn is_written(&self) -> bool {
        self.is_served()
    }

    /// A hold comes soon: what was written may begin to become durable, while the children are
    /// made. Must not wait for it.
    fn expect(&mut self) {}

    /// Everything written is durable, and no write begins until `release`.
    ///
    /// # Errors
    /// When that cannot be had; nothing is cut then.
    fn hold(&mut self) -> io::Result<()>;

    /// From now on this file takes the writes; what took them so far is its parent.
    ///
    /// # Errors
    /// When it cannot be opened; the cut is undone then.
    fn switch(&mut self, leaf: &DataFile) -> io::Result<()>;

    /// Writes go on. Comes also where nothing was held.
    fn release(&mut self);
}

/// Nobody serves the disk.
#[derive(Debug)]
pub struct Idle;

impl Cut for Idle {
    fn is_served(&self) -> bool {
        false
    }

    fn hold(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn switch(&mut self, _leaf: &DataFile) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self) {}
}

/// The disk is served and only read, so there is nothing to hold.
#[derive(Debug)]
pub struct Still;

impl Cut for Still {
    fn is_written(&self) -> bool {
        false
    }

    fn hold(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn switch(&mut self, _leaf: &DataFile) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self) {}
}

/// Where the children of a fork hang.
struct Base<'a> {
    vdi: &'a Vdi,
    /// The identity it has once its children are there.
    uuid: VdiUuid,
}

impl Repository {
    /// Keeps the content of `source` as the read-only VDI `dest`: its data get that name, and
    /// `source` goes on as a child of it. What is read-only itself only gets a read-only child.
    /// `record_of` says what is to be known of `dest`, or refuses, when it sees the source.
    ///
    /// # Errors
    /// When there is no source, the identity is taken, the chain is too long or the store fails;
    /// everything is as before then.
    pub fn snapshot(
        &self,
        source: VdiUuid,
        dest: VdiUuid,
        record_of: impl FnOnce(&Vdi) -> Result<VdiRecord, Failure>,
        cut: &mut dyn Cut,
    ) -> Result<(), Failure> {
        let catalogue = self.may_fork(source, dest, cut)?;
        let vdi = catalogue.visible(source)?;
        let record = record_of(vdi)?;
        let record = VdiRecord {
            read_only: true,
            snapshot_of: Some(source),
            snapshot_time: record.snapshot_time.or(Some(unix_now())),
            ..record
        };
        record.check()?;
        if vdi.read_only {
            return self.add_child(vdi, dest, &record);
        }
        let _claim = self.claim_unless_served(vdi, cut)?;
        let plan = self.child_plan(&Base { vdi, uuid: dest })?;
        let (base, format) = (dest, vdi.format);
        let intent = Intent::Fork { source, base, copy: None, format, hide: false };
        self.carry_out_fork(&intent, &[(source, plan, None)], &record, cut)
    }

    /// Makes `dest` a writable VDI of the same content: both become children of a hidden base of
    /// a fresh identity. What is read-only itself gets `dest` as a child.
    ///
    /// # Errors
    /// As [`Repository::snapshot`].
    pub fn clone_vdi(
        &self,
        source: VdiUuid,
        dest: VdiUuid,
        record_of: impl FnOnce(&Vdi) -> Result<VdiRecord, Failure>,
        cut: &mut dyn Cut,
    ) -> Result<(), Failure> {
        let catalogue = self.may_fork(source, dest, cut)?;
        let vdi = catalogue.visible(source)?;
        let record = record_of(vdi)?;
        record.check()?;
        if vdi.read_only {
            return self.add_child(vdi, dest, &record);
        }
        let _claim = self.claim_unless_served(vdi, cut)?;
        let base = VdiUuid::random();
        let of = Base { vdi, uuid: base };
        let children =
            [(source, self.child_plan(&of)?, None), (dest, self.child_plan(&of)?, Some(&record))];
        let of_base = VdiRecord {
            label: "base copy".to_owned(),
            read_only: true,
            hidden: true,
            created: vdi.record.created,
            ..VdiRecord::default()
        };
        let intent =
            Intent::Fork { source, base, copy: Some(dest), format: vdi.format, hide: true };
        self.carry_out_fork(&intent, &children, &of_base, cut)
    }

    fn claim_unless_served(&self, vdi: &Vdi, cut: &dyn Cut) -> Result<Option<Claim>, Failure> {
        if cut.is_served() {
            return Ok(None);
        }
        let claim = self.store.claim(&vdi.data_name());
        claim.map(Some).map_err(|error| self.failed("claim it", &error))
    }

    fn may_fork(
        &self,
        source: VdiUuid,
        dest: VdiUuid,
        cut: &dyn Cut,
    ) -> Result<Catalogue, Failure> {
        self.ready()?;
        let catalogue = self.glance(&[source, dest])?;
        catalogue.visible(source)?;
        catalogue.untouched(source)?;
        let vdi = catalogue.visible(source)?;
        vdi.known_record()?;
        vdi.free_of_strays()?;
        if vdi.read_only && cut.is_written() {
            let why = "it is being written, though others depend on it: an image that names it as \
                       its parent was put beside it meanwhile";
            return Err(Failure::new(Kind::Busy, format!("VDI {source}"), why)
                .advise("detach it first (vdi_detach)"));
        }
        self.check_free(&catalogue, dest)?;
        let depth = catalogue.chain(source)?.len();
        if depth >= CHAIN_MAX {
            let why = format!("its chain has {depth} images, and {CHAIN_MAX} is the most");
            return Err(Failure::new(Kind::ChainTooLong, format!("VDI {source}"), why));
        }
        Ok(catalogue)
    }

    /// One more child of what never changes.
    fn add_child(&self, parent: &Vdi, dest: VdiUuid, record: &VdiRecord) -> Result<(), Failure> {
        let plan = self.child_plan(&Base { vdi: parent, uuid: parent.uuid })?;
        self.make(dest, DataFormat::Vhd, &plan, record)
    }

    fn fork(
        &self,
        intent: &Intent,
        children: &[(VdiUuid, Plan, Option<&VdiRecord>)],
        of_base: &VdiRecord,
        cut: &mut dyn Cut,
    ) -> io::Result<()> {
        let Intent::Fork { source, base, format, hide, .. } = intent else { return Ok(()) };
        let mut drafts = vec![record_name(*base)];
        let mut records = vec![*base];
        self.draft_record(*base, of_base)?;
        for (child, plan, record) in children {
            let name = data_name(*child, DataFormat::Vhd);
            self.draft_image(&name, plan)?;
            drafts.push(name);
            if let Some(record) = record {
                self.draft_record(*child, record)?;
                drafts.push(record_name(*child));
                records.push(*child);
            }
        }
        let drafts: Vec<&str> = drafts.iter().map(String::as_str).collect();
        self.sync_drafts(&drafts)?;
        for vdi in records {
            self.place_record(vdi)?;
        }
        cut.hold()?;
        let done = self.switch_names((*source, *base, *format, *hide), children).and_then(|()| {
            let name = data_name(*source, DataFormat::Vhd);
            let place = self.store.data_place(&name);
            cut.switch(&DataFile { vdi: *source, format: DataFormat::Vhd, place })
        });
        if done.is_ok() {
            cut.release();
        }
        done
    }

    /// Carries out a fork. Where it fails, no write begins before it was undone: it would go to a
    /// file that is being renamed.
    fn carry_out_fork(
        &self,
        intent: &Intent,
        children: &[(VdiUuid, Plan, Option<&VdiRecord>)],
        of_base: &VdiRecord,
        cut: &mut dyn Cut,
    ) -> Result<(), Failure> {
        cut.expect();
        let served = cut.is_served();
        let done =
            self.carry_out_under(intent, served, || self.fork(intent, children, of_base, cut));
        if done.is_err() {
            cut.release();
        }
        done
    }

    fn switch_names(
        &self,
        (source, base, format, hide): (VdiUuid, VdiUuid, DataFormat, bool),
        children: &[(VdiUuid, Plan, Option<&VdiRecord>)],
    ) -> io::Result<()> {
        let (from, to) = (data_name(source, format), data_name(base, format));
        self.store.apply(DirOp::Rename { from: &from, to: &to, replace: false })?;
        for (child, ..) in children {
            let name = data_name(*child, DataFormat::Vhd);
            let from = self.temporary(&name);
            self.store.apply(DirOp::Rename { from: &from, to: &name, replace: false })?;
        }
        self.sync_directory()?;
        self.forget(base);
        if hide && format == DataFormat::Vhd {
            change::set_hidden(self.store.as_ref(), &to, true)?;
        }
        Ok(())
    }

    /// The bytes of an empty child.
    fn child_plan(&self, base: &Base<'_>) -> Result<Plan, Failure> {
        let vdi = base.vdi;
        let raw = vdi.format == DataFormat::Raw;
        let parent = NewParent {
            uuid: vdi.identity.unwrap_or_default(),
            raw,
            relative_path: data_name(base.uuid, vdi.format),
            timestamp: vhd_now(),
        };
        let block_bytes = vhd::create::DEFAULT_BLOCK_BYTES;
        vhd::create(&CreateOptions {
            size: vhd::ByteLen::new(vdi.size.get()),
            layout: NewLayout::Differencing { block_bytes, parent },
            uuid: VdiUuid::random().bytes(),
            timestamp: vhd_now(),
        })
        .map_err(|error| {
            let why = format!("it cannot have a child: {error}");
            Failure::new(Kind::NotPermitted, format!("VDI {}", vdi.uuid), why)
        })
    }
}
