//! Files in the making: written under names that do not count, made durable together, and only then
//! given the names that do. Together, because the first sync of several usually pays for all.

use std::io;

use vhd::{Piece, Plan};

use super::names::{VdiUuid, record_name};
use super::record::VdiRecord;
use super::repository::Repository;
use super::store::{self, DirOp};
use crate::engine::units::{ByteLen, FileOffset};

/// Bytes written at once where a plan asks for many equal ones.
const FILL_BYTES: u64 = 1 << 20;

impl Repository {
    /// Writes an image that is to have this name.
    pub(super) fn draft_image(&self, name: &str, plan: &Plan) -> io::Result<()> {
        let (store, draft) = (self.store.as_ref(), self.temporary(name));
        let draft = draft.as_str();
        store::remove(store, draft)?;
        store.apply(DirOp::Create { name: draft })?;
        store.apply(DirOp::SetLength { name: draft, len: ByteLen::new(plan.file_len.get()) })?;
        for piece in &plan.pieces {
            match piece {
                Piece::Bytes { at, bytes } => {
                    let at = FileOffset::new(at.get());
                    store.apply(DirOp::Write { name: draft, at, bytes })?;
                }
                Piece::Fill { at, len, byte } => self.fill(draft, at.get(), len.get(), *byte)?,
            }
        }
        Ok(())
    }

    fn fill(&self, name: &str, at: u64, len: u64, byte: u8) -> io::Result<()> {
        let chunk = vec![byte; usize::try_from(len.min(FILL_BYTES)).unwrap_or(0)];
        let mut done = 0;
        while done < len {
            let bytes = &chunk[..usize::try_from((len - done).min(FILL_BYTES)).unwrap_or(0)];
            self.store.apply(DirOp::Write { name, at: FileOffset::new(at + done), bytes })?;
            done += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes the record that a VDI is to have.
    pub(super) fn draft_record(&self, vdi: VdiUuid, record: &VdiRecord) -> io::Result<()> {
        let draft = self.temporary(&record_name(vdi));
        store::remove(self.store.as_ref(), &draft)?;
        self.store.apply(DirOp::Create { name: &draft })?;
        let (at, bytes) = (FileOffset::new(0), record.to_bytes());
        self.store.apply(DirOp::Write { name: &draft, at, bytes: &bytes })
    }

    /// Makes durable what is to have these names.
    pub(super) fn sync_drafts(&self, names: &[&str]) -> io::Result<()> {
        for name in names {
            self.store.apply(DirOp::SyncFile { name: &self.temporary(name) })?;
        }
        Ok(())
    }

    /// Gives a record that was drafted and synced its name.
    pub(super) fn place_record(&self, vdi: VdiUuid) -> io::Result<()> {
        let name = record_name(vdi);
        let draft = self.temporary(&name);
        self.forget(vdi);
        self.store.apply(DirOp::Rename { from: &draft, to: &name, replace: true })
    }
}
