//! The exact rule of what the guest may find after a crash and in a live read (crash model, 4.3).
//!
//! Refuses to know images, files or formats: it saw the requests, the replies and the clock.

use std::fmt::Write as _;

use super::tag::Tag;

/// A run of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cells {
    /// First cell.
    pub(crate) first: u32,
    /// How many.
    pub(crate) count: u32,
}

impl Cells {
    /// Their numbers.
    pub(crate) fn iter(self) -> std::ops::Range<u32> {
        self.first..self.first + self.count
    }
}

/// What a mutation puts into its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Puts {
    /// Data of this version.
    Data(u32),
    /// Zeroes.
    Zeroes,
    /// Zeroes or what was there before: a discard.
    Maybe,
}

/// Names a mutation in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteNo(usize);

const NEVER: u64 = u64::MAX;

#[derive(Clone, Debug)]
struct Mutation {
    cells: Cells,
    puts: Puts,
    issue: u64,
    ack: u64,
    ok: bool,
    fua: bool,
    durable: bool,
    /// Content found after a process was killed, one tag per cell, standing in for a write.
    found: Option<Vec<Tag>>,
}

/// The history of a disk, cell by cell.
#[derive(Debug)]
pub(crate) struct Oracle {
    disk: u8,
    clock: u64,
    /// What each cell held before any mutation in the history.
    initial: Vec<Vec<Tag>>,
    writes: Vec<Mutation>,
    per_cell: Vec<Vec<u32>>,
    /// Issue time of the latest durable mutation of each cell; 0: none.
    bar: Vec<u64>,
    /// Sizes in cells that the disk may have after a crash; the live one is the first.
    sizes: Vec<u32>,
}

impl Oracle {
    /// A disk whose cells hold `initial` durably.
    pub(crate) fn new(disk: u8, initial: &[Tag]) -> Self {
        Self {
            disk,
            clock: 1,
            initial: initial.iter().map(|tag| vec![*tag]).collect(),
            writes: Vec::new(),
            per_cell: vec![Vec::new(); initial.len()],
            bar: vec![0; initial.len()],
            sizes: vec![initial.len() as u32],
        }
    }

    /// Cells of the disk, at its largest.
    pub(crate) fn cells(&self) -> u32 {
        self.initial.len() as u32
    }

    /// Whether the disk may have so many cells after a crash now.
    pub(crate) fn may_have(&self, cells: u32) -> bool {
        self.sizes.contains(&cells)
    }

    /// A growth is submitted: new cells are zeroes, if there are any.
    pub(crate) fn may_grow(&mut self, cells: u32) {
        self.tick();
        self.sizes.push(cells);
        if cells > self.cells() {
            self.resize(cells);
        }
    }

    /// A growth was refused: nothing was changed for it.
    pub(crate) fn never_grew(&mut self, cells: u32) {
        if let Some(at) = self.sizes.iter().rposition(|size| *size == cells) {
            self.sizes.remove(at);
        }
    }

    /// The disk has so many cells now, durably; larger ones are forgotten.
    pub(crate) fn settle_size(&mut self, cells: u32) {
        self.sizes = vec![cells];
        if self.writes.is_empty() || cells > self.cells() {
            self.resize(cells);
        }
    }

    fn resize(&mut self, cells: u32) {
        self.initial.resize(cells as usize, vec![Tag::ZERO]);
        self.per_cell.resize(cells as usize, Vec::new());
        self.bar.resize(cells as usize, 0);
    }

    /// Lets time pass; no two events share a moment.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A mutation is submitted.
    pub(crate) fn issue(&mut self, cells: Cells, puts: Puts, fua: bool) -> WriteNo {
        let issue = self.tick();
        self.writes.push(Mutation {
            cells,
            puts,
            issue,
            ack: NEVER,
            ok: false,
            fua,
            durable: false,
            found: None,
        });
        let no = self.writes.len() - 1;
        cells.iter().for_each(|cell| self.per_cell[cell as usize].push(no as u32));
        WriteNo(no)
    }

    /// It is replied to.
    pub(crate) fn ack(&mut self, no: WriteNo, ok: bool) {
        let now = self.tick();
        let write = &mut self.writes[no.0];
        write.ack = now;
        write.ok = ok;
        if ok && write.fua {
            self.make_durable(no.0);
        }
    }

    /// A flush that was submitted at `issue` is replied to with success.
    pub(crate) fn flushed(&mut self, issue: u64) {
        self.tick();
        for no in 0..self.writes.len() {
            let write = &self.writes[no];
            if write.ok && write.ack <= issue {
                self.make_durable(no);
            }
        }
    }

