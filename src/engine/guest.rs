//! Guests: disks of one chain on other threads than the one that owns its leaf. A guest answers
//! reads of what the owner has published (see `published` for why that is sound); everything else
//! it gives back, for the owner to carry out.
//!
//! Refuses to write: a guest has no leaf, so no write effect can name its file (I5). Refuses to
//! answer with a failure: what the owner says counts.

use std::collections::VecDeque;

use super::chain::{Found, FrozenLayer, Stack};
use super::disk::Disk;
use super::effect::FileId;
use super::layer::Located;
use super::published::{Home, Published, Publisher, STRIPES};
use super::request::{Answer, Fault, Reply, Request, RequestId};
use super::sync::Arc;
use super::task::{Task, TaskKey};
use super::units::Extent;

/// The leaf as a guest sees it.
pub(super) struct View {
    pub(super) published: Arc<Published>,
    /// The leaf's file, to be read only.
    pub(super) file: FileId,
}

/// What a guest leaves to the owner.
#[derive(Default)]
pub(super) struct Elsewhere {
    queue: VecDeque<(RequestId, Request)>,
    /// Taken out and not answered yet.
    away: usize,
}

impl Elsewhere {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Requests that are with the owner, or on their way.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.away
    }
}

impl Disk {
    /// A guest of the disk that publishes this: `file` is its leaf's, `parents` the layers below,
    /// nearest first.
    pub fn guest(published: Arc<Published>, file: FileId, parents: Vec<FrozenLayer>) -> Self {
        let size = published.reach();
        Self::with(Stack::of_guest(View { published, file }, parents, size), size)
    }

    /// What guests of this disk need to know; `None` for one that nobody writes, which needs none.
    /// From the first call on it is kept up to date.
    pub fn publish(&mut self) -> Option<Arc<Published>> {
        let unit = self.stack.leaf.as_ref()?.leaf.unit();
        if self.publisher.is_none() {
            let mut publisher = Publisher::new(self.size, unit, STRIPES);
            for (_, task) in &self.tasks {
                if let Some(extent) = task.request.changes().filter(|_| task.admitted) {
                    publisher.begin(extent, moves(&task.request));
                }
            }
            if self.stopped.is_some() || self.resize.is_running() {
                publisher.close();
            }
            self.publisher = Some(publisher);
        }
        self.publisher.as_ref().map(Publisher::published)
    }

    /// Whether this is a guest.
    #[inline]
    pub fn is_guest(&self) -> bool {
        self.stack.view.is_some()
    }

    /// The next request that the owner is to carry out, if any; its spans are the guest's. Owed is
    /// a [`Self::answered`].
    pub fn poll_elsewhere(&mut self) -> Option<(RequestId, Request)> {
        let next = self.elsewhere.queue.pop_front()?;
        self.elsewhere.away += 1;
        Some(next)
    }

    /// Takes what came of a request that was carried out elsewhere.
    pub fn answered(&mut self, id: RequestId, result: Result<Answer, Fault>) {
        self.elsewhere.away -= 1;
        self.replies.push_back(Reply { id, result });
    }

    /// Takes a request for the owner if this is a guest and cannot answer it. What it can try, it
    /// must look at before it begins.
    #[inline(never)]
    pub(super) fn leaves(&mut self, id: RequestId, request: Request) -> bool {
        let Some(view) = &self.stack.view else { return false };
        let may_try = match request {
            Request::Read { extent, .. } | Request::Fetch { extent, .. } => {
                view.published.look(extent).is_some()
            }
            _ => false,
        };
        if !may_try {
            self.elsewhere.queue.push_back((id, request));
        }
        !may_try
    }

    /// Notes what a guest's read must find again when it ends.
    #[inline(never)]
    pub(super) fn note_seen(&mut self, key: TaskKey) {
        let Some(view) = &self.stack.view else { return };
        let task = &mut self.tasks[key];
        task.seen = task.request.extent().and_then(|extent| view.published.look(extent));
    }

    /// Takes a guest's read for the owner whose answer would be a guess. True when it did.
    #[inline(never)]
    pub(super) fn gives_up(&mut self, task: &Task) -> bool {
        let Some(view) = &self.stack.view else { return false };
        let still = |extent| task.seen.is_some_and(|seen| view.published.is_still(extent, seen));
        let sure = task.fault.is_none() && task.request.extent().is_some_and(still);
        if !sure {
            self.elsewhere.queue.push_back((task.id, task.request));
        }
        !sure
    }

