//! MBR: four entries behind boot code, and the chain of records that holds logical partitions.
//!
//! Reads what the kernel reads and rejects what it rejects: the first sector of a FAT or NTFS file
//! system has the same signature, and its boot code is no table. Sectors are of 512 bytes here,
//! which is what a disk of ours presents.

use std::collections::HashSet;

use super::gpt::le32;
use super::table::{Candidate, Notice, PartitionKind, Table};
use crate::engine::units::{ByteLen, DiskOffset, Extent, SECTOR};

/// Most logical partitions; the kernel stops at 256 numbers in all.
const LOGICALS_MAX: u32 = 128;
/// Most records of all chains: empty ones hold no partition but cost a read.
const RECORDS_MAX: usize = 256;
/// The first number of a logical partition.
const FIRST_LOGICAL: u32 = 5;
const ENTRIES_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
const PROTECTIVE: u8 = 0xEE;

/// One entry of a record.
#[derive(Clone, Copy, Debug)]
struct Entry {
    boot: u8,
    kind: u8,
    /// In sectors.
    start: u64,
    /// In sectors.
    count: u64,
}

impl Entry {
    const fn is_extended(self) -> bool {
        self.count != 0 && matches!(self.kind, 0x05 | 0x0F | 0x85)
    }

    fn candidate(self, number: u32, start: u64) -> Candidate {
        Candidate {
            number,
            start: start.checked_mul(SECTOR),
            len: self.count.checked_mul(SECTOR),
            kind: PartitionKind::Mbr(self.kind),
            name: String::new(),
            unique: None,
            flags: u64::from(self.boot),
        }
    }
}

/// The entries of a sector with the signature.
fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if sector.len() < SECTOR as usize || sector[510..512] != [0x55, 0xAA] {
        return None;
    }
    Some([0, 1, 2, 3].map(|index| {
        let entry = &sector[ENTRIES_AT + index * ENTRY_BYTES..][..ENTRY_BYTES];
        Entry {
            boot: entry[0],
            kind: entry[4],
            start: u64::from(le32(entry, 8)),
            count: u64::from(le32(entry, 12)),
        }
    }))
}

/// What the first sector of a disk is.
pub(super) enum First {
    /// No partition table.
    Nothing,
    /// The protection of a GPT, alone or with partitions of its own.
    Protective { hybrid: bool },
    /// A table.
    Table(Chain),
}

/// Looks at the first sector; primary partitions go into `table`.
pub(super) fn first(sector: &[u8], disk: ByteLen, table: &mut Table) -> First {
    /// What AIX writes at the start of its disks, which have no table of this kind.
    const AIX: [u8; 4] = [0xC9, 0xC2, 0xD4, 0xC1];
    let Some(entries) = entries(sector) else { return First::Nothing };
    if sector[..4] == AIX || entries.iter().any(|entry| entry.boot & 0x7F != 0) {
        return First::Nothing;
    }
    // Section 5.2.3: it starts at sector 1. Anywhere else it protects nothing.
    if entries.iter().any(|entry| entry.kind == PROTECTIVE && entry.start == 1) {
        let others = entries.iter().filter(|entry| entry.kind != PROTECTIVE && entry.count != 0);
        return First::Protective { hybrid: others.count() > 0 };
    }
    let used = entries.iter().any(|entry| entry.count != 0);
    if entries.iter().any(|entry| entry.kind == PROTECTIVE) || !used && is_file_system(sector) {
        return First::Nothing;
    }
    let mut containers = Vec::new();
    for (entry, number) in entries.into_iter().zip(1..) {
        if entry.is_extended() {
            table.extended.push(number);
            containers.push(Run { start: entry.start, count: entry.count });
        } else if entry.count != 0 {
            table.admit(disk, entry.candidate(number, entry.start));
        }
    }
    containers.reverse();
    First::Table(Chain { containers, link: None, seen: HashSet::new(), next: FIRST_LOGICAL })
}

