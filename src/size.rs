//! Sizes as people write and read them: K, M, G, T, P and KiB... are multiples of 1024, KB, MB...
//! multiples of 1000 (rule 4 of section 3.2). Refuses to round: a disk of another size than asked
//! for is a surprise.

use crate::engine::units::{ByteLen, SECTOR};

const PREFIXES: &str = "KMGTPE";

/// A size in bytes, of any number of them.
pub fn parse_bytes(text: &str) -> Result<ByteLen, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || {
        format!("{text:?} is no size: expected a whole number and a unit such as K, MiB, GB or T")
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = factor(unit.trim()).ok_or_else(wrong)?;
    let bytes = number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))?;
    Ok(ByteLen::new(bytes))
}

/// A size in bytes that is a whole number of sectors.
pub fn parse_sectors(text: &str) -> Result<ByteLen, String> {
    let bytes = parse_bytes(text)?.get();
    if bytes.is_multiple_of(SECTOR) {
        return Ok(ByteLen::new(bytes));
    }
    let below = bytes / SECTOR * SECTOR;
    let above = below.checked_add(SECTOR);
    let nearest = above.map_or(below.to_string(), |above| format!("{below} and {above}"));
    Err(format!("{bytes} is not a multiple of 512; the nearest are {nearest}"))
}

fn factor(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    let mut rest = upper.chars();
    let Some(first) = rest.next() else { return Some(1) };
    if upper == "B" {
        return Some(1);
    }
    let power = PREFIXES.find(first)? as u32 + 1;
    match rest.as_str() {
        "" | "IB" => 1024u64.checked_pow(power),
        "B" => 1000u64.checked_pow(power),
        _ => None,
    }
}

/// A size for people: exact in the largest unit of 1024 that divides it, unless that makes the
/// number too long to read; else with one decimal.
pub fn human(size: ByteLen) -> String {
    const READABLE: u64 = 10_000;
    let bytes = size.get();
    if bytes == 0 {
        return "0 B".to_owned();
    }
    let exact = (0..=6u32).rev().find(|power| bytes.is_multiple_of(1 << (10 * power)));
    if let Some(power) = exact.filter(|power| bytes >> (10 * power) < READABLE) {
        return format!("{} {}", bytes >> (10 * power), unit(power));
    }
    let power = (1..=6u32).rev().find(|power| bytes >> (10 * power) > 0).unwrap_or(1);
    let tenths = u128::from(bytes) * 10 / (1 << (10 * power));
    format!("{}.{} {}", tenths / 10, tenths % 10, unit(power))
}

fn unit(power: u32) -> String {
    let prefix = power.checked_sub(1).and_then(|index| PREFIXES.chars().nth(index as usize));
    prefix.map_or("B".to_owned(), |prefix| format!("{prefix}iB"))
}

#[cfg(test)]
mod tests {
    use super::{human, parse_bytes, parse_sectors};
    use crate::engine::units::ByteLen;

    #[test]
    fn units_are_multiples_of_1024_unless_they_say_b() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4 KiB", 4096),
            ("4KB", 4000),
            ("3m", 3 << 20),
            ("2040G", 2040 << 30),
            ("1T", 1 << 40),
            ("1TB", 1_000_000_000_000),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse_bytes(text), Ok(ByteLen::new(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "4X", "4KK", "16E", "99999999999999999999", "1 B x"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_of_no_whole_sectors_is_refused_with_the_two_nearest() {
        assert_eq!(
            parse_sectors("1KB").unwrap_err(),
            "1000 is not a multiple of 512; \
            the nearest are 512 and 1024"
        );
        assert_eq!(parse_sectors("1024"), Ok(ByteLen::new(1024)));
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1536 B"),
            ((4 << 20) + 512, "4.0 MiB"),
            (2040 << 30, "2040 GiB"),
            (4 << 20, "4 MiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(ByteLen::new(bytes)), text);
        }
    }
}
