//! The ground of a life: an image and its parents, as bytes, and how they are recovered, opened
//! and checked. Stands in for the attachment code of a shard.
//!
//! Refuses to keep a disk: each opening starts from bytes.

use orlop::engine::effect::FileId;
use orlop::engine::layer::{Layer, Leaf};
use orlop::engine::units::{ByteLen, FileOffset};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::{Backing as LeafBacking, FixedLeaf, VhdLayer, VhdLeaf};
use orlop::host::sim::fs::{Backing, Change};
use orlop::host::sim::rng::Rng;
use vhd::{
    Body, Check, CheckOptions, CreateOptions, Image, Limits, NewLayout, NewParent, Opening, Piece,
    RepairStep, Rule, Severity, Step,
};

use crate::bad_leaf::wrap;
use crate::bugs::Bug;
use crate::plain::{Bytes, read_cell, size};
use crate::populate::populate;
use crate::probe::read_disk;
use crate::tag::{CELL, Tag};

/// What a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes as they are.
    Raw,
    /// A fixed VHD.
    Fixed,
    /// A dynamic VHD.
    Dynamic,
    /// A differencing VHD over so many parents; the lowest is raw if `raw`.
    Differencing { parents: u8, raw: bool },
}

/// A world to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The leaf's kind.
    pub(crate) kind: Kind,
    /// Bytes of a block.
    pub(crate) block_bytes: u64,
    /// Sectors of the disk; for raw disks, `ragged` bytes more.
    pub(crate) sectors: u64,
    /// Bytes behind the last whole sector (raw only), a multiple of a cell.
    pub(crate) ragged: u64,
    /// Whether the leaf lies on a device full of old bytes.
    pub(crate) device: bool,
    /// Whether the bitmaps of a dynamic leaf say no more than what was written, as other programs
    /// keep them (ours are full).
    pub(crate) foreign: bool,
    /// Out of 8, how much of the leaf is written before the life begins.
    pub(crate) filled: usize,
    /// Sectors by which the leaf was once larger: its table has entries for them (a fixed image's
    /// file has the room).
    pub(crate) spare: u64,
    /// Whether it was filled when it was that large.
    pub(crate) cut: bool,
}

/// The files of a chain, its own first, where nobody says otherwise.
const FIRST: [FileId; 8] = {
    let mut ids = [FileId(0); 8];
    let mut at = 0;
    while at < ids.len() {
        ids[at] = FileId(at as u16);
        at += 1;
    }
    ids
};

/// One step of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecoveryStep {
    /// A write or a cut.
    Change(Change),
    /// A sync.
    Sync,
}

/// Images to live on.
pub(crate) struct World {
    /// What it was built from.
    pub(crate) plan: Plan,
    leaf: Vec<u8>,
    parents: Vec<Vec<u8>>,
    opened: Vec<Option<Image>>,
    content: Vec<Tag>,
}

