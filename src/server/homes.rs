//! Where a disk is served: on one shard, or on several that each have a disk of their own over
//! duplicates of the same descriptors. Of what can be written and keeps it, the first home owns it,
//! and the others are its guests: they read what the owner says is safe to read, and hand it
//! everything else.
//!
//! Refuses two owners: they would destroy each other's bytes. Refuses nobody for want of a home:
//! who cannot have one more goes to those that are there.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::image::{GuestChain, OpenedChain};
use crate::shard::{DiskTag, ExportKey, Mailbox, Refused};

/// Files that further homes of disks may open on each shard, together, so that there is room for
/// disks that have no home yet; and of all a process may have open, at most this part.
const GUEST_FILES_MAX: usize = 256;
/// Files kept open in the process to make further homes of; the same part at most.
const SPARE_FILES_MAX: usize = 1024;
const FILES_PART: u64 = 8;
/// How long a connection waits for a new home before it goes to an old one. A shard answers within
/// one turn of its loop, so only one that does not turn lets anybody wait for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// The shards of a process, and what they have.
pub(super) struct Shards {
    each: Vec<Shard>,
    /// Files of spares.
    spare_files: Arc<AtomicUsize>,
}

struct Shard {
    mailbox: Mailbox,
    /// Disks on it.
    disks: Arc<AtomicUsize>,
    /// Files of further homes on it.
    guest_files: Arc<AtomicUsize>,
}

/// So much of something counted, given back when it is dropped.
struct Share {
    of: Arc<AtomicUsize>,
    amount: usize,
}

impl Share {
    /// Takes a share, unless more than `most` would be taken then.
    fn take(of: &Arc<AtomicUsize>, amount: usize, most: usize) -> Option<Self> {
        let fits = |taken: usize| taken.checked_add(amount).filter(|sum| *sum <= most);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self { of: Arc::clone(of), amount })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// A disk on one shard.
pub(super) struct Home {
    pub(super) tag: DiskTag,
    pub(super) mailbox: Mailbox,
    shard: usize,
    connections: AtomicUsize,
    /// What it takes there.
    _shares: Vec<Share>,
}

/// A connection's place at a home of its disk, for as long as this lives.
pub(super) struct Stay(Arc<Home>);

impl Stay {
    /// Which shard it is on, from 0.
    pub(super) fn shard(&self) -> usize {
        self.0.shard
    }

    /// The disk's name there.
    pub(super) fn tag(&self) -> DiskTag {
        self.0.tag
    }

    /// The way there.
    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.0.mailbox
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What further homes of a disk are made of.
pub(super) struct Spare {
    further: Further,
    shards: Arc<Shards>,
    _share: Share,
}

/// What one further home is made of.
enum Further {
    /// Nobody writes it, or it keeps nothing: a disk like the first.
    Equal(OpenedChain),
    Guest(GuestChain),
}

impl Further {
    fn of(chain: &OpenedChain) -> io::Result<Option<Self>> {
        Ok(match chain.twin()? {
            Some(twin) => Some(Self::Equal(twin)),
            None => chain.guest()?.map(Self::Guest),
        })
    }

