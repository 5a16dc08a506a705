//! What one job does next: which block, read or written, and when to stop.
//!
//! Chooses and counts; does no I/O and asks no clock. Refuses to write a block somebody else is
//! writing while verification watches.

use std::str::FromStr;

use super::stamp::{BlockNo, Ledger, Seed, Version, scramble};
use crate::engine::units::{ByteLen, DiskOffset};

/// How often a random write looks for a block nobody is writing before it waits for replies.
const BUSY_TRIES: u32 = 8;

/// The kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads in order.
    Read,
    /// Writes in order.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Both anywhere, mixed by a percentage.
    RandRw,
}

impl Pattern {
    const NAMES: [(&str, Pattern); 5] = [
        ("read", Pattern::Read),
        ("write", Pattern::Write),
        ("randread", Pattern::RandRead),
        ("randwrite", Pattern::RandWrite),
        ("randrw", Pattern::RandRw),
    ];

    /// The name users give it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, pattern)| *pattern == self).map_or("", |(name, _)| name)
    }

    /// Whether it can write.
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Pattern::Read | Pattern::RandRead)
    }

    fn in_order(self) -> bool {
        matches!(self, Pattern::Read | Pattern::Write)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let known = Self::NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, pattern)| *pattern).ok_or_else(|| {
            format!("'{text}' is not one of read, write, randread, randwrite, randrw")
        })
    }
}

/// The part of the disk a load touches, in blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// First byte.
    pub(super) at: DiskOffset,
    /// Length of a block.
    pub(super) block: ByteLen,
    /// How many whole blocks.
    pub(super) blocks: u64,
}

impl Window {
    /// Where a block starts.
    pub(super) fn offset(&self, block: BlockNo) -> DiskOffset {
        // The window was checked against the disk's size, so this cannot leave it.
        self.at + ByteLen::new(block.0 * self.block.get())
    }

    /// The blocks of job `job` of `jobs`: its first and how many. Together they are the window.
    pub(super) fn share(&self, job: u64, jobs: u64) -> (BlockNo, u64) {
        let first = (u128::from(self.blocks) * u128::from(job) / u128::from(jobs)) as u64;
        let next = (u128::from(self.blocks) * u128::from(job + 1) / u128::from(jobs)) as u64;
        (BlockNo(first), next - first)
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Read a block; the version is what it must show at least.
    Read(BlockNo, Version),
    /// Write a block; the version is what to stamp it with.
    Write(BlockNo, Version),
    /// Make what was written durable.
    Flush,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this.
    Issue(Op),
    /// Nothing can be sent before a reply comes.
    Wait,
    /// Nothing is left to send.
    Done,
}

/// The requests of one job.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pattern: Pattern,
    read_percent: u64,
    window: Window,
    first: BlockNo,
    count: u64,
    cursor: u64,
    random: u64,
    /// Requests left to send; `None` when only time ends the load.
    left: Option<u64>,
    flush_every: Option<u64>,
    since_flush: u64,
    ledger: Option<&'a Ledger>,
}