impl World {
    /// Builds the images of a plan.
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut world = Self {
            plan,
            leaf: Vec::new(),
            parents: Vec::new(),
            opened: Vec::new(),
            content: Vec::new(),
        };
        if let Kind::Differencing { parents, raw } = plan.kind {
            for level in (0..parents).rev() {
                let last = level + 1 == parents;
                world.grow_parent(level, last && raw, &mut rng);
            }
        }
        world.plan.sectors += plan.spare;
        world.leaf = world.fresh_leaf(&mut rng);
        if plan.cut {
            world.leaf = populate(&world, 1, plan.filled, &mut rng);
        }
        world.plan = plan;
        world.cut();
        if !plan.cut {
            world.leaf = populate(&world, 1, plan.filled, &mut rng);
        }
        if plan.foreign {
            world.thin_out_bitmaps();
        }
        world.content = world.read().expect("a world's own image reads");
        world
    }

    /// Takes the spare sectors away from the disk, but nothing out of its image.
    fn cut(&mut self) {
        if self.plan.spare == 0 {
            return;
        }
        let size = vhd::ByteLen::new(self.plan.sectors * 512);
        let image = open_image(&self.leaf).expect("a leaf just made opens");
        let geometry = vhd::Chs::for_size(size);
        let footer = vhd::Footer { current_size: size, geometry, ..image.footer }.to_bytes();
        let tail = self.leaf.len() as u64 - 512;
        put(&mut self.leaf, tail, &footer);
        if self.plan.kind != Kind::Fixed {
            put(&mut self.leaf, 0, &footer);
        }
    }

    /// Whether a disk of `old` bytes may be refused `new` ones.
    pub(crate) fn may_refuse(&self, old: u64, new: u64) -> bool {
        new < old || (self.plan.kind == Kind::Raw && self.plan.device)
    }

    /// Puts a parent on top of the parents so far, filled with its own data.
    fn grow_parent(&mut self, level: u8, raw: bool, rng: &mut Rng) {
        let kind = match (raw, self.parents.is_empty()) {
            (true, _) => Kind::Raw,
            (false, true) => Kind::Dynamic,
            (false, false) => Kind::Differencing { parents: 1, raw: false },
        };
        let plan = Plan { kind, device: false, foreign: false, spare: 0, cut: false, ..self.plan };
        let mut below = Self {
            plan,
            leaf: Vec::new(),
            parents: self.parents.clone(),
            opened: self.opened.clone(),
            content: Vec::new(),
        };
        below.leaf = below.fresh_leaf(rng);
        let bytes = populate(&below, 2 + level, 5, rng);
        let image = (!raw).then(|| open_image(&bytes).expect("a parent just made opens"));
        self.parents.insert(0, bytes);
        self.opened.insert(0, image);
    }

    fn fresh_leaf(&self, rng: &mut Rng) -> Vec<u8> {
        let size = self.plan.sectors * 512 + self.plan.ragged;
        let layout = match self.plan.kind {
            Kind::Raw => return stale(size, self.plan.device, rng),
            Kind::Fixed => NewLayout::Fixed,
            Kind::Dynamic => {
                NewLayout::Dynamic { block_bytes: vhd::ByteLen::new(self.plan.block_bytes) }
            }
            Kind::Differencing { .. } => NewLayout::Differencing {
                block_bytes: vhd::ByteLen::new(self.plan.block_bytes),
                parent: NewParent {
                    uuid: [2; 16],
                    raw: self.opened.first().is_some_and(Option::is_none),
                    relative_path: "parent.vhd".into(),
                    timestamp: 7,
                },
            },
        };
        let options =
            CreateOptions { size: vhd::ByteLen::new(size), layout, uuid: [1; 16], timestamp: 7 };
        let plan = vhd::create(&options).expect("the worlds' plans are legal");
        self.lay_down(&plan, rng)
    }

    /// Writes a plan into a file, or onto a device with room for every block and old bytes.
    fn lay_down(&self, plan: &vhd::Plan, rng: &mut Rng) -> Vec<u8> {
        let file_len = plan.file_len.get();
        let room = if self.plan.device {
            let blocks = (self.plan.sectors * 512).div_ceil(self.plan.block_bytes);
            // One block more than needed, so that space can be given back and reused.
            (blocks + 1) * (self.plan.block_bytes + 4096 + 512) + file_len
        } else {
            file_len
        };
        let len = if self.plan.device { room.next_multiple_of(4096) } else { room };
        let mut bytes = stale(len, self.plan.device, rng);
        for piece in &plan.pieces {
            match piece {
                Piece::Bytes { at, bytes: own } => put(&mut bytes, at.get(), own),
                Piece::Fill { at, len, byte } => {
                    put(&mut bytes, at.get(), &vec![*byte; len.get() as usize]);
                }
            }
        }
        if self.plan.device {
            let footer = bytes[file_len as usize - 512..file_len as usize].to_vec();
            put(&mut bytes, len - 512, &footer);
        }
        bytes
    }

    /// Clears the bit of every sector that holds zeroes, and of every other one behind the end.
    fn thin_out_bitmaps(&mut self) {
        let image = open_image(&self.leaf).expect("a leaf just made opens");
        let Some(sparse) = image.sparse() else { return };
        let geometry = sparse.geometry;
        let table = sparse.table.get() as usize;
        for block in 0..geometry.blocks() as usize {
            let entry = &self.leaf[table + block * 4..table + block * 4 + 4];
            let slot = u32::from_be_bytes(entry.try_into().expect("four bytes"));
            if slot == u32::MAX {
                continue;
            }
            let bitmap = slot as usize * 512;
            let data = bitmap + geometry.bitmap_bytes().get() as usize;
            for sector in 0..geometry.block_sectors() as usize {
                let bytes = &self.leaf[data + sector * 512..data + sector * 512 + 512];
                if bytes.iter().all(|byte| *byte == 0) {
                    self.leaf[bitmap + sector / 8] &= !(0x80 >> (sector % 8));
                }
            }
        }
    }

    fn read(&self) -> Result<Vec<Tag>, String> {
        let mut disk = self.open(&self.leaf, None)?;
        let mut files: Vec<&[u8]> = vec![&self.leaf];
        files.extend(self.parents.iter().map(Vec::as_slice));
        read_disk(&mut disk, &files)
    }

    /// What holds the leaf.
    pub(crate) fn backing(&self) -> Backing {
        if self.plan.device { Backing::Device } else { Backing::File }
    }

    /// Whether the leaf lies on a device.
    pub(crate) fn is_device(&self) -> bool {
        self.plan.device
    }

    /// The leaf's bytes when a life begins.
    pub(crate) fn leaf(&self) -> &[u8] {
        &self.leaf
    }

    /// The parents' bytes, nearest first.
    pub(crate) fn parents(&self) -> &[Vec<u8>] {
        &self.parents
    }

    /// What the guest finds when a life begins.
    pub(crate) fn content(&self) -> &[Tag] {
        &self.content
    }

    /// Cells of the disk.
    pub(crate) fn cells(&self) -> u32 {
        ((self.plan.sectors * 512 + self.plan.ragged) / CELL as u64) as u32
    }

    /// What must be done to an image before it is written again.
    ///
    /// # Errors
    /// When the image cannot be opened at all.
    pub(crate) fn recovery(
        &self,
        bytes: &[u8],
        bug: Option<Bug>,
    ) -> Result<Vec<RecoveryStep>, String> {
        if self.plan.kind == Kind::Raw || bug == Some(Bug::RecoverySkipped) {
            return Ok(Vec::new());
        }
        let image = open_image(bytes)?;
        let backing = match self.backing() {
            Backing::File => vhd::Backing::File,
            Backing::Device => vhd::Backing::Device { len: vhd::ByteLen::new(bytes.len() as u64) },
        };
        let steps = vhd::recovery_plan(&image, backing).into_iter().map(repair_step);
        let mut steps: Vec<RecoveryStep> = steps.collect();
        match bug {
            Some(Bug::RecoveryCutsNothing) => steps.retain(|step| !is_cut(step)),
            Some(Bug::RecoveryCutsBlocks) => cut_to_metadata(&image, &mut steps),
            _ => {}
        }
        Ok(steps)
    }

    /// What every opening for writing does before the recovery, whatever the image's state: what
    /// the page cache holds of a killed predecessor must be durable before anybody builds on it.
    pub(crate) fn opening_steps(&self, bug: Option<Bug>) -> Vec<RecoveryStep> {
        if bug == Some(Bug::OpenWithoutSync) { Vec::new() } else { vec![RecoveryStep::Sync] }
    }

    /// Opens a recovered image for writing; a seeded bug may be built in.
    ///
    /// # Errors
    /// When the image cannot be opened.
    pub(crate) fn open(&self, bytes: &[u8], bug: Option<Bug>) -> Result<Disk, String> {
        self.open_as(bytes, bug, &FIRST)
    }

    /// The same with files of these names, its own first.
    ///
    /// # Errors
    /// When the image cannot be opened.
    pub(crate) fn open_as(
        &self,
        bytes: &[u8],
        bug: Option<Bug>,
        ids: &[FileId],
    ) -> Result<Disk, String> {
        let leaf = self.open_leaf(bytes)?;
        let leaf = match bug {
            Some(bug) => wrap(leaf, bug, bytes),
            None => leaf,
        };
        Ok(Disk::writable(leaf, ids[0], self.frozen(&ids[1..])))
    }

    /// The leaf alone.
    ///
    /// # Errors
    /// When the image cannot be opened.
    pub(crate) fn open_leaf(&self, bytes: &[u8]) -> Result<Box<dyn Leaf>, String> {
        Ok(match self.plan.kind {
            Kind::Raw if self.plan.device => {
                Box::new(Flat::on_device(ByteLen::new(bytes.len() as u64)))
            }
            Kind::Raw => Box::new(Flat::growing(ByteLen::new(bytes.len() as u64))),
            Kind::Fixed => Box::new(FixedLeaf::new(&open_image(bytes)?, LeafBacking::File)),
            Kind::Dynamic | Kind::Differencing { .. } => self.open_sparse(bytes)?,
        })
    }

    /// Whether an image of this world may get a child: the others would have to be read otherwise
    /// than parents are here.
    pub(crate) fn may_lie_below(&self, size: u64) -> bool {
        let kind = !matches!(self.plan.kind, Kind::Fixed);
        kind && !self.plan.device
            && size.is_multiple_of(512)
            && self.parents.len() + 2 < FIRST.len()
    }

    /// A world whose leaf is an empty child of this one's, which has become these bytes.
    ///
    /// # Errors
    /// When they do not open as they are.
    pub(crate) fn over(&self, bytes: &[u8], size: u64, rng: &mut Rng) -> Result<Self, String> {
        let is_raw = self.plan.kind == Kind::Raw;
        let raw = is_raw || self.opened.iter().any(Option::is_none);
        let parents = self.parents.len() as u8 + 1;
        let plan = Plan {
            kind: Kind::Differencing { parents, raw },
            sectors: size / 512,
            ragged: 0,
            foreign: false,
            filled: 0,
            spare: 0,
            cut: false,
            ..self.plan
        };
        let opened = if is_raw { None } else { Some(open_image(bytes)?) };
        let mut world = Self {
            plan,
            leaf: Vec::new(),
            parents: std::iter::once(bytes.to_vec()).chain(self.parents.iter().cloned()).collect(),
            opened: std::iter::once(opened).chain(self.opened.iter().cloned()).collect(),
            content: Vec::new(),
        };
        world.leaf = world.fresh_leaf(rng);
        world.content = world.read()?;
        Ok(world)
    }

    fn open_sparse(&self, bytes: &[u8]) -> Result<Box<dyn Leaf>, String> {
        let image = open_image(bytes)?;
        let Body::Sparse(sparse) = &image.body else { return Err("not a sparse image".into()) };
        let backing = match self.backing() {
            Backing::File => LeafBacking::File,
            Backing::Device => LeafBacking::Device,
        };
        Ok(Box::new(VhdLeaf::new(&image, sparse, backing)))
    }

    /// Opens an image for reading only, recovered or not; `None` for images without metadata.
    ///
    /// # Errors
    /// When the image cannot be opened.
    pub(crate) fn open_frozen(&self, bytes: &[u8]) -> Result<Option<Disk>, String> {
        if self.plan.kind == Kind::Raw {
            return Ok(None);
        }
        let image = open_image(bytes)?;
        let Body::Sparse(sparse) = &image.body else { return Ok(None) };
        let layer = Box::new(VhdLayer::new(&image, sparse));
        let mut layers = vec![FrozenLayer { layer, file: FileId(0) }];
        layers.extend(self.frozen(&FIRST[1..]));
        Ok(Disk::read_only(layers))
    }

    /// The cells of a recovered image as a foreign program sees them; `None` for flat images.
    pub(crate) fn plain_cells(&self, bytes: &[u8]) -> Option<Vec<Tag>> {
        if matches!(self.plan.kind, Kind::Raw | Kind::Fixed) {
            return None;
        }
        let mut chain = vec![Bytes::Sparse(bytes)];
        for (image, bytes) in self.opened.iter().zip(&self.parents) {
            chain.push(if image.is_some() { Bytes::Sparse(bytes) } else { Bytes::Flat(bytes) });
        }
        let mut cell = [0; CELL];
        let read = |number| {
            read_cell(&chain, number, &mut cell);
            Tag::read(number, &cell)
        };
        let cells = (size(Bytes::Sparse(bytes)) / CELL) as u32;
        Some((0..cells).map(read).collect())
    }

    fn frozen(&self, ids: &[FileId]) -> Vec<FrozenLayer> {
        let layer = |image: &Option<Image>, bytes: &[u8]| -> Box<dyn Layer> {
            match image.as_ref().map(|image| (image, &image.body)) {
                Some((image, Body::Sparse(sparse))) => Box::new(VhdLayer::new(image, sparse)),
                _ => Box::new(Flat::new(ByteLen::new(bytes.len() as u64))),
            }
        };
        let both = self.opened.iter().zip(&self.parents);
        ids.iter()
            .zip(both)
            .map(|(file, (image, bytes))| FrozenLayer { layer: layer(image, bytes), file: *file })
            .collect()
    }

    /// What the format's own checker says of a recovered image.
    ///
    /// # Errors
    /// The first finding that is an error.
    pub(crate) fn check(&self, bytes: &[u8], faulty: bool) -> Result<(), String> {
        if self.plan.kind == Kind::Raw {
            return Ok(());
        }
        let options = CheckOptions { data: true, ..CheckOptions::default() };
        let mut check = Check::new(vhd::ByteLen::new(bytes.len() as u64), options);
        let report = drive(bytes, |read| check.step(read).map_err(|error| error.to_string()))?;
        // A sector whose bit is still clear may hold what was being written, or what a failed write
        // left: it reads as zeroes all the same. Our own blocks are born with full bitmaps.
        let partial = faulty || self.plan.foreign;
        let is_bad = |finding: &&vhd::Finding| {
            finding.severity >= Severity::Error && !(partial && finding.rule == Rule::V9)
        };
        match report.findings.iter().find(is_bad) {
            None => Ok(()),
            Some(finding) => Err(format!("check of the recovered image: {finding:?}")),
        }
    }
}

