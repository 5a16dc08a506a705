//! An NBD client that does one thing at a time, and disks whose sectors say who wrote them when.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) const SECTOR: u64 = 512;

/// What is done to a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    Zero,
    /// They read as before or as zeroes.
    Trim,
    Flush,
}

/// One step of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// What every word of the sectors says.
    pub(crate) stamp: u64,
}

impl Op {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = usize::try_from(self.count * SECTOR / 8).unwrap();
        self.stamp.to_le_bytes().repeat(words)
    }
}

/// A connection to an export.
pub(crate) struct Peer {
    stream: UnixStream,
    cookie: u64,
}

impl Peer {
    pub(crate) fn connect(socket: &Path, export: &str) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        let name = u32::try_from(export.len()).unwrap();
        for word in [7, name + 6, name] {
            hello.extend(word.to_be_bytes());
        }
        hello.extend(export.as_bytes());
        hello.extend([0, 0]);
        stream.write_all(&hello)?;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let mut rest = vec![0; usize::try_from(word(16)).unwrap()];
            stream.read_exact(&mut rest)?;
            match word(12) {
                1 => return Ok(Self { stream, cookie: 0 }),
                3 => {}
                refusal => {
                    let why = format!("{refusal:#x}: {}", String::from_utf8_lossy(&rest));
                    return Err(std::io::Error::other(why));
                }
            }
        }
    }

    fn ask(
        &mut self,
        kind: u16,
        at: u64,
        len: u64,
        out: &[u8],
        into: &mut [u8],
    ) -> std::io::Result<()> {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(u32::try_from(len).unwrap().to_be_bytes());
        request.extend(out);
        self.stream.write_all(&request)?;
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(head[8..], self.cookie.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error.cast_signed()));
        }
        self.stream.read_exact(into)
    }

    pub(crate) fn read(&mut self, at: u64, len: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.ask(0, at, len, &[], &mut bytes)?;
        Ok(bytes)
    }
}

/// Somebody who changes a disk.
pub(crate) trait Changer: Send {
    fn carry_out(&mut self, op: &Op) -> std::io::Result<()>;
}

impl Changer for Peer {
    fn carry_out(&mut self, op: &Op) -> std::io::Result<()> {
        let (at, len) = (op.first * SECTOR, op.count * SECTOR);
        match op.kind {
            Kind::Write => self.ask(1, at, len, &op.bytes(), &mut []),
            Kind::Flush => self.ask(3, 0, 0, &[], &mut []),
            Kind::Trim => self.ask(4, at, len, &[], &mut []),
            Kind::Zero => self.ask(6, at, len, &[], &mut []),
        }
    }
}

/// The file of a VDI in the tree.
pub(crate) struct Filed(pub(crate) File);

impl Changer for Filed {
    fn carry_out(&mut self, op: &Op) -> std::io::Result<()> {
        let (at, len) = (op.first * SECTOR, op.count * SECTOR);
        match op.kind {
            Kind::Write => self.0.write_all_at(&op.bytes(), at),
            Kind::Flush => self.0.sync_data(),
            Kind::Trim | Kind::Zero => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.0, flags, at, len).map_err(Into::into)
            }
        }
    }
}

/// What a sector may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sector {
    pub(crate) stamp: u64,
    /// Or nothing: it was trimmed.
    pub(crate) or_zero: bool,
}

impl Sector {
    pub(crate) fn is(self, said: u64) -> bool {
        said == self.stamp || (self.or_zero && said == 0)
    }
}

/// A disk as it should be, after the first steps of a client.
pub(crate) fn apply(sectors: &mut [Sector], op: &Op) {
    if op.kind == Kind::Flush {
        return;
    }
    for at in op.first..op.first + op.count {
        let sector = &mut sectors[usize::try_from(at).unwrap()];
        *sector = match op.kind {
            Kind::Write => Sector { stamp: op.stamp, or_zero: false },
            Kind::Zero => Sector::default(),
            Kind::Trim | Kind::Flush => Sector { or_zero: true, ..*sector },
        };
    }
}

/// What each sector of some bytes says; panics where one says two things.
pub(crate) fn said(bytes: &[u8]) -> Vec<u64> {
    let sectors = bytes.chunks(usize::try_from(SECTOR).unwrap());
    let word = |sector: &[u8]| {
        let first = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks(8).all(|word| word == &sector[..8]), "a torn sector");
        first
    };
    sectors.map(word).collect()
}
