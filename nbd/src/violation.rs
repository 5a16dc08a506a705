//! What a client can do that leaves nothing to answer: the connection must be dropped.
//!
//! Mistakes with an answer of their own are not here; they are replies, and the talk goes on.

use thiserror::Error;

/// A client with which no conversation is possible: drop the connection, after sending what was
/// queued before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Client flags with bits that were not offered.
    #[error("client flags {found:#x} go beyond the offered {offered:#x}")]
    ClientFlags {
        /// The client's flags.
        found: u32,
        /// Ours.
        offered: u32,
    },
    /// An option that does not start as options do.
    #[error("option magic is {found:#x}")]
    OptionMagic {
        /// What was there.
        found: u64,
    },
    /// A client that did not ask for fixed newstyle may only use EXPORT_NAME.
    #[error("option {option} without fixed newstyle")]
    UnfixedOption {
        /// The option's number.
        option: u32,
    },
    /// One option too many.
    #[error("more than {limit} options")]
    TooManyOptions {
        /// The limit it broke.
        limit: u32,
    },
    /// More data than the handshake may carry.
    #[error("option {option} brings {length} bytes, more than the handshake has left")]
    TooManyBytes {
        /// The option's number.
        option: u32,
        /// Its length, in bytes.
        length: u32,
    },
    /// More to say than the handshake may say.
    #[error("the answers exceed {limit} bytes")]
    TooManyAnswers {
        /// The limit they broke, in bytes.
        limit: usize,
    },
    /// EXPORT_NAME with a malformed name; the option has no error reply.
    #[error("EXPORT_NAME with {length} bytes that are no name: {reason}")]
    BadExportName {
        /// The option's length, in bytes.
        length: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// EXPORT_NAME for an export that is not there; the option has no error reply.
    #[error("EXPORT_NAME asks for {quoted}, which is not there")]
    UnknownExport {
        /// The name, escaped and cut.
        quoted: String,
    },
    /// EXPORT_NAME for an export that is served over TLS only; the option has no error reply.
    #[error("EXPORT_NAME asks for {quoted}, which requires TLS")]
    TlsRequiredExport {
        /// The name, escaped and cut.
        quoted: String,
    },
    /// EXPORT_NAME for an export this client may not have; the option has no error reply.
    #[error("EXPORT_NAME asks for {quoted}, which is refused: {text}")]
    ForbiddenExport {
        /// The name, escaped and cut.
        quoted: String,
        /// Why, in the words of whoever decided.
        text: String,
    },
    /// EXPORT_NAME while the server takes no new clients; the option has no error reply.
    #[error("EXPORT_NAME while the server is going away")]
    Draining,
    /// EXPORT_NAME before TLS where nothing goes without; the option has no error reply.
    #[error("EXPORT_NAME before the TLS this server requires")]
    PlainExportName,
    /// A client that did not ask for fixed newstyle where TLS is required: it cannot start it.
    #[error("a client without fixed newstyle cannot start the TLS this server requires")]
    UnfixedTls,
    /// Bytes between STARTTLS and TLS: sent in the clear by a client that did not wait for the
    /// answer or by somebody on the way, or fed by a caller that forgot to start TLS.
    #[error("unencrypted bytes behind STARTTLS")]
    PlainBehindStartTls,
    /// EXPORT_NAME after extended headers were agreed on, where it is forbidden; the option has no
    /// error reply.
    #[error("EXPORT_NAME after extended headers")]
    ExtendedExportName,
    /// A request with more payload than anyone would carry.
    #[error("a request brings {length} bytes of payload, more than {limit}")]
    PayloadTooLong {
        /// The payload's length, in bytes.
        length: u64,
        /// The limit it broke, in bytes.
        limit: u32,
    },
    /// A request that does not start as requests do.
    #[error("request magic is {found:#x}")]
    RequestMagic {
        /// What was there.
        found: u32,
    },
    /// Bytes for a handshake that is over: the caller's mistake, not the client's.
    #[error("the handshake is over")]
    Over,
}
