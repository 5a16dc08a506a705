//! A read that is alone in its batch: done at once if the page cache holds it, which spares a
//! submission, and lets the answer go out with the next one.
//!
//! Refuses to wait for a device: what is not in the page cache goes through the ring.
#![deny(unsafe_code)]

use super::{Operation, Uring};
use crate::host::blocking;

/// The reads of a batch, until it is submitted.
#[derive(Debug, Default)]
pub(super) struct Lone {
    /// The first of them, as long as it is the only one: it is not in the queue yet.
    held: Option<u32>,
    /// There was one already.
    passed: bool,
}

impl Uring {
    /// Issues the first call of a file operation, or keeps it back while it may be alone.
    pub(super) fn issue_first(&mut self, index: u32) {
        let reads = match self.operations.of(index) {
            Some(Operation::File { task, .. }) => task.reads_cached(),
            _ => false,
        };
        if reads && !self.lone.passed && self.lone.held.is_none() {
            self.lone.held = Some(index);
            return;
        }
        self.lone.passed = true;
        if let Some(first) = self.lone.held.take() {
            self.issue_file(first);
        }
        self.issue_file(index);
    }

    /// The batch is complete: a read that is still alone is done, as far as it need not wait.
    pub(super) fn settle_lone(&mut self) {
        self.lone.passed = false;
        let Some(index) = self.lone.held.take() else { return };
        let Some(Operation::File { task, .. }) = self.operations.of_mut(index) else { return };
        match blocking::read_cached(task) {
            Some(moved) => {
                self.counters.inline_reads += 1;
                self.completion(index, Ok(moved));
            }
            None => self.issue_file(index),
        }
    }

    /// Forgets the read that was kept back: the kernel has not heard of it.
    pub(super) fn drop_lone(&mut self) {
        if let Some(index) = self.lone.held.take() {
            drop(self.operations.remove(index));
        }
    }
}
