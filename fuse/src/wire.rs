//! The kernel's requests and answers as bytes (`linux/fuse.h`, protocol 7.31 and later, this
//! machine's byte order), for a transport that does not go through `fuser`.
//!
//! Parses into plain values and lays plain values out; a layout that cannot be is answered with an
//! error number. Acts on nothing.

use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::manner::{
    ATTRIBUTE_TTL, ENTRY_TTL, GENERATION, GOOD_IO, Manner, SECTOR, change, is_durable, open_how,
    sought,
};
use crate::name::NAME_MAX;
use crate::ops::{Attributes, Change, Kind, Listed, OpenHow, Room};
use crate::port::{Errno, RunKind};

/// Room for the largest answer of fixed size (`fuse_entry_out`).
pub(crate) const SMALL_BYTES: usize = 128;

/// ENOTTY: what an `ioctl` nobody knows gets.
const ENOTTY: i32 = 25;

/// `fuse_setattr_in.valid`.
const FATTR_MODE: u32 = 1;
const FATTR_UID: u32 = 1 << 1;
const FATTR_GID: u32 = 1 << 2;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_ATIME: u32 = 1 << 4;
const FATTR_MTIME: u32 = 1 << 5;
const FATTR_ATIME_NOW: u32 = 1 << 7;
const FATTR_MTIME_NOW: u32 = 1 << 8;

/// `fuse_open_out.open_flags`.
const FOPEN_DIRECT_IO: u32 = 1;
const FOPEN_NOFLUSH: u32 = 1 << 5;
const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// File types, as modes and directory entries have them.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
/// `fuse_dirent` before the name; entries start at multiples of eight.
const DIRENT_HEAD: usize = 24;

/// One request as it lies in an entry of a ring: lent, and read only.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// `fuse_in_header`, with or without room behind it.
    pub head: &'a [u8],
    /// The structure of the operation, with or without room behind it.
    pub operation: &'a [u8],
    /// Names and data.
    pub payload: &'a [u8],
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask<'a> {
    Lookup(&'a [u8]),
    Attributes,
    Change(Change),
    Open(OpenHow),
    OpenDirectory,
    Read {
        handle: u64,
        at: u64,
        len: u32,
    },
    Write {
        handle: u64,
        at: u64,
        data: &'a [u8],
        durable: bool,
    },
    Flush(u64),
    Sync(u64),
    Release(u64),
    List {
        after: u64,
        room: u32,
    },
    Sizes,
    Allocate {
        handle: u64,
        at: u64,
        len: u64,
        mode: i32,
    },
    Seek {
        handle: u64,
        at: i64,
        want: RunKind,
    },
    Attribute {
        name: &'a [u8],
        room: u32,
    },
    AttributeNames {
        room: u32,
    },
    /// What needs no act: a directory's close and sync, the goodbye.
    Nothing,
    /// Making, removing, renaming: what this tree never does.
    Alter,
    /// Answered with this number.
    Fails(i32),
}

impl<'a> Frame<'a> {
    /// The inode and what is asked of it.
    pub(crate) fn parse(&self) -> (u64, Ask<'a>) {
        let parsed = || {
            let node = u64_at(self.head, 16)?;
            Some((node, self.ask(u32_at(self.head, 4)?)?))
        };
        parsed().unwrap_or((0, Ask::Fails(Errno::Invalid.number())))
    }

