//! What a server offers: exports, what they can do, and the block sizes they ask for.
//!
//! An export here is a description only. Where its bytes live, and who may see it, is decided by
//! the caller behind [`Exports`].

use thiserror::Error;

use crate::options::ContextName;
use crate::units::Bytes;
use crate::wire::transmission_flag;

/// One disk as it is offered to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The canonical name, even if the client asked by another one; at most 4096 bytes, no NUL.
    pub name: String,
    /// Text for people; empty for none. Cut at 4096 bytes on the wire.
    pub description: String,
    /// The disk's size.
    pub size: Bytes,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The block sizes it asks for.
    pub block_size: BlockSize,
    /// The metadata contexts it has, in the order to list them; at most 64 count.
    pub contexts: Vec<ContextName>,
}

/// What an export can do. DF is not here: it comes with structured replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes are refused with EPERM.
    pub read_only: bool,
    /// FLUSH works.
    pub flush: bool,
    /// The FUA flag works.
    pub fua: bool,
    /// TRIM works.
    pub trim: bool,
    /// WRITE_ZEROES works.
    pub write_zeroes: bool,
    /// FAST_ZERO works; means nothing without `write_zeroes`.
    pub fast_zero: bool,
    /// CACHE works.
    pub cache: bool,
    /// A flush on one connection covers writes answered on all others.
    pub multi_conn: bool,
    /// The disk behaves as one that turns.
    pub rotational: bool,
    /// RESIZE works, an experimental extension that must be wanted.
    pub resize: bool,
}

impl Capabilities {
    /// The capabilities as they count: a read-only export has none of the writing ones, and a fast
    /// zero needs a zero.
    #[must_use]
    pub const fn effective(self) -> Capabilities {
        let write_zeroes = self.write_zeroes && !self.read_only;
        Capabilities {
            trim: self.trim && !self.read_only,
            write_zeroes,
            fast_zero: self.fast_zero && write_zeroes,
            resize: self.resize && !self.read_only,
            ..self
        }
    }

    /// The transmission flags that tell a client so.
    #[must_use]
    pub const fn transmission_flags(self, structured: bool) -> u16 {
        const fn bit(on: bool, flag: u16) -> u16 {
            if on { flag } else { 0 }
        }
        let able = self.effective();
        transmission_flag::HAS_FLAGS
            | bit(able.read_only, transmission_flag::READ_ONLY)
            | bit(able.flush, transmission_flag::SEND_FLUSH)
            | bit(able.fua, transmission_flag::SEND_FUA)
            | bit(able.rotational, transmission_flag::ROTATIONAL)
            | bit(able.trim, transmission_flag::SEND_TRIM)
            | bit(able.write_zeroes, transmission_flag::SEND_WRITE_ZEROES)
            | bit(structured, transmission_flag::SEND_DF)
            | bit(able.multi_conn, transmission_flag::CAN_MULTI_CONN)
            | bit(able.resize, transmission_flag::SEND_RESIZE)
            | bit(able.cache, transmission_flag::SEND_CACHE)
            | bit(able.fast_zero, transmission_flag::SEND_FAST_ZERO)
    }
}

/// Block sizes an export asks for, in bytes, already checked against the protocol's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl BlockSize {
    /// Checks the three sizes, all in bytes: `minimum` a power of two of at most 64 KiB,
    /// `preferred` a power of two of at least 512 and `minimum`, `maximum` a multiple of `minimum`
    /// (or all ones) of at least 1 MiB and `preferred`.
    ///
    /// # Errors
    /// The first size that breaks its rule.
    pub const fn new(
        minimum: u32,
        preferred: u32,
        maximum: u32,
    ) -> Result<BlockSize, BlockSizeError> {
        if !minimum.is_power_of_two() || minimum > 64 << 10 {
            return Err(BlockSizeError::Minimum(minimum));
        }
        if !preferred.is_power_of_two() || preferred < 512 || preferred < minimum {
            return Err(BlockSizeError::Preferred { preferred, minimum });
        }
        let whole = maximum.is_multiple_of(minimum) || maximum == u32::MAX;
        if !whole || maximum < preferred || maximum < 1 << 20 {
            return Err(BlockSizeError::Maximum { maximum, preferred });
        }
        Ok(BlockSize { minimum, preferred, maximum })
    }

    /// Requests must start and end at multiples of this many bytes.
    #[must_use]
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// Requests of multiples of this many bytes are cheap.
    #[must_use]
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// The longest payload a client should send or ask for, in bytes. More is accepted, up to
    /// [`crate::transmission::PAYLOAD_MAX`].
    #[must_use]
    pub const fn maximum(self) -> u32 {
        self.maximum
    }
}

