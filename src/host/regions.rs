//! What is known of the pages of files: which of them were seen in memory, and for how long that is
//! believed.
//!
//! A part of a file is looked at once it was read twice by the kernel within the time that a look
//! is believed: by then the reads have cost as much as a look, which the next ones may save.
//!
//! Refuses to look: it counts, says what to look at, and remembers what was seen.

use std::ops::RangeInclusive;

use crate::engine::effect::FileId;

/// What has one entry, and is behind one window.
pub(super) const REGION_BYTES: u64 = 1 << REGION_BITS;
const REGION_BITS: u32 = 20;
/// What is looked at at once.
pub(super) const PART_BYTES: u64 = 1 << PART_BITS;
const PART_BITS: u32 = 16;
const PAGE_BITS: u32 = 12;
const PAGES_OF_PART: u32 = 1 << (PART_BITS - PAGE_BITS);

/// Regions that are remembered: those of 16 GiB.
const REGIONS: usize = 1 << 14;
/// Places where a region's entry may be, beside each other.
const WAYS: usize = 4;
const SETS: usize = REGIONS / WAYS;

/// The reads of a part that come before a look; that it was looked at.
const READS_MIN: u32 = 2;
const LOOKED: u32 = 3;
/// The lower bit of each part.
const EVERY_PART: u32 = 0x5555_5555;
/// A read of so much of a part counts as all that come before a look: it costs as much.
const LARGE_BYTES: u64 = 16 << 10;

/// No window.
const NONE: u32 = u32::MAX;

/// For how long a look is believed, in milliseconds, at first and while pages are being dropped.
const TRUST_MIN_MS: u64 = 500;
/// And where none was missed for long.
pub(super) const TRUST_MAX_MS: u64 = 8000;

/// A bit for each page of a region.
type Pages = [u64; 4];

/// A region of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(u64);

/// The part of a name that is the region's number within its file.
const NUMBERS: u64 = (1 << 48) - 1;
/// Nobody's name: files are not that long.
const NOBODY: Name = Name(u64::MAX);

impl Name {
    /// The region of a byte.
    pub(super) fn of(file: FileId, at: u64) -> Self {
        Self(u64::from(file.0) << 48 | (at >> REGION_BITS & NUMBERS))
    }

    /// Where the region begins in its file.
    pub(super) const fn start(self) -> u64 {
        (self.0 & NUMBERS) << REGION_BITS
    }

    fn is_within(self, first: Self, last: Self) -> bool {
        (first.0..=last.0).contains(&self.0)
    }

    /// The set of its places. Neighbours lie apart from each other and from those of other files.
    const fn set(self) -> usize {
        (self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SETS.trailing_zeros())) as usize
    }
}

/// What is known of a region. One line of the processor's cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Region {
    /// When this began to be known.
    since: u64,
    /// The window over it, if one is.
    window: u32,
    /// Two bits for each part: how often it was read, up to [`READS_MIN`], or [`LOOKED`].
    parts: u32,
    /// Pages that were seen in memory.
    seen: Pages,
}

const UNKNOWN: Region = Region { since: 0, window: NONE, parts: 0, seen: [0; 4] };

/// How a read can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// From the window: all its pages were seen.
    Known,
    /// Perhaps, if these parts are looked at.
    Look(RangeInclusive<u32>),
    /// By the kernel.
    Unknown,
}

impl Region {
    /// How bytes `from..to` of it can be read; that they are read is counted.
    pub(super) fn ask(&mut self, from: u64, to: u64) -> Standing {
        let (first, last) = ((from >> PART_BITS) as u32, ((to - 1) >> PART_BITS) as u32);
        let mut standing = Standing::Known;
        for part in first..=last {
            let (start, end) = (u64::from(part) << PART_BITS, u64::from(part + 1) << PART_BITS);
            let large = to.min(end) - from.max(start) >= LARGE_BYTES;
            let state = self.parts >> (2 * part) & LOOKED;
            if self.has_seen(from.max(start), to.min(end)) {
                continue;
            }
            if state == LOOKED {
                // It may have come meanwhile, so the part is looked at again after some reads.
                self.set(part, 0);
                standing = Standing::Unknown;
            } else if state == READS_MIN {
                standing = match standing {
                    Standing::Known => Standing::Look(part..=part),
                    Standing::Look(parts) => Standing::Look(*parts.start()..=part),
                    Standing::Unknown => Standing::Unknown,
                };
            } else {
                self.set(part, if large { READS_MIN } else { state + 1 });
                standing = Standing::Unknown;
            }
        }
        standing
    }

