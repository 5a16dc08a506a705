//! A disk: the whole engine as one value. Owns no resource; the host owns files and memory.

use std::collections::VecDeque;

use slab::Slab;

use super::chain::{Found, FrozenLayer, LeafSeat, Stack};
use super::commit::Commit;
use super::effect::{Effect, EffectId, FileId, IoError, LeafFile, Outcome, Source, Target};
use super::guest::Elsewhere;
use super::layer::{Blocked, Leaf, MetaPage};
use super::pivot::Hold;
use super::published::Publisher;
use super::read::with_lent;
use super::request::{Answer, Fault, FaultKind, Reply, Request, RequestId};
use super::resize::Resize;
use super::task::{Outbox, Parking, Purpose, Task, TaskKey, WaitFor};
use super::units::{ByteLen, DiskOffset, Extent, SECTOR};

/// Waiting tasks looked at when a task ends.
const MAX_ADMISSIONS: usize = 64;

/// A virtual disk over a chain of layers.
pub struct Disk {
    pub(super) size: ByteLen,
    pub(super) stack: Stack,
    pub(super) tasks: Slab<Task>,
    pub(super) outbox: Outbox,
    pub(super) parking: Parking,
    pub(super) commit: Commit,
    pub(super) resize: Resize,
    pub(super) hold: Hold,
    pub(super) replies: VecDeque<Reply>,
    /// What a guest does not answer.
    pub(super) elsewhere: Elsewhere,
    /// Tells guests of this disk, if there are any.
    pub(super) publisher: Option<Publisher>,
    /// Tasks that wait until an overlapping task ends.
    waiting: VecDeque<TaskKey>,
    /// Waiting tasks are being admitted.
    admitting: bool,
    /// Exclusive tasks among the admitted.
    exclusives: usize,
    /// Data was written since the last barrier began.
    pub(super) unsynced: bool,
    /// Why the disk takes nothing any more (W8).
    pub(super) stopped: Option<String>,
}

impl Disk {
    /// A writable disk: `leaf` in `file` over `parents`, nearest first.
    pub fn writable(leaf: Box<dyn Leaf>, file: FileId, parents: Vec<FrozenLayer>) -> Self {
        let size = leaf.size();
        let seat = LeafSeat { leaf, file: LeafFile::new(file) };
        Self::with(Stack::new(Some(seat), parents, size), size)
    }

    /// A read-only disk over `layers`, the top first; `None` when there is no layer.
    pub fn read_only(layers: Vec<FrozenLayer>) -> Option<Self> {
        let size = layers.first()?.layer.size();
        Some(Self::with(Stack::new(None, layers, size), size))
    }

    pub(super) fn with(stack: Stack, size: ByteLen) -> Self {
        Self {
            size,
            stack,
            tasks: Slab::new(),
            outbox: Outbox::default(),
            parking: Parking::default(),
            commit: Commit::default(),
            resize: Resize::default(),
            hold: Hold::default(),
            replies: VecDeque::new(),
            elsewhere: Elsewhere::default(),
            publisher: None,
            waiting: VecDeque::new(),
            admitting: false,
            exclusives: 0,
            unsynced: false,
            stopped: None,
        }
    }

    /// Size of the disk in bytes. A resize changes it when the new size is durable, before its
    /// reply can be fetched.
    pub fn size(&self) -> ByteLen {
        self.stack.view.as_ref().map_or(self.size, |view| view.published.size())
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.stack.leaf.is_none()
    }

    /// Number of layers.
    pub fn depth(&self) -> u16 {
        self.stack.depth()
    }

