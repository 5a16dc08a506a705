//! The walk over an image's metadata that both opening and checking take: one order of reads, one
//! set of rules. Notes every problem it meets up to a limit and goes on while more can be said;
//! whether the first one is already too many is the caller's affair.

use crate::batmap::{BATMAP_HEADER_BYTES, BatmapError, BatmapInfo};
use crate::draft::{Draft, Footers};
use crate::error::{OpenError, Warning};
use crate::footer::{
    CREATOR_TAPDISK, Chs, DiskKind, FEATURE_RESERVED, FEATURE_TEMPORARY, FOOTER_BYTES, Footer,
    FooterError, SHORT_FOOTER_BYTES,
};
use crate::header::{DynamicHeader, HEADER_BYTES};
use crate::image::{
    Body, Image, Limits, MAX_FOOTER_JUMP_BYTES, MAX_READ_BYTES, TailState, feature_refusal,
};
use crate::locator::{LOCATORS, Platform, decode};
use crate::table::{Blocks, TablePass};
use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Read { at: FileOffset, len: usize },
    Finished,
}

/// What a finished survey leaves.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The image, as far as it could be understood; for a checker also when there are problems.
    pub(crate) image: Option<Image>,
    pub(crate) blocks: Blocks,
    pub(crate) places: Places,
    pub(crate) problems: Vec<OpenError>,
    /// Problems beyond those kept.
    pub(crate) more_problems: u64,
    pub(crate) warnings: Vec<Warning>,
}

/// Where the parts are that a problem may concern, as far as known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Places {
    pub(crate) footer: FileOffset,
    pub(crate) header: FileOffset,
    pub(crate) table: FileOffset,
}

#[derive(Debug)]
enum Stage {
    Start,
    Tail,
    /// Zeroes at the end: the last other sector is looked for, this chunk was asked for.
    Behind(u64),
    Front,
    Header,
    Locator(usize),
    Batmap,
    Table(TablePass),
    Finished,
}

/// The walk. See the module.
#[derive(Debug)]
pub(crate) struct Survey {
    file_len: ByteLen,
    limits: Limits,
    stage: Stage,
    asked: Option<usize>,
    footers: Option<Footers>,
    tail_fault: Option<FooterError>,
    short_tail: bool,
    /// A fixed image's footer with nothing but zeroes behind it, and where it lies.
    displaced: Option<(Footer, FileOffset)>,
    sparse: Option<Draft>,
    max_problems: usize,
    outcome: Outcome,
}

impl Survey {
    pub(crate) fn new(file_len: ByteLen, limits: Limits, max_problems: usize) -> Self {
        Self {
            file_len,
            limits,
            stage: Stage::Start,
            asked: None,
            footers: None,
            tail_fault: None,
            short_tail: false,
            displaced: None,
            sparse: None,
            max_problems,
            outcome: Outcome::default(),
        }
    }

    /// Takes the bytes last asked for and says what is next.
    pub(crate) fn step(&mut self, bytes: Option<&[u8]>) -> Result<Ask, OpenError> {
        let bytes = bytes.unwrap_or_default();
        let expected = self.asked.take().unwrap_or(0);
        if bytes.len() != expected {
            self.stage = Stage::Finished;
            return Err(OpenError::WrongLength { expected, found: bytes.len() });
        }
        let ask = match std::mem::replace(&mut self.stage, Stage::Finished) {
            Stage::Start => self.start(),
            Stage::Tail => self.tail(bytes),
            Stage::Behind(start) => self.behind(start, bytes),
            Stage::Front => self.front(bytes),
            Stage::Header => self.header(bytes),
            Stage::Locator(index) => self.locator(index, bytes),
            Stage::Batmap => self.batmap(bytes),
            Stage::Table(pass) => self.table(pass, bytes),
            Stage::Finished => Ask::Finished,
        };
        if let Ask::Read { len, .. } = ask {
            self.asked = Some(len);
        }
        Ok(ask)
    }

    pub(crate) fn first_problem(&self) -> Option<OpenError> {
        self.outcome.problems.first().cloned()
    }

    pub(crate) fn take_outcome(&mut self) -> Outcome {
        std::mem::take(&mut self.outcome)
    }

    fn fail(&mut self, error: OpenError) {
        note(&mut self.outcome, self.max_problems, error);
    }

    fn refuse(&mut self, error: OpenError) -> Ask {
        self.fail(error);
        Ask::Finished
    }

