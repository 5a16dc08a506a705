//! A second reader of sparse VHDs, written from the format's description and sharing no line with
//! the engine or the VHD crate: what it sees, any other program sees.
//!
//! Refuses to check anything; its images are known to be sound.

use crate::tag::CELL;

/// A layer of a chain as bytes: a sparse VHD, or a flat disk of so many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes<'a> {
    /// A dynamic or differencing VHD.
    Sparse(&'a [u8]),
    /// A raw image.
    Flat(&'a [u8]),
}

/// Fills `cell` with cell number `number` of a disk whose layers are `chain`, the top first.
pub(crate) fn read_cell(chain: &[Bytes<'_>], number: u32, cell: &mut [u8]) {
    let at = number as usize * CELL;
    cell.fill(0);
    for layer in chain {
        // What a layer does not reach is zero, whatever lies below it.
        if at >= size(*layer) {
            return;
        }
        let found = match *layer {
            Bytes::Flat(bytes) => bytes.get(at..at + CELL),
            Bytes::Sparse(bytes) => sparse(bytes, at),
        };
        if let Some(found) = found {
            cell.copy_from_slice(found);
            return;
        }
    }
}

/// Bytes of the disk that a layer describes.
pub(crate) fn size(layer: Bytes<'_>) -> usize {
    match layer {
        Bytes::Flat(bytes) => bytes.len(),
        Bytes::Sparse(bytes) => number(bytes, 48, 8),
    }
}

fn sparse(bytes: &[u8], at: usize) -> Option<&[u8]> {
    // The copy of the footer in front names the header, the header the table.
    let header = number(bytes, 16, 8);
    let table = number(bytes, header + 16, 8);
    let block_bytes = number(bytes, header + 32, 4);
    let entry = number(bytes, table + at / block_bytes * 4, 4);
    if entry == 0xFFFF_FFFF {
        return None;
    }
    let (bitmap, within) = (entry * 512, at % block_bytes);
    let sector = within / 512;
    let present = bytes[bitmap + sector / 8] >> (7 - sector % 8) & 1 == 1;
    let data = bitmap + (block_bytes / 512).div_ceil(8).next_multiple_of(512);
    present.then(|| &bytes[data + within..data + within + CELL])
}

fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}
