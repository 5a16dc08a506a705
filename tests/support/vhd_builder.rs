//! Builds VHD images byte by byte from the format notes and not with the crate under test: a bug in
//! its writer must not hide one in its reader. Huge images are described, never materialised.
#![allow(dead_code, unreachable_pub)]

/// A file as its length and the bytes that are not zero; later pieces win.
#[derive(Clone, Debug, Default)]
pub struct SparseFile {
    pub len: u64,
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl SparseFile {
    /// The bytes at `at`; what lies behind the end is not there.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let end = (at + len as u64).min(self.len);
        let mut bytes = vec![0; end.saturating_sub(at) as usize];
        for (start, piece) in &self.pieces {
            let piece_end = start + piece.len() as u64;
            let (from, to) = ((*start).max(at), piece_end.min(end));
            if from < to {
                let source = &piece[(from - start) as usize..(to - start) as usize];
                bytes[(from - at) as usize..(to - at) as usize].copy_from_slice(source);
            }
        }
        bytes
    }

    /// Writes the file, leaving holes where nothing is.
    pub fn write_to(&self, path: &std::path::Path) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(path)?;
        for (at, bytes) in &self.pieces {
            let room = self.len.saturating_sub(*at).min(bytes.len() as u64) as usize;
            file.seek(SeekFrom::Start(*at))?;
            file.write_all(&bytes[..room])?;
        }
        file.set_len(self.len)
    }
}

pub const BASE_UUID: [u8; 16] = *b"base-image-uuid!";
pub const CHILD_UUID: [u8; 16] = *b"child-image-uuid";
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// First slot of the base image, and the one after it.
pub const SLOTS: [u32; 2] = [7, 7 + 4104];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    Full,
    Short,
    Absent,
}

/// A parent locator: code, space field, length field, offset field, data.
#[derive(Clone)]
pub struct Locator {
    pub code: [u8; 4],
    pub space: u32,
    pub len: u32,
    pub at: u64,
    pub data: Vec<u8>,
}

/// An image in the making. Edits named `both`, `front`, `tail` and `header` come before the
/// checksums, `raw` ones after everything.
#[derive(Clone)]
pub struct Builder {
    pub kind: u32,
    pub size: u64,
    pub block: u64,
    pub entries: u32,
    pub table: Vec<u32>,
    pub table_at: u64,
    pub uuid: [u8; 16],
    pub parent: [u8; 16],
    pub locators: Vec<Locator>,
    pub both: Vec<(usize, Vec<u8>)>,
    pub front: Vec<(usize, Vec<u8>)>,
    pub tail_edits: Vec<(usize, Vec<u8>)>,
    pub header: Vec<(usize, Vec<u8>)>,
    pub raw: Vec<(u64, Vec<u8>)>,
    pub tail: Tail,
    /// Length of everything before the footer; `None` means up to the last block.
    pub body: Option<u64>,
    /// Final length, whatever was built.
    pub cut: Option<u64>,
}

pub fn sum(bytes: &[u8]) -> [u8; 4] {
    let mut total = 0u32;
    for byte in bytes {
        total = total.wrapping_add(u32::from(*byte));
    }
    (!total).to_be_bytes()
}

