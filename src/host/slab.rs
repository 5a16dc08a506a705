//! Slots with small stable numbers, for operations in flight and sockets.
//!
//! Refuses to look anything up by value: a number is an index. Takes no room for
//! what was never used.

use std::ops::Range;

/// A growing set of values, each under the number it was given.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Puts a value in and tells its number.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        self.slots.push(Some(value));
        (self.slots.len() - 1) as u32
    }

    pub(super) fn of(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_ref()
    }

    pub(super) fn of_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    /// Takes a value out; its number may be given to another.
    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }

    /// Takes a value out and keeps its number from others until `release`.
    pub(super) fn retire(&mut self, index: u32) -> Option<T> {
        self.slots.get_mut(index as usize)?.take()
    }

    /// Lets the number of a retired value be given to another.
    pub(super) fn release(&mut self, index: u32) {
        self.free.push(index);
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The numbers in use.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        (0..self.slots.len() as u32).filter(|index| self.slots[*index as usize].is_some())
    }
}

/// The numbers below an end, each given to one at a time.
#[derive(Debug)]
pub(super) struct Numbers {
    free: Vec<u32>,
    unused: Range<u32>,
}

impl Numbers {
    pub(super) const fn below(end: u32) -> Self {
        Self { free: Vec::new(), unused: 0..end }
    }

    /// Takes one that nobody has.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.unused.next())
    }

    /// Gives one back.
    pub(super) fn give(&mut self, number: u32) {
        self.free.push(number);
    }

    /// How many can be taken.
    pub(super) fn left(&self) -> usize {
        self.free.len() + self.unused.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Numbers;

    #[test]
    fn each_number_is_given_to_one_at_a_time_until_none_is_left() {
        let mut numbers = Numbers::below(3);
        assert_eq!([(); 4].map(|()| numbers.take()), [Some(0), Some(1), Some(2), None]);
        numbers.give(1);
        assert_eq!((numbers.left(), numbers.take(), numbers.left()), (1, Some(1), 0));
    }
}
