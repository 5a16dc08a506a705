//! The memory of a ring's entries: a block and a payload each, mapped once, touched when used.
//!
//! Each piece has one token. Holding it is the right to the bytes; while the kernel has an entry
//! its tokens are locked away in [`Lent`], which shows nothing. That is I6 here.
#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};
use nix::libc::iovec;

use super::command::BLOCK_BYTES;

/// Distance of blocks from each other.
const BLOCK_STRIDE: usize = 512;
/// What payloads are aligned to: a page anywhere.
const PAYLOAD_ALIGNMENT: usize = 64 << 10;

/// The memory of all entries of a ring. Stays mapped as long as any token lives.
#[derive(Debug)]
struct Map {
    map: MmapRaw,
    payloads_start: usize,
    payload_bytes: usize,
}

/// The right to one entry's block and payload.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) block: Block,
    pub(super) payload: Payload,
}

/// The right to a block.
#[derive(Debug)]
pub(super) struct Block {
    map: Arc<Map>,
    index: usize,
}

/// The right to a payload.
#[derive(Debug)]
pub(super) struct Payload {
    map: Arc<Map>,
    index: usize,
}

/// Both, while the kernel has them. Dropped, it leaves the memory mapped for ever: the kernel may
/// still write there.
#[derive(Debug)]
pub(super) struct Lent(Option<Tokens>);

/// Maps memory for `count` entries. `payload_bytes` is rounded up to whole pages.
pub(super) fn map(count: usize, payload_bytes: usize) -> io::Result<Vec<Tokens>> {
    let too_much = || io::Error::from(io::ErrorKind::OutOfMemory);
    let payload_bytes =
        payload_bytes.checked_next_multiple_of(PAYLOAD_ALIGNMENT).ok_or_else(too_much)?;
    let blocks = count.checked_mul(BLOCK_STRIDE).ok_or_else(too_much)?;
    let payloads_start = blocks.checked_next_multiple_of(PAYLOAD_ALIGNMENT).ok_or_else(too_much)?;
    let payloads = count.checked_mul(payload_bytes).ok_or_else(too_much)?;
    let len = payloads_start.checked_add(payloads).ok_or_else(too_much)?;
    let map = MmapMut::map_anon(len.max(1)).map(MmapRaw::from)?;
    let map = Arc::new(Map { map, payloads_start, payload_bytes });
    // The only place that makes tokens: one of each for each index.
    let tokens = |index| Tokens {
        block: Block { map: Arc::clone(&map), index },
        payload: Payload { map: Arc::clone(&map), index },
    };
    Ok((0..count).map(tokens).collect())
}

impl Map {
    fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at + len <= self.map.len(), "tokens are made for what is mapped");
        self.map.as_mut_ptr().wrapping_add(at)
    }
}

impl Block {
    fn pointer(&self) -> *mut u8 {
        self.map.pointer(self.index * BLOCK_STRIDE, BLOCK_BYTES)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `pointer` checked the bounds, and the map lives as long as the token. The token
        // is the only one for these bytes, and the kernel does not have them, or it were in `Lent`.
        unsafe { std::slice::from_raw_parts(self.pointer(), BLOCK_BYTES) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` shuts out other references.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), BLOCK_BYTES) }
    }
}

impl Payload {
    fn pointer(&self) -> *mut u8 {
        let len = self.map.payload_bytes;
        self.map.pointer(self.map.payloads_start + self.index * len, len)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `pointer` checked the bounds, and the map lives as long as the token. The token
        // is the only one for these bytes, and the kernel does not have them, or it were in `Lent`.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.map.payload_bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` shuts out other references.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.map.payload_bytes) }
    }
}

impl Tokens {
    /// Locks them away, to let the kernel have the memory.
    pub(super) fn lend(self) -> Lent {
        Lent(Some(self))
    }

    fn iovecs(&self) -> [iovec; 2] {
        let block = iovec { iov_base: self.block.pointer().cast(), iov_len: BLOCK_BYTES };
        let payload_len = self.payload.map.payload_bytes;
        [block, iovec { iov_base: self.payload.pointer().cast(), iov_len: payload_len }]
    }
}

impl Lent {
    /// The memory in a registration's words.
    pub(super) fn iovecs(&self) -> [iovec; 2] {
        self.0.as_ref().expect("taken only by value").iovecs()
    }

    /// Gives them back.
    ///
    /// # Safety
    /// The kernel must be done with the entry: its completion was seen, or it was never submitted.
    pub(super) unsafe fn take_back(mut self) -> Tokens {
        self.0.take().expect("taken only here, by value")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(tokens) = self.0.take() {
            std::mem::forget(tokens);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{BLOCK_BYTES, map};

    #[test]
    fn no_two_tokens_share_a_byte_and_payloads_are_page_aligned() {
        let mut tokens = map(5, 100_000).unwrap();
        let mut spans = Vec::new();
        for token in &mut tokens {
            let [block, payload] = token.iovecs();
            assert_eq!(block.iov_len, BLOCK_BYTES);
            assert_eq!(payload.iov_len, 131_072);
            assert_eq!(payload.iov_base as usize % 4096, 0);
            spans.extend([block, payload].map(|v| (v.iov_base as usize, v.iov_len)));
            token.block.bytes_mut().fill(1);
            token.payload.bytes_mut().fill(2);
        }
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert!(tokens.iter().all(|t| t.block.bytes().iter().all(|byte| *byte == 1)));
        assert!(tokens.iter().all(|t| t.payload.bytes().iter().all(|byte| *byte == 2)));
        assert!(map(usize::MAX, 4096).is_err());
    }

    #[test]
    fn what_the_kernel_may_write_to_stays_mapped() {
        let token = map(1, 4096).unwrap().pop().unwrap();
        let [_, payload] = token.iovecs();
        drop(token.lend());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let holds = |line: &&str| {
            let (first, last) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let of = |text| usize::from_str_radix(text, 16).unwrap();
            (of(first)..of(last)).contains(&(payload.iov_base as usize))
        };
        assert!(maps.lines().any(|line| holds(&line)));
    }
}
