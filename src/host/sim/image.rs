//! The flat bytes of a file with a fingerprint that is cheap to keep while sectors change.
//!
//! Refuses to know what is durable: that is `fs`.

use crate::engine::units::ByteLen;

use super::rng::mix;

/// Bytes in a sector as a `usize`.
pub const SECTOR_LEN: usize = 512;

/// The bytes of one sector.
pub type Sector = [u8; SECTOR_LEN];

/// The fingerprint of one sector's content at its place; zero for zeroes, so that growing a file
/// by a hole changes nothing but its length.
pub fn sector_print(no: u32, bytes: &[u8]) -> u64 {
    let mut lanes = [1u64, 2, 3, 4];
    let mut any = 0u64;
    for group in bytes.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(group.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of eight bytes"));
            any |= word;
            *lane = (lane.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }
    if any == 0 {
        return 0;
    }
    let [a, b, c, d] = lanes;
    mix(a ^ mix(b ^ mix(c ^ mix(d ^ mix(u64::from(no) + 1)))))
}

/// The part of a fingerprint that says how long the file is.
pub fn length_print(len: u64) -> u64 {
    mix(len ^ 0x5151_E515_0000_0001)
}

/// A file's bytes, padded with zeroes to whole sectors in memory.
#[derive(Clone, Debug, Default)]
pub struct Image {
    bytes: Vec<u8>,
    len: u64,
    prints: Vec<u64>,
    sum: u64,
}

impl Image {
    /// An image of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut image = Self::default();
        image.replace(bytes);
        image
    }

    /// Becomes an image of these bytes, keeping its memory.
    pub fn replace(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.len = bytes.len() as u64;
        self.bytes.resize(bytes.len().next_multiple_of(SECTOR_LEN), 0);
        self.prints.clear();
        let sectors = self.bytes.chunks_exact(SECTOR_LEN).zip(0u32..);
        self.prints.extend(sectors.map(|(sector, no)| sector_print(no, sector)));
        self.sum = self.prints.iter().fold(0, |sum, print| sum.wrapping_add(*print));
    }

    /// How long the file is.
    pub fn len(&self) -> ByteLen {
        ByteLen::new(self.len)
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// The content of sector `no`; zeroes behind the end.
    pub fn sector(&self, no: u32) -> Sector {
        let start = no as usize * SECTOR_LEN;
        let mut sector = [0; SECTOR_LEN];
        if let Some(found) = self.bytes.get(start..start + SECTOR_LEN) {
            sector.copy_from_slice(found);
        }
        sector
    }

    /// Whole sectors in memory.
    pub fn sectors(&self) -> u32 {
        self.prints.len() as u32
    }

    /// The fingerprint of sector `no`; zero behind the end.
    pub fn print_of(&self, no: u32) -> u64 {
        self.prints.get(no as usize).copied().unwrap_or(0)
    }

    /// The sum of all sector fingerprints.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The fingerprint of the whole file.
    pub fn print(&self) -> u64 {
        self.sum.wrapping_add(length_print(self.len))
    }

    /// Replaces sector `no`. Bytes behind the file's end are dropped.
    pub fn put(&mut self, no: u32, body: &Sector) {
        let start = no as usize * SECTOR_LEN;
        if start as u64 >= self.len {
            return;
        }
        let kept = (self.len as usize - start).min(SECTOR_LEN);
        self.bytes[start..start + kept].copy_from_slice(&body[..kept]);
        self.renew(no);
    }

    /// Cuts the file or grows it by zeroes.
    pub fn set_len(&mut self, len: ByteLen) {
        let len = len.get();
        let padded = (len as usize).next_multiple_of(SECTOR_LEN);
        while self.prints.len() > padded / SECTOR_LEN {
            let gone = self.prints.pop().unwrap_or(0);
            self.sum = self.sum.wrapping_sub(gone);
        }
        self.bytes.resize(padded, 0);
        self.prints.resize(padded / SECTOR_LEN, 0);
        self.bytes[len as usize..].fill(0);
        self.len = len;
        if padded as u64 != len {
            self.renew((padded / SECTOR_LEN - 1) as u32);
        }
    }

    fn renew(&mut self, no: u32) {
        let start = no as usize * SECTOR_LEN;
        let print = sector_print(no, &self.bytes[start..start + SECTOR_LEN]);
        let slot = &mut self.prints[no as usize];
        self.sum = self.sum.wrapping_sub(*slot).wrapping_add(print);
        *slot = print;
    }
}
