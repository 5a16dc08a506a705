//! Copies of a disk's bytes outside its shard: pages that a mount has mapped. Before a client of
//! another kind changes bytes, changed copies of them come home; before it hears that they are
//! changed, old copies are gone. So nobody sees old bytes after a write was answered. A copy that
//! was made and changed in between brings its old neighbours home as well: then the change is
//! made once more.
//!
//! Who watches is one client, whatever files it shows: two files of a mount over the same bytes (a
//! disk and its partition) are not told of each other, as Linux does not tell a disk's pages of its
//! partitions'.
//!
//! Refuses to wait on the shard's thread: giving up copies may need the disk itself, so a thread of
//! its own asks for it.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::request::{Answer, Fault, Request, RequestId};
use crate::engine::units::Extent;
use crate::host::Waker;

/// Somebody who keeps copies.
pub trait Watch: Send + Sync {
    /// Whether there may be copies now. Asked on the shard's thread, for each change.
    fn has_copies(&self) -> bool;

    /// Writes changed copies of these bytes to the disk, and gives all copies of them up. May wait
    /// for the disk.
    fn give_up(&self, extent: Extent);
}

/// Who watches a disk: the key of a client, whose own changes are known to it.
pub(super) type Watches = Vec<(u32, Arc<dyn Watch>)>;

/// How far a change is.
enum Stage {
    /// Changed copies come home; then it goes to the disk.
    Before,
    /// The disk works on it.
    AtDisk,
    /// Old copies are given up; then its client hears the result.
    After(Result<Answer, Fault>),
}

/// A change that copies must not miss.
struct Change {
    /// The place of its disk.
    disk: usize,
    extent: Extent,
    request: Request,
    stage: Stage,
    /// A copy came home after this was made, and may have brought old bytes.
    crossed: bool,
    /// How often it was made again.
    again: u32,
}

/// The most that a page reaches beyond the bytes that were changed.
const PAGE_BYTES: u64 = 4096;
/// A change is made again so often; a program that goes on changing the page by its mapping all the
/// while has no order with it.
const AGAIN_MAX: u32 = 16;

impl Change {
    /// Whether a copy of these bytes shares a page with what is changed.
    fn meets(&self, disk: usize, copy: Extent) -> bool {
        let (at, len) = (self.extent.at.get(), self.extent.len.get());
        let end = |at: u64, len: u64| at.saturating_add(len);
        self.disk == disk
            && copy.at.get() < end(at, len).saturating_add(PAGE_BYTES)
            && at < end(copy.at.get(), copy.len.get()).saturating_add(PAGE_BYTES)
    }
}

/// What a change does next.
pub(super) enum Next {
    /// It goes to the disk at this place.
    Submit(usize, Request),
    /// Its client hears the result.
    Tell(Result<Answer, Fault>),
}

struct Job {
    id: RequestId,
    who: Vec<Arc<dyn Watch>>,
    extent: Extent,
}

/// The changes of all disks that are watched.
pub(super) struct Changes {
    under_way: HashMap<RequestId, Change>,
    jobs: Option<Sender<Job>>,
    over: Arc<Mutex<Vec<RequestId>>>,
    waker: Waker,
}

fn others(watches: &Watches, key: u32) -> Vec<Arc<dyn Watch>> {
    let others = watches.iter().filter(|(watcher, _)| *watcher != key);
    others.filter(|(_, watch)| watch.has_copies()).map(|(_, watch)| Arc::clone(watch)).collect()
}

impl Changes {
    pub(super) fn new(waker: Waker) -> Self {
        Self { under_way: HashMap::new(), jobs: None, over: Arc::default(), waker }
    }

