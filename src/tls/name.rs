//! Distinguished names as text, written as GnuTLS writes them, and so QEMU's lists.
//!
//! The form is that of RFC 4514 (the most particular attribute first), with the attribute names of
//! `gnutls_x509_crt_get_dn3`. A name that was read from text is brought into the same form, so
//! that two names are equal exactly if their texts are. It refuses to guess: no patterns, no
//! spaces that do not count, no attribute that it does not know.

use std::fmt::Write;

use thiserror::Error;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The attributes with names, and their object identifiers.
const ATTRIBUTES: [(&str, &str); 23] = [
    ("CN", "2.5.4.3"),
    ("surName", "2.5.4.4"),
    ("serialNumber", "2.5.4.5"),
    ("C", "2.5.4.6"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("street", "2.5.4.9"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("title", "2.5.4.12"),
    ("description", "2.5.4.13"),
    ("businessCategory", "2.5.4.15"),
    ("postalCode", "2.5.4.17"),
    ("name", "2.5.4.41"),
    ("givenName", "2.5.4.42"),
    ("initials", "2.5.4.43"),
    ("generationQualifier", "2.5.4.44"),
    ("dnQualifier", "2.5.4.46"),
    ("pseudonym", "2.5.4.65"),
    ("UID", "0.9.2342.19200300.100.1.1"),
    ("DC", "0.9.2342.19200300.100.1.25"),
    ("EMAIL", "1.2.840.113549.1.9.1"),
    // What OpenSSL calls the one above.
    ("emailAddress", "1.2.840.113549.1.9.1"),
];

/// Why a text is not a distinguished name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// There is nothing.
    #[error("the distinguished name is empty")]
    Empty,
    /// A part has no `=`.
    #[error("{0:?} is not ATTRIBUTE=VALUE; a comma inside a value is written \\,")]
    NoValue(String),
    /// Spaces around separators are part of the name, and never meant.
    #[error("a space stands before {0:?}: write the name without spaces around commas")]
    Space(String),
    /// Not in the table.
    #[error(
        "{0:?} is no attribute of a name: known are CN, O, OU, C, ST, L, DC, UID, EMAIL \
             and others, or a number such as 2.5.4.3"
    )]
    Attribute(String),
    /// A value is empty.
    #[error("the attribute {0} has no value")]
    EmptyValue(String),
    /// A backslash with nothing that it may stand before.
    #[error("the backslash in {0:?} is not followed by a character or two hexadecimal digits")]
    Escape(String),
    /// Names are compared whole.
    #[error("{0:?} has an asterisk, but names are compared whole; write \\2A if it is meant")]
    Pattern(String),
    /// Not text.
    #[error("the escaped bytes in {0:?} are not UTF-8")]
    NotText(String),
}

/// A distinguished name in both orders that programs write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    /// As RFC 4514 orders it: `CN=laptop,O=Example,C=GB`.
    pub(super) text: String,
    /// As it stands in the certificate, which is what QEMU and libvirt print:
    /// `C=GB,O=Example,CN=laptop`.
    pub(super) encoded: String,
}

impl Name {
    /// The subject or issuer of a certificate.
    pub(super) fn of(name: &X509Name<'_>) -> Self {
        let parts: Vec<String> = name
            .iter_rdn()
            .map(|part| {
                let attributes: Vec<String> = part.iter().map(attribute).collect();
                attributes.join("+")
            })
            .collect();
        Self::from_encoded(&parts)
    }

    /// Reads a name in the order of RFC 4514.
    pub(super) fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let mut parts = Vec::new();
        for part in split(text, ',') {
            let attributes: Result<Vec<String>, NameError> =
                split(part, '+').into_iter().map(parse_attribute).collect();
            parts.push(attributes?.join("+"));
        }
        parts.reverse();
        Ok(Self::from_encoded(&parts))
    }

    fn from_encoded(parts: &[String]) -> Self {
        let backwards: Vec<&str> = parts.iter().rev().map(String::as_str).collect();
        Self { text: backwards.join(","), encoded: parts.join(",") }
    }
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = ATTRIBUTES.iter().find(|(_, id)| *id == oid);
    match (known, value(attribute)) {
        (Some((name, _)), Some(value)) => format!("{name}={}", escape(&value)),
        (known, _) => {
            let name = known.map_or(oid.as_str(), |(name, _)| name);
            format!("{name}=#{}", hex(&encoded_value(attribute)))
        }
    }
}

