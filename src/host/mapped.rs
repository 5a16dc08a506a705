//! Reads without calls: what the page cache is known to hold is copied from mappings of the file,
//! which costs a third of what asking the kernel for it does.
//!
//! It is known by asking for whole regions: one that is read often is looked at, and trusted for
//! half a second. Windows that were not used for a while give way to others.
//!
//! Refuses to wait for a device, as far as it can: a page that was dropped since its region was
//! looked at is read by the fault. Refuses what is being changed, too: a copy beside the write may
//! show a sector half written.

use std::sync::{Arc, Mutex, PoisonError};

use nix::time::{ClockId, clock_gettime};
use rustix::process::{Resource, getrlimit};

use super::files::{FileTable, OpenFile};
use super::task::{Call, Task};
use super::window::{self, Window};
use crate::engine::effect::{FileId, Outcome};

/// What is looked at, and trusted, at once.
const REGION_BYTES: u64 = 1 << REGION_BITS;
const REGION_BITS: u32 = 20;
/// Regions that are remembered: a power of two.
const REGIONS: usize = 1 << 13;
/// For how long a look is believed, in milliseconds; and for how long a "no" is.
const TRUST_MS: u64 = 500;
/// So many pages read within that time make it worth to look: each saves some 1 us, and a look
/// takes 3 to 60 us, the more the less of the region is in the tables of the processor yet.
const PAGES_MIN: u32 = 32;
const PAGE_BYTES: u64 = 4096;

/// What is mapped at once. The tables of the processor for it take 128 KiB at most.
const WINDOW_BYTES: u64 = 64 << 20;
/// Windows at most: as much as regions are remembered.
const WINDOWS_MAX: usize = 128;
/// After so many windows that the system did not give, none is asked for any more.
const FAILURES_MAX: u32 = 16;
/// A window that was not looked through for so long gives way, one at a time: it takes some 5 ms.
const IDLE_MS: u64 = 2000;
const PAUSE_MS: u64 = 200;

/// No window.
const NONE: u32 = u32::MAX;

/// The windows of a host and what is known of what lies behind them.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// By a hash of their names; empty until the first read.
    regions: Vec<Region>,
    windows: Vec<Held>,
    /// Windows of files that went, until [`Self::take_leftovers`].
    leftovers: Leftovers,
    /// When one last gave way.
    replaced: u64,
    /// How often the system did not map.
    failures: u32,
}

/// Windows nobody looks through any more. To drop them takes some 5 ms for each that was all used,
/// and until then they keep their files as they are: open, with what locks they hold.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Vec<Window>);

impl Leftovers {
    /// Drops them, in a thread of their own if that takes long, and then does what waits for it.
    pub(crate) fn drop_apart(self, then: impl FnOnce() + Send + 'static) {
        if self.0.len() < 2 {
            drop(self);
            return then();
        }
        let all = Arc::new(Mutex::new(Some((self, then))));
        let theirs = Arc::clone(&all);
        let name = "orlop-unmap".to_owned();
        if std::thread::Builder::new().name(name).spawn(move || drop_all(&theirs)).is_err() {
            drop_all(&all);
        }
    }
}

fn drop_all(all: &Mutex<Option<(Leftovers, impl FnOnce())>>) {
    let taken = all.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((leftovers, then)) = taken {
        drop(leftovers);
        then();
    }
}

/// What is known of a region.
#[derive(Clone, Copy, Debug)]
struct Region {
    name: u64,
    /// When it was looked at, or counting began.
    since: u64,
    /// The window through which it can be read at present.
    window: u32,
    /// Pages read since then.
    pages: u32,
    /// Bytes of it that were in the file, from its start.
    len: u32,
    /// It was looked at and was not there.
    absent: bool,
}

const UNKNOWN: Region =
    Region { name: u64::MAX, since: 0, window: NONE, pages: 0, len: 0, absent: false };

/// What is asked of a region.
#[derive(Clone, Copy)]
struct Asked {
    file: FileId,
    /// Where it begins and ends in the file.
    at: u64,
    end: u64,
    now: u64,
}