impl<'a> Plan<'a> {
    /// A load of `pattern`, ended by `left` requests or by whoever asks no more.
    pub(super) fn load(
        pattern: Pattern,
        window: Window,
        (job, jobs): (u64, u64),
        seed: Seed,
        left: Option<u64>,
    ) -> Plan<'a> {
        // In order, each job has its own share; anywhere means anywhere in the window.
        let (first, count) =
            if pattern.in_order() { window.share(job, jobs) } else { (BlockNo(0), window.blocks) };
        let random = scramble(seed.0 ^ scramble(job));
        Plan {
            pattern,
            read_percent: 50,
            window,
            first,
            count,
            cursor: 0,
            random,
            left,
            flush_every: None,
            since_flush: 0,
            ledger: None,
        }
    }

    /// One pass over the job's share of the window, in order.
    pub(super) fn pass(pattern: Pattern, window: Window, job: (u64, u64)) -> Plan<'a> {
        let left = window.share(job.0, job.1).1;
        Plan::load(pattern, window, job, Seed(0), Some(left))
    }

    /// Of a hundred requests of a mixed load, how many read.
    pub(super) fn with_mix(self, read_percent: u8) -> Plan<'a> {
        Plan { read_percent: read_percent.into(), ..self }
    }

    /// A flush after so many writes.
    pub(super) fn with_flush_every(self, writes: Option<u64>) -> Plan<'a> {
        Plan { flush_every: writes, ..self }
    }

    /// Takes versions from, and respects the writers in, a ledger.
    pub(super) fn with_ledger(self, ledger: Option<&'a Ledger>) -> Plan<'a> {
        Plan { ledger, ..self }
    }

    /// The next request.
    pub(super) fn next_step(&mut self) -> Step {
        if self.left == Some(0) || self.count == 0 {
            return Step::Done;
        }
        if self.flush_every.is_some_and(|every| self.since_flush >= every) {
            self.since_flush = 0;
            return Step::Issue(Op::Flush);
        }
        let writes = match self.pattern {
            Pattern::Read | Pattern::RandRead => false,
            Pattern::Write | Pattern::RandWrite => true,
            Pattern::RandRw => self.below(100) >= self.read_percent,
        };
        let op = if writes { self.write() } else { Some(self.read()) };
        let Some(op) = op else { return Step::Wait };
        self.since_flush += u64::from(writes);
        self.left = self.left.map(|left| left - 1);
        Step::Issue(op)
    }

    fn read(&mut self) -> Op {
        let block = self.choose();
        self.cursor += 1;
        Op::Read(block, self.ledger.map_or(Version(0), |ledger| ledger.floor(block)))
    }

    fn write(&mut self) -> Option<Op> {
        let Some(ledger) = self.ledger else {
            let block = self.choose();
            self.cursor += 1;
            return Some(Op::Write(block, Version(0)));
        };
        let tries = if self.pattern.in_order() { 1 } else { BUSY_TRIES };
        for _ in 0..tries {
            let block = self.choose();
            if let Some(version) = ledger.begin(block) {
                self.cursor += 1;
                return Some(Op::Write(block, version));
            }
        }
        None
    }

    fn choose(&mut self) -> BlockNo {
        let index =
            if self.pattern.in_order() { self.cursor % self.count } else { self.below(self.count) };
        BlockNo(self.first.0 + index)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(scramble(self.random)) * u128::from(bound)) >> 64) as u64
    }

    /// The window it works in.
    pub(super) fn window(&self) -> Window {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::{Op, Pattern, Plan, Step, Window};
    use crate::bench::stamp::{BlockNo, Ledger, Seed, Version};
    use crate::engine::units::{ByteLen, DiskOffset};

    fn window(blocks: u64) -> Window {
        Window { at: DiskOffset::new(1 << 20), block: ByteLen::new(4096), blocks }
    }

    fn all(mut plan: Plan<'_>) -> Vec<Op> {
        let mut ops = Vec::new();
        while let Step::Issue(op) = plan.next_step() {
            ops.push(op);
        }
        ops
    }

    #[test]
    fn the_passes_of_all_jobs_cover_each_block_once() {
        let mut seen = [0; 10];
        for job in 0..3 {
            for op in all(Plan::pass(Pattern::Read, window(10), (job, 3))) {
                if let Op::Read(block, _) = op {
                    seen[block.0 as usize] += 1;
                }
            }
        }
        assert_eq!(seen, [1; 10]);
    }

    #[test]
    fn the_same_seed_chooses_the_same_blocks_and_jobs_differ() {
        let load = |seed, job| {
            all(Plan::load(Pattern::RandRead, window(1000), (job, 2), Seed(seed), Some(50)))
        };
        assert_eq!(load(1, 0), load(1, 0));
        assert_ne!(load(1, 0), load(2, 0));
        assert_ne!(load(1, 0), load(1, 1));
    }

    #[test]
    fn a_mixed_load_keeps_its_percentage() {
        let plan = Plan::load(Pattern::RandRw, window(1000), (0, 1), Seed(1), Some(10_000));
        let ops = all(plan.with_mix(70));
        let reads = ops.iter().filter(|op| matches!(op, Op::Read(..))).count();
        assert!((6_700..7_300).contains(&reads), "{reads}");
    }

    #[test]
    fn a_flush_follows_every_so_many_writes() {
        let plan = Plan::load(Pattern::Write, window(10), (0, 1), Seed(1), Some(4));
        let ops = all(plan.with_flush_every(Some(2)));
        let write = |block| Op::Write(BlockNo(block), Version(0));
        assert_eq!(ops, [write(0), write(1), Op::Flush, write(2), write(3)]);
    }

    #[test]
    fn a_block_somebody_is_writing_is_waited_for() {
        let ledger = Ledger::unwritten(Seed(1), 1);
        let plan = Plan::load(Pattern::RandWrite, window(1), (0, 1), Seed(1), None);
        let mut plan = plan.with_ledger(Some(&ledger));
        assert_eq!(plan.next_step(), Step::Issue(Op::Write(BlockNo(0), Version(1))));
        assert_eq!(plan.next_step(), Step::Wait);
        ledger.answered(BlockNo(0), Version(1));
        assert_eq!(plan.next_step(), Step::Issue(Op::Write(BlockNo(0), Version(2))));
    }
}