    /// What was seen is believed no more; what was looked at is looked at again when it is read.
    fn age(&mut self, now: u64) {
        let looked = self.parts & self.parts >> 1 & EVERY_PART;
        *self = Self { since: now, parts: looked * READS_MIN, seen: [0; 4], ..*self };
    }

    /// Whether all pages of bytes `from..to` were seen.
    pub(super) fn has_seen(&self, from: u64, to: u64) -> bool {
        let (first, last) = (from >> PAGE_BITS, (to - 1) >> PAGE_BITS);
        (first..=last).all(|page| self.seen[page as usize / 64] >> (page % 64) & 1 == 1)
    }

    /// Takes in what was seen of parts: a bit for each page from the first part on.
    pub(super) fn learn(&mut self, parts: RangeInclusive<u32>, told: impl Fn(u32) -> bool) {
        let first = *parts.start();
        for part in parts {
            self.set(part, LOOKED);
            for page in part * PAGES_OF_PART..(part + 1) * PAGES_OF_PART {
                let (word, bit) = (&mut self.seen[page as usize / 64], 1 << (page % 64));
                *word = if told(page - first * PAGES_OF_PART) { *word | bit } else { *word & !bit };
            }
        }
    }

    /// Says how a part stands.
    fn set(&mut self, part: u32, state: u32) {
        self.parts = self.parts & !(LOOKED << (2 * part)) | state << (2 * part);
    }

    /// The number of the window over it.
    pub(super) fn window(&self) -> Option<usize> {
        (self.window != NONE).then_some(self.window as usize)
    }

    pub(super) fn set_window(&mut self, window: usize) {
        self.window = window as u32;
    }
}

/// The bytes of a region that parts stand for.
pub(super) fn bytes_of(parts: &RangeInclusive<u32>) -> (u64, u64) {
    (u64::from(*parts.start()) << PART_BITS, u64::from(parts.end() + 1) * PART_BYTES)
}

/// The names of a set of places: apart from what is known of them, so that the search for one
/// touches a single line of the processor's cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Set([Name; WAYS]);

/// Regions by their names; as many as there is room for.
#[derive(Debug, Default)]
pub(super) struct Regions {
    /// Empty until the first is asked for.
    names: Vec<Set>,
    /// Those of a set beside each other, in the order of their names there.
    entries: Vec<Region>,
    trust: Trust,
}

impl Regions {
    /// A region, of which nothing may be known yet.
    pub(super) fn get(&mut self, name: Name, now: u64) -> &mut Region {
        if self.names.is_empty() {
            self.names.resize(SETS, Set([NOBODY; WAYS]));
            self.entries.resize(REGIONS, UNKNOWN);
        }
        let Some(place) = self.find(name) else { return self.settle(name, now) };
        let region = &mut self.entries[place];
        if now.saturating_sub(region.since) >= self.trust.ms {
            region.age(now);
        }
        region
    }

    /// Where a region's entry is, if it has one.
    fn find(&self, name: Name) -> Option<usize> {
        let set = name.set();
        let way = self.names.get(set)?.0.iter().position(|there| *there == name)?;
        Some(set * WAYS + way)
    }

    /// Gives a region an entry: that of the oldest of its set.
    fn settle(&mut self, name: Name, now: u64) -> &mut Region {
        let set = name.set();
        let ages = (0..WAYS).map(|way| (self.entries[set * WAYS + way].since, way));
        let way = ages.min().map_or(0, |(_, way)| way);
        self.names[set].0[way] = name;
        let region = &mut self.entries[set * WAYS + way];
        *region = Region { since: now, ..UNKNOWN };
        region
    }

    /// The window over a region, if it is known.
    pub(super) fn window(&self, name: Name) -> Option<usize> {
        self.entries[self.find(name)?].window()
    }

    /// Forgets what is known of the regions of a range of a file.
    pub(super) fn forget(&mut self, file: FileId, at: u64, len: u64) {
        let last = at.saturating_add(len).min(NUMBERS << REGION_BITS);
        let (first, last) = (Name::of(file, at), Name::of(file, last));
        if last.0 - first.0 < REGIONS as u64 / 8 {
            for name in (first.0..=last.0).map(Name) {
                if let Some(place) = self.find(name) {
                    self.free(place);
                }
            }
            return;
        }
        self.free_those(|name, _| name.is_within(first, last));
    }

    /// Forgets what a window was over.
    pub(super) fn forget_window(&mut self, window: usize) {
        self.free_those(|_, region| region.window() == Some(window));
    }

    pub(super) fn forget_all(&mut self) {
        self.free_those(|_, _| true);
    }

