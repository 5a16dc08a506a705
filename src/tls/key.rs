//! Mends private keys of elliptic curves as GnuTLS before 3.8 writes them.
//!
//! RFC 5915 section 3 wants the secret number in as many bytes as the curve has. `certtool` writes
//! it as an integer: with a zero in front of every second key, and short if it begins with zeroes.
//! The library behind rustls takes only the exact length, so such keys are written anew. It knows
//! only as much of DER as that needs, and gives up on anything else.

use rustls::pki_types::{PrivateKeyDer, PrivateSec1KeyDer};

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const PARAMETERS: u8 = 0xa0;
const PUBLIC: u8 = 0xa1;

/// The same key with its number in full length. `None` if that is not what is wrong with it.
pub(super) fn mended(key: &PrivateKeyDer<'_>) -> Option<PrivateKeyDer<'static>> {
    let inner = match key {
        PrivateKeyDer::Sec1(der) => der.secret_sec1_der(),
        // RFC 5958: a version, an algorithm, and the key of above as octets.
        PrivateKeyDer::Pkcs8(der) => {
            let (outer, _) = value(der.secret_pkcs8_der(), SEQUENCE)?;
            let (_, rest) = value(outer, INTEGER)?;
            let (_, rest) = value(rest, SEQUENCE)?;
            value(rest, OCTETS)?.0
        }
        _ => return None,
    };
    let (fields, _) = value(inner, SEQUENCE)?;
    let (version, rest) = value(fields, INTEGER)?;
    let (number, rest) = value(rest, OCTETS)?;
    let (parameters, rest) = match value(rest, PARAMETERS) {
        Some((parameters, rest)) => (Some(parameters), rest),
        None => (None, rest),
    };
    // The public point: unused bits, its form, and two numbers of the curve's length.
    let (public, _) = value(rest, PUBLIC)?;
    let curve_bytes = value(public, 0x03)?.0.len().checked_sub(2)? / 2;
    let digits = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    if number.len() == curve_bytes || digits.len() > curve_bytes {
        return None;
    }
    let mut full = vec![0; curve_bytes - digits.len()];
    full.extend_from_slice(digits);
    let mut body = tagged(INTEGER, version);
    body.extend(tagged(OCTETS, &full));
    if let Some(parameters) = parameters {
        body.extend(tagged(PARAMETERS, parameters));
    }
    body.extend(tagged(PUBLIC, public));
    Some(PrivateSec1KeyDer::from(tagged(SEQUENCE, &body)).into())
}

/// The value with this tag at the front, and what follows.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (&len, rest) = rest.split_first()?;
    let (len, rest) = match len {
        0..=0x7f => (usize::from(len), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), rest.get(2..)?),
        _ => return None,
    };
    if *first != tag { None } else { rest.split_at_checked(len) }
}

/// A value that is shorter than 64 KiB, with its tag and length.
fn tagged(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match value.len() {
        len @ 0..=0x7f => der.push(len as u8),
        len @ 0x80..=0xff => der.extend([0x81, len as u8]),
        len => der.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    der.extend_from_slice(value);
    der
}
