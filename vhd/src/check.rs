//! Checking an image without doing I/O: everything that can be said about it, in one report, where
//! an opener stops at the first problem. Repairs nothing and opens no parent.

use std::fmt;

use crate::batmap::BatmapInfo;
use crate::bitmap;
use crate::error::OpenError;
use crate::footer::DiskKind;
use crate::geometry::{DATA_ALIGN_BYTES, Geometry};
use crate::image::{Image, Limits, MAX_READ_BYTES, Sparse, Step};
use crate::survey::{Ask, Outcome, Places, Survey};
use crate::table::Placed;
use crate::units::{BlockIndex, ByteLen, FileOffset, SECTOR_BYTES};

/// The most findings a report keeps; further ones are counted only.
pub const MAX_FINDINGS: usize = 1000;

/// How much to check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Read the data of dynamic images too, where their bitmaps say that there is none (V9).
    pub data: bool,
    /// What is accepted at all.
    pub limits: Limits,
}

/// An invariant of section 1.9 of the format notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Footers valid and equal.
    V1,
    /// Dynamic header valid.
    V2,
    /// Table large enough, inside the file, in a place of its own.
    V3,
    /// Every block behind the metadata and before the footer.
    V4,
    /// No two blocks overlap.
    V5,
    /// Locators inside the file, in places of their own.
    V6,
    /// A differencing image names a parent.
    V7,
    /// A footer at the end of the file.
    V8,
    /// Absent sectors of a dynamic image's blocks are zero.
    V9,
    /// No bits set beyond the end of the disk.
    V10,
    /// A batmap bit only where the bitmap is full.
    V11,
    /// A size of whole sectors within limits.
    V12,
    /// Sizes of child and parent; whoever opens both checks it.
    V13,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Odd, but no reader shows wrong data.
    Warning,
    /// Some reader refuses the image or shows wrong data.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The invariant it breaks.
    pub rule: Rule,
    /// How bad it is.
    pub severity: Severity,
    /// Which byte of the file it concerns.
    pub at: FileOffset,
    /// What a sound image has there.
    pub expected: String,
    /// What this one has.
    pub found: String,
    /// What to do about it.
    pub hint: String,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, in the order it was met.
    pub findings: Vec<Finding>,
    /// Findings beyond [`MAX_FINDINGS`].
    pub more_findings: u64,
    /// The image as far as it could be understood. With errors among the findings it must not be
    /// read as a disk.
    pub image: Option<Image>,
    /// Blocks of the disk.
    pub blocks: u32,
    /// Blocks allocated.
    pub allocated: u32,
    /// Bytes that no block and no metadata uses, alignment gaps apart.
    pub leaked: ByteLen,
}

impl Report {
    /// Whether no finding is an error.
    pub fn is_sound(&self) -> bool {
        self.more_findings == 0 && self.findings.iter().all(|f| f.severity < Severity::Error)
    }

    fn note(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }
}

/// Why a check could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The caller brought other bytes than asked for: the file shrank, or a read fell short.
    #[error("{expected} bytes were asked for, {found} came")]
    WrongLength {
        /// Bytes asked for.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
}

/// Checks an image step by step, like [`crate::Opening`].
#[derive(Debug)]
pub struct Check {
    data: bool,
    stage: Stage,
    report: Report,
    asked: usize,
}

#[derive(Debug)]
enum Stage {
    Survey(Box<Survey>),
    Batmap(Blocks),
    Bitmap(Blocks),
    Data(Blocks, Gap),
    Finished,
}

/// The blocks of a sparse image and how far the check has come with them.
#[derive(Debug)]
struct Blocks {
    geometry: Geometry,
    dynamic: bool,
    disk_size: ByteLen,
    batmap: Option<BatmapInfo>,
    full: Vec<u8>,
    placed: Vec<Placed>,
    next: usize,
}

/// Absent sectors of a block whose data is being looked at.
#[derive(Debug)]
struct Gap {
    bits: Vec<u8>,
    sector: u32,
    count: u32,
}

impl Check {
    /// Starts with the length of the file (or device).
    pub fn new(file_len: ByteLen, options: CheckOptions) -> Self {
        let survey = Survey::new(file_len, options.limits, MAX_FINDINGS);
        let stage = Stage::Survey(Box::new(survey));
        Self { data: options.data, stage, report: Report::default(), asked: 0 }
    }

    /// The first call brings `None`, each further one exactly the bytes asked for. Never ends
    /// early because the image is bad: only bytes that do not come are an error.
    pub fn step(&mut self, bytes: Option<&[u8]>) -> Result<Step<Report>, CheckError> {
        let bytes = bytes.unwrap_or_default();
        let expected = std::mem::take(&mut self.asked);
        if bytes.len() != expected {
            self.stage = Stage::Finished;
            return Err(CheckError::WrongLength { expected, found: bytes.len() });
        }
        let read = match std::mem::replace(&mut self.stage, Stage::Finished) {
            Stage::Survey(survey) => self.survey(survey, bytes),
            Stage::Batmap(blocks) => self.batmap(blocks, bytes),
            Stage::Bitmap(blocks) => self.bitmap(blocks, bytes),
            Stage::Data(blocks, gap) => self.data(blocks, gap, bytes),
            Stage::Finished => None,
        };
        let Some((at, len)) = read else {
            return Ok(Step::Done(std::mem::take(&mut self.report)));
        };
        self.asked = len;
        Ok(Step::Read { at, len })
    }