    /// G1 and G2: a change is announced before its first effect.
    #[inline(never)]
    pub(super) fn announce(&mut self, key: TaskKey) {
        let request = &self.tasks[key].request;
        if let (Some(publisher), Some(extent)) = (&mut self.publisher, request.changes()) {
            publisher.begin(extent, moves(request));
        }
    }

    /// G1: a change is over before anybody hears of it. And what was read is told, for the next.
    #[inline(never)]
    pub(super) fn note_end(&mut self, task: &Task) {
        let Some(publisher) = &mut self.publisher else { return };
        if !task.admitted {
            return;
        }
        match task.request {
            Request::Read { extent, .. } | Request::Fetch { extent, .. } => self.tell(extent),
            Request::Resize { .. } if self.stopped.is_none() => {
                publisher.resized(self.size);
                publisher.open();
            }
            request => {
                if let Some(extent) = request.changes() {
                    publisher.end(extent);
                }
            }
        }
    }

    /// Tells where the units lie that were just read.
    fn tell(&mut self, extent: Extent) {
        let (Some(publisher), Some(seat)) = (&mut self.publisher, &mut self.stack.leaf) else {
            return;
        };
        let mut rest = extent;
        while let Some(unit) = publisher.untold(rest) {
            let home = match seat.leaf.locate(unit) {
                Located::Here(at, len) if len == unit.len => Some(Home::Leaf(at)),
                Located::Below(len) if len == unit.len => Some(Home::Below),
                _ => None,
            };
            if let Some(home) = home {
                publisher.tell(unit, home);
            }
            if unit.end() >= extent.end() {
                return;
            }
            rest = Extent::new(unit.end(), extent.end() - unit.end());
        }
    }

    /// Nothing that was published is to be believed any more.
    pub(super) fn withdraw(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.close();
        }
    }
}

impl Stack {
    /// Where the first bytes of an extent live, for a guest's read; `None`: the owner knows.
    pub(super) fn find_published(&mut self, wanted: Extent) -> Option<Found> {
        let view = self.view.as_ref()?;
        let file = view.file;
        Some(match view.published.home(wanted)? {
            (Home::Leaf(at), len) => Found::Here { layer: 0, file, at, len },
            (Home::Below, len) => self.find_frozen(wanted.first(len)),
        })
    }
}

