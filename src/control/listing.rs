//! What sr_scan tells of an SR: the specification's elements, as values.

use crate::engine::units::ByteLen;
use crate::sr::{Catalogue, DataFormat, Finding, Lock, SrRecord, SrUuid, Vdi, VdiRecord, VdiUuid};

/// An SR and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The SR.
    pub sr: SrUuid,
    /// Its label.
    pub label: String,
    /// Its description.
    pub description: String,
    /// Bytes that are taken in the substrate.
    pub physical_utilisation: ByteLen,
    /// Bytes of all disks.
    pub virtual_allocation: ByteLen,
    /// Bytes of the substrate.
    pub physical_size: ByteLen,
    /// Whether a VDI that is found is for everybody to use.
    pub default_vdi_visibility: bool,
    /// The VDIs.
    pub vdis: Vec<Listed>,
    /// Data that live for their children only: deleted VDIs, and the bases of clones.
    pub hidden: Vec<Listed>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its identity, which is also its location.
    pub uuid: VdiUuid,
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Bytes that its own data take.
    pub utilisation: ByteLen,
    /// Whether somebody holds its lock.
    pub locked: bool,
    /// Whether several hosts may use it at once.
    pub shareable: bool,
    /// Whether it may only be read.
    pub read_only: bool,
    /// The VDI whose data it needs.
    pub parent: Option<VdiUuid>,
    /// Images under names that are no VDI's, and that are children of it.
    pub strays: Vec<String>,
    /// The format of its data.
    pub format: DataFormat,
    /// What else is known of it.
    pub record: VdiRecord,
}

impl Listing {
    pub(super) fn new(catalogue: Catalogue, record: Option<SrRecord>) -> Self {
        let virtual_allocation = catalogue.virtual_allocation();
        let (label, description) =
            record.map_or_else(Default::default, |record| (record.label, record.description));
        let (hidden, vdis): (Vec<_>, Vec<_>) =
            catalogue.vdis.into_values().partition(|vdi| vdi.hidden);
        Self {
            sr: catalogue.sr,
            label,
            description,
            physical_utilisation: catalogue.space.used,
            virtual_allocation,
            physical_size: catalogue.space.size,
            default_vdi_visibility: true,
            vdis: vdis.into_iter().map(Listed::from).collect(),
            hidden: hidden.into_iter().map(Listed::from).collect(),
            findings: catalogue.findings,
        }
    }
}

impl From<Vdi> for Listed {
    fn from(vdi: Vdi) -> Self {
        Self {
            uuid: vdi.uuid,
            size: vdi.size,
            utilisation: vdi.utilisation,
            locked: vdi.lock != Lock::Free,
            shareable: vdi.record.shareable,
            read_only: vdi.read_only,
            parent: vdi.parent,
            strays: vdi.strays,
            format: vdi.format,
            record: vdi.record,
        }
    }
}
