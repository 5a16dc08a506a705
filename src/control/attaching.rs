//! The seam to whoever serves disks.

use crate::engine::units::ByteLen;
use crate::sr::{Cut, DataFile, Failure, SrUuid, VdiUuid};

/// How an attached VDI is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// A file that is the disk.
    pub path: String,
    /// Where it is served over NBD.
    pub nbd_uri: String,
    /// Whether it may only be read there.
    pub read_only: bool,
}

/// A VDI to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// The SR.
    pub sr: SrUuid,
    /// The VDI.
    pub vdi: VdiUuid,
    /// Its data file and those of its parents, its own first. Never empty.
    pub chain: Vec<DataFile>,
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Whether it may not be written. When it may, the VDI has no children: that was looked at.
    pub read_only: bool,
}

/// Serves disks. Calls for different VDIs come at the same time, calls for one never.
pub trait Attacher: Send + Sync {
    /// Serves a VDI that is not served.
    ///
    /// # Errors
    /// Why it cannot be; nothing of it is left then.
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure>;

    /// Serves it no longer: what was written is durable, its files are closed. Nothing happens when
    /// it is not served.
    ///
    /// # Errors
    /// [`Kind::Busy`](crate::sr::Kind::Busy) while clients use it; it is served on then. Any other:
    /// it is served no longer, but not everything that was written is durable.
    fn detach(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure>;

    /// A VDI was to be served, and its images do not make a disk. Whoever shows disks may show why,
    /// until it is attached well or detached.
    fn broken(&self, sr: SrUuid, file: &DataFile, failure: &Failure) {
        let _not_shown = (sr, file, failure);
    }

    /// An SR is attached no longer; none of its VDIs was served. What was told of broken ones goes.
    fn left(&self, sr: SrUuid) {
        let _nothing_told = sr;
    }

    /// Gets ready to put a new leaf over a VDI that is served; `None` when it cannot.
    fn cut(&self, sr: SrUuid, vdi: VdiUuid) -> Option<Box<dyn Cut + '_>>;
}

/// Serves nothing: for repositories that are only managed.
#[derive(Debug)]
pub struct Detached;

impl Attacher for Detached {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        let place = format!("VDI {}", request.vdi);
        Err(Failure::new(crate::sr::Kind::Unsupported, place, "nothing serves disks here"))
    }

    fn detach(&self, _sr: SrUuid, _vdi: VdiUuid) -> Result<(), Failure> {
        Ok(())
    }

    fn cut(&self, _sr: SrUuid, _vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        None
    }
}
