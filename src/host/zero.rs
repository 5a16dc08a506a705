//! A piece of memory that holds zeroes for ever, so that zeroing a range needs no buffer.
//!
//! Refuses to be written: it is a static.

use crate::engine::units::ByteLen;

/// The zeroes everybody shares.
pub(super) static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);

const ZEROES_LEN: usize = 64 * 1024;

/// Zero bytes, aligned for every direct-I/O device we know of.
#[repr(align(4096))]
pub(super) struct Zeroes([u8; ZEROES_LEN]);

impl Zeroes {
    /// Shows slices that hold `len` zeroes together, or less when `room` slices are not enough.
    /// Tells how many it showed.
    pub(super) fn slices<'a>(
        &'a self,
        len: ByteLen,
        room: usize,
        see: &mut dyn FnMut(&'a [u8]),
    ) -> usize {
        let mut left = len.get();
        let mut shown = 0;
        while left > 0 && shown < room {
            let now = left.min(ZEROES_LEN as u64);
            see(&self.0[..now as usize]);
            left -= now;
            shown += 1;
        }
        shown
    }
}
