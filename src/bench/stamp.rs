//! Stamped sectors: what verification writes, and what it accepts when it reads.
//!
//! Each sector says where it belongs, which write it came from and which run wrote it, and the rest
//! of it follows from those, so that every byte is known. A `Ledger` keeps, for each block of the
//! window, the newest write begun and the newest answered. A read may see anything between the
//! write answered before it was sent and the one begun before it came back, so replies in any order
//! and several connections are judged rightly. Writes to one block never overlap: the protocol
//! would not say which wins.
//!
//! Does no I/O, and says nothing about what survives a crash.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::units::{ByteLen, DiskOffset, SECTOR};

const SECTOR_LEN: usize = SECTOR as usize;
const WORDS: usize = SECTOR_LEN / 8;

/// Index of a block of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockNo(pub(super) u64);

/// The how-manieth write to a block; 1 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32);

/// Tells the runs apart, and chooses the offsets of random loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

/// The first and last version a read may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// The newest write answered before the read was sent.
    pub(super) from: Version,
    /// The newest write begun before the read came back.
    pub(super) to: Version,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (from, to) if from == to => write!(f, "version {}", from.0),
            (from, Version(u32::MAX)) => write!(f, "version {} or later", from.0),
            (from, to) => write!(f, "version {} to {}", from.0, to.0),
        }
    }
}

/// One sector that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The first wrong byte.
    pub(super) at: DiskOffset,
    /// What should be there.
    pub(super) expected: String,
    /// What is there.
    pub(super) found: String,
}

/// Which write each block of the window holds: begun in the low half of a word, answered in the
/// high half.
#[derive(Debug)]
pub(super) struct Ledger {
    seed: Seed,
    blocks: Vec<AtomicU64>,
}

impl Ledger {
    /// A ledger for `blocks` blocks nothing has been written to.
    pub(super) fn unwritten(seed: Seed, blocks: usize) -> Ledger {
        Ledger { seed, blocks: (0..blocks).map(|_| AtomicU64::new(0)).collect() }
    }

    /// A ledger for blocks stamped by an earlier run with the same seed: any version will do.
    pub(super) fn inherited(seed: Seed, blocks: usize) -> Ledger {
        let any = pack(Version(1), Version(u32::MAX));
        Ledger { seed, blocks: (0..blocks).map(|_| AtomicU64::new(any)).collect() }
    }

    /// Begins a write; `None` while another one to this block is not answered.
    pub(super) fn begin(&self, block: BlockNo) -> Option<Version> {
        let word = self.word(block);
        let before = word.load(Ordering::SeqCst);
        let (answered, begun) = unpack(before);
        if answered != begun {
            return None;
        }
        let next = Version(begun.0.checked_add(1)?);
        let after = pack(answered, next);
        let order = Ordering::SeqCst;
        word.compare_exchange(before, after, order, order).ok().map(|_| next)
    }

    /// Notes that the server has answered the write of `version`.
    pub(super) fn answered(&self, block: BlockNo, version: Version) {
        self.word(block).store(pack(version, version), Ordering::SeqCst);
    }

    /// What a read sent now must see at least.
    pub(super) fn floor(&self, block: BlockNo) -> Version {
        unpack(self.word(block).load(Ordering::SeqCst)).0
    }

    /// What a read that came back now may see, given its floor when it was sent.
    pub(super) fn allowed(&self, block: BlockNo, floor: Version) -> Allowed {
        Allowed { from: floor, to: unpack(self.word(block).load(Ordering::SeqCst)).1 }
    }

    /// Fills `data`, which lies at `at`, with the stamps of `version`.
    pub(super) fn stamp(&self, data: &mut [u8], at: DiskOffset, version: Version) {
        let first = at.get() / SECTOR;
        for (lba, sector) in (first..).zip(data.chunks_exact_mut(SECTOR_LEN)) {
            fill(sector, lba, version, self.seed);
        }
    }

