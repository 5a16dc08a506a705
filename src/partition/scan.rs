//! The scan: which bytes of the disk are wanted next, until the table is known.
//!
//! At most a record for each of 256 links, or four headers and their entries, in reads of at most
//! 64 KiB. Sectors of 512 bytes are tried before those of 4096: an image does not say which its
//! tables were made for.

use super::gpt::{GptFault, HEADER_BYTES, Header};
use super::mbr::{self, Chain, First};
use super::table::{Notice, PartitionError, Scheme, Table};
use crate::engine::units::{ByteLen, DiskOffset, Extent, SECTOR};

/// Most bytes wanted at once.
const READ_MAX: u64 = 64 << 10;

/// Looks for a partition table on a disk. Feed it what it wants until it wants nothing.
#[derive(Debug)]
pub struct Scan {
    size: ByteLen,
    table: Table,
    wants: Option<Extent>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The first sector is wanted.
    First,
    /// A record of logical partitions is wanted.
    Chain(Chain),
    /// A header is wanted.
    Header(Search),
    /// Entries are wanted, behind those that are here.
    Entries { search: Search, header: Header, bytes: Vec<u8> },
    /// Nothing is wanted.
    Done(Result<(), PartitionError>),
}

/// The places of a GPT: where it would be with small and large sectors, the primaries first. In
/// this order a table that replaced another of the other sector size wins: it lies on the old
/// one's entries or header.
const TRIES: [Try; 4] = [
    Try { sector: 512, backup: false },
    Try { sector: 4096, backup: false },
    Try { sector: 512, backup: true },
    Try { sector: 4096, backup: true },
];

#[derive(Clone, Copy, Debug)]
struct Try {
    sector: u64,
    backup: bool,
}

impl Try {
    /// The sector of the header, if the disk has so many.
    fn lba(self, size: ByteLen) -> Option<u64> {
        let last = (size.get() / self.sector).checked_sub(1).filter(|last| *last >= 1)?;
        Some(if self.backup { last } else { 1 })
    }
}

/// How far the search for a GPT is.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// Index in [`TRIES`].
    at: usize,
    /// The worst that was found: damage says more than absence.
    primary: GptFault,
    backup: GptFault,
}

impl Search {
    const START: Self = Self { at: 0, primary: GptFault::Missing, backup: GptFault::Missing };

    const fn here(self) -> Try {
        TRIES[self.at]
    }

    fn failed(&mut self, fault: GptFault) {
        let known = if self.here().backup { &mut self.backup } else { &mut self.primary };
        if *known == GptFault::Missing {
            *known = fault;
        }
        self.at += 1;
    }
}

impl Scan {
    /// A scan of a disk of that many bytes.
    pub fn new(size: ByteLen) -> Self {
        let table = Table { sector: ByteLen::new(SECTOR), ..Table::default() };
        let mut scan = Self { size, table, wants: None, stage: Stage::First };
        if size.get() < SECTOR {
            scan.end(Scheme::None, Ok(()));
        } else {
            scan.wants = Some(Extent::new(DiskOffset::new(0), ByteLen::new(SECTOR)));
        }
        scan
    }

    /// The bytes that are wanted next; `None` when the scan is complete. On the disk, at most
    /// 64 KiB.
    pub const fn wants(&self) -> Option<Extent> {
        self.wants
    }

    /// Takes the bytes that were wanted.
    ///
    /// # Panics
    /// When they are not as many as were wanted, or none were: that is the caller's error.
    pub fn feed(&mut self, bytes: &[u8]) {
        let wanted = self.wants.take().map_or(0, |extent| extent.len.get());
        assert_eq!(bytes.len() as u64, wanted, "as many bytes as the scan wants");
        let done = Stage::Done(Err(PartitionError::Unfinished));
        match std::mem::replace(&mut self.stage, done) {
            Stage::First => self.first(bytes),
            Stage::Chain(mut chain) => {
                chain.feed(bytes, self.size, &mut self.table);
                self.walk(chain);
            }
            Stage::Header(search) => self.header(search, bytes),
            Stage::Entries { search, header, bytes: mut all } => {
                all.extend_from_slice(bytes);
                self.entries(search, header, all);
            }
            Stage::Done(_) => unreachable!("nothing is wanted in the end"),
        }
    }

    /// The table.
    ///
    /// # Errors
    /// [`PartitionError::GptBroken`] when a protective MBR promises a GPT and neither copy is
    /// sound; [`PartitionError::Unfinished`] while bytes are wanted.
    pub fn finish(mut self) -> Result<Table, PartitionError> {
        match self.stage {
            Stage::Done(result) => result?,
            _ => return Err(PartitionError::Unfinished),
        }
        self.table.partitions.sort_by_key(|partition| partition.number);
        self.table.note_overlaps();
        Ok(self.table)
    }

    fn end(&mut self, scheme: Scheme, result: Result<(), PartitionError>) {
        self.table.scheme = scheme;
        self.stage = Stage::Done(result);
    }

    fn first(&mut self, sector: &[u8]) {
        match mbr::first(sector, self.size, &mut self.table) {
            First::Nothing => self.end(Scheme::None, Ok(())),
            First::Table(chain) => self.walk(chain),
            First::Protective { hybrid } => {
                if hybrid {
                    self.table.notices.push(Notice::Hybrid);
                }
                self.search(Search::START);
            }
        }
    }

    fn walk(&mut self, mut chain: Chain) {
        self.wants = chain.wants(self.size, &mut self.table);
        match self.wants {
            Some(_) => self.stage = Stage::Chain(chain),
            None => self.end(Scheme::Mbr, Ok(())),
        }
    }

    /// Wants the header of the next place there is.
    fn search(&mut self, mut search: Search) {
        while let Some(here) = TRIES.get(search.at) {
            if let Some(lba) = here.lba(self.size) {
                let at = DiskOffset::new(lba * here.sector);
                self.wants = Some(Extent::new(at, ByteLen::new(here.sector)));
                self.stage = Stage::Header(search);
                return;
            }
            search.failed(GptFault::Missing);
        }
        let Search { primary, backup, .. } = search;
        self.end(Scheme::Gpt, Err(PartitionError::GptBroken { primary, backup }));
    }

    fn header(&mut self, mut search: Search, bytes: &[u8]) {
        debug_assert!(bytes.len() >= HEADER_BYTES);
        let lba = search.here().lba(self.size).unwrap_or_default();
        match Header::parse(bytes, lba, self.size) {
            Ok(header) => self.entries(search, header, Vec::new()),
            Err(fault) => {
                search.failed(fault);
                self.search(search);
            }
        }
    }

    fn entries(&mut self, mut search: Search, header: Header, bytes: Vec<u8>) {
        let rest = header.entries.after(ByteLen::new(bytes.len() as u64));
        if !rest.len.is_zero() {
            self.wants = Some(rest.first(ByteLen::new(READ_MAX)));
            self.stage = Stage::Entries { search, header, bytes };
            return;
        }
        let here = search.here();
        let sector = ByteLen::new(here.sector);
        if let Err(fault) = header.partitions(&bytes, sector, self.size, &mut self.table) {
            search.failed(fault);
            return self.search(search);
        }
        self.table.sector = sector;
        if here.backup {
            self.table.notices.push(Notice::BackupUsed { why: search.primary });
        }
        self.end(Scheme::Gpt, Ok(()));
    }
}