    fn twin(&self) -> io::Result<Option<Self>> {
        match self {
            Self::Equal(chain) => Self::of(chain),
            Self::Guest(chain) => chain.twin().map(Self::Guest).map(Some),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Equal(chain) => chain.layers.len(),
            Self::Guest(chain) => chain.depth(),
        }
    }
}

/// `most`, or a part of what the process may have open if that is less.
fn within_limit(most: usize) -> usize {
    part_of(rustix::process::getrlimit(rustix::process::Resource::Nofile).current, most)
}

/// The same under a limit; `None` is none.
fn part_of(limit: Option<u64>, most: usize) -> usize {
    let part = limit.map(|limit| limit / FILES_PART);
    part.and_then(|part| usize::try_from(part).ok()).map_or(most, |part| part.min(most))
}

impl Shards {
    /// Shards without disks; at least one.
    pub(super) fn new(mailboxes: Vec<Mailbox>) -> Self {
        let shard = |mailbox| Shard { mailbox, disks: Arc::default(), guest_files: Arc::default() };
        Self { each: mailboxes.into_iter().map(shard).collect(), spare_files: Arc::default() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.each.len()
    }

    /// What further homes of a chain could be made of; `None` where there are to be none.
    pub(super) fn spare(self: &Arc<Self>, chain: &OpenedChain) -> Option<Spare> {
        if self.count() < 2 {
            return None;
        }
        let most = within_limit(SPARE_FILES_MAX);
        let share = Share::take(&self.spare_files, chain.layers.len(), most)?;
        match Further::of(chain) {
            Ok(further) => {
                Some(Spare { further: further?, shards: Arc::clone(self), _share: share })
            }
            Err(error) => {
                tracing::debug!(%error, "a disk stays on one thread");
                None
            }
        }
    }

    /// Gives a chain its first home: on the shard with the fewest disks.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(super) async fn settle(&self, chain: OpenedChain) -> io::Result<Home> {
        let shard = self.quietest(|_| true).expect("there is at least one shard");
        let to = self.each[shard].mailbox.clone();
        self.home(shard, None, to.attach(Box::new(move |add_file| chain.attach(add_file)))).await
    }

    /// The shard with the fewest disks, of those that may be.
    fn quietest(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let disks = |shard: &usize| self.each[*shard].disks.load(Ordering::Relaxed);
        (0..self.count()).filter(|shard| may(*shard)).min_by_key(disks)
    }

    /// One more home of a disk of which the first is there.
    async fn settle_further(
        &self,
        shard: usize,
        first: &Home,
        further: Further,
        files: Share,
    ) -> io::Result<Home> {
        let to = self.each[shard].mailbox.clone();
        let files = Some(files);
        match further {
            Further::Equal(chain) => {
                let made = to.attach(Box::new(move |add_file| chain.attach(add_file)));
                self.home(shard, files, made).await
            }
            Further::Guest(chain) => {
                let made = first.mailbox.share(
                    first.tag,
                    &to,
                    Box::new(move |published, add_file| chain.attach(published, add_file)),
                );
                self.home(shard, files, made).await
            }
        }
    }

    /// A home on a shard, once it is made.
    async fn home(
        &self,
        shard: usize,
        files: Option<Share>,
        made: impl Future<Output = io::Result<DiskTag>>,
    ) -> io::Result<Home> {
        let Shard { mailbox, disks, .. } = &self.each[shard];
        // Before anything is waited for, so that two at once do not choose the same shard.
        let disk = Share::take(disks, 1, usize::MAX);
        let tag = made.await?;
        Ok(Home {
            tag,
            mailbox: mailbox.clone(),
            shard,
            connections: AtomicUsize::new(0),
            _shares: disk.into_iter().chain(files).collect(),
        })
    }
}

/// The homes of one disk.
pub(super) struct Homes {
    /// Never empty, and only growing until the disk goes.
    there: Mutex<Vec<Arc<Home>>>,
    /// Locked while a home is made of it, and while all are left.
    spare: tokio::sync::Mutex<Option<Spare>>,
    /// Most homes there may be.
    most: AtomicUsize,
}

impl Homes {
    /// A disk with one home, and perhaps what others could be made of.
    pub(super) fn new(first: Home, spare: Option<Spare>) -> Self {
        let most = spare.as_ref().map_or(1, |spare| match spare.further {
            Further::Equal(_) => spare.shards.count(),
            // See `may_have_guest`.
            Further::Guest(_) => spare.shards.count() - first.shard,
        });
        Self {
            there: Mutex::new(vec![Arc::new(first)]),
            spare: tokio::sync::Mutex::new(spare.filter(|_| most > 1)),
            most: AtomicUsize::new(most),
        }
    }