    fn warn(&mut self, warning: Warning) {
        self.outcome.warnings.push(warning);
    }

    fn read(&mut self, stage: Stage, at: FileOffset, len: usize) -> Ask {
        self.stage = stage;
        Ask::Read { at, len }
    }

    fn tail_at(&self, footer_bytes: usize) -> FileOffset {
        FileOffset::new(self.file_len.get().saturating_sub(footer_bytes as u64))
    }

    /// Where everything but the trailing footer must have ended.
    fn body_end(&self) -> FileOffset {
        match self.footers {
            Some(Footers { state: TailState::Missing, .. }) => self.file_len.end_of_file(),
            Some(Footers { state: TailState::Short511, .. }) => self.tail_at(SHORT_FOOTER_BYTES),
            _ => self.tail_at(FOOTER_BYTES),
        }
    }

    fn start(&mut self) -> Ask {
        if self.file_len.get() < FOOTER_BYTES as u64 {
            return self.refuse(OpenError::TooSmall { found: self.file_len });
        }
        self.outcome.places.footer = self.tail_at(FOOTER_BYTES);
        self.read(Stage::Tail, self.tail_at(FOOTER_BYTES), FOOTER_BYTES)
    }

    fn tail(&mut self, bytes: &[u8]) -> Ask {
        let mut parsed = Footer::parse(bytes);
        let short_fits = self.file_len.get() % SECTOR_BYTES == SHORT_FOOTER_BYTES as u64;
        if short_fits && parsed.is_err_and(FooterError::is_damage) {
            let short = Footer::parse(&bytes[FOOTER_BYTES - SHORT_FOOTER_BYTES..]);
            if !short.is_err_and(FooterError::is_damage) {
                (parsed, self.short_tail) = (short, true);
            }
        }
        match parsed {
            Ok(footer) if footer.kind == DiskKind::Fixed => self.fixed(footer),
            Ok(footer) => {
                let state = if self.short_tail { TailState::Short511 } else { TailState::Good };
                self.footers = Some(Footers { footer, state, front_matches: false });
                self.read(Stage::Front, FileOffset::new(0), FOOTER_BYTES)
            }
            Err(cause) if cause.is_damage() => {
                self.tail_fault = Some(cause);
                let whole = self.file_len.get().is_multiple_of(SECTOR_BYTES);
                if whole && bytes.iter().all(|byte| *byte == 0) {
                    return self.look_behind(self.tail_at(FOOTER_BYTES).get());
                }
                self.read(Stage::Front, FileOffset::new(0), FOOTER_BYTES)
            }
            Err(cause) => {
                let at = self.tail_at(FOOTER_BYTES);
                self.refuse(OpenError::Footer { at, cause })
            }
        }
    }

    /// Asks for what lies before `end`, behind which there are zeroes only. A fixed image that was
    /// growing may look so. Before the copy in front is believed, as there it is guest data.
    fn look_behind(&mut self, end: u64) -> Ask {
        let start = end.saturating_sub(MAX_READ_BYTES as u64);
        let looked = self.file_len.get() - end;
        if end == 0 || looked > MAX_FOOTER_JUMP_BYTES {
            return self.read(Stage::Front, FileOffset::new(0), FOOTER_BYTES);
        }
        self.read(Stage::Behind(start), FileOffset::new(start), (end - start) as usize)
    }

    fn behind(&mut self, start: u64, bytes: &[u8]) -> Ask {
        let sectors = bytes.chunks_exact(FOOTER_BYTES);
        let Some(last) = sectors.clone().rposition(|s| s.iter().any(|byte| *byte != 0)) else {
            return self.look_behind(start);
        };
        let sector = sectors.clone().nth(last).unwrap_or_default();
        let at = FileOffset::new(start + (last * FOOTER_BYTES) as u64);
        self.displaced = Footer::parse(sector)
            .ok()
            .filter(|footer| {
                footer.kind == DiskKind::Fixed && footer.current_size.get() <= at.get()
            })
            .map(|footer| (footer, at));
        self.read(Stage::Front, FileOffset::new(0), FOOTER_BYTES)
    }

    /// A fixed image whose file has grown and whose footer has not followed.
    fn fixed_displaced(&mut self, footer: Footer, at: FileOffset, tail: FooterError) -> Ask {
        self.warn(Warning::TailLost(tail));
        if !self.size_is_sound(&footer, self.limits.max_fixed_bytes) {
            return Ask::Finished;
        }
        self.footer_warnings(&footer);
        if let Some(reason) = feature_refusal(&footer) {
            self.warn(Warning::ReadOnly(reason));
        }
        self.outcome.places.footer = at;
        self.finish(footer, Body::Fixed)
    }