/// Opens a VHD from its bytes.
///
/// # Errors
/// What the opening says.
pub(crate) fn open_image(bytes: &[u8]) -> Result<Image, String> {
    let mut opening = Opening::new(vhd::ByteLen::new(bytes.len() as u64), Limits::default());
    drive(bytes, |read| opening.step(read).map_err(|error| format!("cannot open: {error}")))
}

fn drive<T>(
    bytes: &[u8],
    mut step: impl FnMut(Option<&[u8]>) -> Result<Step<T>, String>,
) -> Result<T, String> {
    let mut read = None;
    loop {
        match step(read)? {
            Step::Done(done) => return Ok(done),
            Step::Read { at, len } => {
                let at = at.get() as usize;
                read = Some(bytes.get(at..at + len).ok_or("asked for bytes behind the end")?);
            }
        }
    }
}

fn repair_step(step: RepairStep) -> RecoveryStep {
    match step {
        RepairStep::Write { at, bytes } => {
            RecoveryStep::Change(Change::Write(FileOffset::new(at.get()), bytes))
        }
        RepairStep::Truncate { len } => {
            RecoveryStep::Change(Change::Truncate(ByteLen::new(len.get())))
        }
        RepairStep::Sync => RecoveryStep::Sync,
    }
}

fn is_cut(step: &RecoveryStep) -> bool {
    matches!(step, RecoveryStep::Change(Change::Truncate(_)))
}

fn cut_to_metadata(image: &Image, steps: &mut [RecoveryStep]) {
    let Some(sparse) = image.sparse() else { return };
    let end = ByteLen::new(sparse.metadata_end.get() + 512);
    for step in steps.iter_mut().filter(|step| is_cut(step)) {
        *step = RecoveryStep::Change(Change::Truncate(end));
    }
}

fn put(bytes: &mut [u8], at: u64, own: &[u8]) {
    bytes[at as usize..at as usize + own.len()].copy_from_slice(own);
}

/// Bytes of a new backing: zeroes in a file; on a device what somebody left there, among it old
/// footers and bitmaps with every bit set.
fn stale(len: u64, device: bool, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    if !device {
        return bytes;
    }
    let old = vhd::footer_for(vhd::DiskKind::Dynamic, vhd::ByteLen::new(1 << 20), [9; 16], 3);
    for sector in bytes.chunks_mut(512) {
        match rng.below(4) {
            0 => sector.copy_from_slice(&old.to_bytes()[..sector.len()]),
            1 => sector.fill(0xFF),
            _ => sector.fill(0xCC),
        }
    }
    bytes
}