    /// Checks every byte of `data`, which was read at `at`.
    ///
    /// # Errors
    /// The first sector that is not as it should be.
    pub(super) fn check(
        &self,
        data: &[u8],
        at: DiskOffset,
        allowed: Allowed,
    ) -> Result<(), Box<Finding>> {
        let first = at.get() / SECTOR;
        let mut wanted = [0; SECTOR_LEN];
        let mut filled_for = None;
        for (lba, sector) in (first..).zip(data.chunks_exact(SECTOR_LEN)) {
            let version = Version(word(sector, 1) as u32);
            let in_range = (allowed.from..=allowed.to).contains(&version);
            if in_range && filled_for != Some((lba, version)) {
                fill(&mut wanted, lba, version, self.seed);
                filled_for = Some((lba, version));
            }
            if !in_range || sector != wanted {
                return Err(Box::new(self.finding(
                    sector,
                    lba,
                    allowed,
                    in_range.then_some(version),
                )));
            }
        }
        Ok(())
    }

    fn word(&self, block: BlockNo) -> &AtomicU64 {
        &self.blocks[block.0 as usize]
    }

    fn finding(
        &self,
        sector: &[u8],
        lba: u64,
        allowed: Allowed,
        version: Option<Version>,
    ) -> Finding {
        let start = DiskOffset::new(lba * SECTOR);
        let seed = self.seed.0;
        let expected = format!("sector {lba} in {allowed} of the run with seed {seed}");
        let stamp = (word(sector, 0), word(sector, 1), word(sector, 2));
        let whole = stamp.1 <= u64::from(u32::MAX) && {
            let mut own = [0; SECTOR_LEN];
            fill(&mut own, stamp.0, Version(stamp.1 as u32), Seed(stamp.2));
            sector == own
        };
        if whole {
            let (lba, version, seed) = stamp;
            let found = format!("sector {lba} in version {version} of the run with seed {seed}");
            return Finding { at: start, expected, found };
        }
        if sector.iter().all(|&byte| byte == sector[0]) {
            let found = format!("{:#04x} in all 512 bytes", sector[0]);
            return Finding { at: start, expected, found };
        }
        // Compare with the version it claims to be if that is allowed, else with the newest.
        let newest = if allowed.to.0 == u32::MAX { allowed.from } else { allowed.to };
        let mut wanted = [0; SECTOR_LEN];
        fill(&mut wanted, lba, version.unwrap_or(newest), self.seed);
        let wrong = |at: &usize| sector[*at] != wanted[*at];
        let first = (0..SECTOR_LEN).find(wrong).unwrap_or(0);
        let count = (0..SECTOR_LEN).filter(wrong).count();
        Finding {
            at: start + ByteLen::new(first as u64),
            expected: format!("{expected}: byte {:#04x}", wanted[first]),
            found: format!("byte {:#04x}, and {count} of 512 bytes differ", sector[first]),
        }
    }
}

