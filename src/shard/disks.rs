//! The disks of a shard, and which of them there may be something to do for: a turn of the loop
//! costs what the disks cost that were touched, however many are attached.
//!
//! Refuses to hand a disk out for change without noting it: whoever could have changed it need not
//! say so.

use std::collections::{BTreeSet, HashMap};
use std::ops::Index;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::oneshot;

use super::line::GuestEnd;
use super::mailbox::DiskTag;
use super::watch::Watches;
use crate::engine::Disk;
use crate::engine::effect::FileId;

/// Metadata older than this is committed without being asked for. It is committed at once when the
/// last client has gone: many a program copies a disk and hangs up without a flush, and what nobody
/// can ask for any more need not wait.
const COMMIT_AGE: Duration = Duration::from_secs(30);

/// What a shard keeps of a disk.
pub(super) struct DiskSeat {
    pub(super) tag: DiskTag,
    pub(super) disk: Disk,
    /// Its files, in the host.
    pub(super) files: Vec<FileId>,
    /// Clients that use it.
    pub(super) clients: usize,
    /// Those of them that act for somebody who is not there.
    pub(super) absent: usize,
    /// A guest's, to its owner.
    pub(super) line: Option<GuestEnd>,
    /// Those of them that keep copies of its bytes.
    pub(super) watches: Watches,
    /// The shard's own requests under way.
    pub(super) own: usize,
    /// Metadata is being committed because of its age.
    pub(super) committing: bool,
    /// The last such commit failed, so the next waits for its age.
    pub(super) commit_failed: bool,
    /// It is to go: what came of the commit that comes last.
    pub(super) last: Last,
    /// It is to go.
    detach: Option<Detach>,
    /// When metadata was first seen dirty.
    dirty_since: Option<Instant>,
    /// The time it stands in the list of those that grow old.
    ageing: Option<Instant>,
    /// It stands in the list of those that may have output.
    stirred: bool,
    /// It stands in the list of those whose metadata is to be looked at.
    touched: bool,
}

/// Told when a disk or the shard is gone, and what could not be made durable.
pub(super) type Farewell = oneshot::Sender<Result<(), String>>;

/// What is known of a disk that is to go.
pub(super) struct Detach {
    /// Until when its clients have time.
    pub(super) deadline: Instant,
    /// Who wants it to go.
    answers: Vec<Farewell>,
}

/// How far the last commit of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Last {
    No,
    UnderWay,
    Over(Result<(), String>),
}

impl DiskSeat {
    const fn new(tag: DiskTag, disk: Disk, files: Vec<FileId>) -> Self {
        Self {
            tag,
            disk,
            files,
            clients: 0,
            absent: 0,
            line: None,
            watches: Watches::new(),
            own: 0,
            committing: false,
            commit_failed: false,
            last: Last::No,
            detach: None,
            dirty_since: None,
            ageing: None,
            stirred: false,
            touched: false,
        }
    }

    /// What is known of its going, if it is to go. Only [`Disks::let_go`] says so.
    pub(super) const fn detach(&self) -> Option<&Detach> {
        self.detach.as_ref()
    }

    /// It has so many clients now.
    pub(super) fn count_clients(&mut self, clients: usize) {
        self.clients = clients;
        if let Some(line) = &self.line {
            line.note_users(clients);
        }
    }

    /// Who wants to be told that it is gone.
    pub(super) fn into_answers(self) -> Vec<Farewell> {
        self.detach.map(|detach| detach.answers).unwrap_or_default()
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.own == 0
            && self.disk.in_flight() == 0
            && self.disk.effects_in_flight() == 0
            && !self.disk.has_output()
    }

    /// Whether its metadata is to be committed now; notes since when it is dirty.
    fn falls_due(&mut self, now: Instant, serving: bool) -> bool {
        if !self.disk.has_dirty_metadata() || self.disk.stopped().is_some() {
            self.dirty_since = None;
            return false;
        }
        let since = *self.dirty_since.get_or_insert(now);
        // A disk that goes is committed on its way out. One that cannot be committed just now (its
        // device is full) is not tried again and again.
        let left =
            self.clients == self.absent && self.detach.is_none() && serving && !self.commit_failed;
        let due = (left || now - since >= COMMIT_AGE) && !self.committing;
        if due {
            self.committing = true;
            self.dirty_since = None;
        }
        due
    }
}

/// All disks, each at a place that stays its own.
#[derive(Default)]
pub(super) struct Disks {
    seats: Slab<DiskSeat>,
    places: HashMap<DiskTag, usize>,
    /// Those touched since their output was fetched; each once.
    stirred: Vec<usize>,
    /// Those touched since their metadata was looked at; each once.
    touched: Vec<usize>,
    /// Those whose metadata is dirty and not being committed, with since when.
    ageing: BTreeSet<(Instant, usize)>,
    /// Those that are to go.
    going: BTreeSet<usize>,
}

