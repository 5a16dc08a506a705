//! Sector bitmaps: one bit per sector of a block, most significant bit first; set means that the
//! block holds the sector. Works on bytes as the file keeps them and knows nothing of blocks.
//!
//! Ranges must lie inside the bitmap; one that does not is a programmer's error and panics.

const WORD_BITS: u32 = 64;

/// Whether the bit of `sector` is set.
pub fn is_set(bits: &[u8], sector: u32) -> bool {
    bits[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0
}

/// Sets `count` bits from `start`.
pub fn set_range(bits: &mut [u8], start: u32, count: u32) {
    fill(bits, start, count, true);
}

/// Clears `count` bits from `start`.
pub fn clear_range(bits: &mut [u8], start: u32, count: u32) {
    fill(bits, start, count, false);
}

/// Gives `count` bits from `start` the value `set`.
pub fn fill(bits: &mut [u8], start: u32, count: u32, set: bool) {
    if count == 0 {
        return;
    }
    let end = start.checked_add(count).expect("a bitmap has fewer than 2^32 bits");
    let (first, last) = ((start / 8) as usize, ((end - 1) / 8) as usize);
    let head = 0xFF >> (start % 8);
    let tail = 0xFF << (7 - (end - 1) % 8);
    let mut put = |at: usize, mask: u8| {
        if set {
            bits[at] |= mask;
        } else {
            bits[at] &= !mask;
        }
    };
    if first == last {
        return put(first, head & tail);
    }
    put(first, head);
    put(last, tail);
    bits[first + 1..last].fill(if set { 0xFF } else { 0 });
}

/// The value of the bit at `from`, and for how many bits before `end` it stays the same. An empty
/// range gives `(false, 0)`.
pub fn run(bits: &[u8], from: u32, end: u32) -> (bool, u32) {
    if from >= end {
        return (false, 0);
    }
    let value = is_set(bits, from);
    let mut at = from;
    while at < end {
        let skip = at % 8;
        let same = (word(bits, (at / 8) as usize, value) << skip).leading_ones();
        at = at.saturating_add(same);
        if same < WORD_BITS - skip {
            break;
        }
    }
    (value, at.min(end) - from)
}

/// Whether the first `sectors` bits are all set.
pub fn is_full(bits: &[u8], sectors: u32) -> bool {
    sectors == 0 || run(bits, 0, sectors) == (true, sectors)
}

/// Eight bytes from `start`, turned so that bits equal to `value` are ones. Beyond the bitmap no
/// bit is equal.
fn word(bits: &[u8], start: usize, value: bool) -> u64 {
    let rest = &bits[start.min(bits.len())..];
    let flip = if value { 0 } else { u64::MAX };
    if let Some(eight) = rest.first_chunk() {
        return u64::from_be_bytes(*eight) ^ flip;
    }
    let mut padded = if value { [0; 8] } else { [0xFF; 8] };
    padded[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(padded) ^ flip
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{clear_range, fill, is_full, is_set, run, set_range};

    #[test]
    fn the_first_sector_is_the_highest_bit() {
        let mut bits = [0; 2];
        set_range(&mut bits, 0, 1);
        set_range(&mut bits, 9, 2);
        assert_eq!(bits, [0x80, 0x60]);
        clear_range(&mut bits, 0, 10);
        assert_eq!(bits, [0, 0x20]);
    }

    #[test]
    fn full_is_judged_by_the_sectors_that_count() {
        assert!(is_full(&[0xFF, 0xF0], 12));
        assert!(!is_full(&[0xFF, 0xF0], 13));
        assert!(is_full(&[], 0));
    }

    proptest! {
        #[test]
        fn runs_and_ranges_agree_with_bit_by_bit(
            mut bits in proptest::collection::vec(any::<u8>(), 1..40),
            a in 0u32..320, b in 0u32..320, set: bool, plain: bool,
        ) {
            let most = bits.len() as u32 * 8;
            let (a, b) = (a.min(b).min(most), a.max(b).min(most));
            if plain {
                bits.fill(if set { 0xFF } else { 0 });
            }
            let (value, count) = run(&bits, a, b);
            let slow = (a..b).take_while(|at| is_set(&bits, *at) == is_set(&bits, a)).count();
            prop_assert_eq!(count as usize, slow);
            prop_assert_eq!(value, a < b && is_set(&bits, a));
            let before = bits.clone();
            fill(&mut bits, a, b - a, set);
            for at in 0..most {
                let inside = at >= a && at < b;
                prop_assert_eq!(is_set(&bits, at), if inside { set } else { is_set(&before, at) });
            }
        }
    }
}