/// A word that depends on every bit of `value`; also the source of random offsets.
pub(super) fn scramble(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fill(sector: &mut [u8], lba: u64, version: Version, seed: Seed) {
    let sum = scramble(seed.0 ^ scramble(lba ^ scramble(u64::from(version.0))));
    let head = [lba, u64::from(version.0), seed.0, sum];
    let mut state = sum;
    for (at, bytes) in sector.chunks_exact_mut(8).enumerate().take(WORDS) {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let word = head.get(at).copied().unwrap_or(state ^ (state >> 29));
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

fn word(sector: &[u8], at: usize) -> u64 {
    let bytes = sector[at * 8..].first_chunk().expect("a sector has 64 words");
    u64::from_le_bytes(*bytes)
}

fn pack(answered: Version, begun: Version) -> u64 {
    u64::from(answered.0) << 32 | u64::from(begun.0)
}

fn unpack(word: u64) -> (Version, Version) {
    (Version((word >> 32) as u32), Version(word as u32))
}

#[cfg(test)]
mod tests {
    use super::{Allowed, BlockNo, Ledger, Seed, Version};
    use crate::engine::units::DiskOffset;

    const AT: DiskOffset = DiskOffset::new(8192);

    fn stamped(version: u32) -> (Ledger, Vec<u8>) {
        let ledger = Ledger::unwritten(Seed(7), 4);
        let mut data = vec![0; 1024];
        ledger.stamp(&mut data, AT, Version(version));
        (ledger, data)
    }

    fn allowed(from: u32, to: u32) -> Allowed {
        Allowed { from: Version(from), to: Version(to) }
    }

    #[test]
    fn what_was_stamped_is_accepted_and_only_in_its_versions() {
        let (ledger, data) = stamped(3);
        assert_eq!(ledger.check(&data, AT, allowed(3, 3)), Ok(()));
        assert_eq!(ledger.check(&data, AT, allowed(2, 5)), Ok(()));
        let stale = ledger.check(&data, AT, allowed(4, 5)).expect_err("stale");
        assert_eq!(stale.at, AT);
        assert!(stale.found.contains("version 3"), "{}", stale.found);
        ledger.check(&data, AT, allowed(1, 2)).expect_err("from the future");
    }

    #[test]
    fn a_read_during_a_write_may_mix_both_versions() {
        let (ledger, mut data) = stamped(3);
        let (_, newer) = stamped(4);
        data[512..].copy_from_slice(&newer[512..]);
        assert_eq!(ledger.check(&data, AT, allowed(3, 4)), Ok(()));
        ledger.check(&data, AT, allowed(4, 4)).expect_err("the first sector is old");
    }

    #[test]
    fn every_single_flipped_byte_is_found_where_it_is() {
        let (ledger, data) = stamped(1);
        for at in 32..data.len() {
            let mut bad = data.clone();
            bad[at] ^= 1;
            let finding = ledger.check(&bad, AT, allowed(1, 1)).expect_err("flipped");
            if at % 512 >= 32 {
                assert_eq!(finding.at.get(), 8192 + at as u64);
            }
        }
        for at in 0..32 {
            let mut bad = data.clone();
            bad[at] ^= 1;
            ledger.check(&bad, AT, allowed(1, 1)).expect_err("flipped");
        }
    }

    #[test]
    fn zeroes_and_misplaced_sectors_are_called_by_name() {
        let (ledger, data) = stamped(1);
        let zero = ledger.check(&[0; 512], AT, allowed(1, 1)).expect_err("zeroes");
        assert!(zero.found.contains("0x00 in all 512"), "{}", zero.found);
        let moved = DiskOffset::new(4096);
        let misplaced = ledger.check(&data, moved, allowed(1, 1)).expect_err("misplaced");
        assert!(misplaced.found.contains("sector 16 "), "{}", misplaced.found);
    }

    #[test]
    fn a_block_has_one_writer_and_reads_span_begun_and_answered() {
        let ledger = Ledger::unwritten(Seed(7), 1);
        let block = BlockNo(0);
        assert_eq!(ledger.begin(block), Some(Version(1)));
        assert_eq!(ledger.begin(block), None);
        ledger.answered(block, Version(1));
        let floor = ledger.floor(block);
        assert_eq!(ledger.begin(block), Some(Version(2)));
        assert_eq!(ledger.allowed(block, floor), allowed(1, 2));
    }

    #[test]
    fn an_inherited_window_accepts_any_version_of_its_seed() {
        let (_, data) = stamped(9);
        let ledger = Ledger::inherited(Seed(7), 1);
        let any = ledger.allowed(BlockNo(0), ledger.floor(BlockNo(0)));
        assert_eq!(ledger.check(&data, AT, any), Ok(()));
        let other = Ledger::inherited(Seed(8), 1);
        other.check(&data, AT, any).expect_err("another run");
    }
}