/// Whether the sector starts a FAT, exFAT or NTFS file system. Asked of empty tables only: boot
/// loaders keep such fields in real master boot records too.
fn is_file_system(sector: &[u8]) -> bool {
    let jumps = matches!(sector[0], 0xEB | 0xE9);
    let named = [b"NTFS    ", b"EXFAT   "].iter().any(|name| sector[3..11] == name[..]);
    let bytes = u16::from_le_bytes([sector[11], sector[12]]);
    let cluster = sector[13];
    let reserved = u16::from_le_bytes([sector[14], sector[15]]);
    let sound = (512..=4096).contains(&bytes)
        && bytes.is_power_of_two()
        && cluster.is_power_of_two()
        && reserved != 0
        && matches!(sector[16], 1..=2)
        && matches!(sector[21], 0xF0 | 0xF8..);
    jumps && (named || sound)
}

/// A run of sectors.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    count: u64,
}

/// The walk along the records of extended partitions.
#[derive(Debug)]
pub(super) struct Chain {
    /// Extended partitions still to walk through, the next one last.
    containers: Vec<Run>,
    /// The container we are in, and the record that was asked for.
    link: Option<(Run, Run)>,
    /// Records that were read.
    seen: HashSet<u64>,
    /// The next partition's number.
    next: u32,
}

impl Chain {
    /// The record that is wanted next, unless the walk is over.
    pub(super) fn wants(&mut self, disk: ByteLen, table: &mut Table) -> Option<Extent> {
        loop {
            if self.link.is_none() {
                let container = self.containers.pop()?;
                self.link = Some((container, container));
            }
            let (_, record) = self.link?;
            match self.admit(record, disk) {
                Ok(extent) => return Some(extent),
                Err(notice) => {
                    table.notices.push(notice);
                    self.link = None;
                }
            }
        }
    }

    fn admit(&mut self, record: Run, disk: ByteLen) -> Result<Extent, Notice> {
        let at = record.start.checked_mul(SECTOR).ok_or(Notice::ChainOutside)?;
        if at.checked_add(SECTOR).is_none_or(|end| end > disk.get()) {
            return Err(Notice::ChainOutside);
        }
        if self.seen.len() >= RECORDS_MAX || self.next >= FIRST_LOGICAL + LOGICALS_MAX {
            return Err(Notice::ChainTooLong);
        }
        if !self.seen.insert(record.start) {
            return Err(Notice::ChainLoops { at: DiskOffset::new(at) });
        }
        Ok(Extent::new(DiskOffset::new(at), ByteLen::new(SECTOR)))
    }

    /// Takes the record that was wanted.
    pub(super) fn feed(&mut self, sector: &[u8], disk: ByteLen, table: &mut Table) {
        let Some((container, record)) = self.link.take() else { return };
        let Some(entries) = entries(sector) else {
            let at = DiskOffset::new(record.start * SECTOR);
            return table.notices.push(Notice::ChainUnsigned { at });
        };
        for (index, entry) in entries.into_iter().enumerate() {
            if entry.count == 0 || entry.is_extended() {
                continue;
            }
            // 32-bit numbers of sectors: their sums stay far from 64 bits.
            let start = record.start + entry.start;
            let within =
                |run: Run| start >= run.start && start + entry.count <= run.start + run.count;
            // The last two should be empty, and hold garbage where an old tool forgot to clear
            // them: the kernel takes them only if they make sense.
            if index >= 2 && !(within(record) && within(container)) {
                continue;
            }
            if self.next < FIRST_LOGICAL + LOGICALS_MAX {
                table.admit(disk, entry.candidate(self.next, start));
                self.next += 1;
            }
        }
        if let Some(link) = entries.into_iter().find(|entry| entry.is_extended()) {
            // Links count from the container's start, logical partitions from their record.
            let next = Run { start: container.start + link.start, count: link.count };
            self.link = Some((container, next));
        }
    }
}
