//! A new leaf for a disk in use: changes are held, what was acknowledged becomes durable, the leaf
//! is frozen under a new one, and changes go on.
//!
//! A hold lets no change begin: those that run end, then everything is committed, and then the hold
//! is answered. Reads go on all the while. Between that answer and the release the leaf's file says
//! exactly what the disk says, so it may get another name, and a child. Refuses a leaf that would
//! change what the disk reads as: one of another size, or one that comes while something is dirty.

use std::collections::VecDeque;

use super::disk::Disk;
use super::effect::FileId;
use super::layer::Leaf;
use super::request::{FaultKind, MapKind, Request};
use super::task::TaskKey;

/// Where the disk's hold stands, and who waits for its end.
#[derive(Default)]
pub(super) struct Hold {
    stage: Stage,
    waiting: VecDeque<TaskKey>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Off,
    /// Changes that began before run to their end.
    Ending(TaskKey),
    /// They have ended, and everything is being committed.
    Committing(TaskKey),
    /// Nothing changes, and everything is durable.
    Quiet,
}

/// Why a disk did not take a new leaf; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PivotError {
    /// It is not held.
    #[error("the disk is not held: its changes would not stand still")]
    NotHeld,
    /// Something waits for a commit.
    #[error("the disk has changes that are not durable")]
    Dirty,
    /// The new leaf describes another disk.
    #[error("the new leaf has another size than the disk")]
    OtherSize,
}

/// Whether a request changes the disk.
const fn changes(request: &Request) -> bool {
    match request {
        Request::Write { .. }
        | Request::Zero { .. }
        | Request::Discard { .. }
        | Request::Resize { .. } => true,
        Request::Read { .. }
        | Request::Fetch { .. }
        | Request::Map { .. }
        | Request::Flush
        | Request::Hold => false,
    }
}

impl Hold {
    /// Whether this request must wait for the release.
    pub(super) fn keeps(&self, request: &Request) -> bool {
        self.stage != Stage::Off && changes(request)
    }

    /// Lets a task wait for the release.
    pub(super) fn keep(&mut self, key: TaskKey) {
        self.waiting.push_back(key);
    }

    /// Tasks that do not run because of it, the hold itself included.
    pub(super) fn kept(&self) -> usize {
        self.waiting.len() + usize::from(matches!(self.stage, Stage::Ending(_)))
    }

    /// Those who wait for the release, to be looked at again.
    pub(super) fn waiting(&self) -> impl Iterator<Item = TaskKey> {
        self.waiting.iter().copied()
    }

    /// Takes out everyone who waits, the hold itself included; the disk has stopped. While it waits
    /// for the commit, the commit gives it back.
    pub(super) fn take_waiters(&mut self) -> Vec<TaskKey> {
        let mut waiters = Vec::from(std::mem::take(&mut self.waiting));
        if let Stage::Ending(key) = std::mem::take(&mut self.stage) {
            waiters.push(key);
        }
        waiters
    }
}

impl Disk {
    pub(super) fn begin_hold(&mut self, key: TaskKey) {
        if self.hold.stage != Stage::Off {
            self.refuse_hold(key, "the disk is held already");
            return;
        }
        self.hold.stage = Stage::Ending(key);
        self.try_hold();
    }

    fn refuse_hold(&mut self, key: TaskKey, why: &str) {
        self.note_fault(key, 0, FaultKind::Unsupported(why.to_owned()));
        self.reply(key);
    }

    /// Commits once no change runs any more.
    pub(super) fn try_hold(&mut self) {
        let Stage::Ending(key) = self.hold.stage else { return };
        let running = |task: &super::task::Task| task.admitted && changes(&task.request);
        if self.resize.is_pending() || self.tasks.iter().any(|(_, task)| running(task)) {
            return;
        }
        self.hold.stage = Stage::Committing(key);
        self.join_commit(key);
    }

    /// A task ends: if it is the hold, the disk is held from now on, or the hold is off.
    pub(super) fn note_end_of_hold(&mut self, key: TaskKey, well: bool) {
        if !matches!(self.hold.stage, Stage::Ending(k) | Stage::Committing(k) if k == key) {
            return;
        }
        if well {
            self.hold.stage = Stage::Quiet;
        } else {
            self.end_hold();
        }
    }

    fn end_hold(&mut self) {
        self.hold.stage = Stage::Off;
        for key in std::mem::take(&mut self.hold.waiting) {
            self.wait_again(key);
        }
    }

    /// Whether nothing changes and everything is durable, until [`Self::release`].
    pub fn is_held(&self) -> bool {
        self.hold.stage == Stage::Quiet
    }

    /// Ends a hold: changes go on. A hold that was not answered yet fails, unless its commit runs:
    /// then its answer comes and means nothing. Nothing happens where there is none.
    pub fn release(&mut self) {
        let stage = self.hold.stage;
        self.end_hold();
        if let Stage::Ending(key) = stage {
            self.refuse_hold(key, "the hold was given up: requests did not end in time");
        }
        self.admit_waiting();
    }