    fn make_durable(&mut self, no: usize) {
        let write = &mut self.writes[no];
        if write.durable || write.puts == Puts::Maybe {
            return;
        }
        write.durable = true;
        let (cells, issue) = (write.cells, write.issue);
        for cell in cells.iter() {
            let bar = &mut self.bar[cell as usize];
            *bar = (*bar).max(issue);
        }
    }

    fn tag(&self, no: usize, cell: u32) -> Tag {
        let write = &self.writes[no];
        match (&write.found, write.puts) {
            (Some(found), _) => found[(cell - write.cells.first) as usize],
            (None, Puts::Data(version)) => Tag::new(self.disk, cell, version),
            (None, Puts::Zeroes | Puts::Maybe) => Tag::ZERO,
        }
    }

    /// What cell `cell` may hold after a crash now.
    pub(crate) fn allowed(&self, cell: u32, into: &mut Vec<Tag>) {
        self.since(cell, self.bar[cell as usize], NEVER, into);
    }

    /// Contents not superseded at `bar` and issued before `end`.
    fn since(&self, cell: u32, bar: u64, end: u64, into: &mut Vec<Tag>) {
        into.clear();
        if bar == 0 {
            into.extend_from_slice(&self.initial[cell as usize]);
        }
        for no in &self.per_cell[cell as usize] {
            let write = &self.writes[*no as usize];
            if write.ack >= bar && write.issue < end {
                into.push(self.tag(*no as usize, cell));
            }
        }
    }

    /// Whether a read submitted at `issue` and replied to now may have found `tag` in `cell`.
    pub(crate) fn may_read(&self, cell: u32, issue: u64, tag: Tag) -> bool {
        let settled = |no: &&u32| {
            let write = &self.writes[**no as usize];
            write.ok && write.ack < issue && write.puts != Puts::Maybe
        };
        let bar = self.per_cell[cell as usize].iter().filter(settled);
        let bar = bar.map(|no| self.writes[*no as usize].issue).max().unwrap_or(0);
        let mut allowed = Vec::new();
        self.since(cell, bar, NEVER, &mut allowed);
        allowed.contains(&tag)
    }

    /// The machine lost power and recovery found `content`: all of that is durable now.
    pub(crate) fn lost_power(&mut self, content: &[Tag]) {
        self.tick();
        self.writes.clear();
        self.settle_size(content.len() as u32);
        for (cell, tag) in content.iter().enumerate() {
            self.initial[cell] = vec![*tag];
            self.per_cell[cell].clear();
            self.bar[cell] = 0;
        }
    }

    /// The process was killed and its successor found `content`. It must keep showing that, but
    /// until the next flush a power loss may still bring back anything allowed before.
    pub(crate) fn was_killed(&mut self, content: &[Tag]) {
        let mut allowed = Vec::new();
        for cell in 0..self.cells() {
            self.allowed(cell, &mut allowed);
            self.initial[cell as usize].clone_from(&allowed);
        }
        self.writes.clear();
        self.per_cell.iter_mut().for_each(Vec::clear);
        self.bar.fill(0);
        // What may grow out of a resize that was under way is zero.
        let all = Cells { first: 0, count: content.len() as u32 };
        let no = self.issue(all, Puts::Zeroes, false);
        self.writes[no.0].found = Some(content.to_vec());
        self.ack(no, true);
    }

    /// Everything that happened to a cell, for a person to read.
    pub(crate) fn story(&self, cell: u32) -> String {
        let mut text = String::new();
        for tag in &self.initial[cell as usize] {
            let _ = writeln!(text, "  before: {tag}");
        }
        for no in &self.per_cell[cell as usize] {
            let write = &self.writes[*no as usize];
            let tag = self.tag(*no as usize, cell);
            let kind = if write.puts == Puts::Maybe { "discard" } else { "write" };
            let ack = if write.ack == NEVER { "never".into() } else { write.ack.to_string() };
            let _ = writeln!(
                text,
                "  {kind} of {tag}: issued {}, replied {ack}, ok {}, fua {}, durable {}",
                write.issue, write.ok, write.fua, write.durable
            );
        }
        let mut allowed = Vec::new();
        self.allowed(cell, &mut allowed);
        let allowed: Vec<String> = allowed.iter().map(Tag::to_string).collect();
        let _ = writeln!(
            text,
            "  allowed now (bar {}): {}",
            self.bar[cell as usize],
            allowed.join(", ")
        );
        text
    }
}
