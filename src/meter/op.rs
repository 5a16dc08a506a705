//! The kinds of requests that are told apart when counting.

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Ranges no longer needed.
    Trim,
    /// Ranges to read as zeroes.
    Zero,
    /// Ranges to be read soon.
    Cache,
    /// Questions about the map of the disk.
    Status,
    /// Changes of the disk's size.
    Resize,
}

impl Op {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 8;

    /// All of them, in the order to show them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::Zero,
        Self::Cache,
        Self::Status,
        Self::Resize,
    ];

    /// Its name in output: one lower-case word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Cache => "cache",
            Self::Status => "status",
            Self::Resize => "resize",
        }
    }

    /// Its place in an array of all.
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}
