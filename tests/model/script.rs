//! What a life may ask of a disk, as proptest shrinks it: batches of requests that are in flight
//! together, and the chain of images they are asked of.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;

/// What the lowest image of a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bottom {
    /// Bytes as they are, with so many behind the last whole sector.
    Raw { ragged: u16 },
    /// A fixed VHD.
    Fixed,
    /// A dynamic VHD with blocks of 512 << `shift` bytes.
    Dynamic { shift: u8 },
}

/// A differencing image on top of what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper {
    /// Blocks have 512 << `shift` bytes.
    pub(crate) shift: u8,
    /// Its size in sectors; the parent's, rounded up, when `None`.
    pub(crate) sectors: Option<u32>,
}

/// A chain and what is written into each image of it while that is on top.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Sectors of the lowest image.
    pub(crate) sectors: u32,
    pub(crate) bottom: Bottom,
    pub(crate) first: Vec<Batch>,
    pub(crate) uppers: Vec<(Upper, Vec<Batch>)>,
    /// Decides the order in which effects complete.
    pub(crate) order: u64,
}

/// Requests in flight together; then the disk is opened anew, or not.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) asks: Vec<Ask>,
    pub(crate) reopen: bool,
}

/// One request. Position and length are folded into the disk by whoever carries it out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: AskKind,
    /// Position and length are multiples of this, the end of the disk apart.
    pub(crate) grain: u32,
    pub(crate) at: u32,
    pub(crate) len: u32,
    pub(crate) fua: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskKind {
    Write,
    Zero { may_unmap: bool },
    Discard,
    Read,
    Map { limit: u8 },
    Flush,
}

/// Chains of up to four images over disks of up to `most` sectors.
pub(crate) fn scripts(most: u32) -> impl Strategy<Value = Script> {
    let sectors = prop_oneof![3 => 1..64_u32, 5 => 64..400_u32, 1 => 400..most];
    let bottom = prop_oneof![
        1 => (0..512_u16).prop_map(|ragged| Bottom::Raw { ragged }),
        1 => Just(Bottom::Fixed),
        3 => shifts().prop_map(|shift| Bottom::Dynamic { shift }),
    ];
    let other = option::weighted(0.3, prop_oneof![6 => 1..400_u32, 1 => 1..most]);
    let upper = (shifts(), other).prop_map(|(shift, sectors)| Upper { shift, sectors });
    let uppers = vec((upper, vec(batches(), 0..5)), 0..4);
    (sectors, bottom, vec(batches(), 0..5), uppers, any::<u64>()).prop_map(
        |(sectors, bottom, first, uppers, order)| Script { sectors, bottom, first, uppers, order },
    )
}

/// Blocks of one sector to 1 MiB; mostly such that a disk has several.
fn shifts() -> impl Strategy<Value = u8> {
    prop_oneof![6 => 0..7_u8, 1 => 7..12_u8]
}

fn batches() -> impl Strategy<Value = Batch> {
    (vec(asks(), 1..8), proptest::bool::weighted(0.15))
        .prop_map(|(asks, reopen)| Batch { asks, reopen })
}

fn asks() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        8 => Just(AskKind::Write),
        3 => any::<bool>().prop_map(|may_unmap| AskKind::Zero { may_unmap }),
        2 => Just(AskKind::Discard),
        3 => Just(AskKind::Read),
        1 => (0..5_u8).prop_map(|limit| AskKind::Map { limit }),
        2 => Just(AskKind::Flush),
    ];
    let grain = prop_oneof![3 => Just(512_u32), 2 => Just(1), 2 => Just(4096), 1 => Just(1 << 16)];
    let len = prop_oneof![4 => 1..9_u32, 2 => 1..70_u32, 1 => any::<u32>()];
    (kind, grain, any::<u32>(), len, proptest::bool::weighted(0.2))
        .prop_map(|(kind, grain, at, len, fua)| Ask { kind, grain, at, len, fua })
}