    fn free_those(&mut self, which: impl Fn(Name, &Region) -> bool) {
        for place in 0..self.entries.len() {
            let name = self.names[place / WAYS].0[place % WAYS];
            if which(name, &self.entries[place]) {
                self.free(place);
            }
        }
    }

    fn free(&mut self, place: usize) {
        self.names[place / WAYS].0[place % WAYS] = NOBODY;
        self.entries[place] = UNKNOWN;
    }

    /// Takes in how often this thread had to wait for a page until now, once in a moment.
    pub(super) fn note_waits(&mut self, now: u64, faults: impl FnOnce() -> u64) {
        if self.trust.asked != now {
            self.trust.renew(faults(), now);
        }
    }

    /// Whether looks are believed for longer than at first.
    pub(super) fn is_trusting(&self) -> bool {
        self.trust.ms > TRUST_MIN_MS
    }
}

/// For how long a look is believed: the longer, the longer no page was missed.
#[derive(Debug)]
struct Trust {
    ms: u64,
    since: u64,
    asked: u64,
    faults: u64,
}

impl Default for Trust {
    fn default() -> Self {
        Self { ms: TRUST_MIN_MS, since: 0, asked: 0, faults: u64::MAX }
    }
}

impl Trust {
    fn renew(&mut self, faults: u64, now: u64) {
        self.asked = now;
        if faults > self.faults {
            self.ms = TRUST_MIN_MS;
            self.since = now;
        } else if self.faults == u64::MAX {
            self.since = now;
        } else if now.saturating_sub(self.since) >= self.ms {
            self.ms = (2 * self.ms).min(TRUST_MAX_MS);
            self.since = now;
        }
        self.faults = faults;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        FileId, LOOKED, Name, PART_BYTES, REGION_BYTES, REGIONS, Region, Regions, Standing,
        TRUST_MAX_MS, TRUST_MIN_MS, Trust, UNKNOWN, WAYS,
    };

    const PAGE: u64 = 4096;

    fn state(region: &Region, part: u32) -> u32 {
        region.parts >> (2 * part) & LOOKED
    }

    #[test]
    fn a_part_is_looked_at_when_it_was_read_twice_or_much_of_it_once() {
        let mut region = UNKNOWN;
        assert_eq!(region.ask(0, PAGE), Standing::Unknown);
        assert_eq!(region.ask(5 * PAGE, 5 * PAGE + 1), Standing::Unknown);
        assert_eq!(region.ask(PAGE, 2 * PAGE), Standing::Look(0..=0));
        assert_eq!(region.ask(3 * PART_BYTES, 3 * PART_BYTES + 4 * PAGE), Standing::Unknown);
        assert_eq!(region.ask(3 * PART_BYTES, 3 * PART_BYTES + 1), Standing::Look(3..=3));
        // Over the border of two parts, one of which was never read.
        assert_eq!(region.ask(PART_BYTES - 1, PART_BYTES + 1), Standing::Unknown);
        assert_eq!(region.ask(PART_BYTES - 1, PART_BYTES + 1), Standing::Unknown);
        assert_eq!(region.ask(PART_BYTES - 1, PART_BYTES + 1), Standing::Look(0..=1));
        region.learn(0..=0, |_| true);
        assert_eq!(region.ask(PART_BYTES - 1, PART_BYTES + 1), Standing::Look(1..=1));
        // All of it.
        assert_eq!(region.ask(0, REGION_BYTES), Standing::Unknown);
        assert_eq!(region.ask(0, REGION_BYTES), Standing::Look(1..=15), "the first is known");
    }

    #[test]
    fn only_pages_that_were_seen_are_known() {
        let mut region = UNKNOWN;
        region.learn(15..=15, |page| page != 3);
        let start = 15 * PART_BYTES;
        assert_eq!(region.ask(start, start + 3 * PAGE), Standing::Known);
        assert_eq!(region.ask(start + 4 * PAGE, REGION_BYTES), Standing::Known);
        // The page that was missing may be there now: some reads later it is looked at again.
        for standing in [Standing::Unknown, Standing::Unknown, Standing::Unknown] {
            assert_eq!(region.ask(start + 3 * PAGE, start + 3 * PAGE + 1), standing);
            assert_eq!(region.ask(start + 4 * PAGE, start + 5 * PAGE), Standing::Known);
        }
        assert_eq!(region.ask(start + PAGE, start + 4 * PAGE), Standing::Look(15..=15));
        region.learn(15..=15, |page| page == 3);
        assert_eq!(region.ask(start + 3 * PAGE, start + 4 * PAGE), Standing::Known);
        assert_eq!(region.ask(start, start + PAGE), Standing::Unknown);
    }