/// A window and whose it is.
#[derive(Debug)]
struct Held {
    window: Window,
    file: FileId,
    at: u64,
    used: u64,
}

impl Mapped {
    /// Carries out the current call of a task, if it is a read that can be served from memory.
    pub(super) fn serve(&mut self, task: &mut Task, files: &FileTable) -> Option<Outcome> {
        let Call::Read { at } = task.call() else { return None };
        if self.failures >= FAILURES_MAX || !task.file().maps() {
            return None;
        }
        let (file, at) = (task.file_id(), at.get());
        let len = task.read_into().len();
        if len == 0 || files.is_changing(file, at, len as u64) {
            return None;
        }
        let open = task.shared_file();
        let copied = self.read(&open, file, at, task.read_into());
        if copied { task.result(Ok(len)) } else { None }
    }

    /// Forgets what is no more as it was looked at, once a task is over.
    pub(super) fn after(&mut self, task: &Task) {
        if let Some((at, len)) = task.erases() {
            // A page of a hole would be made by a copy from it.
            self.cool(task.file_id(), at, len);
        }
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, file: FileId) {
        let gone = self.windows.extract_if(.., |held| held.file == file);
        self.leftovers.0.extend(gone.map(|held| held.window));
        if !self.leftovers.0.is_empty() {
            // Others have other numbers now.
            self.regions.fill(UNKNOWN);
        }
    }