impl Disks {
    /// Takes a disk in, and tells its place.
    pub(super) fn insert(&mut self, tag: DiskTag, disk: Disk, files: Vec<FileId>) -> usize {
        let place = self.seats.insert(DiskSeat::new(tag, disk, files));
        self.places.insert(tag, place);
        self.touch(place);
        place
    }

    /// Takes a disk out that is quiet; its place may be another's next.
    pub(super) fn remove(&mut self, place: usize) -> DiskSeat {
        let seat = self.seats.remove(place);
        self.places.remove(&seat.tag);
        self.going.remove(&place);
        if let Some(since) = seat.ageing {
            self.ageing.remove(&(since, place));
        }
        self.stirred.retain(|other| *other != place);
        self.touched.retain(|other| *other != place);
        seat
    }

    /// The place of a disk.
    pub(super) fn place_of(&self, tag: DiskTag) -> Option<usize> {
        self.places.get(&tag).copied()
    }

    /// All places in use.
    pub(super) fn places(&self) -> Vec<usize> {
        self.seats.iter().map(|(place, _)| place).collect()
    }

    /// All disks, to look at.
    pub(super) fn iter(&self) -> impl Iterator<Item = &DiskSeat> {
        self.seats.iter().map(|(_, seat)| seat)
    }

    /// Hands a disk out to be changed: its output is fetched and its metadata looked at soon.
    pub(super) fn touch(&mut self, place: usize) -> &mut DiskSeat {
        let seat = &mut self.seats[place];
        if !std::mem::replace(&mut seat.stirred, true) {
            self.stirred.push(place);
        }
        if !std::mem::replace(&mut seat.touched, true) {
            self.touched.push(place);
        }
        seat
    }

    /// Whether a disk may have output.
    pub(super) const fn are_stirred(&self) -> bool {
        !self.stirred.is_empty()
    }

    /// Whether there is a disk whose metadata nobody has looked at since it was touched.
    pub(super) const fn are_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Hands out each disk that may have output, those first that were touched first, to have all
    /// of it fetched.
    pub(super) fn for_each_stirred(&mut self, mut fetch: impl FnMut(usize, &mut Disk)) {
        for place in self.stirred.drain(..) {
            let seat = &mut self.seats[place];
            seat.stirred = false;
            fetch(place, &mut seat.disk);
        }
    }

    /// The disks whose metadata is to be committed now, because it has been dirty for long or
    /// nobody is left to ask for it.
    pub(super) fn fall_due(&mut self, now: Instant, serving: bool) -> Vec<usize> {
        while let Some((since, place)) = self.ageing.first().copied()
            && now - since >= COMMIT_AGE
        {
            self.ageing.pop_first();
            let seat = &mut self.seats[place];
            seat.ageing = None;
            if !std::mem::replace(&mut seat.touched, true) {
                self.touched.push(place);
            }
        }
        let mut due = Vec::new();
        for place in self.touched.drain(..) {
            let seat = &mut self.seats[place];
            seat.touched = false;
            if seat.falls_due(now, serving) {
                due.push(place);
            }
            // One that is being committed is touched when that is over.
            let ageing = seat.dirty_since.filter(|_| !seat.committing);
            if seat.ageing != ageing {
                let before = std::mem::replace(&mut seat.ageing, ageing);
                before.map(|since| self.ageing.remove(&(since, place)));
                ageing.map(|since| self.ageing.insert((since, place)));
            }
        }
        due
    }

    /// When metadata grows too old.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ageing.first().map(|(since, _)| *since + COMMIT_AGE)
    }

    /// A disk is to go; its clients have time until then. False: it is going already, and one more
    /// is told when it is gone.
    pub(super) fn let_go(&mut self, place: usize, deadline: Instant, answer: Farewell) -> bool {
        match &mut self.touch(place).detach {
            Some(detach) => detach.answers.push(answer),
            none => *none = Some(Detach { deadline, answers: vec![answer] }),
        }
        self.going.insert(place)
    }

    /// The clients of a disk that goes have time until then.
    pub(super) fn put_off(&mut self, place: usize, deadline: Instant) {
        if let Some(detach) = &mut self.seats[place].detach {
            detach.deadline = deadline;
        }
    }

    /// The places of those that are to go.
    pub(super) const fn going(&self) -> &BTreeSet<usize> {
        &self.going
    }
}

impl Index<usize> for Disks {
    type Output = DiskSeat;

    fn index(&self, place: usize) -> &DiskSeat {
        &self.seats[place]
    }
}