    #[test]
    fn pages_of_several_parts_are_told_in_order() {
        let mut region = UNKNOWN;
        region.learn(3..=5, |page| page >= 20);
        for page in 0..256 {
            let seen = (3 * 16 + 20..6 * 16).contains(&page);
            assert_eq!(region.has_seen(page * PAGE, (page + 1) * PAGE), seen, "page {page}");
        }
        assert!(region.has_seen(70 * PAGE + 5, 96 * PAGE));
        assert!(!region.has_seen(67 * PAGE + 4095, 69 * PAGE));
    }

    #[test]
    fn what_was_looked_at_is_looked_at_again_when_it_is_old() {
        let mut regions = Regions::default();
        let name = Name::of(FileId(3), 7 * REGION_BYTES + 5);
        assert_eq!(name.start(), 7 * REGION_BYTES);
        let region = regions.get(name, 1000);
        region.set_window(9);
        region.learn(0..=1, |_| true);
        assert_eq!(region.ask(2 * PART_BYTES, 2 * PART_BYTES + 1), Standing::Unknown);
        let late = 1000 + TRUST_MIN_MS;
        assert_eq!(regions.get(name, late - 1).ask(0, PAGE), Standing::Known);
        let region = regions.get(name, late);
        assert_eq!([0, 1, 2].map(|part| state(region, part)), [2, 2, 0]);
        assert_eq!(region.ask(0, PAGE), Standing::Look(0..=0));
        assert_eq!(region.window(), Some(9), "the window is as good as before");
        // Read no more, it is not looked at either.
        assert_eq!(state(regions.get(name, late + TRUST_MIN_MS), 0), 0);
        assert_eq!(regions.window(name), Some(9));
        regions.forget_window(9);
        assert_eq!(regions.window(name), None);
    }

    #[test]
    fn looks_are_believed_longer_while_no_page_is_missed() {
        let mut trust = Trust::default();
        trust.renew(40, 10_000);
        assert_eq!(trust.ms, TRUST_MIN_MS, "what was missed before does not count");
        let mut now = 10_000;
        for expected in [1000, 2000, 4000, 8000, TRUST_MAX_MS, TRUST_MAX_MS] {
            now += trust.ms - 1;
            let before = trust.ms;
            trust.renew(40, now);
            assert_eq!(trust.ms, before);
            now += 1;
            trust.renew(40, now);
            assert_eq!(trust.ms, expected);
        }
        trust.renew(41, now + 1);
        assert_eq!(trust.ms, TRUST_MIN_MS);
        trust.renew(41, now + TRUST_MIN_MS);
        assert_eq!(trust.ms, TRUST_MIN_MS, "half a second from then on");
        trust.renew(41, now + 1 + TRUST_MIN_MS);
        assert_eq!(trust.ms, 1000);
    }

    #[test]
    fn a_file_forgets_its_own_regions_only() {
        let mut regions = Regions::default();
        let names = |file: u16| (0..40).map(move |n| Name::of(FileId(file), n * REGION_BYTES));
        let known = |regions: &Regions, file| {
            names(file).map(|name| regions.window(name).is_some()).collect::<Vec<_>>()
        };
        let fill = |regions: &mut Regions| {
            for name in names(1).chain(names(2)) {
                regions.get(name, 1).set_window(0);
            }
        };
        fill(&mut regions);
        regions.forget(FileId(1), 10 * REGION_BYTES - 1, 2);
        let left: Vec<_> = (0..40).map(|n| n != 9 && n != 10).collect();
        assert_eq!(known(&regions, 1), left);
        assert_eq!(known(&regions, 2), [true; 40]);
        fill(&mut regions);
        regions.forget(FileId(1), 5 * REGION_BYTES, u64::MAX);
        let left: Vec<_> = (0..40).map(|n| n < 5).collect();
        assert_eq!(known(&regions, 1), left);
        assert_eq!(known(&regions, 2), [true; 40]);
    }

    #[test]
    fn the_oldest_gives_way_where_there_is_no_room() {
        let mut regions = Regions::default();
        let set = Name::of(FileId(0), 0).set();
        let beside: Vec<_> = (0..1 << 20)
            .map(|n| Name::of(FileId(0), n * REGION_BYTES))
            .filter(|name| name.set() == set)
            .take(WAYS + 1)
            .collect();
        for (now, name) in beside.iter().enumerate() {
            regions.get(*name, now as u64 + 1).set_window(now);
        }
        let windows: Vec<_> = beside.iter().map(|name| regions.window(*name)).collect();
        assert_eq!(windows, [None, Some(1), Some(2), Some(3), Some(4)]);
        assert_eq!(regions.entries.len(), REGIONS);
    }
}
