//! The line between a guest of a disk and the shard that owns it: requests one way, answers the
//! other. Bounded by what guests' clients may have in flight: each request has its place, and each
//! payload its memory, at the guest until its answer is there.
//!
//! Refuses to wait. Who puts something in rings the other side's bell; who finds that the other has
//! left is told at once.

use std::collections::VecDeque;

use super::belfry::Bell;
use super::nudge::Nudge;
use super::sync::{Arc, AtomicU32, Mutex, MutexGuard, Ordering, PoisonError};
use crate::engine::request::{Answer, Fault, FaultKind, Request, RequestId};
use crate::engine::units::DiskOffset;

/// A request for the owner.
pub(super) struct Parcel {
    pub(super) id: RequestId,
    /// Its spans are the guest's, and nothing to the owner but lengths.
    pub(super) request: Request,
    /// The payload of a write.
    pub(super) bytes: Vec<u8>,
}

/// What came of it. Spans in the answer are the owner's, and nothing to the guest but lengths.
pub(super) struct Outcome {
    pub(super) id: RequestId,
    pub(super) request: Request,
    pub(super) result: Result<Answer, Fault>,
    /// What was read, without the holes.
    pub(super) bytes: Vec<u8>,
}

#[derive(Default)]
struct Way {
    parcels: VecDeque<Parcel>,
    owner_left: bool,
    guest_left: bool,
}

struct Line {
    way: Mutex<Way>,
    back: Mutex<Vec<Outcome>>,
    /// Clients that the guest has.
    users: AtomicU32,
    to_owner: Nudge,
    to_guest: Nudge,
}

impl Line {
    fn way(&self) -> MutexGuard<'_, Way> {
        // It is held to put in and to take out, neither of which can stop halfway.
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn back(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer where there is no owner any more.
pub(super) fn nobody(request: &Request) -> Fault {
    let at = request.extent().map_or(DiskOffset::new(0), |extent| extent.at);
    let why = "the thread that owns the disk let it go".to_owned();
    Fault { kind: FaultKind::Stopped(why), layer: 0, at }
}

/// A line, and both its ends.
pub(super) fn line(to_owner: Nudge, to_guest: Nudge) -> (OwnerEnd, GuestEnd) {
    let (way, back, users) = (Mutex::default(), Mutex::default(), AtomicU32::new(0));
    let line = Arc::new(Line { way, back, users, to_owner, to_guest });
    (OwnerEnd(Arc::clone(&line)), GuestEnd(line))
}

/// The end of the guest.
pub(super) struct GuestEnd(Arc<Line>);

impl GuestEnd {
    /// What rings when there are answers.
    pub(super) fn bell(&self) -> Arc<Bell> {
        self.0.to_guest.bell()
    }

    /// Hands a request over; without an owner, it comes back.
    pub(super) fn post(&self, parcel: Parcel) -> Result<(), Parcel> {
        let mut way = self.0.way();
        if way.owner_left {
            return Err(parcel);
        }
        way.parcels.push_back(parcel);
        drop(way);
        self.0.to_owner.nudge();
        Ok(())
    }

    /// The answers there are.
    pub(super) fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.0.back())
    }

    /// The guest has so many clients now.
    pub(super) fn note_users(&self, users: usize) {
        let users = u32::try_from(users).unwrap_or(u32::MAX);
        let before = self.0.users.swap(users, Ordering::SeqCst);
        if (before == 0) != (users == 0) {
            self.0.to_owner.nudge();
        }
    }
}

impl Drop for GuestEnd {
    fn drop(&mut self) {
        // Its place may be another disk's next.
        self.bell().take_down();
        self.0.way().guest_left = true;
        self.0.to_owner.nudge();
    }
}

/// The end of the owner.
pub(super) struct OwnerEnd(Arc<Line>);

impl OwnerEnd {
    /// The oldest request.
    pub(super) fn next(&self) -> Option<Parcel> {
        self.0.way().parcels.pop_front()
    }

    /// Tells what came of a request.
    pub(super) fn answer(&self, outcome: Outcome) {
        self.0.back().push(outcome);
        self.0.to_guest.nudge();
    }

    /// Whether the guest has clients.
    pub(super) fn is_used(&self) -> bool {
        self.0.users.load(Ordering::SeqCst) > 0
    }

    /// Whether the guest is gone, and nothing of its is left.
    pub(super) fn is_over(&self) -> bool {
        let way = self.0.way();
        way.guest_left && way.parcels.is_empty()
    }
}

impl Drop for OwnerEnd {
    fn drop(&mut self) {
        let mut way = self.0.way();
        way.owner_left = true;
        let lost = std::mem::take(&mut way.parcels);
        drop(way);
        for Parcel { id, request, .. } in lost {
            let result = Err(nobody(&request));
            self.answer(Outcome { id, request, result, bytes: Vec::new() });
        }
    }
}