    /// A place for one more connection: see [`super::OwnedDisk::stay`].
    pub(super) async fn stay(homes: &Arc<Self>) -> Stay {
        if homes.want_another() {
            let homes = Arc::clone(homes);
            // A task of its own: who waits for it may be ended at any time, and a disk that was
            // made for nobody would keep its files open.
            let made = tokio::spawn(async move { homes.make_another().await });
            // Late or not, there is a home.
            let _ = tokio::time::timeout(PATIENCE, made).await;
        }
        homes.take_place()
    }

    /// Lets the clients of an export go, everywhere.
    pub(super) async fn drain(&self, export: ExportKey) -> Result<(), Refused> {
        let ended = self.at_each(|home| async move { home.mailbox.drain(export).await }).await;
        ended.into_iter().collect()
    }

    /// Leaves all homes, for good.
    ///
    /// # Errors
    /// What kept the disk from becoming durable.
    pub(super) async fn leave(&self) -> Result<(), String> {
        // Whoever is making another home comes first, so that it is left as well.
        *self.spare.lock().await = None;
        self.most.store(0, Ordering::Relaxed);
        let left = self.at_each(|home| async move { home.mailbox.detach(home.tag).await }).await;
        let failed: Vec<_> = left.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Does something at all homes at once, since each may take its time.
    async fn at_each<T, F>(&self, act: impl Fn(Arc<Home>) -> F) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let mut acts: JoinSet<T> = self.lock().iter().cloned().map(act).collect();
        let mut done = Vec::new();
        while let Some(ended) = acts.join_next().await {
            done.push(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())));
        }
        done
    }

    /// Whether somebody is at every home there is, and there could be more.
    fn want_another(&self) -> bool {
        let there = self.lock();
        let taken = |home: &Arc<Home>| home.connections.load(Ordering::Relaxed) > 0;
        there.len() < self.most.load(Ordering::Relaxed) && there.iter().all(taken)
    }

    async fn make_another(&self) {
        let mut spare = self.spare.lock().await;
        // Another connection may have seen to it meanwhile, or the disk is going.
        if !self.want_another() {
            return;
        }
        let twin = |spare: &Spare| (spare.further.twin(), Arc::clone(&spare.shards));
        let Some((further, shards)) = spare.as_ref().map(twin) else { return };
        let made = match further {
            Ok(Some(further)) => self.add(further, &shards).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        match made {
            Ok(count) if count == self.most.load(Ordering::Relaxed) => *spare = None,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "a disk gets no further thread"),
        }
    }

    /// Makes another home, and tells how many there are.
    async fn add(&self, further: Further, shards: &Shards) -> io::Result<usize> {
        let taken: Vec<usize> = self.lock().iter().map(|home| home.shard).collect();
        let first = self.lock().first().map(Arc::clone).expect("a disk has a home");
        let (most, depth) = (within_limit(GUEST_FILES_MAX), further.depth());
        let files = |shard: usize| Share::take(&shards.each[shard].guest_files, depth, most);
        let allowed =
            |shard| matches!(further, Further::Equal(_)) || may_have_guest(first.shard, shard);
        let may = |shard| allowed(shard) && !taken.contains(&shard) && files(shard).is_some();
        let full = || io::Error::other("there is no room on another thread");
        let shard = shards.quietest(may).ok_or_else(full)?;
        let files = files(shard).ok_or_else(full)?;
        let home = shards.settle_further(shard, &first, further, files).await?;
        let mut there = self.lock();
        there.push(Arc::new(home));
        Ok(there.len())
    }

