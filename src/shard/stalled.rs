//! Who waits for memory, in the order in which they asked.
//!
//! Small requests and large ones wait apart: a client that reads 4 KiB must not stand behind
//! hundreds that announced 64 MiB each and never send them. Refuses to know how much there is.

use std::collections::BTreeMap;

use crate::host::memory::Arena;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Any, for those whom changes of others wait for: they come before everybody.
    Watcher,
    /// Memory of the region that large leases never get.
    Small,
    /// Any more.
    Large,
}

impl Class {
    /// All, in the order in which they are served.
    pub(super) const ALL: [Self; 3] = [Self::Watcher, Self::Small, Self::Large];

    /// That of a lease of so many bytes.
    pub(super) fn of(arena: &Arena, len: u32) -> Self {
        if arena.is_small(len) { Self::Small } else { Self::Large }
    }
}

/// The queues. A client is in one of them, once, or in none.
#[derive(Debug, Default)]
pub(super) struct Stalled {
    /// Who has which number, in each queue.
    queues: [BTreeMap<u64, u32>; 3],
    /// Where each of them stands.
    places: BTreeMap<u32, (Class, u64)>,
    /// Numbers given so far.
    numbers: u64,
}

impl Stalled {
    /// Who waits longest.
    pub(super) fn front(&self, class: Class) -> Option<u32> {
        self.queues[class as usize].first_key_value().map(|(_, key)| *key)
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Keeps its place, or takes the last one.
    pub(super) fn wait(&mut self, key: u32, class: Class) {
        if self.places.get(&key).is_some_and(|(waits, _)| *waits == class) {
            return;
        }
        // What it waited for before was refused meanwhile: in front there, it would be in the way.
        self.leave(key);
        self.queues[class as usize].insert(self.numbers, key);
        self.places.insert(key, (class, self.numbers));
        self.numbers += 1;
    }

    /// Waits no more; whether it did.
    pub(super) fn leave(&mut self, key: u32) -> bool {
        let Some((class, number)) = self.places.remove(&key) else { return false };
        self.queues[class as usize].remove(&number);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Stalled};

    #[test]
    fn each_size_has_its_own_order_and_nobody_stands_in_both() {
        let mut stalled = Stalled::default();
        for key in [7, 8, 7] {
            stalled.wait(key, Class::Large);
        }
        stalled.wait(9, Class::Small);
        assert_eq!(Class::ALL.map(|class| stalled.front(class)), [None, Some(9), Some(7)]);
        stalled.wait(7, Class::Small);
        assert_eq!(Class::ALL.map(|class| stalled.front(class)), [None, Some(9), Some(8)]);
        assert!(stalled.leave(9) && stalled.leave(8) && !stalled.leave(8));
        assert_eq!(Class::ALL.map(|class| stalled.front(class)), [None, Some(7), None]);
        assert!(stalled.leave(7) && stalled.is_empty());
    }
}
