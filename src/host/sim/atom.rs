//! What a file operation is to a disk that may lose power: independent effects of one sector, of
//! one 4 KiB piece of a punch, or of the file's size (crash model, 4.2).
//!
//! Refuses to decide which of them survive: that is `enumerate`.

use super::image::{Image, SECTOR_LEN, Sector, sector_print};

/// Sectors in one independent piece of a punch.
pub const PUNCH_SECTORS: u32 = 8;

/// How far the operation behind an atom has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Executed, but its completion was not delivered: no sync started yet may rely on it.
    Executed,
    /// Its completion was delivered at this moment of the host's clock.
    Delivered(u64),
    /// A failed sync marked it clean (fsyncgate): it may be on disk, and no later sync cares.
    Frozen,
}

/// One effect that persists or not on its own.
#[derive(Clone, Debug)]
pub struct Atom {
    /// The operation it is part of.
    pub op: u32,
    /// How far that operation has come.
    pub stage: Stage,
    /// What it does.
    pub deed: Deed,
}

/// What an atom does when it persists.
#[derive(Clone, Debug)]
pub enum Deed {
    /// A sector gets this content.
    Put {
        /// Sector of the file.
        no: u32,
        /// Its fingerprint at that place.
        print: u64,
        /// The content.
        body: Box<Sector>,
    },
    /// Up to eight sectors become zero: those with a bit in `mask`.
    Zero {
        /// First sector of the piece.
        first: u32,
        /// Which of the sectors (bit 0 is the first).
        mask: u8,
    },
    /// The file becomes at least this long.
    Grow(u64),
    /// The file is cut to this length.
    Cut(u64),
}

impl Deed {
    /// A sector write.
    pub fn put(no: u32, body: Sector) -> Self {
        Self::Put { no, print: sector_print(no, &body), body: Box::new(body) }
    }

    /// Whether this is about the file's size.
    pub fn is_size(&self) -> bool {
        matches!(self, Self::Grow(_) | Self::Cut(_))
    }

    /// The sectors it touches: the first, and a bit for each.
    pub fn touched(&self) -> (u32, u8) {
        match self {
            Self::Put { no, .. } => (*no, 1),
            Self::Zero { first, mask } => (*first, *mask),
            Self::Grow(_) | Self::Cut(_) => (0, 0),
        }
    }

    /// Does it to an image that is long enough.
    pub fn apply(&self, image: &mut Image) {
        match self {
            Self::Put { no, body, .. } => image.put(*no, body),
            Self::Zero { first, mask } => {
                for bit in (0..8).filter(|bit| mask & (1 << bit) != 0) {
                    image.put(first + bit, &[0; SECTOR_LEN]);
                }
            }
            Self::Grow(len) if *len > image.len().get() => image.set_len(unit(*len)),
            Self::Grow(_) => {}
            Self::Cut(len) => image.set_len(unit(*len)),
        }
    }
}

fn unit(len: u64) -> crate::engine::units::ByteLen {
    crate::engine::units::ByteLen::new(len)
}

/// The sector writes of `bytes` at `at`. Ragged edges take the rest of their sector from `over`,
/// as the page cache does.
pub fn write_deeds(over: &Image, at: u64, bytes: &[u8], into: &mut Vec<Deed>) {
    let mut done = 0;
    while done < bytes.len() {
        let here = at + done as u64;
        let skip = (here % SECTOR_LEN as u64) as usize;
        let count = (SECTOR_LEN - skip).min(bytes.len() - done);
        let no = (here / SECTOR_LEN as u64) as u32;
        let mut body = if count == SECTOR_LEN { [0; SECTOR_LEN] } else { under(over, no, into) };
        body[skip..skip + count].copy_from_slice(&bytes[done..done + count]);
        into.push(Deed::put(no, body));
        done += count;
    }
    let end = at + bytes.len() as u64;
    if end > over.len().get() {
        into.push(Deed::Grow(end));
    }
}

/// What a sector holds once the deeds before it were done.
fn under(over: &Image, no: u32, before: &[Deed]) -> Sector {
    let last = before.iter().rev().find_map(|deed| match deed {
        Deed::Put { no: at, body, .. } if *at == no => Some(**body),
        Deed::Zero { first, mask } if no >= *first && no - first < 8 => {
            (mask & (1 << (no - first)) != 0).then_some([0; SECTOR_LEN])
        }
        _ => None,
    });
    last.unwrap_or_else(|| over.sector(no))
}

/// The pieces of zeroing the bytes from `at` to `end`: whole sectors by 4 KiB pieces of the file,
/// ragged edges as sector writes.
pub fn zero_deeds(over: &Image, at: u64, end: u64, into: &mut Vec<Deed>) {
    let sector = SECTOR_LEN as u64;
    let mut here = at;
    while here < end {
        let no = (here / sector) as u32;
        if !here.is_multiple_of(sector) || end - here < sector {
            let count = (sector - here % sector).min(end - here);
            let mut body = over.sector(no);
            let skip = (here % sector) as usize;
            body[skip..skip + count as usize].fill(0);
            into.push(Deed::put(no, body));
            here += count;
            continue;
        }
        let first = no - no % PUNCH_SECTORS;
        let whole = ((end - here) / sector).min(u64::from(first + PUNCH_SECTORS - no)) as u32;
        let mask = (0..whole).fold(0u8, |mask, bit| mask | 1 << (no - first + bit));
        into.push(Deed::Zero { first, mask });
        here += u64::from(whole) * sector;
    }
}
