//! What a connection is told by whoever opens it: the part of the disk it sees, its bounds, and
//! who counts and slows what it does.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ::nbd::export::{BlockSize, Capabilities, Export};
use ::nbd::{Bytes, ContextName};

use crate::engine::units::{ByteLen, Extent};
use crate::meter::{Meter, Throttle};

/// The dirty bitmap every disk has: what its top layer holds, so what changed since its parent.
const LEAF_BITMAP: &str = "leaf";

/// Everything a connection needs beside its session.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// The part of the disk that is the export: as long as the export, inside the disk.
    pub window: Extent,
    /// Where the disk's size in bytes is told, if the export is the whole disk however large that
    /// is. The connection follows the disk, and tells here when its client changed the size.
    pub whole: Option<Arc<AtomicU64>>,
    /// Its bounds.
    pub limits: ClientLimits,
    /// Counts for all connections of the export that are on the same shard.
    pub export_meter: Arc<Meter>,
    /// Counts for this connection.
    pub meter: Arc<Meter>,
    /// The limits of the export.
    pub throttle: Arc<Throttle>,
}

/// The bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Requests in flight, 1 to 1024; what is outside counts as the nearest.
    pub requests: usize,
    /// Bytes of payload in flight, in both directions; one request may be larger when it is alone.
    pub bytes: u64,
    /// A connection on which nothing happens for so long is closed.
    pub idle: Option<Duration>,
    /// A peer is cut that does not take the next part of its replies, at most 4 MiB, within this.
    /// The system does not tell how much of a part was taken, so this is what a slow peer must
    /// keep up with: with 60 s, some 70 kB/s.
    pub send_stall: Duration,
    /// A peer is cut that has begun a header or payload and does not send the rest, or the next
    /// 2 MiB of a long payload, within this.
    pub payload_stall: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            requests: 256,
            bytes: 64 << 20,
            idle: None,
            send_stall: Duration::from_secs(60),
            payload_stall: Duration::from_secs(60),
        }
    }
}

/// What an export is called and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportShape {
    /// Its canonical name.
    pub name: String,
    /// Text for people; empty for none.
    pub description: String,
    /// Its size.
    pub size: ByteLen,
    /// Writes are refused.
    pub read_only: bool,
    /// Clients may change its size.
    pub resize: bool,
}

/// The export of a disk, or of a part of one.
#[must_use]
pub fn export_of(shape: ExportShape) -> Export {
    Export {
        name: shape.name,
        description: shape.description,
        size: Bytes(shape.size.get()),
        capabilities: Capabilities {
            read_only: shape.read_only,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: true,
            multi_conn: true,
            rotational: false,
            resize: shape.resize,
        },
        block_size: BlockSize::default(),
        contexts: vec![
            ContextName::Allocation,
            ContextName::AllocationDepth,
            ContextName::DirtyBitmap(LEAF_BITMAP.to_owned()),
        ],
    }
}