    /// Why the disk stopped, if it did. It stays so until it is opened again.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    fn forgets(&self) -> bool {
        self.stack.leaf.as_ref().is_some_and(|seat| seat.leaf.forgets())
    }

    /// Whether a flush would have something to do.
    pub fn is_dirty(&self) -> bool {
        let metadata = self.stack.leaf.as_ref().is_some_and(|seat| seat.leaf.dirty());
        self.unsynced || metadata || self.committing()
    }

    /// Whether metadata waits in memory for a commit. Data alone does not count: the kernel
    /// writes it back in its own time.
    pub fn has_dirty_metadata(&self) -> bool {
        self.stack.leaf.as_ref().is_some_and(|seat| seat.leaf.dirty())
    }

    /// Requests that were submitted and not yet replied to.
    pub fn in_flight(&self) -> usize {
        self.tasks.len() + self.elsewhere.len()
    }

    /// Effects the host has not completed yet.
    pub fn effects_in_flight(&self) -> usize {
        self.outbox.in_flight()
    }

    /// Takes a request. The caller bounds how many are in flight, and keeps the memory of spans
    /// lent until the reply (I6).
    pub fn submit(&mut self, id: RequestId, request: Request) {
        if let Some(fault) = self.refusal(&request) {
            self.replies.push_back(Reply { id, result: Err(fault) });
            return;
        }
        if self.is_guest() && self.leaves(id, request) {
            return;
        }
        let exclusive = self.is_exclusive(&request);
        let key = self.tasks.insert(Task {
            id,
            request,
            cursor: ByteLen::ZERO,
            pending: 0,
            fault: None,
            segments: None,
            lent: Vec::new(),
            runs: Vec::new(),
            edges: None,
            exclusive,
            admitted: false,
            parked: false,
            settled: true,
            seen: None,
        });
        if matches!(request, Request::Hold) {
            self.begin_hold(key);
        } else if self.hold.keeps(&request) {
            self.hold.keep(key);
        } else if matches!(request, Request::Resize { .. }) {
            self.queue_resize(key);
        } else if self.resize.is_pending() || self.conflicts(key) {
            self.waiting.push_back(key);
        } else {
            self.admit(key);
        }
    }

    /// Whether no other request may touch the same sectors while this one runs.
    fn is_exclusive(&self, request: &Request) -> bool {
        match request {
            Request::Zero { .. } | Request::Discard { .. } => true,
            Request::Write { extent, .. } => self.is_ragged(*extent),
            _ => false,
        }
    }

    /// The size has changed: what was no ragged end may be one now.
    pub(super) fn review_waiting(&mut self) {
        let waiting: Vec<_> = self.waiting.iter().copied().chain(self.hold.waiting()).collect();
        for key in waiting {
            self.tasks[key].exclusive = self.is_exclusive(&self.tasks[key].request);
        }
    }

    /// Tasks that run.
    pub(super) fn admitted(&self) -> usize {
        self.tasks.len() - self.waiting.len() - self.resize.queued() - self.hold.kept()
    }

    /// The next effect for the host, if any.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.outbox.next()
    }

    /// The next reply for the client, if any.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    /// Whether `poll_effect` or `poll_reply` has something to give.
    pub fn has_output(&self) -> bool {
        !self.replies.is_empty() || self.outbox.has_queued() || !self.elsewhere.is_empty()
    }

    /// Takes in what came of an effect.
    pub fn complete(&mut self, id: EffectId, outcome: Outcome) {
        match self.outbox.settle(id) {
            Purpose::Read { task, layer, lendable } => {
                self.note_failure(task, layer, &outcome);
                if outcome == Outcome::Lent {
                    self.tasks[task].lent.extend(lendable);
                }
                self.piece_done(task);
            }
            Purpose::Data { task, placed, durable } => {
                self.data_done(task, &placed, durable, &outcome);
            }
            Purpose::Edge { task, last, at, layer } => {
                self.edge_read(task, last, at, layer, outcome);
            }
            Purpose::Page { layer, page } => self.page_read(layer, page, outcome),
            Purpose::Extents { task, layer, len } => self.extents_told(task, layer, len, outcome),
            Purpose::Scrub { block } => self.scrub_done(block, &outcome),
            Purpose::Wave => self.wave_write_done(&outcome),
            Purpose::Barrier => self.barrier_done(&outcome),
            Purpose::ResizeRead => self.resize_read(outcome),
            Purpose::ResizeChange => self.resize_changed(&outcome),
            Purpose::ResizeBarrier => self.resize_barrier_done(&outcome),
        }
    }

    fn refusal(&self, request: &Request) -> Option<Fault> {
        let at = request.extent().map_or(DiskOffset::new(0), |extent| extent.at);
        if let Some(why) = &self.stopped {
            return Some(Fault { kind: FaultKind::Stopped(why.clone()), layer: 0, at });
        }
        let changes = !matches!(
            request,
            Request::Read { .. } | Request::Fetch { .. } | Request::Map { .. } | Request::Flush
        );
        let read_only = changes && self.is_read_only() && !self.is_guest();
        read_only.then_some(Fault { kind: FaultKind::ReadOnly, layer: 0, at })
    }

    /// Whether an extent starts or ends inside a sector. The end of the disk is no ragged end.
    pub(super) fn is_ragged(&self, extent: Extent) -> bool {
        let end = extent.end().get();
        !extent.at.get().is_multiple_of(SECTOR)
            || (!end.is_multiple_of(SECTOR) && end != self.size.get())
    }

    /// Whether the task must wait for another that touches the same sectors.
    fn conflicts(&self, key: TaskKey) -> bool {
        let task = &self.tasks[key];
        if !task.exclusive && self.exclusives == 0 {
            return false;
        }
        let Some(mine) = task.request.extent().map(Extent::whole_sectors) else { return false };
        self.tasks.iter().any(|(other_key, other)| {
            other_key != key
                && other.admitted
                && (task.exclusive || other.exclusive)
                && other.request.extent().is_some_and(|e| e.whole_sectors().overlaps(mine))
        })
    }

    fn admit(&mut self, key: TaskKey) {
        let task = &mut self.tasks[key];
        task.admitted = true;
        self.exclusives += usize::from(task.exclusive);
        if self.publisher.is_some() {
            self.announce(key);
        }
        if self.is_guest() {
            self.note_seen(key);
        }
        self.advance(key);
    }

    /// Plans as much of a task as can be planned now, and replies when all of it is done.
    pub(super) fn advance(&mut self, key: TaskKey) {
        if self.tasks[key].fault.is_none() && self.stopped.is_none() {
            match self.tasks[key].request {
                Request::Read { extent, into } => self.advance_read(key, extent, into, false),
                Request::Fetch { extent, into } => self.advance_read(key, extent, into, true),
                Request::Write { .. } | Request::Zero { .. } | Request::Discard { .. }
                    if self.forgets() =>
                {
                    self.tasks[key].cursor = ByteLen::new(u64::MAX);
                }
                Request::Write { extent, from, fua } => self.advance_write(key, extent, from, fua),
                Request::Zero { extent, may_unmap, .. } => {
                    self.advance_zero(key, extent, may_unmap);
                }
                Request::Discard { extent, .. } => self.advance_discard(key, extent),
                Request::Map { extent, limit } => self.advance_map(key, extent, limit),
                Request::Flush => {
                    self.join_commit_or_reply(key);
                    return;
                }
                // They have their own ways through the disk.
                Request::Resize { .. } | Request::Hold => return,
            }
        }
        self.finish_if_done(key);
    }

    fn join_commit_or_reply(&mut self, key: TaskKey) {
        if self.is_read_only() {
            self.reply(key);
        } else {
            self.join_commit(key);
        }
    }

    /// Whether the task has nothing left to plan.
    fn is_planned(&self, key: TaskKey) -> bool {
        let task = &self.tasks[key];
        task.cursor >= self.planned_len(task)
    }

    fn finish_if_done(&mut self, key: TaskKey) {
        let task = &self.tasks[key];
        if task.pending > 0 || task.parked {
            return;
        }
        if task.fault.is_some() || self.stopped.is_some() {
            self.reply(key);
        } else if self.is_planned(key) {
            if self.needs_commit(key) { self.join_commit(key) } else { self.reply(key) }
        }
    }

    fn needs_commit(&self, key: TaskKey) -> bool {
        let task = &self.tasks[key];
        let fua = match task.request {
            Request::Write { fua, .. }
            | Request::Zero { fua, .. }
            | Request::Discard { fua, .. } => fua,
            _ => false,
        };
        // What reads as zero already may do so only because of an erasure not yet durable.
        fua && (!task.settled || !matches!(task.request, Request::Write { .. }))
    }

    /// One effect of a task completed: plan on, or finish.
    pub(super) fn piece_done(&mut self, key: TaskKey) {
        let task = &mut self.tasks[key];
        task.pending -= 1;
        if task.pending > 0 || task.parked {
            return;
        }
        if task.fault.is_none() && !self.is_planned(key) {
            self.advance(key);
        } else {
            self.finish_if_done(key);
        }
    }

    /// Remembers the first failure of a task.
    pub(super) fn note_failure(&mut self, key: TaskKey, layer: u16, outcome: &Outcome) {
        if let Outcome::Failed(error) = outcome {
            self.note_fault(key, layer, FaultKind::Io(*error));
        }
    }

    pub(super) fn note_fault(&mut self, key: TaskKey, layer: u16, kind: FaultKind) {
        let task = &mut self.tasks[key];
        let at = task.request.extent().map_or(DiskOffset::new(0), |extent| extent.at);
        task.fault.get_or_insert(Fault { kind, layer, at });
    }

    /// Fails a task that has no effect in flight for its own sake.
    pub(super) fn fail(&mut self, key: TaskKey, fault: Fault) {
        let task = &mut self.tasks[key];
        task.fault.get_or_insert(fault);
        task.parked = false;
        if task.pending == 0 {
            self.reply(key);
        }
    }

    /// Ends a task.
    pub(super) fn reply(&mut self, key: TaskKey) {
        let task = self.tasks.remove(key);
        if self.is_guest() && self.gives_up(&task) {
            return;
        }
        if self.publisher.is_some() {
            self.note_end(&task);
        }
        let result = match (task.fault, &self.stopped) {
            (Some(fault), _) => Err(fault),
            (None, Some(why)) => Err(Fault {
                kind: FaultKind::Stopped(why.clone()),
                layer: 0,
                at: task.request.extent().map_or(DiskOffset::new(0), |extent| extent.at),
            }),
            (None, None) => Ok(match (task.request, task.segments) {
                (Request::Map { .. }, _) => Answer::Map(task.runs),
                (Request::Fetch { into, .. }, segments) if !task.lent.is_empty() => {
                    Answer::Fetched(with_lent(into, segments, task.lent))
                }
                (_, Some(segments)) => Answer::Segments(segments),
                _ => Answer::Done,
            }),
        };
        let well = result.is_ok();
        self.replies.push_back(Reply { id: task.id, result });
        self.exclusives -= usize::from(task.admitted && task.exclusive);
        self.resize.end(key);
        self.note_end_of_hold(key, well);
        self.admit_waiting();
    }

    /// Lets tasks run whose way is clear now. A loop and not a recursion: a task that is admitted
    /// may end at once and come here again, and thousands may wait.
    pub(super) fn admit_waiting(&mut self) {
        if self.admitting {
            return;
        }
        self.admitting = true;
        while self.try_resize() {}
        let mut moved = true;
        while moved && !self.waiting.is_empty() && !self.resize.is_pending() {
            moved = false;
            // Those not looked at now are looked at when the next task ends. If none runs, the
            // first has nothing to conflict with.
            for _ in 0..self.waiting.len().min(MAX_ADMISSIONS) {
                let Some(key) = self.waiting.pop_front() else { break };
                if self.hold.keeps(&self.tasks[key].request) {
                    moved = true;
                    self.hold.keep(key);
                } else if self.conflicts(key) {
                    self.waiting.push_back(key);
                } else {
                    moved = true;
                    self.admit(key);
                }
            }
        }
        self.admitting = false;
        self.try_hold();
    }

    /// Puts a task that was held among those that wait for their turn.
    pub(super) fn wait_again(&mut self, key: TaskKey) {
        match self.tasks[key].request {
            Request::Resize { .. } => self.resize.queue(key),
            _ => self.waiting.push_back(key),
        }
    }

    /// Parks a task until the page was learnt, and sees to it that somebody reads it.
    pub(super) fn wait_for_page(&mut self, key: TaskKey, layer: u16, page: MetaPage) {
        self.tasks[key].parked = true;
        let file = self.stack.file_of(layer);
        if self.parking.park(WaitFor::Page { layer, at: page.at }, key) {
            self.outbox.emit(Purpose::Page { layer, page }, |id| Effect::Read {
                id,
                file,
                at: page.at,
                into: Target::Owned(vec![0; page.len as usize]),
                may_lend: false,
            });
        }
    }

    /// Parks or fails a task that the leaf could not serve yet.
    pub(super) fn wait_for_leaf(&mut self, key: TaskKey, blocked: Blocked) {
        match blocked {
            Blocked::Ask(page) => self.wait_for_page(key, 0, page),
            Blocked::NoSpace(why) => self.note_fault(key, 0, FaultKind::NoSpace(why)),
            Blocked::Commit => {
                self.tasks[key].parked = true;
                self.parking.park(WaitFor::Commit, key);
                self.start_commit();
            }
            Blocked::Scrub { block, at, len } => {
                self.tasks[key].parked = true;
                let file = self.leaf_file();
                if self.parking.park(WaitFor::Scrub { block }, key) {
                    self.outbox.emit(Purpose::Scrub { block }, |id| Effect::Zero {
                        id,
                        file,
                        at,
                        len,
                    });
                }
            }
            Blocked::Cap { block, at, bytes } => {
                self.tasks[key].parked = true;
                let file = self.leaf_file();
                if self.parking.park(WaitFor::Scrub { block }, key) {
                    let from = Source::Owned(bytes);
                    self.outbox.emit(Purpose::Scrub { block }, |id| Effect::Write {
                        id,
                        file,
                        at,
                        from,
                        durable: false,
                    });
                }
            }
        }
    }

    fn page_read(&mut self, layer: u16, page: MetaPage, outcome: Outcome) {
        let learnt = match outcome {
            Outcome::Bytes(bytes) => self
                .stack
                .learn(layer, page, &bytes)
                .map_err(|corrupt| FaultKind::Corrupt(corrupt.0)),
            Outcome::Failed(error) => Err(FaultKind::Io(error)),
            Outcome::Done | Outcome::Lent | Outcome::Extents(_) => Err(FaultKind::Io(IoError::EIO)),
        };
        let what = WaitFor::Page { layer, at: page.at };
        match learnt {
            Ok(()) => self.resume(what),
            // Perhaps nobody needs it but the map of the window it lies in.
            Err(_) if self.stack.is_frozen(layer) && self.stack.give_up_resolving() => {
                self.resume(what);
            }
            Err(kind) => self.fail_waiters(what, layer, &kind),
        }
    }

    fn scrub_done(&mut self, block: u32, outcome: &Outcome) {
        let Some(seat) = &mut self.stack.leaf else { return };
        let what = WaitFor::Scrub { block };
        match outcome {
            Outcome::Failed(error) => {
                seat.leaf.scrub_failed(block);
                self.fail_waiters(what, 0, &FaultKind::Io(*error));
            }
            _ => {
                self.unsynced = true;
                seat.leaf.scrubbed(block);
                self.resume(what);
            }
        }
    }

    /// Lets everyone who waited for this plan on.
    pub(super) fn resume(&mut self, what: WaitFor) {
        for key in self.parking.release(what) {
            self.tasks[key].parked = false;
            if self.tasks[key].pending == 0 || self.tasks[key].fault.is_none() {
                self.advance(key);
            }
        }
    }

    fn fail_waiters(&mut self, what: WaitFor, layer: u16, kind: &FaultKind) {
        for key in self.parking.release(what) {
            self.note_fault(key, layer, kind.clone());
            self.tasks[key].parked = false;
            self.finish_if_done(key);
        }
    }

    /// Stops the disk for good: everything waiting fails, and what is in flight drains.
    pub(super) fn stop(&mut self, why: String) {
        self.stopped = Some(why);
        self.withdraw();
        let mut ended = self.take_commit_waiters();
        for key in self.parking.release_all() {
            self.tasks[key].parked = false;
            ended.push(key);
        }
        ended.extend(std::mem::take(&mut self.waiting));
        ended.extend(self.resize.take_waiters());
        ended.extend(self.hold.take_waiters());
        for key in ended {
            let idle = self.tasks[key].pending == 0;
            if idle {
                self.reply(key);
            }
        }
    }

    pub(super) fn leaf_file(&self) -> LeafFile {
        self.stack.leaf.as_ref().expect("only a disk with a leaf plans writes").file
    }

    /// Where the first bytes of an extent live.
    pub(super) fn find(&mut self, wanted: Extent) -> Found {
        self.stack.find(wanted)
    }
}
