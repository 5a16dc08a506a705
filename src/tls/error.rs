//! What can go wrong while TLS is set up with a peer, and while it carries bytes.
//!
//! The texts are for the server's log. The peer learns no more than the alert that TLS has for it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use thiserror::Error as ThisError;

/// Why a connection over TLS did not come about, or ended early.
#[derive(Debug, ThisError)]
pub enum TlsError {
    /// The first bytes are not a TLS record.
    #[error("the client does not speak TLS: what it sent after STARTTLS is not a TLS record")]
    NotTls,
    /// It offers nothing newer than TLS 1.1.
    #[error("the client offers no TLS version that is accepted: it needs TLS 1.2 or 1.3")]
    TooOld,
    /// No cipher suite, group or signature scheme in common.
    #[error("client and server have no TLS algorithms in common: {0}")]
    NothingInCommon(String),
    /// A client certificate is required, and none was sent.
    #[error("the client sent no certificate, and one is required")]
    NoCertificate,
    /// The client's certificate is not signed by an accepted authority.
    #[error("the client's certificate is not signed by an authority in ca-cert.pem")]
    UnknownIssuer,
    /// The client's certificate is past its time.
    #[error("the client's certificate has expired")]
    Expired,
    /// The client's certificate is of the future; most often a clock is wrong.
    #[error("the client's certificate is not valid yet: compare the clocks")]
    NotYetValid,
    /// The client's certificate is on the list of revoked ones.
    #[error("the client's certificate is revoked by ca-crl.pem")]
    Revoked,
    /// There is a list of revocations, but none of this certificate's issuer.
    #[error(
        "ca-crl.pem has no list by the issuer of the client's certificate, so nobody knows \
         whether it is revoked: add that list"
    )]
    UnknownRevocation,
    /// Anything else that is wrong with the client's certificate.
    #[error("the client's certificate is not acceptable: {0}")]
    BadCertificate(String),
    /// The client does not know the user, or not the user's key. Not told apart on purpose.
    #[error("the client's user name or its pre-shared key is wrong")]
    WrongKey,
    /// The client ended it with an alert.
    #[error("the client ended TLS with the alert {0}")]
    Alert(String),
    /// The connection ended within the handshake.
    #[error("the connection was cut off during the TLS handshake")]
    CutOff,
    /// It ended, or an alert came, without the farewell that tells an end from a cut.
    #[error("the TLS stream was cut off without a farewell (close_notify)")]
    Truncated,
    /// The client breaks the protocol.
    #[error("the client breaks the TLS protocol: {0}")]
    Protocol(String),
    /// The client makes us answer faster than it reads.
    #[error("the client asks for TLS answers faster than it reads them")]
    Flood,
    /// So much was sent that the keys may not be used further.
    #[error("the TLS keys of this connection are used up: reconnect")]
    KeysUsedUp,
    /// Bytes were given to a session that is not open.
    #[error("the TLS session is not open")]
    NotOpen,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

impl TlsError {
    pub(super) fn from_rustls(error: Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::from_certificate(error),
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                // Every TLS 1.2 client sends these, and an older one has no such thing.
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::TooOld,
            Error::PeerIncompatible(what) => Self::NothingInCommon(format!("{what:?}")),
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            Error::AlertReceived(alert) => Self::Alert(name_of(alert)),
            error => Self::Protocol(error.to_string()),
        }
    }

    fn from_certificate(error: CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus => Self::UnknownRevocation,
            // A signature by another key of the same name is an unknown issuer, too.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            error => Self::BadCertificate(error.to_string()),
        }
    }
}

fn name_of(alert: AlertDescription) -> String {
    alert.as_str().map_or_else(|| format!("{}", u8::from(alert)), str::to_owned)
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Io(error) => error,
            TlsError::CutOff | TlsError::Truncated => {
                Self::new(io::ErrorKind::UnexpectedEof, error)
            }
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}
