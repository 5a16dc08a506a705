//! Processor time: of the server's process and of our own threads.
//!
//! Reads the kernel's accounts and nothing else. Children of the server are not counted.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Ticks per second in /proc/PID/stat, the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// How far coarse ticks may exceed the sum of the threads before short-lived threads, whose finer
/// account is gone with them, are the likely cause.
const COARSE: Duration = Duration::from_millis(50);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pid(pub(super) u32);

/// Which account a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// Nanoseconds of each thread.
    Schedstat,
    /// Ticks of 10 ms of the whole process.
    Stat,
}

impl Account {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Account::Schedstat => "schedstat",
            Account::Stat => "stat",
        }
    }
}

/// What a process had used at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    ticks: Duration,
    threads: BTreeMap<u32, Duration>,
}

impl Reading {
    /// Reads the accounts of `pid`.
    ///
    /// # Errors
    /// When there is no such process, or it is hidden.
    pub(super) fn of(pid: Pid) -> Result<Reading> {
        let path = format!("/proc/{}/stat", pid.0);
        let hint =
            || format!("cannot read {path}; is process {} the server, and on this machine?", pid.0);
        let stat = fs::read_to_string(&path).with_context(hint)?;
        let ticks = ticks_of(&stat).with_context(|| format!("{path} is not as expected"))?;
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/task", pid.0)).with_context(hint)? {
            let entry = entry?;
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A thread may end between the two calls; then it has no account any more.
            let account = fs::read_to_string(entry.path().join("schedstat")).ok();
            let used = account.and_then(|text| text.split(' ').next()?.parse().ok());
            if let (Some(thread), Some(used)) = (thread, used) {
                threads.insert(thread, Duration::from_nanos(used));
            }
        }
        let ticks = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        Ok(Reading { ticks, threads })
    }

    /// What was used since `before`, by the finer account that is complete.
    pub(super) fn since(&self, before: &Reading) -> (Duration, Account) {
        let ticks = self.ticks.saturating_sub(before.ticks);
        let all_live = before.threads.keys().all(|thread| self.threads.contains_key(thread));
        let fine = self.threads.iter().map(|(thread, used)| {
            used.saturating_sub(before.threads.get(thread).copied().unwrap_or_default())
        });
        let fine: Duration = fine.sum();
        if all_live && ticks <= fine + fine / 20 + COARSE {
            (fine, Account::Schedstat)
        } else {
            (ticks, Account::Stat)
        }
    }
}

/// What the calling thread has used so far.
pub(super) fn own_thread() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The name stands in parentheses and may contain any character, so count from the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::{Pid, Reading, own_thread, ticks_of};

    #[test]
    fn ticks_are_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn work_shows_in_both_accounts() {
        let own = Pid(std::process::id());
        let before = (Reading::of(own).expect("own account"), own_thread());
        let mut sum = 1_u64;
        while (own_thread() - before.1).as_millis() < 30 {
            sum = std::hint::black_box(sum.wrapping_mul(3));
        }
        let used = Reading::of(own).expect("own account").since(&before.0).0;
        assert!(used.as_millis() >= 20, "{used:?}");
    }
}