    /// A place at the home with the fewest connections.
    fn take_place(&self) -> Stay {
        let there = self.lock();
        let connections = |home: &&Arc<Home>| home.connections.load(Ordering::Relaxed);
        let home = there.iter().min_by_key(connections).expect("a disk has a home");
        home.connections.fetch_add(1, Ordering::Relaxed);
        Stay(Arc::clone(home))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Home>>> {
        // It is held to look, to count and to insert, none of which can stop halfway.
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a shard may have a guest of a disk that another owns. What a guest hands over keeps
/// memory on its shard until there is some at the owner's; so shards wait in one direction only,
/// and never in a circle.
const fn may_have_guest(owner: usize, guest: usize) -> bool {
    owner < guest
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::{GUEST_FILES_MAX, SPARE_FILES_MAX, Share, Stay, part_of, within_limit};
    use crate::engine::units::{ByteLen, DiskOffset, Extent};
    use crate::host::Aio;
    use crate::host::memory::ArenaSize;
    use crate::image::{self, OpenOptions};
    use crate::server::{Estate, ExportSpec, OwnedDisk, Prepared};
    use crate::shard::{self, Mailbox};

    const SIZE: u64 = 1 << 20;

    fn shards(count: usize) -> Vec<Mailbox> {
        let size = ArenaSize { registered_bytes: 1 << 20, large_bytes: 1 << 20 };
        (0..count).map(|_| shard::spawn(Aio::Threads, size).expect("a shard").0).collect()
    }

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.raw");
        std::fs::write(&path, [7; SIZE as usize]).unwrap();
        (dir, path)
    }

    fn options(path: &Path, read_only: bool) -> OpenOptions {
        OpenOptions { read_only, ..OpenOptions::new(path) }
    }

    async fn disk(estate: &Estate, path: &Path, read_only: bool) -> Arc<OwnedDisk> {
        let spec = ExportSpec::new("x".to_owned(), options(path, read_only));
        estate.disk(&spec).await.unwrap()
    }

    async fn stays(disk: &OwnedDisk, count: usize) -> Vec<Stay> {
        let mut stays = Vec::new();
        for _ in 0..count {
            stays.push(disk.stay().await);
        }
        stays
    }

    fn shards_of(stays: &[Stay]) -> Vec<usize> {
        let mut shards: Vec<_> = stays.iter().map(Stay::shard).collect();
        shards.sort_unstable();
        shards
    }

    /// Whether the image can be written, so that nobody has a claim on it.
    fn is_free(path: &Path) -> bool {
        image::open(&options(path, false)).is_ok()
    }

    #[tokio::test]
    async fn a_disk_that_nobody_writes_has_a_home_on_each_shard_that_is_needed() {
        let (_dir, path) = image();
        let estate = Estate::new(shards(3), Prepared::default());
        let disk = disk(&estate, &path, true).await;
        let mut there = stays(&disk, 6).await;
        assert_eq!(shards_of(&there), [0, 0, 1, 1, 2, 2]);
        let all = Extent::new(DiskOffset::new(0), ByteLen::new(SIZE));
        for stay in &there {
            let bytes = stay.mailbox().read(stay.tag(), all).await.unwrap();
            assert!(bytes == [7; SIZE as usize], "shard {}", stay.shard());
        }
        // Who leaves makes room for the next.
        let left = there.remove(2).shard();
        assert_eq!(disk.stay().await.shard(), left);
        drop(there);
        assert_eq!(shards_of(&stays(&disk, 3).await), [0, 1, 2]);
        assert!(!is_free(&path));
        estate.release(disk).await.unwrap();
        assert!(is_free(&path));
    }

    #[tokio::test]
    async fn one_connection_at_a_time_needs_one_home() {
        let (_dir, path) = image();
        let estate = Estate::new(shards(2), Prepared::default());
        let disk = disk(&estate, &path, true).await;
        for _ in 0..5 {
            assert_eq!(disk.stay().await.shard(), 0);
        }
        assert_eq!(disk.homes.lock().len(), 1);
        estate.release(disk).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_written_has_guests_on_the_shards_behind_its_owner() {
        let (_dir, path) = image();
        let (_other_dir, other_path) = image();
        let estate = Estate::new(shards(3), Prepared::default());
        let first = disk(&estate, &path, false).await;
        let second = disk(&estate, &other_path, false).await;
        assert_eq!(shards_of(&stays(&first, 6).await), [0, 0, 1, 1, 2, 2]);
        let there = stays(&second, 4).await;
        assert_eq!(shards_of(&there), [1, 1, 2, 2]);
        let all = Extent::new(DiskOffset::new(0), ByteLen::new(SIZE));
        for stay in &there {
            let bytes = stay.mailbox().read(stay.tag(), all).await.unwrap();
            assert!(bytes == [7; SIZE as usize], "shard {}", stay.shard());
        }
        drop(there);
        for (disk, path) in [(first, path), (second, other_path)] {
            assert!(!is_free(&path));
            estate.release(disk).await.unwrap();
            assert!(is_free(&path));
        }
    }

    #[tokio::test]
    async fn what_somebody_may_give_a_new_leaf_stays_on_one_shard() {
        let (_dir, path) = image();
        let estate = Estate::new(shards(2), Prepared::default());
        let chain = image::open(&options(&path, true)).unwrap();
        let own = estate.own(&options(&path, true), chain).await.unwrap();
        let there = shards_of(&stays(&own, 3).await);
        assert!(there.iter().all(|shard| *shard == there[0]), "{there:?}");
        estate.release(own).await.unwrap();
        // What keeps nothing needs no care.
        let null = disk(&estate, Path::new("null:1M"), false).await;
        assert_eq!(shards_of(&stays(&null, 4).await), [0, 0, 1, 1]);
        estate.release(null).await.unwrap();
    }

    #[tokio::test]
    async fn a_shard_that_takes_no_more_disks_keeps_nobody_out() {
        let (_dir, path) = image();
        let shards = shards(2);
        let estate = Estate::new(shards.clone(), Prepared::default());
        let disk = disk(&estate, &path, true).await;
        shards[1].shut_down().await.unwrap();
        assert_eq!(shards_of(&stays(&disk, 3).await), [0, 0, 0]);
        estate.release(disk).await.unwrap();
        assert!(is_free(&path));
    }

    #[test]
    fn connections_that_come_while_a_disk_goes_leave_no_home_behind() {
        let (_dir, path) = image();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(3).enable_all().build().unwrap();
        let estate = Arc::new(Estate::new(shards(3), Prepared::default()));
        for round in 0..100 {
            let disk = runtime.block_on(disk(&estate, &path, true));
            let coming: Vec<_> = (0..6)
                .map(|_| {
                    let disk = Arc::clone(&disk);
                    runtime.spawn(async move { stays(&disk, 2).await.len() })
                })
                .collect();
            // Sooner or later.
            for come in coming.into_iter().take(round % 7) {
                assert_eq!(runtime.block_on(come).unwrap(), 2);
            }
            runtime.block_on(estate.release(disk)).unwrap();
            assert!(is_free(&path), "round {round}: a home was left behind");
        }
    }

    #[test]
    fn a_share_is_given_back_and_never_too_much_is_taken() {
        let all = Arc::new(AtomicUsize::new(0));
        let first = Share::take(&all, 6, 10);
        assert!(first.is_some() && Share::take(&all, 5, 10).is_none());
        let second = Share::take(&all, 4, 10);
        assert!(second.is_some() && Share::take(&all, usize::MAX, 10).is_none());
        drop(first);
        assert!(Share::take(&all, 6, 10).is_some());
    }

    #[test]
    fn further_homes_open_an_eighth_of_what_the_process_may_at_most() {
        for most in [GUEST_FILES_MAX, SPARE_FILES_MAX] {
            assert_eq!(part_of(None, most), most, "without a limit");
            for (limit, part) in [(0, 0), (7, 0), (8, 1), (15, 1), (1024, 128), (2047, 255)] {
                assert_eq!(part_of(Some(limit), most), part, "of {limit}");
            }
            assert_eq!(part_of(Some(8 * most as u64 - 1), most), most - 1);
            for limit in [8 * most as u64, 8 * most as u64 + 8, 1 << 20, u64::MAX] {
                assert_eq!(part_of(Some(limit), most), most, "of {limit}");
            }
        }
        // What this process has.
        assert!(within_limit(usize::MAX) > 0);
        assert_eq!(within_limit(0), 0);
    }
}
