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
                if let Some((extent, moves)) = change_of(&task.request).filter(|_| task.admitted) {
                    publisher.begin(extent, moves);
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
    pub(super) fn note_seen(&mut self, key: TaskKey) {
        let Some(view) = &self.stack.view else { return };
        let task = &mut self.tasks[key];
        task.seen = task.request.extent().and_then(|extent| view.published.look(extent));
    }

    /// Takes a guest's read for the owner whose answer would be a guess. True when it did.
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
    pub(super) fn announce(&mut self, key: TaskKey) {
        if let Some(publisher) = &mut self.publisher
            && let Some((extent, moves)) = change_of(&self.tasks[key].request)
        {
            publisher.begin(extent, moves);
        }
    }

    /// G1: a change is over before anybody hears of it. And what was read is told, for the next.
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
                if let Some((extent, _)) = change_of(&request) {
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
    /// Where the first bytes of an extent live, for a read; `None`: the owner knows.
    pub(super) fn find_to_read(&mut self, wanted: Extent) -> Option<Found> {
        let Some(view) = &self.view else { return Some(self.find(wanted)) };
        let file = view.file;
        Some(match view.published.home(wanted)? {
            (Home::Leaf(at), len) => Found::Here { layer: 0, file, at, len },
            (Home::Below, len) => self.find_frozen(wanted.first(len)),
        })
    }
}

/// The bytes that a request changes, and whether it may take any away from where they lie.
fn change_of(request: &Request) -> Option<(Extent, bool)> {
    match request {
        Request::Write { extent, .. } => Some((*extent, false)),
        Request::Zero { extent, .. } | Request::Discard { extent, .. } => Some((*extent, true)),
        Request::Read { .. }
        | Request::Fetch { .. }
        | Request::Map { .. }
        | Request::Flush
        | Request::Resize { .. }
        | Request::Hold => None,
    }
}
