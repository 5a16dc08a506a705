//! Small changes to a VHD where it lies: its hidden flag, its parent's identity, its repair.
//!
//! Each is one sector that counts, written whole or not at all, so a crash leaves the old or the
//! new. Never touches a guest's bytes.

use std::io;

use vhd::footer::FOOTER_BYTES;
use vhd::header::{HEADER_BYTES, with_parent};
use vhd::{Backing, DiskKind, Footer, Limits, Opening, RepairStep, Step};

use super::facts;
use super::names::{DataFormat, VdiUuid, data_name};
use super::repository::Repository;
use super::store::{self, DirOp, Store};
use crate::engine::units::{ByteLen, FileOffset};

/// What a file is worth whose metadata break their rules.
pub(super) fn corrupt(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Whether a VHD is flagged hidden; `None` when there is none, or it is raw and has no flag.
pub(super) fn is_hidden(
    store: &dyn Store,
    name: &str,
    format: DataFormat,
) -> io::Result<Option<bool>> {
    if format == DataFormat::Raw {
        return Ok(None);
    }
    let stamp = match store.stamp(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        stamp => stamp?,
    };
    Ok(Some(footer(store, name, stamp.len)?.hidden != 0))
}

fn footer(store: &dyn Store, name: &str, len: ByteLen) -> io::Result<Footer> {
    facts::footer_of(store, name, len.get()).map_err(|error| match error {
        facts::FactsError::Io(error) => error,
        other => corrupt(other),
    })
}

/// Sets or clears the hidden flag in every copy of the footer. Whichever of the two survive a
/// crash, the one at the end counts, and a repair brings the other after it.
pub(super) fn set_hidden(store: &dyn Store, name: &str, hidden: bool) -> io::Result<()> {
    let len = store.stamp(name)?.len;
    let sound = footer(store, name, len)?;
    let wanted = Footer { hidden: u8::from(hidden), ..sound }.to_bytes();
    let tail = len.get().saturating_sub(FOOTER_BYTES as u64);
    let places = if sound.kind == DiskKind::Fixed { vec![tail] } else { vec![tail, 0] };
    let mut changed = false;
    for at in places {
        let at = FileOffset::new(at);
        let mut found = [0; FOOTER_BYTES];
        store.read(name, at, &mut found)?;
        // Where there is none, a repair puts it; that is not for here.
        if Footer::parse(&found).is_ok_and(|footer| footer.hidden != u8::from(hidden)) {
            store.apply(DirOp::Write { name, at, bytes: &wanted })?;
            changed = true;
        }
    }
    if changed { store.apply(DirOp::SyncFile { name }) } else { Ok(()) }
}

/// Lets a child name a parent of another identity under the same name: one sector.
pub(super) fn set_parent(store: &dyn Store, name: &str, identity: [u8; 16]) -> io::Result<()> {
    let len = store.stamp(name)?.len;
    let header_at = footer(store, name, len)?.data_offset;
    let at = header_at.ok_or_else(|| corrupt("its footer says that its header is nowhere"))?;
    let at = FileOffset::new(at.get());
    let mut bytes = [0; HEADER_BYTES];
    store.read(name, at, &mut bytes)?;
    let first = with_parent(&bytes, identity).map_err(corrupt)?;
    if bytes[..first.len()] != first {
        store.apply(DirOp::Write { name, at, bytes: &first })?;
        store.apply(DirOp::SyncFile { name })?;
    }
    Ok(())
}

/// Opens the image inside a data file.
pub(super) fn survey(store: &dyn Store, name: &str) -> io::Result<vhd::Image> {
    let len = vhd::ByteLen::new(store.stamp(name)?.len.get());
    let mut opening = Opening::new(len, Limits::default());
    let mut bytes = Vec::new();
    let mut step = opening.step(None).map_err(corrupt)?;
    loop {
        match step {
            Step::Done(image) => return Ok(image),
            Step::Read { at, len } => {
                bytes.resize(len, 0);
                store.read(name, FileOffset::new(at.get()), &mut bytes)?;
                step = opening.step(Some(&bytes)).map_err(corrupt)?;
            }
        }
    }
}

/// Opens the image inside a data file for writing: repaired first if need be.
pub(super) fn survey_to_write(store: &dyn Store, name: &str) -> io::Result<vhd::Image> {
    // What the page cache holds and was never synced must not be taken for durable.
    store.apply(DirOp::SyncFile { name })?;
    let image = survey(store, name)?;
    if let Some(reason) = image.write_refusal() {
        return Err(corrupt(format!("it can only be read: {reason}")));
    }
    let steps = vhd::recovery_plan(&image, Backing::File);
    if steps.is_empty() {
        return Ok(image);
    }
    for step in &steps {
        store.apply(match step {
            RepairStep::Write { at, bytes } => {
                DirOp::Write { name, at: FileOffset::new(at.get()), bytes }
            }
            RepairStep::Truncate { len } => DirOp::SetLength { name, len: ByteLen::new(len.get()) },
            RepairStep::Sync => DirOp::SyncFile { name },
        })?;
    }
    survey(store, name)
}

impl Repository {
    /// Repairs what an unfinished change left at the end of an image. One that cannot be opened is
    /// left as it is: the scan tells.
    pub(super) fn mend(&self, vdi: VdiUuid, format: DataFormat) -> io::Result<()> {
        let name = data_name(vdi, format);
        self.forget(vdi);
        if format == DataFormat::Raw || !store::exists(self.store.as_ref(), &name)? {
            return Ok(());
        }
        match survey_to_write(self.store.as_ref(), &name) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(sr = %self.sr, file = name, %error, "cannot repair it");
                Ok(())
            }
            done => done.map(drop),
        }
    }
}