    fn read(&mut self, stage: Stage, at: FileOffset, len: usize) -> Option<(FileOffset, usize)> {
        self.stage = stage;
        Some((at, len))
    }

    fn survey(&mut self, mut survey: Box<Survey>, bytes: &[u8]) -> Option<(FileOffset, usize)> {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        let ask = survey.step(bytes).expect("the length was compared a moment ago");
        match ask {
            Ask::Read { at, len } => self.read(Stage::Survey(survey), at, len),
            Ask::Finished => self.surveyed(survey.take_outcome()),
        }
    }

    fn surveyed(&mut self, outcome: Outcome) -> Option<(FileOffset, usize)> {
        let places = outcome.places;
        for problem in &outcome.problems {
            self.report.note(problem_finding(problem, &places));
        }
        self.report.more_findings += outcome.more_problems;
        for warning in &outcome.warnings {
            self.report.note(Finding {
                rule: warning.rule(),
                severity: warning.severity(),
                at: warning.place(&places),
                expected: warning.expectation().to_owned(),
                found: warning.to_string(),
                hint: warning.hint().to_owned(),
            });
        }
        let image = outcome.image?;
        let dynamic = image.footer.kind == DiskKind::Dynamic;
        let blocks = image.sparse().map(|sparse| {
            self.report.blocks = sparse.geometry.blocks();
            self.report.allocated = sparse.allocated;
            let placed = outcome.blocks.placed();
            self.report.leaked = leaked(&image, sparse, &placed);
            Blocks {
                geometry: sparse.geometry,
                dynamic,
                disk_size: image.disk_size(),
                batmap: sparse.batmap,
                full: Vec::new(),
                placed,
                next: 0,
            }
        });
        if let Some(finding) = unreachable_parent(&image, &places) {
            self.report.note(finding);
        }
        self.report.image = Some(image);
        self.next_batmap(blocks?)
    }

    fn next_batmap(&mut self, blocks: Blocks) -> Option<(FileOffset, usize)> {
        let done = blocks.full.len() as u64;
        let wanted = blocks.batmap_bytes();
        match (blocks.batmap, wanted.saturating_sub(done)) {
            (Some(info), rest) if rest > 0 => {
                let at = FileOffset::new(info.map_at.get() + done);
                let len = rest.min(MAX_READ_BYTES as u64) as usize;
                self.read(Stage::Batmap(blocks), at, len)
            }
            (Some(info), _) => {
                if !info.sum_is_right(&blocks.full, blocks.batmap_covered()) {
                    self.report.note(Finding {
                        rule: Rule::V11,
                        severity: Severity::Warning,
                        at: info.header_at,
                        expected: "the sum of the batmap's bits".to_owned(),
                        found: format!("{:#010x}", info.checksum),
                        hint: "XenServer opens such an image for reading only".to_owned(),
                    });
                }
                self.next_bitmap(blocks)
            }
            (None, _) => self.next_bitmap(blocks),
        }
    }

    fn batmap(&mut self, mut blocks: Blocks, bytes: &[u8]) -> Option<(FileOffset, usize)> {
        blocks.full.extend_from_slice(bytes);
        self.next_batmap(blocks)
    }

    fn next_bitmap(&mut self, blocks: Blocks) -> Option<(FileOffset, usize)> {
        let at = blocks.placed.get(blocks.next)?.sector().offset();
        let len = blocks.geometry.bitmap_bytes().get() as usize;
        self.read(Stage::Bitmap(blocks), at, len)
    }

    fn bitmap(&mut self, mut blocks: Blocks, bytes: &[u8]) -> Option<(FileOffset, usize)> {
        let placed = blocks.placed[blocks.next];
        let (block, at) = (placed.block(), placed.sector().offset());
        let all = blocks.geometry.block_sectors();
        let on_disk = blocks.geometry.sectors_on_disk(block);
        if on_disk < all && bitmap::run(bytes, on_disk, all) != (false, all - on_disk) {
            self.report.note(Finding {
                rule: Rule::V10,
                severity: Severity::Warning,
                at,
                expected: format!("no bits set from sector {on_disk} of block {block}"),
                found: "bits set behind the end of the disk".to_owned(),
                hint: "should the disk grow, these sectors are not zero".to_owned(),
            });
        }
        if blocks.is_called_full(block) && !bitmap::is_full(bytes, on_disk) {
            self.report.note(Finding {
                rule: Rule::V11,
                severity: Severity::Error,
                at,
                expected: format!("every bit of block {block} set, as the batmap says"),
                found: "a bitmap that is not full".to_owned(),
                hint: "programs that believe the batmap show wrong data".to_owned(),
            });
        }
        if self.data && blocks.dynamic {
            return self.next_gap(blocks, bytes.to_vec(), 0);
        }
        blocks.next += 1;
        self.next_bitmap(blocks)
    }