    /// What files that were forgotten have left.
    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        std::mem::take(&mut self.leftovers)
    }

    fn read(&mut self, open: &OpenFile, file: FileId, at: u64, into: &mut [u8]) -> bool {
        let now = milliseconds();
        let end = at + into.len() as u64;
        let (first, last) = (at >> REGION_BITS, (end - 1) >> REGION_BITS);
        let asked = Asked { file, at, end, now };
        if !(first..=last).all(|region| self.is_warm(open, region, asked)) {
            return false;
        }
        let mut rest = into;
        let mut from = at;
        while !rest.is_empty() {
            let end = (from / REGION_BYTES + 1) * REGION_BYTES;
            let part = usize::try_from(end - from).map_or(rest.len(), |part| part.min(rest.len()));
            let (now_into, later) = std::mem::take(&mut rest).split_at_mut(part);
            let window = self.regions[place_of(name_of(file, from >> REGION_BITS))].window;
            let copied = self
                .windows
                .get(window as usize)
                .is_some_and(|held| held.file == file && held.window.copy(from, now_into));
            if !copied {
                self.cool(file, from, 1);
                return false;
            }
            (rest, from) = (later, end);
        }
        true
    }

    /// Whether a region can be read through its window now.
    fn is_warm(&mut self, open: &OpenFile, number: u64, asked: Asked) -> bool {
        let Asked { file, now, .. } = asked;
        if self.regions.is_empty() {
            self.regions.resize(REGIONS, UNKNOWN);
        }
        let name = name_of(file, number);
        let region = &mut self.regions[place_of(name)];
        if region.name != name {
            *region = Region { name, since: now, ..UNKNOWN };
        }
        if now.saturating_sub(region.since) >= TRUST_MS {
            // What was read often in that time will be.
            let often = region.pages >= PAGES_MIN && !region.absent;
            let pages = if often { PAGES_MIN } else { 0 };
            *region = Region { name, since: now, pages, ..UNKNOWN };
        }
        let start = number << REGION_BITS;
        let part = asked.end.min(start + REGION_BYTES) - asked.at.max(start);
        region.pages = region.pages.saturating_add(part.div_ceil(PAGE_BYTES) as u32);
        // Behind the end of a file a mapping shows zeroes up to the end of the page.
        let wanted = asked.end - start;
        let reaches = |len: u32| wanted.min(REGION_BYTES) <= u64::from(len);
        if region.window != NONE {
            return reaches(region.len);
        }
        if region.absent || region.pages < PAGES_MIN {
            return false;
        }
        let seen = self.look(open, file, number, now);
        let region = &mut self.regions[place_of(name)];
        let Some((window, len)) = seen else {
            region.absent = true;
            return false;
        };
        *region = Region { since: now, window, pages: 0, len, ..*region };
        reaches(len)
    }

    /// Looks whether a region is in memory; tells through which window, and how long it is.
    #[cold]
    fn look(&mut self, open: &OpenFile, file: FileId, number: u64, now: u64) -> Option<(u32, u32)> {
        let at = number << REGION_BITS;
        let index = self.window_over(open, file, at - at % WINDOW_BYTES, now)?;
        let held = &mut self.windows[index];
        let len = open.size().ok()?.get().saturating_sub(at).min(REGION_BYTES);
        if len == 0 || !held.window.is_resident(at, len) {
            return None;
        }
        held.used = now;
        Some((index as u32, len as u32))
    }

    /// The window at a place, which is opened if it is not there.
    fn window_over(&mut self, open: &OpenFile, file: FileId, at: u64, now: u64) -> Option<usize> {
        let held = |held: &Held| held.file == file && held.at == at;
        if let Some(index) = self.windows.iter().position(held) {
            return Some(index);
        }
        let oldest = if self.windows.len() < WINDOWS_MAX {
            None
        } else {
            let ages = self.windows.iter().enumerate();
            let (index, held) = ages.min_by_key(|(_, held)| held.used)?;
            let used = now.saturating_sub(held.used) < IDLE_MS;
            if used || now.saturating_sub(self.replaced) < PAUSE_MS {
                return None;
            }
            self.replaced = now;
            Some(index)
        };
        if address_space_is_limited() {
            self.failures = FAILURES_MAX;
            return None;
        }
        if !window::tells_the_truth(open.fd()) {
            open.maps_no_more();
            return None;
        }
        let window = match Window::over(open.fd(), at, WINDOW_BYTES as usize) {
            Ok(window) => window,
            Err(error) => {
                tracing::debug!(%error, "a part of an image is not mapped");
                self.failures += 1;
                return None;
            }
        };
        let new = Held { window, file, at, used: now };
        let Some(index) = oldest else {
            self.windows.push(new);
            return Some(self.windows.len() - 1);
        };
        let old = std::mem::replace(&mut self.windows[index], new);
        for region in &mut self.regions {
            if region.window == index as u32 {
                *region = UNKNOWN;
            }
        }
        drop(old);
        Some(index)
    }

    /// Forgets what is known of the regions of a range.
    fn cool(&mut self, file: FileId, at: u64, len: u64) {
        if self.windows.iter().all(|held| held.file != file) {
            return;
        }
        let (first, last) = (at >> REGION_BITS, at.saturating_add(len) >> REGION_BITS);
        if last - first < REGIONS as u64 / 8 {
            for name in (first..=last).map(|number| name_of(file, number)) {
                let region = &mut self.regions[place_of(name)];
                if region.name == name {
                    *region = UNKNOWN;
                }
            }
            return;
        }
        for region in &mut self.regions {
            let of_file = region.name & !NUMBERS == name_of(file, 0);
            if of_file && (first..=last).contains(&(region.name & NUMBERS)) {
                *region = UNKNOWN;
            }
        }
    }
}

/// Whether windows would take from what this process may map at all.
fn address_space_is_limited() -> bool {
    getrlimit(Resource::As).current.is_some()
}

/// The part of a region's name that is its number within the file.
const NUMBERS: u64 = (1 << 48) - 1;

fn name_of(file: FileId, number: u64) -> u64 {
    u64::from(file.0) << 48 | (number & NUMBERS)
}

/// Where a region's entry is: neighbours lie apart from each other and from those of other files.
fn place_of(name: u64) -> usize {
    (name.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - REGIONS.trailing_zeros())) as usize
}

/// A coarse clock. It is the C library's, which reads it from memory; `rustix` calls the kernel.
fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(0, |now| {
        now.tv_sec().unsigned_abs() * 1000 + now.tv_nsec().unsigned_abs() / 1_000_000
    })
}
