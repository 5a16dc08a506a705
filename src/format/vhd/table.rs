//! The block allocation table in pages: read on demand, kept in a bounded number, and rebuilt
//! sector by sector for a commit.

use vhd::bat::{BatEntry, ENTRIES_PER_SECTOR, decode_page, encode_page};
use vhd::{BlockIndex, ByteLen, FileOffset, SectorNo};

use crate::engine::layer::MetaPage;

/// Entries of a page: 4 KiB of table.
const PAGE_ENTRIES: u32 = 1024;
const PAGE_BYTES: u32 = PAGE_ENTRIES * 4;
/// Pages kept before the clock hand looks for one to drop: 512 GiB of disk at 2 MiB a block.
const MAX_PAGES: usize = 256;

/// What is known about a block beyond its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Allocated or not as the entry says; the bitmap was not looked at, or is in its cache.
    Listed,
    /// Allocated, every sector present, and durably so.
    Full,
    /// The leaf holds newer knowledge than the entry.
    Overlaid,
}

struct Page {
    entries: Vec<u32>,
    states: Vec<BlockState>,
    /// Overlaid blocks; such a page stays.
    pins: u32,
    used: bool,
}

/// The table of one image.
pub(super) struct Table {
    at: FileOffset,
    bytes: ByteLen,
    pages: Vec<Option<Box<Page>>>,
    loaded: usize,
    hand: usize,
}

impl Table {
    pub(super) fn new(at: FileOffset, bytes: ByteLen) -> Self {
        let count = bytes.get().div_ceil(u64::from(PAGE_BYTES)) as usize;
        Self { at, bytes, pages: (0..count).map(|_| None).collect(), loaded: 0, hand: 0 }
    }

    /// Where the table starts.
    pub(super) const fn at(&self) -> FileOffset {
        self.at
    }

    /// Bytes of the table, whole sectors.
    pub(super) const fn bytes(&self) -> ByteLen {
        self.bytes
    }

    /// Whether a page of metadata at this place is one of the table's.
    pub(super) fn owns(&self, page: MetaPage) -> bool {
        let at = page.at.get();
        at >= self.at.get() && at < self.at.get() + self.bytes.get()
    }

    fn split(block: BlockIndex) -> (usize, usize) {
        ((block.get() / PAGE_ENTRIES) as usize, (block.get() % PAGE_ENTRIES) as usize)
    }

    /// The entry of a block and what is known of it, or the page that must be learnt first.
    pub(super) fn entry(&mut self, block: BlockIndex) -> Result<(BatEntry, BlockState), MetaPage> {
        let (page, index) = Self::split(block);
        match &mut self.pages[page] {
            Some(page) => {
                page.used = true;
                Ok((BatEntry::from_raw(page.entries[index]), page.states[index]))
            }
            None => Err(self.page(page)),
        }
    }

    fn page(&self, index: usize) -> MetaPage {
        let skip = index as u64 * u64::from(PAGE_BYTES);
        let len = (self.bytes.get() - skip).min(u64::from(PAGE_BYTES));
        let at = crate::engine::units::FileOffset::new(self.at.get() + skip);
        MetaPage { at, len: len as u32 }
    }

    /// How many blocks from `block` on have no home and no overlay: at least 1 when `block` itself
    /// has none, at most `most`, never beyond its page.
    pub(super) fn absent_run(&self, block: BlockIndex, most: u32) -> u32 {
        let (page, index) = Self::split(block);
        let Some(page) = &self.pages[page] else { return 0 };
        let end = page.entries.len().min(index + most as usize);
        let absent = |i: &usize| {
            page.states[*i] != BlockState::Overlaid
                && BatEntry::from_raw(page.entries[*i]) == BatEntry::Unallocated
        };
        (index..end).take_while(absent).count() as u32
    }

    /// Takes in a page, after `check` agreed to each allocated entry.
    pub(super) fn load<E>(
        &mut self,
        page: MetaPage,
        bytes: &[u8],
        check: impl Fn(BlockIndex, SectorNo) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = ((page.at.get() - self.at.get()) / u64::from(PAGE_BYTES)) as usize;
        let entries: Vec<u32> = decode_page(bytes).collect();
        for (i, raw) in entries.iter().enumerate() {
            if let BatEntry::At(slot) = BatEntry::from_raw(*raw) {
                check(BlockIndex::new(index as u32 * PAGE_ENTRIES + i as u32), slot)?;
            }
        }
        self.make_room();
        let states = vec![BlockState::Listed; entries.len()];
        let page = Page { entries, states, pins: 0, used: true };
        self.loaded += usize::from(self.pages[index].replace(Box::new(page)).is_none());
        Ok(())
    }

    /// Drops a page that was not used lately, if there are too many.
    fn make_room(&mut self) {
        let mut steps = self.pages.len() * 2;
        while self.loaded >= MAX_PAGES && steps > 0 {
            steps -= 1;
            self.hand = (self.hand + 1) % self.pages.len();
            if let Some(page) = &mut self.pages[self.hand] {
                if page.pins == 0 && !page.used {
                    self.pages[self.hand] = None;
                    self.loaded -= 1;
                } else {
                    page.used = false;
                }
            }
        }
    }

    fn loaded_page(&mut self, block: BlockIndex) -> (&mut Page, usize) {
        let (page, index) = Self::split(block);
        let page = self.pages[page].as_mut().expect("an overlaid block keeps its page");
        (page, index)
    }

    /// Notes that the leaf knows better than the entry; keeps the page.
    pub(super) fn overlay(&mut self, block: BlockIndex) {
        let (page, index) = self.loaded_page(block);
        page.pins += u32::from(page.states[index] != BlockState::Overlaid);
        page.states[index] = BlockState::Overlaid;
    }

    /// The overlay of a block is gone; its entry says everything, and `full` whether all of its
    /// sectors are present.
    pub(super) fn uncover(&mut self, block: BlockIndex, full: bool) {
        let (page, index) = self.loaded_page(block);
        page.pins -= u32::from(page.states[index] == BlockState::Overlaid);
        page.states[index] = if full { BlockState::Full } else { BlockState::Listed };
    }

    /// Notes that a listed block's bitmap is full, if its page is here.
    pub(super) fn mark_full(&mut self, block: BlockIndex) {
        let (page, index) = Self::split(block);
        if let Some(page) = &mut self.pages[page]
            && page.states[index] == BlockState::Listed
        {
            page.states[index] = BlockState::Full;
        }
    }

    /// Changes an entry in memory; only the commit that runs writes it out.
    pub(super) fn set(&mut self, block: BlockIndex, entry: BatEntry) {
        let (page, index) = self.loaded_page(block);
        page.entries[index] = entry.to_raw();
    }

    /// Which sector of the table holds the block's entry.
    pub(super) fn sector_of(block: BlockIndex) -> u32 {
        block.get() / ENTRIES_PER_SECTOR
    }

    /// The bytes of `count` sectors of the table from sector `first` on, and where they go.
    pub(super) fn sectors(&mut self, first: u32, count: u32) -> (FileOffset, Vec<u8>) {
        let mut bytes = Vec::with_capacity(count as usize * 512);
        for sector in first..first + count {
            let block = BlockIndex::new(sector * ENTRIES_PER_SECTOR);
            let (page, index) = self.loaded_page(block);
            let entries = &page.entries[index..index + ENTRIES_PER_SECTOR as usize];
            bytes.extend(encode_page(entries));
        }
        (FileOffset::new(self.at.get() + u64::from(first) * 512), bytes)
    }
}