    fn fixed(&mut self, footer: Footer) -> Ask {
        let footer_bytes = if self.short_tail { SHORT_FOOTER_BYTES } else { FOOTER_BYTES };
        if self.short_tail {
            self.warn(Warning::ShortTail);
        }
        if !self.size_is_sound(&footer, self.limits.max_fixed_bytes) {
            return Ask::Finished;
        }
        let room = ByteLen::new(self.tail_at(footer_bytes).get());
        match room.checked_sub(footer.current_size) {
            None => {
                let size = footer.current_size;
                return self.refuse(OpenError::SizeBeyondFile { size, room });
            }
            Some(ByteLen::ZERO) => {}
            Some(rest) => self.warn(Warning::FixedFileLonger(rest)),
        }
        if let Some(at) = footer.data_offset {
            self.warn(Warning::FixedHasHeader(at));
        }
        self.footer_warnings(&footer);
        if let Some(reason) = feature_refusal(&footer) {
            self.warn(Warning::ReadOnly(reason));
        }
        self.finish(footer, Body::Fixed)
    }

    fn front(&mut self, bytes: &[u8]) -> Ask {
        let parsed = Footer::parse(bytes);
        if let Err(FooterError::Poisoned) = parsed {
            let (at, cause) = (FileOffset::new(0), FooterError::Poisoned);
            return self.refuse(OpenError::Footer { at, cause });
        }
        if let (Some((footer, at)), Some(tail)) = (self.displaced, self.tail_fault) {
            return match parsed {
                // One of the two is what a guest wrote, and nobody can say which.
                Ok(front) if front.kind.is_sparse() => {
                    self.refuse(OpenError::FixedWithoutTail { tail })
                }
                _ => self.fixed_displaced(footer, at, tail),
            };
        }
        let settled = match (self.footers, parsed) {
            (Some(tail), Ok(front)) => self.compare(tail, front),
            (Some(tail), Err(fault)) => {
                self.warn(Warning::FrontLost(fault));
                let short = tail.state == TailState::Short511;
                let state = if short { TailState::Short511 } else { TailState::FrontBad };
                Some(Footers { state, ..tail })
            }
            (None, parsed) => self.only_front(parsed),
        };
        let Some(footers) = settled else { return Ask::Finished };
        self.footers = Some(footers);
        self.sparse_footer(footers.footer)
    }

    fn compare(&mut self, tail: Footers, front: Footer) -> Option<Footers> {
        let at = self.body_end();
        let footer = tail.footer;
        if footer.uuid != front.uuid {
            let (tail, front) = (footer.uuid, front.uuid);
            self.fail(OpenError::CopiesDifferInIdentity { at, tail, front });
            return None;
        }
        if footer.kind != front.kind {
            let (tail, front) = (footer.kind, front.kind);
            self.fail(OpenError::CopiesDifferInKind { at, tail, front });
            return None;
        }
        if footer == front {
            return Some(Footers { front_matches: true, ..tail });
        }
        if !footer.is_update_of(&front) {
            self.fail(OpenError::CopiesDiffer { at });
            return None;
        }
        self.warn(Warning::CopiesDiffer);
        let short = tail.state == TailState::Short511;
        let state = if short { TailState::Short511 } else { TailState::Differ };
        Some(Footers { state, ..tail })
    }

    /// A copy at the start stands in for a lost footer, but never makes a fixed disk: there it
    /// would be guest data (section 1.7, rule 3).
    fn only_front(&mut self, parsed: Result<Footer, FooterError>) -> Option<Footers> {
        let tail = self.tail_fault.expect("the tail footer is either there or faulty");
        let at = self.tail_at(FOOTER_BYTES);
        match parsed {
            Ok(footer) if footer.kind.is_sparse() => {
                self.warn(Warning::TailLost(tail));
                Some(Footers { footer, state: TailState::Missing, front_matches: true })
            }
            Ok(_) => {
                self.fail(OpenError::FixedWithoutTail { tail });
                None
            }
            Err(cause) if !cause.is_damage() => {
                self.fail(OpenError::Footer { at: FileOffset::new(0), cause });
                None
            }
            Err(front) => {
                self.fail(OpenError::NoFooter { at, tail, front });
                None
            }
        }
    }