    /// Asks for the data of the next absent sectors of the block, from `sector` on.
    fn next_gap(
        &mut self,
        mut blocks: Blocks,
        bits: Vec<u8>,
        mut sector: u32,
    ) -> Option<(FileOffset, usize)> {
        let all = blocks.geometry.block_sectors();
        if let (true, present) = bitmap::run(&bits, sector, all) {
            sector += present;
        }
        let (_, absent) = bitmap::run(&bits, sector, all);
        if absent == 0 {
            blocks.next += 1;
            return self.next_bitmap(blocks);
        }
        let count = absent.min(MAX_READ_BYTES as u32 / SECTOR_BYTES as u32);
        let slot = blocks.placed[blocks.next].sector();
        let data = blocks.geometry.data_at(slot).get() + u64::from(sector) * SECTOR_BYTES;
        let len = count as usize * SECTOR_BYTES as usize;
        let gap = Gap { bits, sector, count };
        self.read(Stage::Data(blocks, gap), FileOffset::new(data), len)
    }

    fn data(&mut self, mut blocks: Blocks, gap: Gap, bytes: &[u8]) -> Option<(FileOffset, usize)> {
        let Some(first) = bytes.iter().position(|byte| *byte != 0) else {
            return self.next_gap(blocks, gap.bits, gap.sector + gap.count);
        };
        let placed = blocks.placed[blocks.next];
        let sector = gap.sector + first as u32 / SECTOR_BYTES as u32;
        let data = blocks.geometry.data_at(placed.sector()).get();
        self.report.note(Finding {
            rule: Rule::V9,
            // A crash between a sector and its bit leaves this, and nothing is lost by it.
            severity: Severity::Warning,
            at: FileOffset::new(data + u64::from(gap.sector) * SECTOR_BYTES + first as u64),
            expected: format!("zeros in sector {sector} of block {}", placed.block()),
            found: format!("byte {:#04x}", bytes[first]),
            hint: "programs that ignore the bitmap show these bytes".to_owned(),
        });
        // One finding for a block is enough: a stale block is stale throughout.
        blocks.next += 1;
        self.next_bitmap(blocks)
    }
}

impl Blocks {
    /// Bytes of the batmap that matter here, within what it has.
    fn batmap_bytes(&self) -> u64 {
        let needed = u64::from(self.geometry.blocks().div_ceil(8));
        let wanted = needed.max(self.batmap_covered().get());
        self.batmap.map_or(0, |info| wanted.min(info.map_bytes.get()))
    }

    /// Bytes that the writer sums: the disk size in units of 16 MiB, rounded down, then up to
    /// sectors.
    fn batmap_covered(&self) -> ByteLen {
        ByteLen::new((self.disk_size.get() >> 24).max(1).next_multiple_of(SECTOR_BYTES))
    }

    fn is_called_full(&self, block: BlockIndex) -> bool {
        block.as_usize() / 8 < self.full.len() && bitmap::is_set(&self.full, block.get())
    }
}

fn problem_finding(problem: &OpenError, places: &Places) -> Finding {
    Finding {
        rule: problem.rule(),
        severity: Severity::Error,
        at: problem.place(places),
        expected: problem.expectation().to_owned(),
        found: problem.to_string(),
        hint: problem.hint().to_owned(),
    }
}

/// A differencing image none of whose locators can be followed inside a repository.
fn unreachable_parent(image: &Image, places: &Places) -> Option<Finding> {
    let parent = image.parent()?;
    if parent.candidates.iter().any(|path| path.relative.is_some()) {
        return None;
    }
    Some(Finding {
        rule: Rule::V7,
        severity: Severity::Warning,
        at: FileOffset::new(places.header.get().saturating_add(576)),
        expected: "a relative path to the parent".to_owned(),
        found: format!("none; the parent's name is {:?}", parent.name),
        hint: "the parent can be found by its identity only".to_owned(),
    })
}

/// Space between the blocks that is more than aligning the next block takes.
fn leaked(image: &Image, sparse: &Sparse, placed: &[Placed]) -> ByteLen {
    let mut end = sparse.metadata_end.get();
    let mut sum = 0;
    let footer = image.file_len.get().saturating_sub(SECTOR_BYTES);
    let starts = placed.iter().map(|block| block.sector().offset().get());
    for start in starts.chain([footer]) {
        let gap = start.saturating_sub(end);
        if gap > DATA_ALIGN_BYTES {
            sum += gap;
        }
        if start != footer {
            end = end.max(start + sparse.geometry.slot_bytes().get());
        }
    }
    ByteLen::new(sum)
}
