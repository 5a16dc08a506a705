//! The owner of a disk that publishes, and guests that read beside it, in thousands of the orders
//! in which they can take turns, by a schedule explorer (shuttle). The owner writes for the first
//! time, overwrites, discards, and uses the place again for another unit; whatever a guest takes
//! for an answer must be what the disk said at one moment while it asked.
#![allow(clippy::unwrap_used, reason = "no thread that holds a lock panics")]

/// What src/engine/sync.rs has, of the explorer.
mod sync {
    pub(crate) use shuttle::sync::Arc;
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};
}

#[allow(dead_code, unreachable_pub)]
#[path = "../src/engine/published.rs"]
mod published;
#[allow(dead_code, unreachable_pub)]
#[path = "../src/engine/units.rs"]
mod units;

use published::{Home, Published, Publisher};
use shuttle::thread;
use sync::{Arc, AtomicU64, Ordering};
use units::{ByteLen, DiskOffset, Extent, FileOffset};

const UNIT: u64 = 64 << 10;
/// What each unit holds, change by change.
const FIRST: [u64; 4] = [0, 1, 2, 0];
const SECOND: [u64; 2] = [0, 7];

fn unit(index: u64) -> Extent {
    Extent::new(DiskOffset::new(index * UNIT), ByteLen::new(UNIT))
}

/// What the threads share.
struct Shared {
    /// A sector that lies at the start of the leaf's file, in two halves.
    sector: [AtomicU64; 2],
    /// Of each unit: changes that have begun, and changes that were acknowledged.
    begun: [AtomicU64; 2],
    told: [AtomicU64; 2],
}

/// What may be left out, to see that the explorer finds it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// A guest does not look again.
    NoSecondLook,
    /// A change is announced when it has begun already.
    LateBegin,
    /// A change counts as over before it is.
    EarlyEnd,
    /// A change that moves bytes is announced as one that does not.
    MovesInSilence,
}

struct Owner {
    shared: Arc<Shared>,
    publisher: Publisher,
    flaw: Flaw,
}

impl Owner {
    fn put(&self, value: u64) {
        self.shared.sector.iter().for_each(|half| half.store(value, Ordering::SeqCst));
    }

    /// One change of a unit, whose bytes lie in the sector or come to lie there.
    fn change(&mut self, index: u64, value: u64, moves: bool) {
        self.shared.begun[index as usize].fetch_add(1, Ordering::SeqCst);
        let moves = moves && self.flaw != Flaw::MovesInSilence;
        if self.flaw == Flaw::LateBegin {
            self.shared.sector[0].store(value, Ordering::SeqCst);
        }
        self.publisher.begin(unit(index), moves);
        if self.flaw == Flaw::EarlyEnd {
            self.publisher.end(unit(index));
        }
        self.put(value);
        if self.flaw != Flaw::EarlyEnd {
            self.publisher.end(unit(index));
        }
        self.shared.told[index as usize].fetch_add(1, Ordering::SeqCst);
    }

    fn tell(&mut self, index: u64, home: Home) {
        let whole = self.publisher.untold(unit(index));
        if let Some(whole) = whole {
            self.publisher.tell(whole, home);
        }
    }

    fn live(mut self) {
        let here = Home::Leaf(FileOffset::new(0));
        self.tell(0, Home::Below);
        self.tell(1, Home::Below);
        self.change(0, FIRST[1], false);
        self.tell(0, here);
        self.change(0, FIRST[2], false);
        self.change(0, FIRST[3], true);
        self.tell(0, Home::Below);
        self.change(1, SECOND[1], false);
        self.tell(1, here);
    }
}

/// What a guest takes for an answer, if anything.
fn answer(shared: &Shared, published: &Published, index: u64, flaw: Flaw) -> Option<[u64; 2]> {
    let seen = published.look(unit(index))?;
    let found = match published.home(unit(index))?.0 {
        Home::Below => [0, 0],
        Home::Leaf(_) => [0, 1].map(|half| shared.sector[half].load(Ordering::SeqCst)),
    };
    let sure = flaw == Flaw::NoSecondLook || published.is_still(unit(index), seen);
    sure.then_some(found)
}

fn guest(shared: &Shared, published: &Published, asks: u64, flaw: Flaw) {
    for ask in 0..asks {
        let index = ask % 2;
        let count = |of: &[AtomicU64; 2]| of[index as usize].load(Ordering::SeqCst) as usize;
        let told = count(&shared.told);
        let Some([left, right]) = answer(shared, published, index, flaw) else { continue };
        let begun = count(&shared.begun);
        assert_eq!(left, right, "wrong: half a sector");
        let values: &[u64] = if index == 0 { &FIRST } else { &SECOND };
        assert!(values[told..=begun].contains(&left), "wrong: {left} is none of {told} to {begun}");
    }
}

fn together(guests: usize, asks: u64, flaw: Flaw) {
    let two = || [AtomicU64::new(0), AtomicU64::new(0)];
    let shared = Arc::new(Shared { sector: two(), begun: two(), told: two() });
    let publisher = Publisher::new(ByteLen::new(2 * UNIT), ByteLen::new(UNIT), 2);
    let published = publisher.published();
    let guests = (0..guests).map(|_| {
        let (shared, published) = (Arc::clone(&shared), Arc::clone(&published));
        thread::spawn(move || guest(&shared, &published, asks, flaw))
    });
    let guests: Vec<_> = guests.collect();
    Owner { shared, publisher, flaw }.live();
    for guest in guests {
        guest.join().unwrap();
    }
}

#[test]
fn in_none_of_the_first_orders_is_a_guest_wrong() {
    shuttle::check_dfs(|| together(1, 2, Flaw::None), Some(50_000));
}

#[test]
fn nor_in_many_drawn_orders_of_more_guests() {
    for (guests, asks) in [(1, 4), (1, 12), (2, 6), (3, 8)] {
        shuttle::check_random(move || together(guests, asks, Flaw::None), 10_000);
        shuttle::check_pct(move || together(guests, asks, Flaw::None), 10_000, 4);
    }
}

/// The explorer finds what it is here for.
fn is_found(flaw: Flaw) {
    shuttle::check_pct(move || together(2, 12, flaw), 50_000, 4);
}

#[test]
#[should_panic(expected = "wrong:")]
fn a_guest_that_does_not_look_again_is_found() {
    is_found(Flaw::NoSecondLook);
}

#[test]
#[should_panic(expected = "wrong:")]
fn a_change_that_is_announced_late_is_found() {
    is_found(Flaw::LateBegin);
}

#[test]
#[should_panic(expected = "wrong:")]
fn a_change_that_is_over_too_early_is_found() {
    is_found(Flaw::EarlyEnd);
}

#[test]
#[should_panic(expected = "wrong:")]
fn bytes_that_move_in_silence_are_found() {
    is_found(Flaw::MovesInSilence);
}
