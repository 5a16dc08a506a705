//! The vocabulary: one variant for each call of the specification (spec 003), and for what only our
//! own command line asks.
//!
//! Arguments are typed and complete: a dialect has refused what it could not understand before a
//! command exists. Nothing here acts.

use std::collections::BTreeMap;

use super::attaching::Access;
use super::listing::Listing;
use crate::engine::units::ByteLen;
use crate::sr::{Collected, DataFormat, DeviceConfig, SrUuid, VdiUuid};

/// What a user may say of an SR or a VDI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// A name for people.
    pub label: String,
    /// More for people.
    pub description: String,
    /// The user's own strings, by name.
    pub properties: BTreeMap<String, String>,
}

/// What a VDI is attached for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// To be written if it may be, else to be read: the specification's call says nothing.
    #[default]
    Auto,
    /// To be read.
    ReadOnly,
    /// To be written.
    ReadWrite,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make an SR; it is not attached by that.
    SrCreate {
        /// Its identity.
        sr: SrUuid,
        /// The type of driver, such as "file".
        driver: String,
        /// The driver's parameters.
        config: DeviceConfig,
        /// Bytes it is to have, where the substrate does not say.
        size: ByteLen,
        /// What the user says of it.
        about: About,
    },
    /// Remove an SR without VDIs. Idempotent.
    SrDelete {
        /// The SR.
        sr: SrUuid,
        /// The type of driver.
        driver: String,
        /// The driver's parameters.
        config: DeviceConfig,
    },
    /// Make an SR accessible on this host. Idempotent.
    SrAttach {
        /// The SR.
        sr: SrUuid,
        /// The type of driver.
        driver: String,
        /// The driver's parameters.
        config: DeviceConfig,
    },
    /// Take that back. Idempotent.
    SrDetach {
        /// The SR.
        sr: SrUuid,
    },
    /// What kind of data the SR holds.
    SrContentType {
        /// The SR.
        sr: SrUuid,
    },
    /// List what the SR holds.
    SrScan {
        /// The SR.
        sr: SrUuid,
    },
    /// Give back what nobody needs (ours).
    SrGc {
        /// The SR.
        sr: SrUuid,
    },
    /// The SRs attached here (ours).
    SrList,
    /// Make an empty VDI.
    VdiCreate {
        /// The SR.
        sr: SrUuid,
        /// The new VDI; a fresh identity when `None`, as today's callers want.
        vdi: Option<VdiUuid>,
        /// Bytes of the disk: a whole number of sectors.
        size: ByteLen,
        /// The format of its data.
        format: DataFormat,
        /// What the user says of it.
        about: About,
        /// Whether several hosts may use it at once.
        shareable: bool,
        /// Whether it may never be written.
        read_only: bool,
    },
    /// Delete a VDI. Idempotent.
    VdiDelete {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
    },
    /// Serve a VDI on this host. Idempotent.
    VdiAttach {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
        /// What for.
        mode: AttachMode,
        /// The user string of the VDI's lock, if the caller holds it.
        user: Option<String>,
    },
    /// Serve it no longer. Idempotent.
    VdiDetach {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
    },
    /// Make a writable VDI of the same content.
    VdiClone {
        /// The SR.
        sr: SrUuid,
        /// The VDI to be cloned: detached and unlocked.
        source: VdiUuid,
        /// The new VDI; a fresh identity when `None`.
        dest: Option<VdiUuid>,
        /// What the user says of the new one; as of the source when `None`.
        about: Option<About>,
    },
    /// Keep the content of a VDI as a read-only one.
    VdiSnapshot {
        /// The SR.
        sr: SrUuid,
        /// The VDI whose content is kept.
        source: VdiUuid,
        /// The new VDI; a fresh identity when `None`.
        dest: Option<VdiUuid>,
        /// What the user says of the new one; as of the source when `None`.
        about: Option<About>,
    },
    /// Let a VDI grow. Idempotent.
    VdiResize {
        /// The SR.
        sr: SrUuid,
        /// The VDI: detached.
        vdi: VdiUuid,
        /// Bytes the disk is to have.
        size: ByteLen,
    },
    /// Take a VDI's persistent lock.
    VdiLock {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
        /// Whether another's lock is broken.
        force: bool,
        /// The user string that alone gives it back.
        user: String,
        /// How long it holds unless renewed; for ever when `None`.
        lease_seconds: Option<u64>,
    },
    /// Give it back. Idempotent.
    VdiUnlock {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
        /// The user string that took it.
        user: String,
    },
    /// Change what a user says of a VDI (ours). What is `None` stays.
    VdiDescribe {
        /// The SR.
        sr: SrUuid,
        /// The VDI.
        vdi: VdiUuid,
        /// Its new label.
        label: Option<String>,
        /// Its new description.
        description: Option<String>,
    },
}

