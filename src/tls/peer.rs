//! Who is at the other end of a TLS connection, and who may be.
//!
//! A rule names exactly one identity, or any that was proved. Comparisons are of whole names:
//! one that starts like an allowed name is a different name (CVE-2013-6410).

use std::fmt;
use std::str::FromStr;

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::TlsError;
use super::name::{Name, NameError, hex};

/// Who a connection comes from, as far as TLS has proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nobody in particular: no certificate was asked for.
    Anonymous,
    /// The holder of a certificate that the authority signed.
    Certificate(Certificate),
    /// A user who knows the pre-shared key. Never empty.
    Key(String),
}

/// What a peer's certificate says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    name: Name,
    alternatives: Vec<String>,
    fingerprint: [u8; 32],
}

impl Certificate {
    /// The subject as RFC 4514 writes it: `CN=laptop,O=Example,C=GB`. Control characters are
    /// escaped, so it fits into a line of a log.
    pub fn distinguished_name(&self) -> &str {
        &self.name.text
    }

    /// The subject alternative names that are DNS names, mail addresses or URIs.
    pub fn alternatives(&self) -> &[String] {
        &self.alternatives
    }

    /// SHA-256 of the certificate (its DER form).
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Reads what the verifier has accepted.
    pub(super) fn read(der: &[u8]) -> Result<Self, TlsError> {
        let bad = |what: &dyn fmt::Display| TlsError::BadCertificate(what.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| bad(&error))?;
        let alternatives = certificate.subject_alternative_name().map_err(|error| bad(&error))?;
        let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
        let text = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
                Some((*text).to_owned())
            }
            _ => None,
        };
        let mut fingerprint = [0; 32];
        let hash = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.common.hash_provider);
        if let Some(hash) = hash {
            fingerprint.copy_from_slice(hash.hash(der).as_ref());
        }
        Ok(Self {
            name: Name::of(certificate.subject()),
            alternatives: alternatives.filter_map(text).collect(),
            fingerprint,
        })
    }
}

impl Peer {
    /// Whether one of the rules names this peer. Without rules, nobody is named.
    pub fn is_one_of(&self, rules: &[Rule]) -> bool {
        rules.iter().any(|rule| self.is(rule))
    }

    fn is(&self, rule: &Rule) -> bool {
        match (self, &rule.allows) {
            (Self::Anonymous, _) => false,
            (_, Allows::Anyone) => true,
            (Self::Certificate(certificate), Allows::Subject(name)) => {
                certificate.name.text == name.text || certificate.name.encoded == name.text
            }
            (Self::Certificate(certificate), Allows::Alternative(name)) => {
                certificate.alternatives.contains(name)
            }
            (Self::Certificate(certificate), Allows::Fingerprint(digits)) => {
                hex(&certificate.fingerprint) == *digits
            }
            (Self::Key(user), Allows::Key(name)) => user == name,
            _ => false,
        }
    }
}

/// For logs and lists: `CN=laptop,O=Example`, `psk:user`, or `anonymous`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Certificate(certificate) => f.write_str(certificate.distinguished_name()),
            Self::Key(user) => write!(f, "psk:{}", user.escape_debug()),
        }
    }
}

/// An entry of an export's list of who may use it. Parsed from text:
///
/// * `CN=laptop,O=Example` or `dn:...`: the certificate's subject, whole, in the order of RFC 4514
///   or in that of the certificate, as QEMU and `virt-pki-query-dn` print it
/// * `san:laptop.example`: one of its alternative names (DNS, mail or URI)
/// * `sha256:...`: its fingerprint, in hexadecimal digits, with or without colons
/// * `psk:user`: the user of a pre-shared key
/// * `*`: whoever has proved any of these
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    allows: Allows,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allows {
    Anyone,
    Subject(Name),
    Alternative(String),
    Fingerprint(String),
    Key(String),
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// It is of no known kind.
    #[error(
        "{0:?} names nobody: write a distinguished name (CN=laptop,O=Example), san:NAME, \
         sha256:DIGITS, psk:USER, or * for any client that TLS has identified"
    )]
    Unknown(String),
    /// Nothing stands behind the colon.
    #[error("nothing stands behind {0:?}")]
    Empty(String),
    /// It looks like a pattern.
    #[error("{0:?} has an asterisk, but names are compared whole; only * alone means anyone")]
    Pattern(String),
    /// Control characters are in no user name or alternative name.
    #[error("{0:?} has a control character or a space at its end")]
    Unprintable(String),
    /// Not 32 bytes in hexadecimal.
    #[error("{0:?} is not a SHA-256 fingerprint: that has 64 hexadecimal digits")]
    Fingerprint(String),
    /// The distinguished name has a mistake.
    #[error("{text:?} is not a distinguished name")]
    Name {
        /// What was read.
        text: String,
        /// What is wrong with it.
        source: NameError,
    },
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let allows = if text == "*" {
            Allows::Anyone
        } else if let Some(name) = text.strip_prefix("dn:") {
            Allows::Subject(subject(name)?)
        } else if let Some(name) = text.strip_prefix("san:") {
            Allows::Alternative(plain(text, name)?)
        } else if let Some(digits) = text.strip_prefix("sha256:") {
            Allows::Fingerprint(fingerprint(digits)?)
        } else if let Some(user) = text.strip_prefix("psk:") {
            Allows::Key(plain(text, user)?)
        } else if text.contains('=') {
            Allows::Subject(subject(text)?)
        } else if text.contains('*') {
            return Err(RuleError::Pattern(text.to_owned()));
        } else {
            return Err(RuleError::Unknown(text.to_owned()));
        };
        Ok(Self { allows })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.allows {
            Allows::Anyone => f.write_str("*"),
            Allows::Subject(name) => f.write_str(&name.text),
            Allows::Alternative(name) => write!(f, "san:{name}"),
            Allows::Fingerprint(digits) => write!(f, "sha256:{digits}"),
            Allows::Key(user) => write!(f, "psk:{user}"),
        }
    }
}

fn subject(text: &str) -> Result<Name, RuleError> {
    Name::parse(text).map_err(|source| RuleError::Name { text: text.to_owned(), source })
}

fn plain(rule: &str, name: &str) -> Result<String, RuleError> {
    if name.is_empty() {
        return Err(RuleError::Empty(rule.to_owned()));
    }
    // A user may be called so in a file of keys, but whoever writes this expects a pattern.
    if name.contains('*') {
        return Err(RuleError::Pattern(rule.to_owned()));
    }
    if name.contains(char::is_control) || name.trim() != name {
        return Err(RuleError::Unprintable(rule.to_owned()));
    }
    Ok(name.to_owned())
}

fn fingerprint(text: &str) -> Result<String, RuleError> {
    let digits: String = text.chars().filter(|symbol| *symbol != ':').collect();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(RuleError::Fingerprint(text.to_owned()));
    }
    Ok(digits.to_ascii_lowercase())
}
