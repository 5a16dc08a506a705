//! Reads without calls: what the page cache is known to hold is copied from mappings of the file,
//! which costs a third of what asking the kernel for it does.
//!
//! It is known by asking for whole regions: one that is read often is looked at, and trusted for
//! half a second. Windows that were not used for a while give way to others.
//!
//! Refuses to wait for a device, as far as it can: a page that was dropped since its region was
//! looked at is read by the fault. Refuses what is being changed, too: a copy would see a sector
//! half written.

use nix::time::{ClockId, clock_gettime};

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
/// So many small reads within that time make it worth to look.
const READS_MIN: u32 = 4;
/// A read of so many bytes does alone.
const LONG_BYTES: u64 = 64 << 10;

/// What is mapped at once. The tables of the processor for it take 512 KiB at most.
const WINDOW_BYTES: u64 = 256 << 20;
/// Windows at most.
const WINDOWS_MAX: usize = 128;
/// A window that was not looked through for so long gives way.
const IDLE_MS: u64 = 2000;

/// No window.
const NONE: u32 = u32::MAX;

/// The windows of a host and what is known of what lies behind them.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// By a hash of their names; empty until the first read.
    regions: Vec<Region>,
    windows: Vec<Held>,
    /// The system does not map, or does not say what is cached.
    refused: bool,
}

/// What is known of a region.
#[derive(Clone, Copy, Debug)]
struct Region {
    name: u64,
    /// When it was looked at, or counting began.
    since: u64,
    /// The window through which it can be read at present.
    window: u32,
    /// Reads since then.
    reads: u32,
    /// Bytes of it that were in the file, from its start.
    len: u32,
    /// It was looked at and was not there.
    absent: bool,
}

const UNKNOWN: Region =
    Region { name: u64::MAX, since: 0, window: NONE, reads: 0, len: 0, absent: false };

/// What is asked of a region.
#[derive(Clone, Copy)]
struct Asked {
    file: FileId,
    /// The read is long enough to look for it alone.
    long: bool,
    /// The position in the file where it ends.
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
        if self.refused || !task.file().maps() {
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
        let before = self.windows.len();
        self.windows.retain(|held| held.file != file);
        if self.windows.len() < before {
            // Others have other numbers now.
            self.regions.fill(UNKNOWN);
        }
    }

    fn read(&mut self, open: &OpenFile, file: FileId, at: u64, into: &mut [u8]) -> bool {
        let now = milliseconds();
        let end = at + into.len() as u64;
        let (first, last) = (at >> REGION_BITS, (end - 1) >> REGION_BITS);
        let asked = Asked { file, long: into.len() as u64 >= LONG_BYTES, end, now };
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
            // What was read often will be.
            let often = region.reads >= READS_MIN && !region.absent;
            let reads = if often { READS_MIN } else { 0 };
            *region = Region { name, since: now, reads, ..UNKNOWN };
        }
        region.reads = region.reads.saturating_add(1);
        // Behind the end of a file a mapping shows zeroes up to the end of the page.
        let wanted = asked.end - (number << REGION_BITS);
        let reaches = |len: u32| wanted.min(REGION_BYTES) <= u64::from(len);
        if region.window != NONE {
            return reaches(region.len);
        }
        if region.absent || (region.reads < READS_MIN && !asked.long) {
            return false;
        }
        let seen = self.look(open, file, number, now);
        let region = &mut self.regions[place_of(name)];
        let Some((window, len)) = seen else {
            region.absent = true;
            return false;
        };
        *region = Region { since: now, window, len, ..*region };
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
            if now.saturating_sub(held.used) < IDLE_MS {
                return None;
            }
            Some(index)
        };
        if !window::tells_the_truth(open.fd()) {
            open.maps_no_more();
            return None;
        }
        let window = match Window::over(open.fd(), at, WINDOW_BYTES as usize) {
            Ok(window) => window,
            Err(error) => {
                tracing::debug!(%error, "images are not mapped");
                self.refused = true;
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
        for region in &mut self.regions {
            let of_file = region.name & !NUMBERS == name_of(file, 0);
            if of_file && (first..=last).contains(&(region.name & NUMBERS)) {
                *region = UNKNOWN;
            }
        }
    }
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
