//! What a scan finds: the scheme, the partitions, and what was odd about them.
//!
//! Holds only partitions that lie on the disk whole. Whether they overlap is told, not judged.

use std::fmt;

use uuid::Uuid;

use super::gpt::GptFault;
use crate::engine::units::{ByteLen, DiskOffset, Extent};

/// How a disk is divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Not at all, as far as we can tell.
    #[default]
    None,
    /// By a master boot record.
    Mbr,
    /// By a GUID partition table.
    Gpt,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Mbr => "MBR",
            Self::Gpt => "GPT",
        })
    }
}

/// What a partition says it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionKind {
    /// The system byte of an MBR entry.
    Mbr(u8),
    /// The type GUID of a GPT entry.
    Gpt(Uuid),
}

impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mbr(byte) => write!(f, "{byte:#04x}"),
            Self::Gpt(guid) => write!(f, "{guid}"),
        }
    }
}

/// A run of the disk with a number. Never empty, and never beyond the disk's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel numbers them, from 1. Numbers may be missing.
    pub number: u32,
    /// First byte.
    pub start: DiskOffset,
    /// Length in bytes.
    pub len: ByteLen,
    /// What it is for.
    pub kind: PartitionKind,
    /// Its name: empty in an MBR. No control character, nothing that turns the line of a terminal.
    pub name: String,
    /// Its own identity; `None` in an MBR.
    pub unique: Option<Uuid>,
    /// GPT: the attribute bits (UEFI table 5-8). MBR: the boot indicator, 0 or 0x80.
    pub flags: u64,
}

impl Partition {
    /// The bytes of the disk that it covers.
    pub const fn extent(&self) -> Extent {
        Extent::new(self.start, self.len)
    }
}

/// A disk's partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// How the disk is divided.
    pub scheme: Scheme,
    /// Bytes of a sector as the table counts them; 512 when there is no table.
    pub sector: ByteLen,
    /// In order of their numbers. An extended partition is not among them: it is a container whose
    /// content are the logical ones.
    pub partitions: Vec<Partition>,
    /// What a user should know.
    pub notices: Vec<Notice>,
    /// The numbers of extended partitions.
    pub(super) extended: Vec<u32>,
}

impl Table {
    /// The partition of that number.
    ///
    /// # Errors
    /// [`PartitionError::Unknown`] with the numbers that there are, and for a container
    /// [`PartitionError::Extended`].
    pub fn partition(&self, number: u32) -> Result<&Partition, PartitionError> {
        if let Some(found) = self.partitions.iter().find(|found| found.number == number) {
            return Ok(found);
        }
        let known = self.partitions.iter().map(|partition| partition.number).collect();
        Err(match self.extended.contains(&number) {
            true => PartitionError::Extended { number, known },
            false => PartitionError::Unknown { number, scheme: self.scheme, known },
        })
    }

    /// Adds a partition of these bytes if they lie on the disk; else says why not.
    pub(super) fn admit(&mut self, size: ByteLen, candidate: Candidate) {
        let Candidate { number, start, len, kind, name, unique, flags } = candidate;
        let end = start.and_then(|start| start.checked_add(len?));
        let (Some(start), Some(len), Some(end)) = (start, len, end) else {
            return self.notices.push(Notice::Outside { number });
        };
        if end > size.get() {
            return self.notices.push(Notice::Outside { number });
        }
        let (start, len) = (DiskOffset::new(start), ByteLen::new(len));
        self.partitions.push(Partition { number, start, len, kind, name, unique, flags });
    }

    /// Notes partitions that share bytes: two clients that write to them destroy each other's.
    pub(super) fn note_overlaps(&mut self) {
        let mut order: Vec<_> = self.partitions.iter().collect();
        order.sort_by_key(|partition| partition.start);
        let mut reaching: Option<&Partition> = None;
        let mut found = Vec::new();
        for partition in order {
            if let Some(before) = reaching
                && before.extent().overlaps(partition.extent())
            {
                found.push(Notice::Overlap { number: before.number, with: partition.number });
            }
            if reaching.is_none_or(|before| before.extent().end() < partition.extent().end()) {
                reaching = Some(partition);
            }
        }
        self.notices.append(&mut found);
    }
}