impl Default for BlockSize {
    /// Any alignment, 4 KiB preferred, 32 MiB at most: what clients assume when nobody says.
    fn default() -> BlockSize {
        BlockSize { minimum: 1, preferred: 4096, maximum: 32 << 20 }
    }
}

/// A block size the protocol forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BlockSizeError {
    /// Not a power of two, or above 64 KiB.
    #[error("minimum block size {0} is not a power of two of at most 65536")]
    Minimum(u32),
    /// Not a power of two, or below 512 or the minimum.
    #[error("preferred block size {preferred} is not a power of two from 512 and {minimum} up")]
    Preferred {
        /// The size asked for.
        preferred: u32,
        /// The minimum it must reach.
        minimum: u32,
    },
    /// Not a multiple of the minimum, or below 1 MiB or the preferred size.
    #[error("maximum block size {maximum} is ragged or below 1048576 or {preferred}")]
    Maximum {
        /// The size asked for.
        maximum: u32,
        /// The preferred size it must reach.
        preferred: u32,
    },
}

/// One line of the answer to LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// The name a client would ask for.
    pub name: String,
    /// Text for people; empty for none.
    pub description: String,
}

/// What became of looking for an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Here it is.
    Found(Box<Export>),
    /// There is none of that name, or none this peer should know of.
    Unknown,
    /// There is one, but this connection has no TLS and it requires that.
    TlsRequired,
    /// There is one, but not for this peer. The text reaches the peer, cut at 4096 bytes, so it
    /// must not tell what the peer may not know; empty for a plain refusal.
    Forbidden(String),
}

/// The exports one peer may see. One of these serves one connection, and whoever implements it
/// knows the peer: its address, and whether it came over TLS and as whom.
pub trait Exports {
    /// All exports to list, in the order to show them: those this peer may use, and over this
    /// connection as it is now, so no TLS-only ones without TLS.
    fn list(&self) -> Vec<ExportEntry>;

    /// The export a client means by `name`; the empty name asks for the default one.
    fn find(&self, name: &str) -> Lookup;

    /// The same, for a client that is about to use it (GO, EXPORT_NAME): what there is a limited
    /// number of may be taken now.
    fn enter(&self, name: &str) -> Lookup {
        self.find(name)
    }

    /// Whether LIST is answered at all; if not, it is refused as a matter of policy.
    fn listable(&self) -> bool {
        true
    }

    /// Whether the server is going away and takes no new sessions.
    fn draining(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSize, BlockSizeError, Capabilities};
    use crate::wire::transmission_flag;

    #[test]
    fn block_sizes_keep_the_protocols_rules() {
        // Minimum: a power of two up to 64 KiB. Preferred: a power of two from 512 up.
        assert_eq!(BlockSize::new(0, 4096, 1 << 20), Err(BlockSizeError::Minimum(0)));
        assert_eq!(BlockSize::new(3, 4096, 1 << 20), Err(BlockSizeError::Minimum(3)));
        assert_eq!(BlockSize::new(128 << 10, 128 << 10, 1 << 20).ok(), None);
        assert!(BlockSize::new(64 << 10, 64 << 10, 1 << 20).is_ok());
        assert!(BlockSize::new(1, 256, 1 << 20).is_err());
        assert!(BlockSize::new(4096, 512, 1 << 20).is_err());
        // Maximum: at least 1 MiB, whole minimum blocks, or "no limit".
        assert!(BlockSize::new(512, 4096, (1 << 20) - 512).is_err());
        assert!(BlockSize::new(512, 4096, (1 << 20) + 1).is_err());
        assert!(BlockSize::new(512, 4096, u32::MAX).is_ok());
        let usual = BlockSize::default();
        let same = BlockSize::new(usual.minimum(), usual.preferred(), usual.maximum());
        assert_eq!(same, Ok(usual));
    }

    #[test]
    fn a_read_only_export_never_offers_to_write() {
        let all = Capabilities {
            read_only: true,
            flush: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            ..Capabilities::default()
        };
        let flags = all.transmission_flags(false);
        let expected = transmission_flag::HAS_FLAGS
            | transmission_flag::READ_ONLY
            | transmission_flag::SEND_FLUSH;
        assert_eq!(flags, expected);
    }

    #[test]
    fn fast_zero_needs_zero_and_df_needs_structured_replies() {
        let odd = Capabilities { fast_zero: true, ..Capabilities::default() };
        assert_eq!(odd.transmission_flags(false), transmission_flag::HAS_FLAGS);
        let flags = odd.transmission_flags(true);
        assert_eq!(flags, transmission_flag::HAS_FLAGS | transmission_flag::SEND_DF);
    }
}