    fn ask(&self, opcode: u32) -> Option<Ask<'a>> {
        let op = self.operation;
        Some(match opcode {
            1 => Ask::Lookup(self.name()?),
            3 => Ask::Attributes,
            4 => Ask::Change(self.change()?),
            5 => Ask::Fails(Errno::Invalid.number()),
            6 | 8 | 9 | 10 | 11 | 12 | 13 | 21 | 24 | 35 | 45 => Ask::Alter,
            14 => Ask::Open(open_how(flags_at(op, 0)?)),
            15 => Ask::Read { handle: u64_at(op, 0)?, at: u64_at(op, 8)?, len: u32_at(op, 16)? },
            16 => self.write()?,
            17 => Ask::Sizes,
            18 => Ask::Release(u64_at(op, 0)?),
            20 => Ask::Sync(u64_at(op, 0)?),
            22 => Ask::Attribute { name: self.name()?, room: u32_at(op, 0)? },
            23 => Ask::AttributeNames { room: u32_at(op, 0)? },
            25 => Ask::Flush(u64_at(op, 0)?),
            27 => Ask::OpenDirectory,
            28 => Ask::List { after: u64_at(op, 8)?, room: u32_at(op, 16)? },
            29 | 30 | 38 => Ask::Nothing,
            39 => Ask::Fails(ENOTTY),
            43 => Ask::Allocate {
                handle: u64_at(op, 0)?,
                at: u64_at(op, 8)?,
                len: u64_at(op, 16)?,
                mode: u32_at(op, 24)?.cast_signed(),
            },
            46 => self.seek()?,
            // The kernel does the rest by itself, or without.
            _ => Ask::Fails(Errno::NotImplemented.number()),
        })
    }

    /// A name in the payload, up to its NUL.
    fn name(&self) -> Option<&'a [u8]> {
        let end = self.payload.iter().position(|byte| *byte == 0)?;
        self.payload.get(..end)
    }

    fn change(&self) -> Option<Change> {
        let valid = u32_at(self.operation, 0)?;
        let has = |bits: u32| valid & bits != 0;
        let size = if has(FATTR_SIZE) { Some(u64_at(self.operation, 16)?) } else { None };
        let owner_or_mode = has(FATTR_MODE | FATTR_UID | FATTR_GID);
        let times = has(FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW);
        Some(change(size, owner_or_mode, times))
    }

    fn write(&self) -> Option<Ask<'a>> {
        let op = self.operation;
        let data = self.payload.get(..u32_at(op, 16)? as usize)?;
        let durable = is_durable(flags_at(op, 32)?);
        Some(Ask::Write { handle: u64_at(op, 0)?, at: u64_at(op, 8)?, data, durable })
    }

    fn seek(&self) -> Option<Ask<'a>> {
        let op = self.operation;
        let at = u64_at(op, 8)?.cast_signed();
        Some(match sought(u32_at(op, 16)?.cast_signed()) {
            Ok(want) => Ask::Seek { handle: u64_at(op, 0)?, at, want },
            Err(errno) => Ask::Fails(errno.number()),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn flags_at(bytes: &[u8], at: usize) -> Option<OFlags> {
    u32_at(bytes, at).map(OFlags::from_bits_retain)
}

/// `fuse_in_header`.
pub(crate) const HEAD: usize = 40;

/// The number of a request.
pub(crate) fn unique(head: &[u8]) -> u64 {
    u64_at(head, 8).unwrap_or(0)
}

/// Bytes between the header and what [`Frame::payload`] is of a request.
pub(crate) fn operation_bytes(head: &[u8]) -> usize {
    match u32_at(head, 4) {
        Some(16) => 40,
        // `fuse_getxattr_in`; names of others stand behind the header, or are not looked at.
        Some(22) => 8,
        _ => 0,
    }
}

/// The few requests that come by the million, or take no answer; told from the first bytes alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hot {
    Nothing,
    Read { handle: u64, at: u64, len: u32 },
    Write { handle: u64, at: u64, len: u32, durable: bool },
    Other,
}

pub(crate) fn hot(head: &[u8]) -> Hot {
    let (request, op) = head.split_at_checked(HEAD).unwrap_or((head, &[]));
    let read = || Some((u64_at(op, 0)?, u64_at(op, 8)?, u32_at(op, 16)?));
    match u32_at(request, 4) {
        // Forgotten inodes: their numbers are not used twice.
        Some(2 | 42) => Hot::Nothing,
        Some(15) => match read() {
            Some((handle, at, len)) => Hot::Read { handle, at, len },
            None => Hot::Other,
        },
        Some(16) => match (read(), flags_at(op, 32)) {
            (Some((handle, at, len)), Some(flags)) => {
                Hot::Write { handle, at, len, durable: is_durable(flags) }
            }
            _ => Hot::Other,
        },
        _ => Hot::Other,
    }
}

/// `fuse_out_header`; `error` is zero or a negative number.
pub(crate) fn out_header(unique: u64, error: i32, bytes: usize) -> [u8; 16] {
    let len = u32::try_from(bytes + 16).unwrap_or(u32::MAX);
    let mut head = [0; 16];
    head[..4].copy_from_slice(&len.to_ne_bytes());
    head[4..8].copy_from_slice(&error.to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

/// An answer of fixed size, as it is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Small {
    bytes: [u8; SMALL_BYTES],
    len: usize,
}

impl Small {
    const EMPTY: Self = Self { bytes: [0; SMALL_BYTES], len: 0 };

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn put(mut self, value: &[u8]) -> Self {
        let end = self.len + value.len();
        let place = self.bytes.get_mut(self.len..end);
        place.expect("no answer of fixed size is longer than the longest").copy_from_slice(value);
        self.len = end;
        self
    }

    /// `fuse_attr`.
    fn attributes(self, shape: &Attributes, manner: Manner) -> Self {
        let since = shape.modified.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        let kind = match shape.kind {
            Kind::Directory => S_IFDIR,
            Kind::File => S_IFREG,
        };
        let blocks = shape.stored.0.div_ceil(SECTOR);
        let start = self.u64(shape.inode).u64(shape.len.0).u64(blocks);
        let times = start.u64(seconds).u64(seconds).u64(seconds).u32(nanos).u32(nanos).u32(nanos);
        let owner = times.u32(kind | u32::from(shape.mode)).u32(shape.links);
        owner.u32(manner.uid).u32(manner.gid).u32(0).u32(GOOD_IO).u32(0)
    }
}

/// `fuse_entry_out`. The block count is the last one known; whoever wants it asks for attributes.
pub(crate) fn entry(shape: &Attributes, manner: Manner) -> Small {
    let head = Small::EMPTY.u64(shape.inode).u64(GENERATION).u64(ENTRY_TTL.as_secs()).u64(0);
    head.u32(ENTRY_TTL.subsec_nanos()).u32(0).attributes(shape, manner)
}

/// `fuse_attr_out`.
pub(crate) fn attributes(shape: &Attributes, manner: Manner) -> Small {
    let head = Small::EMPTY.u64(ATTRIBUTE_TTL.as_secs()).u32(ATTRIBUTE_TTL.subsec_nanos()).u32(0);
    head.attributes(shape, manner)
}

/// `fuse_open_out` of a file of a disk, whose bytes no cache may keep.
pub(crate) fn opened_image(handle: u64, flush_on_close: bool) -> Small {
    opened(handle, FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES, flush_on_close)
}

/// `fuse_open_out` of a text.
pub(crate) fn opened_text(handle: u64, flush_on_close: bool) -> Small {
    opened(handle, FOPEN_DIRECT_IO, flush_on_close)
}

fn opened(handle: u64, flags: u32, flush_on_close: bool) -> Small {
    // A close that has nothing to say is not told, and does not hang where nobody listens.
    let flags = if flush_on_close { flags } else { flags | FOPEN_NOFLUSH };
    Small::EMPTY.u64(handle).u32(flags).u32(0)
}

/// `fuse_open_out` of a directory.
pub(crate) fn opened_directory() -> Small {
    Small::EMPTY.u64(0).u64(0)
}

/// `fuse_write_out` and `fuse_getxattr_out`: how many bytes that were, or would be.
pub(crate) fn count(bytes: u32) -> Small {
    Small::EMPTY.u32(bytes).u32(0)
}

/// `fuse_lseek_out`.
pub(crate) fn place(at: u64) -> Small {
    Small::EMPTY.u64(at)
}

/// `fuse_statfs_out`.
pub(crate) fn sizes(room: &Room) -> Small {
    let counts = Small::EMPTY.u64(room.blocks).u64(0).u64(0).u64(room.files).u64(0);
    let sizes = counts.u32(room.block).u32(NAME_MAX as u32).u32(room.block).u32(0);
    sizes.u64(0).u64(0).u64(0)
}

/// A directory's entries behind the cookie `after`, as many as fit; `.` and `..` have 1 and 2.
pub(crate) fn listing(inode: u64, after: u64, entries: &[Listed], room: u32) -> Vec<u8> {
    let dots = [(1, "."), (2, "..")].into_iter().filter(|(cookie, _)| *cookie > after);
    let dots = dots.map(|(cookie, name)| (inode, cookie, DT_DIR, name));
    let rest = entries.iter().map(|entry| {
        let kind = if entry.kind == Kind::Directory { DT_DIR } else { DT_REG };
        (entry.inode, entry.cookie.saturating_add(2), kind, entry.name.as_str())
    });
    let mut bytes = Vec::new();
    for (inode, cookie, kind, name) in dots.chain(rest) {
        let len = (DIRENT_HEAD + name.len()).next_multiple_of(8);
        if bytes.len() + len > room as usize {
            break;
        }
        let end = bytes.len() + len;
        bytes.extend_from_slice(&inode.to_ne_bytes());
        bytes.extend_from_slice(&cookie.to_ne_bytes());
        bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(end, 0);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{
        Ask, Frame, Hot, attributes, count, entry, hot, listing, opened_image, operation_bytes,
        out_header, place, sizes, unique,
    };
    use crate::manner::Manner;
    use crate::ops::{Attributes, Change, Kind, Listed, OpenHow, Room};
    use crate::port::{Bytes, RunKind};

    const MANNER: Manner = Manner { uid: 7, gid: 8, passthrough: false };

    fn head(opcode: u32) -> Vec<u8> {
        let mut head = vec![0; 128];
        head[4..8].copy_from_slice(&opcode.to_ne_bytes());
        head[16..24].copy_from_slice(&99u64.to_ne_bytes());
        head
    }

    /// Fields of a structure, by their offsets in `linux/fuse.h`.
    fn operation(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    fn parsed<'a>(head: &'a [u8], operation: &'a [u8], payload: &'a [u8]) -> Ask<'a> {
        let (inode, ask) = Frame { head, operation, payload }.parse();
        assert_eq!(inode, 99);
        ask
    }

    #[test]
    fn requests_are_read_where_the_kernel_puts_their_fields() {
        let read = operation(&[
            (0, &5u64.to_ne_bytes()),
            (8, &4096u64.to_ne_bytes()),
            (16, &512u32.to_ne_bytes()),
        ]);
        let asked = Ask::Read { handle: 5, at: 4096, len: 512 };
        assert_eq!(parsed(&head(15), &read, &[]), asked);
        // O_WRONLY | O_DSYNC, as the file was opened.
        let mut write = read.clone();
        write[32..36].copy_from_slice(&0o10001u32.to_ne_bytes());
        let data = [3; 512];
        let asked = Ask::Write { handle: 5, at: 4096, data: &data, durable: true };
        assert_eq!(parsed(&head(16), &write, &data), asked);
        let asked = Ask::List { after: 4096, room: 512 };
        assert_eq!(parsed(&head(28), &read, &[]), asked);

        assert_eq!(parsed(&head(1), &[], b"disk\0"), Ask::Lookup(b"disk"));
        let get = operation(&[(0, &64u32.to_ne_bytes())]);
        let asked = Ask::Attribute { name: b"user.x", room: 64 };
        assert_eq!(parsed(&head(22), &get, b"user.x\0"), asked);
        let how = OpenHow { write: true, truncate: true };
        let open = operation(&[(0, &0o1002u32.to_ne_bytes())]);
        assert_eq!(parsed(&head(14), &open, &[]), Ask::Open(how));

        let fields: &[(usize, &[u8])] = &[(8, &1u64.to_ne_bytes()), (16, &2u64.to_ne_bytes())];
        let allocate = operation(&[fields, &[(24, &3u32.to_ne_bytes())]].concat());
        let asked = Ask::Allocate { handle: 0, at: 1, len: 2, mode: 3 };
        assert_eq!(parsed(&head(43), &allocate, &[]), asked);
        let seek = operation(&[(8, &10u64.to_ne_bytes()), (16, &4u32.to_ne_bytes())]);
        let asked = Ask::Seek { handle: 0, at: 10, want: RunKind::Hole };
        assert_eq!(parsed(&head(46), &seek, &[]), asked);
    }

    #[test]
    fn the_first_bytes_tell_what_a_reader_does_by_itself() {
        let mut bytes = [0; 80];
        let put = |bytes: &mut [u8; 80], at: usize, field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
        };
        put(&mut bytes, 8, &77u64.to_ne_bytes());
        put(&mut bytes, 40, &5u64.to_ne_bytes());
        put(&mut bytes, 48, &4096u64.to_ne_bytes());
        put(&mut bytes, 56, &512u32.to_ne_bytes());
        put(&mut bytes, 72, &0o10001u32.to_ne_bytes());
        assert_eq!(unique(&bytes), 77);
        let told = |bytes: &mut [u8; 80], opcode: u32| {
            put(bytes, 4, &opcode.to_ne_bytes());
            hot(bytes)
        };
        let (handle, at, len) = (5, 4096, 512);
        assert_eq!(told(&mut bytes, 15), Hot::Read { handle, at, len });
        assert_eq!(told(&mut bytes, 16), Hot::Write { handle, at, len, durable: true });
        // FORGET and BATCH_FORGET take no answer; LOOKUP, INTERRUPT and DESTROY do.
        for (opcode, what) in [(2, Hot::Nothing), (42, Hot::Nothing), (1, Hot::Other)] {
            assert_eq!(told(&mut bytes, opcode), what);
        }
        assert_eq!([36, 38].map(|opcode| told(&mut bytes, opcode)), [Hot::Other, Hot::Other]);
        assert_eq!(hot(&bytes[..79]), Hot::Other);
        assert_eq!([16, 22, 1].map(|op| operation_bytes(&head(op))), [40, 8, 0]);
        // `fuse_out_header`: len, error, unique.
        let head = out_header(77, -5, 4);
        assert_eq!(head[..8], [20u32.to_ne_bytes(), (-5i32).to_ne_bytes()].concat());
        assert_eq!(head[8..], 77u64.to_ne_bytes());
    }

    #[test]
    fn a_change_is_what_its_bits_say() {
        let of = |valid: u32| {
            let size = (16, &77u64.to_ne_bytes()[..]);
            let bytes = operation(&[(0, &valid.to_ne_bytes()), size]);
            match parsed(&head(4), &bytes, &[]) {
                Ask::Change(change) => change,
                other => unreachable!("{other:?}"),
            }
        };
        assert_eq!(of(0), Change { size: None, other: false });
        // Size, and the times that come with it.
        assert_eq!(of(1 << 3 | 1 << 5), Change { size: Some(77), other: false });
        assert_eq!(of(1 << 3 | 1), Change { size: Some(77), other: true });
        assert_eq!(of(1 << 8), Change { size: None, other: true });
    }

    #[test]
    fn frames_of_any_size_and_content_are_answered() {
        let bytes: Vec<u8> = (0..=255).collect();
        for opcode in 0..80 {
            let head = head(opcode);
            for len in [0, 1, 7, 8, 16, 31, 32, 40, 128] {
                let operation = &bytes[256 - len..];
                for payload in [&[][..], b"no end", &bytes] {
                    let _ = Frame { head: &head, operation, payload }.parse();
                }
                let (_, ask) =
                    Frame { head: &head[..len.min(23)], operation, payload: &[] }.parse();
                assert_eq!(ask, Ask::Fails(22));
            }
        }
        // A write of more than came along; a name without an end.
        let write = operation(&[(16, &9u32.to_ne_bytes())]);
        assert_eq!(Frame { head: &head(16), operation: &write, payload: &[0; 8] }.parse().0, 0);
        assert_eq!(Frame { head: &head(1), operation: &[], payload: b"disk" }.parse().0, 0);
    }

    #[test]
    fn answers_have_the_sizes_and_offsets_of_the_kernels_structures() {
        let shape = Attributes {
            inode: 3,
            kind: Kind::File,
            mode: 0o640,
            links: 1,
            len: Bytes(1000),
            stored: Bytes(513),
            modified: UNIX_EPOCH + Duration::new(5, 6),
        };
        let of_u64 =
            |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let of_u32 =
            |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let found = entry(&shape, MANNER);
        let bytes = found.bytes();
        assert_eq!(bytes.len(), 128);
        assert_eq!((of_u64(bytes, 0), of_u64(bytes, 16), of_u64(bytes, 24)), (3, 3600, 0));
        let told = attributes(&shape, MANNER);
        assert_eq!((told.bytes().len(), of_u64(told.bytes(), 0)), (104, 1));
        for attr in [&bytes[40..], &told.bytes()[16..]] {
            assert_eq!((of_u64(attr, 0), of_u64(attr, 8), of_u64(attr, 16)), (3, 1000, 2));
            assert_eq!((of_u64(attr, 32), of_u32(attr, 52)), (5, 6));
            assert_eq!((of_u32(attr, 60), of_u32(attr, 64)), (0o100_640, 1));
            assert_eq!((of_u32(attr, 68), of_u32(attr, 72)), (7, 8));
        }
        let opened = opened_image(11, false);
        assert_eq!((opened.bytes().len(), of_u64(opened.bytes(), 0)), (16, 11));
        // DIRECT_IO, NOFLUSH, PARALLEL_DIRECT_WRITES.
        assert_eq!(of_u32(opened.bytes(), 8), 1 | 1 << 5 | 1 << 6);
        assert_eq!((count(9).bytes().len(), of_u32(count(9).bytes(), 0)), (8, 9));
        assert_eq!(place(1 << 40).bytes(), (1u64 << 40).to_ne_bytes());
        let room = Room { blocks: 4, block: 4096, files: 2 };
        let told = sizes(&room);
        assert_eq!((told.bytes().len(), of_u64(told.bytes(), 24)), (80, 2));
        assert_eq!((of_u32(told.bytes(), 40), of_u32(told.bytes(), 48)), (4096, 4096));
    }

    #[test]
    fn a_listing_goes_on_where_it_was_cut() {
        let name = |n: u64| Listed {
            cookie: n,
            name: format!("name{n}"),
            inode: 100 + n,
            kind: Kind::Directory,
        };
        let entries: Vec<Listed> = (1..5).map(name).collect();
        // Each entry takes 24 bytes and its name, to a multiple of eight: 32 here.
        let whole = listing(1, 0, &entries, 4096);
        assert_eq!(whole.len(), 6 * 32);
        assert_eq!(&whole[24..26], b".\0");
        assert_eq!(&whole[2 * 32 + 24..3 * 32], b"name1\0\0\0");
        let first = listing(1, 0, &entries, 95);
        assert_eq!(first, whole[..64]);
        assert_eq!(listing(1, 2, &entries, 4096), whole[64..]);
        assert!(listing(1, 0, &entries, 31).is_empty());
    }
}
