//! One simulated file or block device: what readers see, what is on the platter, and the effects
//! between the two.
//!
//! Refuses to be kind: nothing becomes durable before a covering sync, in no order (4.2).

use crate::engine::units::{ByteLen, FileOffset};

use super::atom::{Atom, Deed, Stage, write_deeds, zero_deeds};
use super::image::Image;

/// What holds the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A sparse file: new bytes read as zero, writing behind the end grows it.
    File,
    /// A block device: fixed size, never-written sectors hold somebody's old bytes.
    Device,
}

/// A change of a file, with its data already gathered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes at a position.
    Write(FileOffset, Vec<u8>),
    /// Zeroes at a position, with space kept for them; grows the file if need be.
    Zero(FileOffset, ByteLen),
    /// A hole at a position; never grows the file.
    Punch(FileOffset, ByteLen),
    /// Cut to a length.
    Truncate(ByteLen),
}

/// A simulated file.
#[derive(Clone, Debug)]
pub struct SimFile {
    backing: Backing,
    live: Image,
    durable: Image,
    pending: Vec<Atom>,
    next_op: u32,
}

/// Names an executed change of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpId(u32);

impl SimFile {
    /// A file with durable content.
    pub fn new(backing: Backing, bytes: &[u8]) -> Self {
        let durable = Image::new(bytes);
        Self { backing, live: durable.clone(), durable, pending: Vec::new(), next_op: 0 }
    }

    /// Becomes a file with this durable content, keeping its memory.
    pub fn reset(&mut self, bytes: &[u8]) {
        self.live.replace(bytes);
        self.durable.replace(bytes);
        self.pending.clear();
    }

    /// What holds the bytes.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// What readers see.
    pub fn live(&self) -> &Image {
        &self.live
    }

    /// What a power loss cannot take.
    pub fn durable(&self) -> &Image {
        &self.durable
    }

    /// The effects a power loss may take, in order of execution.
    pub fn pending(&self) -> &[Atom] {
        &self.pending
    }

    /// Whether the change fits: a device never grows.
    pub fn fits(&self, change: &Change) -> bool {
        let end = match change {
            Change::Write(at, bytes) => at.get() + bytes.len() as u64,
            Change::Zero(at, len) | Change::Punch(at, len) => at.get() + len.get(),
            Change::Truncate(len) => len.get(),
        };
        self.backing == Backing::File || end <= self.live.len().get()
    }

    /// The effects the change would have if it were executed now.
    pub fn deeds(&self, change: &Change, into: &mut Vec<Deed>) {
        match change {
            Change::Write(at, bytes) => write_deeds(&self.live, at.get(), bytes, into),
            Change::Zero(at, len) => {
                let end = at.get() + len.get();
                zero_deeds(&self.live, at.get(), end, into);
                if end > self.live.len().get() {
                    into.push(Deed::Grow(end));
                }
            }
            Change::Punch(at, len) => {
                let end = (at.get() + len.get()).min(self.live.len().get());
                zero_deeds(&self.live, at.get(), end, into);
            }
            Change::Truncate(len) if *len < self.live.len() => into.push(Deed::Cut(len.get())),
            Change::Truncate(len) if *len > self.live.len() => into.push(Deed::Grow(len.get())),
            Change::Truncate(_) => {}
        }
    }

    /// Executes a change: readers see it, the platter does not yet.
    pub fn execute(&mut self, change: &Change) -> OpId {
        let mut deeds = Vec::new();
        self.deeds(change, &mut deeds);
        self.execute_deeds(deeds)
    }

    /// Executes some effects of a change (a torn or failed one) as an operation of its own.
    pub fn execute_deeds(&mut self, deeds: Vec<Deed>) -> OpId {
        let op = self.next_op;
        self.next_op += 1;
        // Sizes first, or the live image would drop bytes behind its old end.
        deeds.iter().filter(|deed| deed.is_size()).for_each(|deed| deed.apply(&mut self.live));
        for deed in deeds {
            if !deed.is_size() {
                deed.apply(&mut self.live);
            }
            self.pending.push(Atom { op, stage: Stage::Executed, deed });
        }
        OpId(op)
    }

    /// The caller was told of the operation at `clock`: a sync started later covers it.
    pub fn delivered(&mut self, op: OpId, clock: u64) {
        let mine = |atom: &&mut Atom| atom.op == op.0 && atom.stage == Stage::Executed;
        self.pending.iter_mut().filter(mine).for_each(|atom| atom.stage = Stage::Delivered(clock));
    }

    /// Makes one operation durable, and only it (RWF_DSYNC).
    pub fn settle(&mut self, op: OpId) {
        self.harden(|atom| atom.op == op.0);
    }

    /// A sync that was started at `clock` succeeds.
    pub fn sync(&mut self, clock: u64) {
        self.harden(|atom| matches!(atom.stage, Stage::Delivered(at) if at < clock));
    }

    /// A sync that was started at `clock` fails: the kernel marks all it tried clean.
    pub fn sync_failed(&mut self, clock: u64) {
        for atom in &mut self.pending {
            if matches!(atom.stage, Stage::Delivered(at) if at < clock) {
                atom.stage = Stage::Frozen;
            }
        }
    }

    /// The process died: what was executed stays in the page cache and counts as done.
    pub fn orphan(&mut self) {
        for atom in &mut self.pending {
            if atom.stage == Stage::Executed {
                atom.stage = Stage::Delivered(0);
            }
        }
    }

    fn harden(&mut self, covered: impl Fn(&Atom) -> bool) {
        let atoms = std::mem::take(&mut self.pending);
        for atom in atoms {
            if !covered(&atom) {
                self.pending.push(atom);
                continue;
            }
            // What an older write put there cannot come back over this one.
            let (first, mask) = atom.deed.touched();
            overwrite(&mut self.pending, first, mask);
            if let Deed::Put { no, .. } = atom.deed {
                self.reach(no);
            }
            atom.deed.apply(&mut self.durable);
        }
    }

    /// A sync that makes data durable also makes the size durable that is needed to find it, even
    /// if another, uncovered write grew the file.
    fn reach(&mut self, no: u32) {
        let end = ((u64::from(no) + 1) * 512).min(self.live.len().get());
        if end > self.durable.len().get() {
            self.durable.set_len(ByteLen::new(end));
        }
    }
}

/// Takes the sectors of `mask` from `first` on out of every older effect.
fn overwrite(older: &mut Vec<Atom>, first: u32, mask: u8) {
    if mask == 0 {
        return;
    }
    older.retain_mut(|atom| match &mut atom.deed {
        Deed::Put { no, .. } => *no < first || *no - first >= 8 || mask & (1 << (*no - first)) == 0,
        Deed::Zero { first: other, mask: kept } => {
            for bit in (0..8).filter(|bit| mask & (1 << bit) != 0) {
                let sector = first + bit;
                if sector >= *other && sector - *other < 8 {
                    *kept &= !(1 << (sector - *other));
                }
            }
            *kept != 0
        }
        Deed::Grow(_) | Deed::Cut(_) => true,
    });
}