/// Overwrites the bytes at `at`.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Builder {
    /// Case 00: 4 MiB, two blocks of 2 MiB, both allocated.
    pub fn dynamic() -> Self {
        Self {
            kind: 3,
            size: 4 * MIB,
            block: 2 * MIB,
            entries: 2,
            table: SLOTS.to_vec(),
            table_at: 1536,
            uuid: BASE_UUID,
            parent: [0; 16],
            locators: Vec::new(),
            both: Vec::new(),
            front: Vec::new(),
            tail_edits: Vec::new(),
            header: Vec::new(),
            raw: Vec::new(),
            tail: Tail::Full,
            body: None,
            cut: None,
        }
    }

    pub fn fixed() -> Self {
        Self { kind: 2, table: Vec::new(), size: MIB, ..Self::dynamic() }
    }

    /// Case 65: a child whose three locators name `parent` the way XenServer does.
    pub fn child(parent: &str) -> Self {
        let windows: Vec<u8> = format!(".\\{}", parent.replace('/', "\\"))
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let url = format!("file://./{parent}").into_bytes();
        let mut child = Self { kind: 4, uuid: CHILD_UUID, parent: BASE_UUID, ..Self::dynamic() };
        let all = [(*b"MacX", url), (*b"W2ku", windows.clone()), (*b"W2ru", windows)];
        for (index, (code, data)) in all.into_iter().enumerate() {
            let (len, at) = (data.len() as u32, 2048 + 512 * index as u64);
            child.locators.push(Locator { code, space: 512, len, at, data });
        }
        let name: Vec<u8> = parent.encode_utf16().flat_map(u16::to_be_bytes).collect();
        child.header.push((64, name));
        child
    }

    pub fn both(mut self, at: usize, value: &[u8]) -> Self {
        self.both.push((at, value.to_vec()));
        self
    }

    pub fn header(mut self, at: usize, value: &[u8]) -> Self {
        self.header.push((at, value.to_vec()));
        self
    }

    pub fn raw(mut self, at: u64, value: &[u8]) -> Self {
        self.raw.push((at, value.to_vec()));
        self
    }

    /// The table's first entries, the rest unallocated.
    pub fn table(mut self, table: &[u32]) -> Self {
        self.table = table.to_vec();
        self
    }

    pub fn sized(mut self, size: u64, block: u64, entries: u32) -> Self {
        (self.size, self.block, self.entries) = (size, block, entries);
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn footer(&self, edits: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut footer = vec![0; 512];
        let data_offset = if self.kind == 2 { u64::MAX } else { 512 };
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 8, &2u32.to_be_bytes());
        put(&mut footer, 12, &0x0001_0000u32.to_be_bytes());
        put(&mut footer, 16, &data_offset.to_be_bytes());
        put(&mut footer, 24, &700_000_000u32.to_be_bytes());
        put(&mut footer, 28, b"win \x00\x0A\x00\x00Wi2k");
        put(&mut footer, 40, &self.size.to_be_bytes());
        put(&mut footer, 48, &self.size.to_be_bytes());
        // Cylinders, heads and sectors of 4 MiB and of 1 MiB.
        let tracks = (self.size / 512 / 17).min(1023 * 4);
        put(&mut footer, 56, &((tracks / 4) as u16).to_be_bytes());
        put(&mut footer, 58, &[4, 17]);
        put(&mut footer, 60, &self.kind.to_be_bytes());
        put(&mut footer, 68, &self.uuid);
        for (at, value) in self.both.iter().chain(edits) {
            put(&mut footer, *at, value);
        }
        let checksum = sum(&footer);
        put(&mut footer, 64, &checksum);
        footer
    }

    fn header_bytes(&self) -> Vec<u8> {
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &[0xFF; 8]);
        put(&mut header, 16, &self.table_at.to_be_bytes());
        put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut header, 28, &self.entries.to_be_bytes());
        put(&mut header, 32, &(self.block as u32).to_be_bytes());
        put(&mut header, 40, &self.parent);
        for (index, locator) in self.locators.iter().enumerate() {
            let at = 576 + 24 * index;
            put(&mut header, at, &locator.code);
            put(&mut header, at + 4, &locator.space.to_be_bytes());
            put(&mut header, at + 8, &locator.len.to_be_bytes());
            put(&mut header, at + 16, &locator.at.to_be_bytes());
        }
        for (at, value) in &self.header {
            put(&mut header, *at, value);
        }
        let checksum = sum(&header);
        put(&mut header, 36, &checksum);
        header
    }

    /// Bytes of a slot: bitmap in whole sectors, then data.
    pub fn slot(&self) -> u64 {
        (self.block / 512).div_ceil(8).next_multiple_of(512) + self.block
    }

    pub fn build(&self) -> SparseFile {
        let mut pieces = Vec::new();
        let mut end = self.size;
        if self.kind != 2 {
            let table_len = (u64::from(self.entries) * 4).next_multiple_of(512).min(8 * MIB);
            let mut table = vec![0xFF; table_len as usize];
            end = self.table_at.saturating_add(table_len).clamp(2048, 16 * MIB).max(3584);
            for (index, sector) in self.table.iter().enumerate() {
                put(&mut table, index * 4, &sector.to_be_bytes());
                let slot = u64::from(*sector) * 512;
                pieces.push((slot, vec![0xF0]));
                let data = slot + self.slot() - self.block;
                pieces.push((data, vec![b'a' + index as u8; 2048]));
                end = end.max(slot + self.slot());
            }
            for locator in &self.locators {
                pieces.push((locator.at, locator.data.clone()));
            }
            // Metadata wins over blocks that were put over it.
            pieces.push((self.table_at, table));
            pieces.push((0, self.footer(&self.front)));
            pieces.push((512, self.header_bytes()));
        }
        let end = self.body.unwrap_or(end);
        let tail = self.footer(&self.tail_edits);
        let tail_len = match self.tail {
            Tail::Full => 512,
            Tail::Short => 511,
            Tail::Absent => 0,
        };
        pieces.push((end, tail[..tail_len].to_vec()));
        pieces.extend(self.raw.iter().cloned());
        SparseFile { len: self.cut.unwrap_or(end + tail_len as u64), pieces }
    }
}

/// An image of XenServer: a batmap between table and blocks.
pub fn with_batmap(offset: u64, bits: u8) -> Builder {
    let mut header = vec![0; 512];
    put(&mut header, 0, b"tdbatmap");
    put(&mut header, 8, &offset.to_be_bytes());
    put(&mut header, 16, &1u32.to_be_bytes());
    put(&mut header, 20, &0x0001_0002u32.to_be_bytes());
    put(&mut header, 24, &sum(&[bits]));
    Builder::dynamic()
        .both(28, b"tap\0\x00\x01\x00\x03\0\0\0\0")
        .raw(2048, &header)
        .raw(2560, &[bits])
}
