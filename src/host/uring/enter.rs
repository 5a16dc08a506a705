//! How the ring host calls the kernel: entries go in, completions come out, and it sleeps when
//! there is nothing to do.
//!
//! A small send to a socket that takes sends at once is quiet: the kernel is told not to wait for
//! room and to report it only if it failed. So it is over when its submission is, and if nobody
//! wants to know before something else happens, the same call goes on to wait: one call for an
//! answer and the next request.
//!
//! Refuses to believe that a send is over whose entry the kernel has not taken.
#![deny(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};

use super::{Operation, Takes, Uring, endured};
use crate::engine::units::ByteLen;
use crate::host::event::Event;

/// A send of at most this is tried without waiting, and is not reported if it succeeds.
const QUIET_BYTES: ByteLen = ByteLen::new(64 << 10);

impl Uring {
    pub(in crate::host) fn wait(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let may_defer = std::mem::take(&mut self.may_defer);
        for number in self.told_closed.drain(..) {
            self.sockets.release(number);
        }
        // The clock is asked only if the first round brings nothing.
        let mut left = timeout;
        let mut deadline = None;
        loop {
            self.arm_wake();
            self.settle_lone();
            let told_later = self.quiet.is_empty() || may_defer;
            let idle = self.ready.is_empty() && told_later;
            let want = usize::from(idle && left != Some(Duration::ZERO));
            if let (Some(timeout), None) = (timeout, deadline) {
                deadline = Instant::now().checked_add(timeout);
            }
            self.enter(want, left)?;
            self.reap();
            self.settle_quiet();
            if !self.ready.is_empty() || left == Some(Duration::ZERO) {
                self.take_ready(events);
                return Ok(());
            }
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        }
    }

    pub(in crate::host) fn take_ready(&mut self, events: &mut Vec<Event>) {
        self.settle_lone();
        self.told_closed.extend(self.ready.iter().filter_map(Event::closed_number));
        events.append(&mut self.ready);
    }

    /// Submits all entries and, with `want`, waits for a completion.
    pub(super) fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.fill_queue();
        while self.has_backlog() {
            self.submit_once()?;
            self.fill_queue();
        }
        let idle = self.completed.is_empty() && self.ring.completion().is_empty();
        let want = if idle { want } else { 0 };
        let standing = self.ring.standing();
        if want == 0 && standing.is_empty && !standing.owes {
            return Ok(());
        }
        self.counters.enters += 1;
        let entered = match timeout.filter(|_| want > 0) {
            Some(timeout) => {
                let time = Timespec::from(timeout.min(Duration::from_secs(1 << 20)));
                let args = SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submitter().submit_and_wait(want),
        };
        endured(entered)
    }

    /// Whether the first try of a send is quiet.
    pub(super) fn is_quiet(&self, takes: Takes, total: ByteLen) -> bool {
        self.can_skip && takes == Takes::AtOnce && total <= QUIET_BYTES
    }

    pub(in crate::host) const fn defer_sent(&mut self) {
        self.may_defer = true;
    }

    /// Ends the quiet sends that were submitted. Those that failed are not among them any more:
    /// their completions came first.
    pub(super) fn settle_quiet(&mut self) {
        if self.quiet.is_empty() || self.has_backlog() {
            return;
        }
        let standing = self.ring.standing();
        // With an overflow, a failure may be among what the queue of completions had no room for.
        if !standing.is_empty || standing.overflows {
            return;
        }
        for index in std::mem::take(&mut self.quiet) {
            let Some(Operation::Send { list, .. }) = self.operations.of(index) else { continue };
            let total = list.total().get() as usize;
            self.sent(index, Ok(total));
        }
    }

    fn submit_once(&mut self) -> io::Result<()> {
        self.counters.enters += 1;
        endured(self.ring.submitter().submit())?;
        self.reap_into_list();
        Ok(())
    }

    pub(super) fn submit_all(&mut self) -> io::Result<()> {
        self.fill_queue();
        while self.has_backlog() || !self.ring.standing().is_empty {
            self.submit_once()?;
            self.fill_queue();
        }
        Ok(())
    }
}
