//! The end of a ring host: everything in flight comes home before memory and files go.
//!
//! Refuses to free what the kernel may still write to: that is left where it is for good.
#![deny(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Operation, Uring};
use crate::host::slab::Slab;

/// How long the end of connections may take when the host ends.
const COMMANDS_MAX: Duration = Duration::from_secs(5);

impl Drop for Uring {
    fn drop(&mut self) {
        // I6 ends here too: the kernel must let go of all memory before it is freed.
        self.drop_lone();
        let in_flight: Vec<u32> = self.operations.numbers().collect();
        for operation in in_flight {
            if !matches!(self.operations.of(operation), Some(Operation::Command { .. })) {
                self.cancel(operation);
            }
        }
        let sockets: Vec<u32> = self.sockets.numbers().collect();
        for socket in sockets {
            if let Some(state) = self.sockets.of_mut(socket) {
                state.closing = true;
            }
        }
        let patience = Instant::now() + COMMANDS_MAX;
        while self.operations.len() > 0 {
            // Commands end with their connections, which others are ending meanwhile.
            let left =
                (self.commands() > 0).then(|| patience.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO)
                || self.enter(usize::from(self.quiet.is_empty()), left).is_err()
            {
                // The ring is broken, or a connection lives on, and what the kernel still does is
                // unknown: memory it may write to is never freed.
                std::mem::forget(std::mem::replace(&mut self.operations, Slab::new()));
                std::mem::forget(std::mem::replace(&mut self.inlets, Slab::new()));
                std::mem::forget(Arc::clone(&self.memory));
                return;
            }
            self.reap();
            self.settle_quiet();
        }
        // The kernel tears a ring down some time after its descriptor is closed. The files go now,
        // and their locks with them: who opens an image next finds it free.
        for slot in std::mem::take(&mut self.file_slots).into_iter().flatten().flatten() {
            self.give_slot(slot);
        }
    }
}
