//! What one handshake may cost, and the ranges in which those limits make sense.
//!
//! A handshake keeps to any limits at all, so bad ones are no danger; but some turn away every
//! client and some bound nothing. Limits out of a configuration go through
//! [`HandshakeLimits::checked`].

use std::ops::RangeInclusive;

use thiserror::Error;

/// How much one handshake may cost us. All of it counts from the greeting to the last option; what
/// was spent before TLS stays spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Options per handshake, in [`HandshakeLimits::OPTIONS`]. See
    /// [`HandshakeLimits::with_room_for`] for servers of many exports.
    pub options_max: u32,
    /// Longest data of one option we know, in bytes, in [`HandshakeLimits::OPTION_BYTES`]; more is
    /// skipped and answered TOO_BIG. One handshake holds this much memory.
    pub option_bytes_max: u32,
    /// Data we know and keep, over the whole handshake, in bytes, in
    /// [`HandshakeLimits::KEPT_BYTES`] and at least `option_bytes_max`; more drops the connection.
    pub kept_bytes_max: u32,
    /// Data skipped over the whole handshake, in bytes, in [`HandshakeLimits::SKIPPED_BYTES`]; more
    /// drops the connection.
    pub skipped_bytes_max: u32,
    /// All we say, in bytes, in [`HandshakeLimits::OUTPUT_BYTES`]. An answer that does not fit
    /// becomes TOO_BIG; if not even that fits, the connection is dropped.
    pub output_bytes_max: usize,
}

/// A limit that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// A limit outside of its range.
    #[error("{name} is {found}; it must be from {least} to {most}")]
    Range {
        /// The field of [`HandshakeLimits`].
        name: &'static str,
        /// What it was set to.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// One option may be longer than all of them together.
    #[error("kept_bytes_max is {kept}; it must be at least option_bytes_max, which is {option}")]
    Kept {
        /// What `kept_bytes_max` was set to.
        kept: u32,
        /// What `option_bytes_max` was set to.
        option: u32,
    },
}

impl HandshakeLimits {
    /// Options a handshake may have: a client that uses all we know once needs eight.
    pub const OPTIONS: RangeInclusive<u32> = 8..=65_536;
    /// Bytes of one option: an export name and one context name of full length must fit.
    pub const OPTION_BYTES: RangeInclusive<u32> = 16 << 10..=1 << 20;
    /// Bytes of all options together.
    pub const KEPT_BYTES: RangeInclusive<u32> = 16 << 10..=16 << 20;
    /// Bytes of what we do not know.
    pub const SKIPPED_BYTES: RangeInclusive<u32> = 4 << 10..=64 << 20;
    /// Bytes of our answers: the information about one export must fit several times.
    pub const OUTPUT_BYTES: RangeInclusive<usize> = 64 << 10..=64 << 20;

    /// The same limits, raised so that a client may ask about every one of `exports` exports: some
    /// list a server and then ask two questions about each, all in one handshake (`qemu-nbd --list`
    /// does). No limit leaves its range for that, so there are servers too large to be listed.
    #[must_use]
    pub fn with_room_for(self, exports: usize) -> HandshakeLimits {
        const QUESTIONS: u32 = 2;
        // Names are short as a rule; who gives all their exports long ones sets limits by hand.
        const ASKED_BYTES: u32 = QUESTIONS * 300;
        const TOLD_BYTES: usize = 2048;
        let count = u32::try_from(exports).unwrap_or(u32::MAX);
        let more = |limit: u32, each: u32, range: RangeInclusive<u32>| {
            let raised = limit.saturating_add(count.saturating_mul(each));
            raised.min(*range.end()).max(limit)
        };
        let told_bytes = self.output_bytes_max.saturating_add(exports.saturating_mul(TOLD_BYTES));
        let most_bytes = *HandshakeLimits::OUTPUT_BYTES.end();
        HandshakeLimits {
            options_max: more(self.options_max, QUESTIONS, HandshakeLimits::OPTIONS),
            kept_bytes_max: more(self.kept_bytes_max, ASKED_BYTES, HandshakeLimits::KEPT_BYTES),
            output_bytes_max: told_bytes.min(most_bytes).max(self.output_bytes_max),
            ..self
        }
    }

    /// The same limits, if each is in its range.
    ///
    /// # Errors
    /// The first field that is not, what it was set to and what it may be.
    pub fn checked(self) -> Result<HandshakeLimits, LimitError> {
        let words = [
            ("options_max", self.options_max, HandshakeLimits::OPTIONS),
            ("option_bytes_max", self.option_bytes_max, HandshakeLimits::OPTION_BYTES),
            ("kept_bytes_max", self.kept_bytes_max, HandshakeLimits::KEPT_BYTES),
            ("skipped_bytes_max", self.skipped_bytes_max, HandshakeLimits::SKIPPED_BYTES),
        ];
        for (name, found, range) in words {
            if !range.contains(&found) {
                let (least, most) = (u64::from(*range.start()), u64::from(*range.end()));
                return Err(LimitError::Range { name, found: found.into(), least, most });
            }
        }
        let (found, range) = (self.output_bytes_max, HandshakeLimits::OUTPUT_BYTES);
        if !range.contains(&found) {
            let (least, most) = (*range.start() as u64, *range.end() as u64);
            let (name, found) = ("output_bytes_max", found as u64);
            return Err(LimitError::Range { name, found, least, most });
        }
        let (kept, option) = (self.kept_bytes_max, self.option_bytes_max);
        if kept < option {
            return Err(LimitError::Kept { kept, option });
        }
        Ok(self)
    }
}

impl Default for HandshakeLimits {
    fn default() -> HandshakeLimits {
        HandshakeLimits {
            options_max: 64,
            option_bytes_max: 64 << 10,
            kept_bytes_max: 128 << 10,
            skipped_bytes_max: 1 << 20,
            output_bytes_max: 4 << 20,
        }
    }
}
