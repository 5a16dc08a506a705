//! The numbers of the NBD wire: options, replies, commands, flags and their bits.
//!
//! Names for what the protocol assigned, nothing else: no layout and no judgement.

/// Bits of the greeting and of the client's answer to it.
pub mod handshake_flag {
    /// The fixed newstyle handshake: unknown options are answered, not fatal.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The padding behind EXPORT_NAME's answer is left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option numbers.
pub mod option {
    /// Names an export and ends the handshake; has no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the connection politely.
    pub const ABORT: u32 = 2;
    /// Asks for the names of all exports.
    pub const LIST: u32 = 3;
    /// Withdrawn from the protocol; only its number is reserved.
    pub const PEEK_EXPORT: u32 = 4;
    /// Asks to go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Asks about an export and, on success, ends the handshake.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Asks which metadata contexts an export has.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Selects metadata contexts for BLOCK_STATUS.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Asks for 64-bit headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod option_reply {
    /// The option is done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit all errors have.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The server does not know this option.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The server knows the option and will not do it.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option's data makes no sense, or not now.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Not on this platform.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// TLS must come first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going away.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for the block size first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The request or its answer is too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// Extended headers must come first.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Types of information in answers to INFO and GO.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Bits that tell a client what an export can do.
pub mod transmission_flag {
    /// The other bits mean something.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The disk behaves as one that turns.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag works on READ.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one coherent disk.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// RESIZE works; from the branch extension-resize of the protocol.
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag works on WRITE_ZEROES.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may name the contexts to tell; only with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Request types.
pub mod command {
    /// Reads bytes.
    pub const READ: u16 = 0;
    /// Writes the payload behind the header.
    pub const WRITE: u16 = 1;
    /// Ends the connection; has no reply.
    pub const DISC: u16 = 2;
    /// Makes answered writes durable.
    pub const FLUSH: u16 = 3;
    /// Says that a range is no longer needed.
    pub const TRIM: u16 = 4;
    /// Says that a range will be read soon.
    pub const CACHE: u16 = 5;
    /// Makes a range read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Asks for the metadata of a range.
    pub const BLOCK_STATUS: u16 = 7;
    /// Changes the export's size to what the offset field says; from the branch extension-resize
    /// of the protocol.
    pub const RESIZE: u16 = 8;
}

/// Bits of a request.
pub mod command_flag {
    /// The reply comes after the data is durable.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must allocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must be answered in one piece.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS wants one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES must be fast or fail at once.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length counts payload behind the header, not bytes of the export; only in extended
    /// headers, where a WRITE should have it.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types and bits of structured and extended reply chunks.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No payload.
    pub const NONE: u16 = 0;
    /// An offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and a count of zero bytes.
    pub const OFFSET_HOLE: u16 = 2;
    /// A context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// A context id, a count and 64-bit extents; the only status chunk of extended replies.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The bit all errors have.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error and its text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error, its text and where it happened.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Bits of `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Every byte reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

/// Bits of `qemu:dirty-bitmap:` contexts.
pub mod dirty {
    /// Written since the bitmap began.
    pub const DIRTY: u32 = 1 << 0;
}