/// A table's entry before anybody checked that it lies on the disk. `None` stands for a number too
/// large to be a byte position.
pub(super) struct Candidate {
    pub(super) number: u32,
    pub(super) start: Option<u64>,
    /// Never zero.
    pub(super) len: Option<u64>,
    pub(super) kind: PartitionKind,
    pub(super) name: String,
    pub(super) unique: Option<Uuid>,
    pub(super) flags: u64,
}

/// Something a user should know about a table that was read all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    /// The backup GPT was read.
    #[error("the primary GPT is broken ({why}); its backup at the disk's end was used")]
    BackupUsed {
        /// What is wrong with the primary.
        why: GptFault,
    },
    /// An MBR that is more than the protection of a GPT.
    #[error("the protective MBR has partitions of its own (hybrid); only the GPT counts")]
    Hybrid,
    /// A partition that reaches beyond the disk.
    #[error("partition {number} is left out: it does not lie on the disk")]
    Outside {
        /// Its number.
        number: u32,
    },
    /// A partition that ends before it starts.
    #[error("partition {number} is left out: it ends before it starts")]
    Backwards {
        /// Its number.
        number: u32,
    },
    /// Partitions with bytes in common.
    #[error("partitions {number} and {with} overlap: write to one of them only")]
    Overlap {
        /// The one that starts first.
        number: u32,
        /// The other.
        with: u32,
    },
    /// A chain of logical partitions that comes back to itself.
    #[error("the chain of logical partitions is a circle at byte {at}: the rest is left out")]
    ChainLoops {
        /// Where it was before.
        at: DiskOffset,
    },
    /// A chain of logical partitions that leaves the disk.
    #[error("the chain of logical partitions leaves the disk: the rest is left out")]
    ChainOutside,
    /// A link of the chain without its signature.
    #[error("the chain of logical partitions breaks off at byte {at}: no signature 55 AA there")]
    ChainUnsigned {
        /// Where the link should be.
        at: DiskOffset,
    },
    /// More logical partitions, or empty links, than anybody makes.
    #[error("the chain of logical partitions is too long: the rest is left out")]
    ChainTooLong,
}

/// Why a partition cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// There is no partition of that number.
    #[error("there is no partition {number}: {}", listed(*scheme, known))]
    Unknown {
        /// The number asked for.
        number: u32,
        /// How the disk is divided.
        scheme: Scheme,
        /// The numbers that there are.
        known: Vec<u32>,
    },
    /// The number is an extended partition's.
    #[error(
        "partition {number} is an extended one, which only holds others: {}",
        listed(Scheme::Mbr, known)
    )]
    Extended {
        /// The number asked for.
        number: u32,
        /// The numbers that there are.
        known: Vec<u32>,
    },
    /// A protective MBR, but no GPT behind it.
    #[error(
        "the disk has a protective MBR but no sound GPT: the primary {primary}, the backup \
         {backup}; repair it with a partitioning tool, or serve the whole disk"
    )]
    GptBroken {
        /// What is wrong with the primary.
        primary: GptFault,
        /// What is wrong with the backup.
        backup: GptFault,
    },
    /// [`super::Scan::finish`] before the scan wanted no more bytes.
    #[error("the partition table was not read to its end")]
    Unfinished,
}

fn listed(scheme: Scheme, known: &[u32]) -> String {
    match (scheme, known) {
        (Scheme::None, _) => "the disk has no partition table".to_owned(),
        (_, []) => format!("the disk's {scheme} has no partition on the disk"),
        _ => {
            let known: Vec<_> = known.iter().map(u32::to_string).collect();
            format!("the disk's {scheme} has {}", known.join(", "))
        }
    }
}