/// Whether a change may take bytes away from where they lie.
const fn moves(change: &Request) -> bool {
    !matches!(change, Request::Write { .. })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::published::{Home, Published, Publisher, STRIPES};
    use super::super::units::{ByteLen, DiskOffset, Extent, FileOffset};

    const UNIT: u64 = 2 << 20;
    const STRIPE_BYTES: u64 = 64 << 10;

    fn extent(at: u64, len: u64) -> Extent {
        Extent::new(DiskOffset::new(at), ByteLen::new(len))
    }

    fn publisher(size: u64) -> (Publisher, std::sync::Arc<Published>) {
        let publisher = Publisher::new(ByteLen::new(size), ByteLen::new(UNIT), 64);
        let published = publisher.published();
        (publisher, published)
    }

    /// Tells every unit that can be told.
    fn tell_all(publisher: &mut Publisher, size: u64, home: impl Fn(Extent) -> Home) {
        for at in (0..size).step_by(UNIT as usize) {
            if let Some(unit) = publisher.untold(extent(at, 1)) {
                publisher.tell(unit, home(unit));
            }
        }
    }

    fn in_leaf(unit: Extent) -> Home {
        Home::Leaf(FileOffset::new(unit.at.get() + 4096))
    }

    #[test]
    fn nothing_is_told_until_it_is_and_then_up_to_the_end_of_the_unit() {
        let size = 3 * UNIT + 512;
        let (mut publisher, published) = publisher(size);
        assert_eq!(published.home(extent(0, 1)), None);
        tell_all(&mut publisher, size, in_leaf);
        let (home, len) = published.home(extent(UNIT - 512, 4096)).unwrap();
        assert_eq!((home, len.get()), (Home::Leaf(FileOffset::new(UNIT - 512 + 4096)), 512));
        let (home, len) = published.home(extent(3 * UNIT, 512)).unwrap();
        assert_eq!((home, len.get()), (Home::Leaf(FileOffset::new(3 * UNIT + 4096)), 512));
        assert_eq!(published.home(extent(3 * UNIT, 513)), None, "beyond the end");
        assert_eq!(publisher.untold(extent(0, size)), None);
    }

    #[test]
    fn behind_a_last_unit_that_is_cut_there_is_nothing_to_tell() {
        let size = 3 * UNIT + 512;
        let (publisher, _published) = publisher(size);
        assert_eq!(publisher.untold(extent(size, 1)), None);
        assert_eq!(publisher.untold(extent(size + 5 * UNIT, UNIT)), None);
        assert_eq!(publisher.untold(extent(size - 1, UNIT)), Some(extent(3 * UNIT, 512)));
    }

    #[test]
    fn what_is_being_changed_cannot_be_looked_at_and_what_was_changed_is_noticed() {
        let (mut publisher, published) = publisher(4 * UNIT);
        let (mine, other) = (extent(0, 4096), extent(STRIPE_BYTES, 4096));
        let seen = published.look(mine).unwrap();
        publisher.begin(other, false);
        assert!(published.is_still(mine, seen) && published.look(other).is_none());
        publisher.begin(mine, false);
        publisher.begin(mine, false);
        assert!(!published.is_still(mine, seen) && published.look(mine).is_none());
        publisher.end(mine);
        assert!(published.look(mine).is_none(), "one is still in flight");
        publisher.end(mine);
        assert!(!published.is_still(mine, seen) && published.look(mine).is_some());
        // What reaches over several ranges is held up by any of them.
        assert!(published.look(extent(0, 2 * STRIPE_BYTES)).is_none());
        publisher.end(other);
        assert!(published.look(extent(0, 2 * STRIPE_BYTES)).is_some());
    }

    #[test]
    fn a_change_makes_unknown_what_it_may_move_and_leaves_the_rest() {
        let size = 4 * UNIT;
        let (mut publisher, published) = publisher(size);
        tell_all(&mut publisher, size, |unit| match unit.at.get() / UNIT {
            0 | 1 => in_leaf(unit),
            _ => Home::Below,
        });
        let told = |unit: u64| published.home(extent(unit * UNIT, 1)).is_some();
        publisher.begin(extent(512, 512), false);
        publisher.begin(extent(2 * UNIT, 512), false);
        publisher.begin(extent(UNIT, 512), true);
        assert_eq!([0, 1, 2, 3].map(told), [true, false, false, true]);
        assert_eq!(publisher.untold(extent(0, size)), None, "all of them are being changed");
        publisher.end(extent(UNIT, 512));
        assert_eq!(publisher.untold(extent(0, size)), Some(extent(UNIT, UNIT)));
    }

    #[test]
    fn a_closed_gate_lets_nobody_in_and_forgets_everything() {
        let (mut publisher, published) = publisher(UNIT);
        tell_all(&mut publisher, UNIT, in_leaf);
        let seen = published.look(extent(0, 1)).unwrap();
        publisher.close();
        publisher.close();
        assert!(published.look(extent(0, 1)).is_none() && !published.is_still(extent(0, 1), seen));
        assert_eq!(publisher.untold(extent(0, 1)), None);
        publisher.resized(ByteLen::new(2 * UNIT));
        publisher.open();
        assert!(published.look(extent(0, 1)).is_some() && !published.is_still(extent(0, 1), seen));
        assert_eq!(published.home(extent(0, 1)), None);
        assert_eq!((published.size().get(), published.reach().get()), (2 * UNIT, UNIT));
        tell_all(&mut publisher, UNIT, in_leaf);
        assert_eq!(published.home(extent(UNIT, 1)), None, "what was added is not told of");
    }

    #[test]
    fn a_change_of_everything_counts_each_stripe_once() {
        let size = 1 << 40;
        let (mut publisher, published) = publisher(size);
        publisher.begin(extent(0, size), true);
        publisher.end(extent(0, size));
        assert!(published.look(extent(0, size)).is_some());
        publisher.begin(extent(size - 1, 1), false);
        assert!(published.look(extent(0, size)).is_none());
    }

    #[test]
    fn a_huge_disk_is_told_of_in_larger_units() {
        let unit = |size: u64| {
            let publisher = Publisher::new(ByteLen::new(size), ByteLen::new(UNIT), STRIPES);
            publisher.untold(extent(0, 1)).unwrap().len.get()
        };
        assert_eq!([1 << 30, 2 << 40, 3 << 40, 1 << 62].map(unit), [UNIT, UNIT, 2 * UNIT, 1 << 42]);
    }
}
