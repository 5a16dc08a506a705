//! The connections there are: how many, and which of them asks nothing.
//!
//! Refuses to let silent peers keep others out: of too many connections the one that has been
//! silent longest makes room, though not before it had a moment to speak.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How long nobody is cut: a crowd of new peers must not end one that is about to speak.
const MOMENT: Duration = Duration::from_millis(200);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is asked since then.
    Silent(Instant),
    /// A request is being received or answered.
    Asking,
}

impl Phase {
    pub(super) fn silent() -> Self {
        Self::Silent(Instant::now())
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    number: u64,
    phase: watch::Sender<Phase>,
    cut: Notify,
}

impl Line {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn is_silent(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Silent(_))
    }

    /// Comes back when the connection is to end for the sake of others.
    pub(super) async fn is_cut(&self) {
        self.cut.notified().await;
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Lines {
    most: usize,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    lines: BTreeMap<u64, Arc<Line>>,
}

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), table: Mutex::default(), freed: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back once there is room for one more.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            let wait = {
                let table = self.table();
                if table.lines.len() < self.most {
                    return;
                }
                make_room(&table)
            };
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    pub(super) fn add(self: &Arc<Self>) -> Held {
        let mut table = self.table();
        table.last += 1;
        let number = table.last;
        let phase = watch::Sender::new(Phase::silent());
        let line = Arc::new(Line { number, phase, cut: Notify::new() });
        table.lines.insert(number, Arc::clone(&line));
        drop(table);
        Held { lines: Arc::clone(self), line }
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    lines: Arc<Lines>,
    line: Arc<Line>,
}

impl Deref for Held {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lines.table().lines.remove(&self.line.number);
        self.lines.freed.notify_one();
    }
}

/// Cuts the connection that has been silent longest, if it had its moment; says how long to wait
/// before looking again.
fn make_room(table: &Table) -> Duration {
    let silent = table.lines.values().filter_map(|line| match *line.phase.borrow() {
        Phase::Silent(since) => Some((since, line)),
        Phase::Asking => None,
    });
    let Some((since, line)) = silent.min_by_key(|(since, _)| *since) else { return MOMENT };
    let left = MOMENT.saturating_sub(since.elapsed());
    if left.is_zero() {
        line.cut.notify_one();
        return MOMENT;
    }
    left
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Line, Lines, MOMENT, Phase, make_room};

    async fn is_cut(line: &Line) -> bool {
        tokio::select! {
            biased;
            () = line.is_cut() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn the_one_that_was_silent_longest_makes_room_and_none_that_asks() {
        let lines = Arc::new(Lines::new(3));
        let [first, second, third] = [lines.add(), lines.add(), lines.add()];
        let ago = |ms| Phase::Silent(Instant::now() - Duration::from_millis(ms));
        first.enter(Phase::Asking);
        second.enter(ago(5_000));
        third.enter(ago(50_000));
        assert_eq!(make_room(&lines.table()), MOMENT);
        assert!(!is_cut(&first).await && !is_cut(&second).await && is_cut(&third).await);
        drop(third);
        lines.room().await;
        second.enter(ago(0));
        make_room(&lines.table());
        assert!(!is_cut(&second).await, "it had no moment to speak");
    }
}