    /// Puts a new leaf over a held disk: an empty child of its leaf, which is only read from now
    /// on. What is in flight goes on: it reads the same bytes from the same files.
    ///
    /// # Errors
    /// Why not; the disk is as before then.
    pub fn pivot(&mut self, leaf: Box<dyn Leaf>, file: FileId) -> Result<(), PivotError> {
        if !self.is_held() || self.stopped().is_some() || self.is_read_only() {
            return Err(PivotError::NotHeld);
        }
        // I4: what the old leaf's file does not say yet would be lost to its next reader.
        if self.is_dirty() {
            return Err(PivotError::Dirty);
        }
        if leaf.size() != self.size() {
            return Err(PivotError::OtherSize);
        }
        self.stack.push(leaf, file);
        // What guests have is another leaf: they are told nothing any more.
        self.publisher = None;
        self.outbox.one_layer_more();
        self.parking.one_layer_more();
        for (_, task) in &mut self.tasks {
            if let Some(fault) = &mut task.fault {
                fault.layer += 1;
            }
            for run in &mut task.runs {
                if let MapKind::Data { depth }
                | MapKind::Sparse { depth }
                | MapKind::Zero { depth } = &mut run.kind
                {
                    *depth += 1;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Disk;
    use super::super::effect::{Effect, FileId, IoError, Outcome, Target};
    use super::super::request::{Answer, FaultKind, Reply, Request, RequestId};
    use super::super::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
    use super::PivotError;
    use crate::engine::layer::{
        Blocked, Corrupt, Hollow, Layer, Leaf, Located, MetaPage, PlaceNote, PlaceToken, Placed,
        Wave, WaveNo,
    };
    use crate::engine::units::FileOffset;

    const SIZE: ByteLen = ByteLen::new(8192);

    /// A leaf that has everything (or nothing, until it is written), and needs a page for it.
    struct Plain {
        size: ByteLen,
        holds: bool,
        learnt: bool,
    }

    impl Layer for Plain {
        fn size(&self) -> ByteLen {
            self.size
        }

        fn locate(&mut self, wanted: Extent) -> Located {
            match (self.learnt, self.holds) {
                (false, _) => Located::Ask(MetaPage { at: FileOffset::new(0), len: 512 }),
                (true, true) => Located::Here(FileOffset::new(wanted.at.get()), wanted.len),
                (true, false) => Located::Below(wanted.len),
            }
        }

        fn learn(&mut self, _page: MetaPage, _bytes: &[u8]) -> Result<(), Corrupt> {
            self.learnt = true;
            Ok(())
        }
    }

    impl Leaf for Plain {
        fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked> {
            let token = PlaceToken { block: 0, note: PlaceNote::Nothing };
            let at = FileOffset::new(wanted.at.get());
            Ok(Placed { extent: wanted, at, settled: true, token })
        }

        fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
            self.place(wanted).map(Hollow::Punch)
        }

        fn landed(&mut self, _placed: &Placed) {
            self.holds = true;
        }

        fn failed(&mut self, _placed: &Placed) {}

        fn scrubbed(&mut self, _block: u32) {}

        fn scrub_failed(&mut self, _block: u32) {}

        fn dirty(&self) -> bool {
            false
        }

        fn wave(&mut self, _n: WaveNo) -> Option<Wave> {
            None
        }

        fn settled(&mut self) {}

        fn abandoned(&mut self) {}
    }

    fn plain(holds: bool, learnt: bool) -> Box<Plain> {
        Box::new(Plain { size: SIZE, holds, learnt })
    }

    fn extent() -> Extent {
        Extent::new(DiskOffset::new(0), ByteLen::new(4096))
    }

    fn span() -> Span {
        Span { region: RegionId(0), start: 0, len: 4096 }
    }

    fn write(disk: &mut Disk, id: u64) {
        let request = Request::Write { extent: extent(), from: span(), fua: false };
        disk.submit(RequestId(id), request);
    }

    fn read(disk: &mut Disk, id: u64) {
        disk.submit(RequestId(id), Request::Read { extent: extent(), into: span() });
    }

    /// The one effect there is.
    fn only(disk: &mut Disk) -> Effect {
        let effect = disk.poll_effect().expect("something is to be done");
        assert_eq!(disk.poll_effect(), None);
        effect
    }

    fn answers(disk: &mut Disk) -> Vec<(u64, bool)> {
        let reply = |reply: Reply| (reply.id.0, reply.result.is_ok());
        std::iter::from_fn(|| disk.poll_reply()).map(reply).collect()
    }

    #[test]
    fn a_hold_waits_for_what_runs_and_keeps_what_comes_but_no_reads() {
        let mut disk = Disk::writable(plain(true, true), FileId(0), Vec::new());
        write(&mut disk, 1);
        let running = only(&mut disk);
        disk.submit(RequestId(2), Request::Hold);
        write(&mut disk, 3);
        disk.submit(RequestId(4), Request::Discard { extent: extent(), fua: true });
        read(&mut disk, 5);
        let reading = only(&mut disk);
        disk.complete(reading.id(), Outcome::Done);
        assert_eq!(answers(&mut disk), [(5, true)]);
        assert_eq!(disk.pivot(plain(false, true), FileId(1)), Err(PivotError::NotHeld));
        disk.complete(running.id(), Outcome::Done);
        let sync = only(&mut disk);
        assert!(matches!(sync, Effect::Sync { .. }), "{sync:?}");
        assert!(!disk.is_held());
        disk.complete(sync.id(), Outcome::Done);
        assert_eq!(answers(&mut disk), [(1, true), (2, true)]);
        assert!(disk.is_held());
        disk.submit(RequestId(6), Request::Flush);
        assert_eq!((answers(&mut disk), disk.poll_effect()), (vec![(6, true)], None));
        let other = Box::new(Plain { size: ByteLen::new(512), holds: false, learnt: true });
        assert_eq!(disk.pivot(other, FileId(1)), Err(PivotError::OtherSize));
        assert_eq!(disk.pivot(plain(false, true), FileId(1)), Ok(()));
        assert_eq!((disk.depth(), disk.poll_effect()), (2, None));
        disk.release();
        let late = only(&mut disk);
        assert_eq!(late.file(), FileId(1), "it goes to the new leaf: {late:?}");
        disk.complete(late.id(), Outcome::Done);
        assert_eq!(answers(&mut disk)[0], (3, true));
    }

    #[test]
    fn a_hold_that_is_given_up_fails_and_holds_nothing() {
        let mut disk = Disk::writable(plain(true, true), FileId(0), Vec::new());
        write(&mut disk, 1);
        let running = only(&mut disk);
        disk.submit(RequestId(2), Request::Hold);
        disk.submit(RequestId(3), Request::Hold);
        assert_eq!(answers(&mut disk), [(3, false)], "one at a time");
        write(&mut disk, 4);
        assert_eq!(disk.poll_effect(), None);
        disk.release();
        assert_eq!(answers(&mut disk), [(2, false)]);
        let late = only(&mut disk);
        for effect in [running, late] {
            disk.complete(effect.id(), Outcome::Done);
        }
        assert_eq!(answers(&mut disk), [(1, true), (4, true)]);
        assert_eq!(disk.pivot(plain(false, true), FileId(1)), Err(PivotError::NotHeld));
    }

    #[test]
    fn a_hold_whose_sync_fails_stops_the_disk_and_everyone_hears_of_it() {
        let mut disk = Disk::writable(plain(true, true), FileId(0), Vec::new());
        write(&mut disk, 1);
        let running = only(&mut disk);
        disk.submit(RequestId(2), Request::Hold);
        write(&mut disk, 3);
        disk.complete(running.id(), Outcome::Done);
        let sync = only(&mut disk);
        disk.complete(sync.id(), Outcome::Failed(IoError::EIO));
        let mut told = answers(&mut disk);
        told.sort_unstable();
        assert_eq!(told, [(1, true), (2, false), (3, false)]);
        assert_eq!((disk.in_flight(), disk.is_held()), (0, false));
    }

    #[test]
    fn a_read_that_waits_for_a_page_of_the_old_leaf_gets_it_under_the_new_one() {
        let mut disk = Disk::writable(plain(true, false), FileId(0), Vec::new());
        read(&mut disk, 1);
        let page = only(&mut disk);
        assert!(matches!(page, Effect::Read { into: Target::Owned(_), .. }), "{page:?}");
        disk.submit(RequestId(2), Request::Hold);
        assert_eq!(answers(&mut disk), [(2, true)]);
        assert_eq!(disk.pivot(plain(false, true), FileId(1)), Ok(()));
        read(&mut disk, 3);
        assert_eq!(disk.poll_effect(), None, "it waits for the same page");
        disk.release();
        disk.complete(page.id(), Outcome::Bytes(vec![0; 512]));
        while let Some(effect) = disk.poll_effect() {
            assert_eq!(effect.file(), FileId(0));
            disk.complete(effect.id(), Outcome::Done);
        }
        assert_eq!(answers(&mut disk), [(1, true), (3, true)]);
    }

    #[test]
    fn what_is_only_read_cannot_be_held() {
        let layer = super::super::FrozenLayer { layer: plain(true, true), file: FileId(0) };
        let mut disk = Disk::read_only(vec![layer]).expect("there is a layer");
        disk.submit(RequestId(1), Request::Hold);
        let refused = disk.poll_reply().map(|reply| reply.result);
        let kind = match refused {
            Some(Err(fault)) => fault.kind,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(kind, FaultKind::ReadOnly);
        read(&mut disk, 2);
        let reading = only(&mut disk);
        disk.complete(reading.id(), Outcome::Done);
        assert_eq!(disk.poll_reply().map(|reply| reply.result), Some(Ok(Answer::Done)));
    }
}