impl Command {
    /// The call's name in the specification, or ours.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SrCreate { .. } => "sr_create",
            Self::SrDelete { .. } => "sr_delete",
            Self::SrAttach { .. } => "sr_attach",
            Self::SrDetach { .. } => "sr_detach",
            Self::SrContentType { .. } => "sr_content_type",
            Self::SrScan { .. } => "sr_scan",
            Self::SrGc { .. } => "sr_gc",
            Self::SrList => "sr_list",
            Self::VdiCreate { .. } => "vdi_create",
            Self::VdiDelete { .. } => "vdi_delete",
            Self::VdiAttach { .. } => "vdi_attach",
            Self::VdiDetach { .. } => "vdi_detach",
            Self::VdiClone { .. } => "vdi_clone",
            Self::VdiSnapshot { .. } => "vdi_snapshot",
            Self::VdiResize { .. } => "vdi_resize",
            Self::VdiLock { .. } => "vdi_lock",
            Self::VdiUnlock { .. } => "vdi_unlock",
            Self::VdiDescribe { .. } => "vdi_describe",
        }
    }

    /// The SR it concerns.
    pub const fn sr(&self) -> Option<SrUuid> {
        match self {
            Self::SrList => None,
            Self::SrCreate { sr, .. }
            | Self::SrDelete { sr, .. }
            | Self::SrAttach { sr, .. }
            | Self::SrDetach { sr }
            | Self::SrContentType { sr }
            | Self::SrScan { sr }
            | Self::SrGc { sr }
            | Self::VdiCreate { sr, .. }
            | Self::VdiDelete { sr, .. }
            | Self::VdiAttach { sr, .. }
            | Self::VdiDetach { sr, .. }
            | Self::VdiClone { sr, .. }
            | Self::VdiSnapshot { sr, .. }
            | Self::VdiResize { sr, .. }
            | Self::VdiLock { sr, .. }
            | Self::VdiUnlock { sr, .. }
            | Self::VdiDescribe { sr, .. } => Some(*sr),
        }
    }

    /// The VDI it is about: of a clone or a snapshot the source.
    pub const fn vdi(&self) -> Option<VdiUuid> {
        match self {
            Self::VdiCreate { vdi, .. } => *vdi,
            Self::VdiDelete { vdi, .. }
            | Self::VdiAttach { vdi, .. }
            | Self::VdiDetach { vdi, .. }
            | Self::VdiResize { vdi, .. }
            | Self::VdiLock { vdi, .. }
            | Self::VdiUnlock { vdi, .. }
            | Self::VdiDescribe { vdi, .. } => Some(*vdi),
            Self::VdiClone { source, .. } | Self::VdiSnapshot { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// An SR that is attached here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedSr {
    /// The SR.
    pub sr: SrUuid,
    /// The type of driver.
    pub driver: String,
    /// The driver's parameters.
    pub config: DeviceConfig,
    /// Its label.
    pub label: String,
    /// Where it lies, for people.
    pub place: String,
    /// The VDIs of it that are attached here.
    pub vdis: Vec<VdiUuid>,
}

/// What a call gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, and nothing to say.
    Done,
    /// The content type: "vhd".
    ContentType(&'static str),
    /// What an SR holds.
    Scanned(Box<Listing>),
    /// A VDI was made; its location is its identity.
    Vdi(VdiUuid),
    /// How the VDI is reached.
    Attached(Access),
    /// What was given back.
    Collected(Collected),
    /// The SRs attached here.
    Srs(Vec<AttachedSr>),
}