    fn sparse_footer(&mut self, footer: Footer) -> Ask {
        if self.short_tail {
            self.warn(Warning::ShortTail);
        }
        if footer.creator.app == CREATOR_TAPDISK && footer.creator.version == 0x0000_0001 {
            self.fail(OpenError::LittleEndianBitmaps);
        }
        if !self.size_is_sound(&footer, self.limits.max_sparse_bytes) {
            return Ask::Finished;
        }
        self.footer_warnings(&footer);
        let Some(at) = footer.data_offset else { return self.refuse(OpenError::NoHeaderOffset) };
        if at.get() < FOOTER_BYTES as u64 {
            return self.refuse(OpenError::HeaderOverlapsFooterCopy { at });
        }
        let end = self.body_end();
        match at.checked_add(ByteLen::new(HEADER_BYTES as u64)) {
            Some(header_end) if header_end <= end => self.read(Stage::Header, at, HEADER_BYTES),
            _ => self.refuse(OpenError::HeaderBeyondFile { at, end }),
        }
    }

    fn size_is_sound(&mut self, footer: &Footer, most: ByteLen) -> bool {
        let found = footer.current_size;
        let error = if found == ByteLen::ZERO {
            OpenError::SizeZero
        } else if found > most {
            OpenError::SizeTooLarge { found, most }
        } else if !found.get().is_multiple_of(SECTOR_BYTES) {
            OpenError::SizeUnaligned { found }
        } else {
            return true;
        };
        self.fail(error);
        false
    }

