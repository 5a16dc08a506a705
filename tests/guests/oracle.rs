//! What each sector of a disk may read as, for whoever asked when and was answered when.

use std::collections::BTreeSet;

/// A change of a sector.
#[derive(Clone)]
struct Change {
    /// When it was asked for.
    from: u64,
    /// When it was acknowledged.
    told: Option<u64>,
    /// What the sector holds afterwards: one of these.
    values: BTreeSet<u64>,
}

/// The changes of all sectors; of each, one is in flight at a time.
pub(crate) struct Oracle {
    sectors: Vec<Vec<Change>>,
}

impl Oracle {
    pub(crate) fn new(content: &[u64]) -> Self {
        let first = |value: &u64| vec![Change { from: 0, told: Some(0), values: [*value].into() }];
        Self { sectors: content.iter().map(first).collect() }
    }

    pub(crate) fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// Whether a change of any of these sectors is in flight.
    pub(crate) fn is_changing(&self, first: usize, count: usize) -> bool {
        let flies = |changes: &Vec<Change>| changes.last().is_none_or(|last| last.told.is_none());
        self.sectors[first..first + count].iter().any(flies)
    }

    /// Whether a change of a sector was in flight since then.
    pub(crate) fn was_changing(&self, sector: usize, since: u64) -> bool {
        let last = self.sectors[sector].last();
        last.is_some_and(|last| last.told.is_none_or(|told| told >= since))
    }

    /// A change was asked for. `value`: what is there then; `None`: what was there, or zero.
    pub(crate) fn begin(&mut self, first: usize, count: usize, value: Option<u64>, now: u64) {
        for changes in &mut self.sectors[first..first + count] {
            let values = match value {
                Some(value) => [value].into(),
                None => {
                    let mut before = changes.last().map(|c| c.values.clone()).unwrap_or_default();
                    before.insert(0);
                    before
                }
            };
            changes.push(Change { from: now, told: None, values });
        }
    }

    /// It was acknowledged.
    pub(crate) fn told(&mut self, first: usize, count: usize, now: u64) {
        for changes in &mut self.sectors[first..first + count] {
            if let Some(last) = changes.last_mut() {
                last.told = Some(now);
            }
        }
    }

    /// The disk has grown.
    pub(crate) fn grow(&mut self, sectors: usize) {
        let zero = Change { from: 0, told: Some(0), values: [0].into() };
        self.sectors.resize(sectors.max(self.sectors.len()), vec![zero]);
    }

    /// Whether a sector may have read as this for somebody who asked at `from` and hears it `now`.
    pub(crate) fn may_read(&self, sector: usize, value: u64, from: u64, now: u64) -> bool {
        let changes = &self.sectors[sector];
        // Not what was overwritten, and that acknowledged, before the question.
        let old = changes.iter().rposition(|change| change.told.is_some_and(|told| told < from));
        let mut possible = changes[old.unwrap_or(0)..].iter().filter(|change| change.from <= now);
        possible.any(|change| change.values.contains(&value))
    }
}
