//! Base64 (RFC 4648, section 4), as XML-RPC carries bytes.
//!
//! Refuses letters outside the alphabet, white space apart, and lengths that cannot be.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Bytes as text.
pub(super) fn encode(bytes: &[u8]) -> String {
    let letter = |bits: u32| char::from(LETTERS[(bits & 63) as usize]);
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let at = |index: usize| u32::from(piece.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        text.push(letter(bits >> 18));
        text.push(letter(bits >> 12));
        text.push(if piece.len() > 1 { letter(bits >> 6) } else { '=' });
        text.push(if piece.len() > 2 { letter(bits) } else { '=' });
    }
    text
}

/// Text as bytes, `None` when it is no base64.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let letters: Vec<u8> = text.bytes().filter(|letter| !letter.is_ascii_whitespace()).collect();
    let body = letters.strip_suffix(b"==").or(letters.strip_suffix(b"=")).unwrap_or(&letters);
    if !letters.len().is_multiple_of(4) || body.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(body.len() / 4 * 3 + 2);
    for piece in body.chunks(4) {
        let mut bits = 0_u32;
        for letter in piece {
            let value = LETTERS.iter().position(|known| known == letter)?;
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let missing = 4 - piece.len();
        let [_, first, second, third] = (bits << (6 * missing)).to_be_bytes();
        bytes.extend_from_slice(&[first, second, third][..3 - missing]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn the_examples_of_the_rfc_hold_both_ways() {
        let examples =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in examples {
            assert_eq!(encode(plain.as_bytes()), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(decode(" Zm9v\n YmFy "), Some(b"foobar".to_vec()));
        for odd in ["Z", "Zg", "Zg=", "Z===", "Zm9v=", "Zm-v", "===="] {
            assert_eq!(decode(odd), None, "{odd}");
        }
    }
}