    fn footer_warnings(&mut self, footer: &Footer) {
        if footer.saved_state != 0 {
            self.warn(Warning::SavedState(footer.saved_state));
        }
        let unknown = footer.features & !(FEATURE_RESERVED | FEATURE_TEMPORARY);
        if unknown != 0 {
            self.warn(Warning::UnknownFeatures(unknown));
        }
        if footer.geometry != Chs::for_size(footer.current_size) {
            let (geometry, size) = (footer.geometry.capacity(), footer.current_size);
            self.warn(Warning::Geometry { geometry, size });
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Ask {
        let Some(Footers { footer, .. }) = self.footers else { return Ask::Finished };
        let Some(at) = footer.data_offset else { return Ask::Finished };
        let header = match DynamicHeader::parse(bytes) {
            Ok(header) => header,
            Err(cause) => return self.refuse(OpenError::Header { at, cause }),
        };
        self.outcome.places.header = at;
        self.outcome.places.table = header.table_offset;
        if header.data_offset != u64::MAX {
            self.warn(Warning::HeaderDataOffset(header.data_offset));
        }
        let draft = match Draft::new(&self.limits, &footer, at, header, self.body_end()) {
            Ok(draft) => draft,
            Err(error) => return self.refuse(error),
        };
        if let Some(reason) = draft.write_refusal {
            self.warn(Warning::ReadOnly(reason));
        }
        if footer.kind == DiskKind::Differencing && draft.header.parent_name_is_unterminated() {
            self.warn(Warning::ParentNameUnterminated);
        }
        self.sparse = Some(draft);
        self.next_locator(0)
    }

    /// Asks for the data of the next locator from `index` on, or goes on without.
    fn next_locator(&mut self, index: usize) -> Ask {
        let Some(Footers { footer, .. }) = self.footers else { return Ask::Finished };
        let Some(draft) = &self.sparse else { return Ask::Finished };
        if footer.kind != DiskKind::Differencing {
            return self.next_batmap();
        }
        let entries = draft.header.locators;
        if entries.iter().all(|entry| entry.platform == Platform::None) {
            self.fail(OpenError::NoLocators);
        }
        let end = self.body_end();
        for (index, entry) in entries.iter().enumerate().skip(index) {
            if entry.platform == Platform::None {
                continue;
            }
            let draft = self.sparse.as_mut().expect("it was there a moment ago");
            match draft.place_locator(&self.limits, index, end) {
                Err(error) => self.fail(error),
                Ok((len, warning)) => {
                    self.outcome.warnings.extend(warning);
                    return self.read(Stage::Locator(index), entry.at, len);
                }
            }
        }
        self.next_batmap()
    }

    fn locator(&mut self, position: usize, bytes: &[u8]) -> Ask {
        let index = position as u8;
        let draft = self.sparse.as_mut().expect("locators come after the header");
        let entry = draft.header.locators[position];
        match decode(entry.platform, bytes) {
            Err(cause) => self.fail(OpenError::Locator { index, at: entry.at, cause }),
            Ok(path) => {
                let lossy = path.text.contains('\u{FFFD}');
                draft.paths.push(path);
                if lossy {
                    self.warn(Warning::LocatorLossy(index));
                }
            }
        }
        debug_assert!(position < LOCATORS, "the header has that many locators");
        self.next_locator(position + 1)
    }

    fn next_batmap(&mut self) -> Ask {
        let Some(Footers { footer, .. }) = self.footers else { return Ask::Finished };
        let Some(draft) = &self.sparse else { return Ask::Finished };
        let creator = footer.creator;
        let at = draft.table.checked_add(draft.table_bytes);
        let end = at.and_then(|at| at.checked_add(ByteLen::new(BATMAP_HEADER_BYTES as u64)));
        match (at, end) {
            (Some(at), Some(end))
                if creator.app == CREATOR_TAPDISK
                    && creator.version >= 0x0001_0001
                    && end <= self.body_end() =>
            {
                self.read(Stage::Batmap, at, BATMAP_HEADER_BYTES)
            }
            _ => self.start_table(),
        }
    }

    fn batmap(&mut self, bytes: &[u8]) -> Ask {
        let Some(Footers { footer, .. }) = self.footers else { return Ask::Finished };
        let end = self.body_end();
        let draft = self.sparse.as_mut().expect("the batmap comes after the header");
        let at = FileOffset::new(draft.table.get() + draft.table_bytes.get());
        let parsed = BatmapInfo::parse(at, bytes);
        if parsed.is_ok_and(|info| info.encrypted) {
            self.fail(OpenError::Encrypted { at });
            return self.start_table();
        }
        match parsed.and_then(|info| draft.place_batmap(info, end)) {
            Ok(()) => {}
            // Before 1.2 a batmap may be absent, and then these are a block's bytes.
            Err(BatmapError::Cookie { .. }) if footer.creator.version < 0x0001_0002 => {}
            Err(error) => self.warn(Warning::Batmap(error)),
        }
        self.start_table()
    }

    fn start_table(&mut self) -> Ask {
        let blocks_limit = self.body_end();
        let Some(draft) = &self.sparse else { return Ask::Finished };
        let pass = TablePass::new(draft.geometry, draft.taken.clone(), self.file_len, blocks_limit);
        self.next_page(pass)
    }

    fn next_page(&mut self, pass: TablePass) -> Ask {
        let Some(draft) = &self.sparse else { return Ask::Finished };
        let done = u64::from(pass.seen()) * 4;
        let rest = u64::from(draft.geometry.entries()) * 4 - done;
        if rest == 0 {
            return self.finish_table(pass);
        }
        let at = FileOffset::new(draft.table.get() + done);
        let len = rest.min(MAX_READ_BYTES as u64) as usize;
        self.read(Stage::Table(pass), at, len)
    }

    fn table(&mut self, mut pass: TablePass, bytes: &[u8]) -> Ask {
        pass.page(bytes, |error| note(&mut self.outcome, self.max_problems, error));
        self.next_page(pass)
    }

    fn finish_table(&mut self, pass: TablePass) -> Ask {
        let blocks = pass.finish(|error| note(&mut self.outcome, self.max_problems, error));
        let (Some(draft), Some(footers)) = (self.sparse.take(), self.footers) else {
            return Ask::Finished;
        };
        if blocks.behind_disk > 0 {
            self.warn(Warning::EntriesBehindDisk(blocks.behind_disk));
        }
        let body = draft.into_sparse(footers, &blocks);
        self.outcome.blocks = blocks;
        self.finish(footers.footer, Body::Sparse(Box::new(body)))
    }

    fn finish(&mut self, footer: Footer, body: Body) -> Ask {
        let warnings = self.outcome.warnings.clone();
        let short = if self.short_tail { SHORT_FOOTER_BYTES } else { FOOTER_BYTES };
        let footer_at = self.displaced.map_or(self.tail_at(short), |(_, at)| at);
        let file_len = self.file_len;
        self.outcome.image = Some(Image { footer, file_len, footer_at, warnings, body });
        Ask::Finished
    }
}

fn note(outcome: &mut Outcome, most: usize, error: OpenError) {
    if outcome.problems.len() < most {
        outcome.problems.push(error);
    } else {
        outcome.more_problems += 1;
    }
}