    /// Looks at a request on its way to a disk that is watched. It comes back at once, if it need
    /// not wait for copies.
    pub(super) fn admit(
        &mut self,
        disk: usize,
        watches: &Watches,
        id: RequestId,
        request: Request,
    ) -> Option<Request> {
        let key = (id.0 >> 32) as u32;
        let Some(extent) = request.changes() else { return Some(request) };
        if watches.iter().any(|(watcher, _)| *watcher == key) {
            let changes = self.under_way.values_mut();
            let made = changes.filter(|change| !matches!(change.stage, Stage::Before));
            made.filter(|change| change.meets(disk, extent)).for_each(|c| c.crossed = true);
        }
        if watches.iter().all(|(watcher, _)| *watcher == key) {
            return Some(request);
        }
        // Remembered even while there are no copies: some may be made before it is over.
        let who = others(watches, key);
        let stage = if who.is_empty() { Stage::AtDisk } else { Stage::Before };
        let change = Change { disk, extent, request, stage, crossed: false, again: 0 };
        self.under_way.insert(id, change);
        if who.is_empty() {
            return Some(request);
        }
        self.ask(Job { id, who, extent });
        None
    }

    /// Whether no change is under way that copies must not miss.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Looks at an answer of a disk. It comes back at once, if it need not wait for copies.
    pub(super) fn pass(
        &mut self,
        watches: &Watches,
        id: RequestId,
        result: Result<Answer, Fault>,
    ) -> Option<Result<Answer, Fault>> {
        let Some(change) = self.under_way.get_mut(&id) else { return Some(result) };
        let who = others(watches, (id.0 >> 32) as u32);
        if who.is_empty() {
            self.under_way.remove(&id);
            return Some(result);
        }
        change.stage = Stage::After(result);
        let extent = change.extent;
        self.ask(Job { id, who, extent });
        None
    }

    fn ask(&mut self, job: Job) {
        if self.jobs.is_none() {
            self.jobs = self.hire().inspect_err(|error| self.give_in(error)).ok();
        }
        let id = job.id;
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            // Nobody can give copies up: the change goes on, as it would without a mount.
            self.finish(id);
        }
    }

    fn give_in(&self, error: &io::Error) {
        tracing::error!(%error, "no thread for mapped pages: they may show old bytes");
    }

    /// Starts the thread that asks for copies. It ends with the shard.
    fn hire(&self) -> io::Result<Sender<Job>> {
        let (sender, jobs) = channel::<Job>();
        let (over, waker) = (Arc::clone(&self.over), self.waker.clone());
        let work = move || {
            for Job { id, who, extent } in jobs {
                let asked = || who.iter().for_each(|watch| watch.give_up(extent));
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(asked)).is_err() {
                    // The change must not wait for ever, nor go on as if copies were given up.
                    tracing::error!("a defect of orlop in giving up mapped pages; it ends at once");
                    std::process::abort();
                }
                over.lock().unwrap_or_else(PoisonError::into_inner).push(id);
                waker.wake();
            }
        };
        std::thread::Builder::new().name("orlop-watch".to_owned()).spawn(work)?;
        Ok(sender)
    }

    fn finish(&self, id: RequestId) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.waker.wake();
    }

    /// The changes whose copies were given up since this was asked last, and what they do next.
    pub(super) fn over(&mut self) -> Vec<(RequestId, Next)> {
        let over = std::mem::take(&mut *self.over.lock().unwrap_or_else(PoisonError::into_inner));
        over.into_iter().filter_map(|id| Some((id, self.next(id)?))).collect()
    }

    fn next(&mut self, id: RequestId) -> Option<Next> {
        let change = self.under_way.get_mut(&id)?;
        match std::mem::replace(&mut change.stage, Stage::AtDisk) {
            Stage::Before => Some(Next::Submit(change.disk, change.request)),
            Stage::After(Ok(_)) if change.crossed && change.again < AGAIN_MAX => {
                change.crossed = false;
                change.again += 1;
                Some(Next::Submit(change.disk, change.request))
            }
            Stage::After(result) => {
                self.under_way.remove(&id);
                Some(Next::Tell(result))
            }
            Stage::AtDisk => None,
        }
    }
}
