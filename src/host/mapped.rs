//! Reads without calls: what the page cache is known to hold is copied from mappings of the file,
//! which costs a third of what asking the kernel for it does.
//!
//! It is known by looking at parts that are read often, and believed for a while: half a second
//! first, longer while no page is missed. Windows that were not used for a while give way.
//!
//! Refuses to wait for a device, as far as it can: a page that was dropped since it was seen is
//! read by the fault. Refuses what is being changed, too: a copy beside the write may show a sector
//! half written.

use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use rustix::process::{Resource, getrlimit};

use super::files::{FileTable, OpenFile};
use super::regions::{Name, PART_BYTES, REGION_BYTES, Regions, Standing, TRUST_MAX_MS, bytes_of};
use super::task::{Call, Task};
use super::window::{self, Window};
use crate::engine::effect::{FileId, Outcome};

/// What is mapped at once. The tables of the processor for it take 128 KiB at most.
const WINDOW_BYTES: u64 = 64 << 20;
/// Windows at most: as much as regions are remembered.
const WINDOWS_MAX: usize = 256;
/// After so many windows that the system did not give, none is asked for any more.
const FAILURES_MAX: u32 = 16;
/// A window that nobody looked through for so long gives way, one at a time: it takes some 5 ms.
const IDLE_MS: u64 = TRUST_MAX_MS + 2000;
const PAUSE_MS: u64 = 200;
/// A copy that takes so long waits for pages.
const SLOW_MS: u64 = 20;
/// How old the known length of a file may be, in milliseconds. Behind the end of a file a mapping
/// shows zeroes up to the end of the page.
const LENGTH_MS: u64 = 500;

/// The windows of a host and what is known of what lies behind them.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    regions: Regions,
    /// By the numbers of files.
    lengths: Vec<Length>,
    windows: Vec<Held>,
    /// Windows of files that went, until [`Self::take_leftovers`].
    leftovers: Leftovers,
    /// When one last gave way.
    replaced: u64,
    /// Until when no window is asked for, as there was none.
    refused_until: u64,
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

/// How long a file was when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Length {
    bytes: u64,
    asked: Option<u64>,
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
            self.regions.forget(task.file_id(), at, len);
            self.forget_length(task.file_id());
        }
    }

    fn forget_length(&mut self, file: FileId) {
        if let Some(length) = self.lengths.get_mut(usize::from(file.0)) {
            *length = Length::default();
        }
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, file: FileId) {
        let gone = self.windows.extract_if(.., |held| held.file == file);
        self.leftovers.0.extend(gone.map(|held| held.window));
        if !self.leftovers.0.is_empty() {
            // Others have other numbers now.
            self.regions.forget_all();
        }
        self.forget_length(file);
    }

    /// What files that were forgotten have left.
    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        std::mem::take(&mut self.leftovers)
    }

    fn read(&mut self, open: &OpenFile, file: FileId, at: u64, into: &mut [u8]) -> bool {
        let now = milliseconds();
        if self.regions.is_trusting() {
            self.regions.note_waits(now, major_faults);
        }
        let end = at + into.len() as u64;
        if end > self.length(open, file, now) {
            return false;
        }
        let mut from = at;
        while from < end {
            let to = end.min((from / REGION_BYTES + 1) * REGION_BYTES);
            if !self.is_known(open, file, from, to, now) {
                return false;
            }
            from = to;
        }
        let mut rest = into;
        let mut from = at;
        while !rest.is_empty() {
            let to = end.min((from / PART_BYTES + 1) * PART_BYTES);
            let (part, later) = std::mem::take(&mut rest).split_at_mut((to - from) as usize);
            let window = self.regions.window(Name::of(file, from));
            let held = window.and_then(|window| self.windows.get(window));
            if !held.is_some_and(|held| held.file == file && held.window.copy(from, part)) {
                self.regions.forget(file, from, 1);
                return false;
            }
            if milliseconds().saturating_sub(now) > SLOW_MS && !later.is_empty() {
                // The pages are gone: the kernel reads many of them at once.
                return false;
            }
            (rest, from) = (later, to);
        }
        true
    }

    /// How long a file is, or was a moment ago.
    fn length(&mut self, open: &OpenFile, file: FileId, now: u64) -> u64 {
        let index = usize::from(file.0);
        if index >= self.lengths.len() {
            self.lengths.resize(index + 1, Length::default());
        }
        let length = &mut self.lengths[index];
        if length.asked.is_none_or(|asked| now.saturating_sub(asked) >= LENGTH_MS) {
            let bytes = open.size().map_or(0, |size| size.get());
            *length = Length { bytes, asked: Some(now) };
        }
        length.bytes
    }

    /// Whether bytes of one region can be read through its window now.
    fn is_known(&mut self, open: &OpenFile, file: FileId, from: u64, to: u64, now: u64) -> bool {
        let name = Name::of(file, from);
        let (from, to) = (from - name.start(), to - name.start());
        let region = self.regions.get(name, now);
        let parts = match region.ask(from, to) {
            Standing::Known => return true,
            Standing::Look(parts) => parts,
            Standing::Unknown => return false,
        };
        let window = region.window();
        if window.is_none() && now < self.refused_until {
            return false;
        }
        let Some(index) = window.or_else(|| self.window_over(open, file, name.start(), now)) else {
            self.refused_until = now + PAUSE_MS;
            return false;
        };
        let held = &mut self.windows[index];
        held.used = now;
        let (start, end) = bytes_of(&parts);
        let seen = held.window.residency(name.start() + start, end - start);
        self.regions.note_waits(now, major_faults);
        let region = self.regions.get(name, now);
        region.set_window(index);
        region.learn(parts, |page| seen.is_some_and(|seen| seen.has(page)));
        region.has_seen(from, to)
    }

    /// The window at a place, which is opened if it is not there.
    #[cold]
    fn window_over(&mut self, open: &OpenFile, file: FileId, at: u64, now: u64) -> Option<usize> {
        let at = at - at % WINDOW_BYTES;
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
        self.regions.forget_window(index);
        drop(old);
        Some(index)
    }
}

/// Whether windows would take from what this process may map at all.
fn address_space_is_limited() -> bool {
    getrlimit(Resource::As).current.is_some()
}

/// How often this thread has waited for a device because of a page that was not there.
fn major_faults() -> u64 {
    // If it cannot be told, some may always have been missed.
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(u64::MAX, |usage| usage.major_page_faults().unsigned_abs())
}

/// A coarse clock. It is the C library's, which reads it from memory; `rustix` calls the kernel.
fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(0, |now| {
        now.tv_sec().unsigned_abs() * 1000 + now.tv_nsec().unsigned_abs() / 1_000_000
    })
}