/// The text of a value, if it is text.
fn value(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    const BMP_STRING: u32 = 30;
    if let Ok(text) = attribute.as_str() {
        return Some(text.to_owned());
    }
    let value = attribute.attr_value();
    if value.tag().0 != BMP_STRING || value.data.len() % 2 != 0 {
        return None;
    }
    let units: Vec<u16> =
        value.data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    String::from_utf16(&units).ok()
}

/// The value with its tag and length, as RFC 4514 section 2.4 wants what has no text.
fn encoded_value(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let value = attribute.attr_value();
    // Tags of strings are below 31, and nothing else than strings stands in names in practice.
    let constructed = if value.header.is_constructed() { 0x20 } else { 0 };
    let mut bytes = vec![(value.tag().0 & 0x1f) as u8 | constructed];
    let len = value.data.len();
    if len < 0x80 {
        bytes.push(len as u8);
    } else {
        let digits = len.to_be_bytes();
        let digits = &digits[digits.iter().take_while(|digit| **digit == 0).count()..];
        bytes.push(0x80 | digits.len() as u8);
        bytes.extend_from_slice(digits);
    }
    bytes.extend_from_slice(value.data);
    bytes
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (index, symbol) in value.chars().enumerate() {
        let edge =
            (symbol == ' ' && (index == 0 || index == last)) || (symbol == '#' && index == 0);
        if edge || matches!(symbol, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            text.push('\\');
            text.push(symbol);
        } else if symbol.is_control() {
            // Nothing of a certificate may end a line of the log or of a list.
            let mut bytes = [0; 4];
            for byte in symbol.encode_utf8(&mut bytes).bytes() {
                let _ = write!(text, "\\{byte:02X}");
            }
        } else {
            text.push(symbol);
        }
    }
    text
}

/// Splits at separators that no backslash stands before.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, symbol) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if symbol == '\\' {
            escaped = true;
        } else if symbol == separator {
            parts.push(&text[start..at]);
            start = at + symbol.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_attribute(text: &str) -> Result<String, NameError> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(NameError::NoValue(text.to_owned()));
    };
    if name.starts_with(' ') || name.ends_with(' ') {
        return Err(NameError::Space(text.trim_start().to_owned()));
    }
    let oid = match ATTRIBUTES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        Some((_, oid)) => *oid,
        None if is_number(name) => name,
        None => return Err(NameError::Attribute(name.to_owned())),
    };
    let name = ATTRIBUTES.iter().find(|(_, id)| *id == oid).map_or(oid, |(name, _)| name);
    if value.is_empty() {
        return Err(NameError::EmptyValue(name.to_owned()));
    }
    if let Some(digits) = value.strip_prefix('#') {
        let even = digits.len() % 2 == 0 && !digits.is_empty();
        if !even || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NameError::Escape(text.to_owned()));
        }
        return Ok(format!("{name}=#{}", digits.to_ascii_lowercase()));
    }
    Ok(format!("{name}={}", escape(&unescape(value)?)))
}

fn is_number(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.contains('.') && name.split('.').all(digits)
}

fn unescape(value: &str) -> Result<String, NameError> {
    if value.starts_with(' ') || (value.ends_with(' ') && !value.ends_with("\\ ")) {
        return Err(NameError::Space(value.to_owned()));
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'*' {
            return Err(NameError::Pattern(value.to_owned()));
        }
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let first = rest.next().ok_or_else(|| NameError::Escape(value.to_owned()))?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match digit(first) {
            Some(high) => {
                let low = rest.next().and_then(digit);
                let low = low.ok_or_else(|| NameError::Escape(value.to_owned()))?;
                bytes.push((high << 4 | low) as u8);
            }
            None => bytes.push(first),
        }
    }
    String::from_utf8(bytes).map_err(|_| NameError::NotText(value.to_owned()))
}
