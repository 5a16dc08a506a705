//! Opening an image for real: its format by name, its claim, a repair before the first write, and
//! its parents through the gate.
//!
//! Refuses to write to an image that others depend on or that cannot be written safely, and to
//! find out a format by looking at bytes a guest may have written.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use vhd::ParentLink;

use super::children::{self, Known};
use super::error::{Cause, ImageError};
use super::file::{FileKind, FoundFile, Identity, ImageFile, Place};
use super::gate::{GateError, Search};
use super::layer::{Content, Format, Notice, NoticeKind, OpenedChain, OpenedLayer};
use super::lock::Claim;
use super::null;
use crate::engine::units::ByteLen;
use crate::host::OpenMode;

/// Images a chain may have unless the user says otherwise (XenServer's limit).
pub const DEPTH_MAX: usize = 30;

/// How the system caches an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the page cache; a flush makes it durable.
    #[default]
    Writeback,
    /// Past the page cache (O_DIRECT).
    None,
}

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image on top.
    pub path: PathBuf,
    /// Its format; by its name when `None`.
    pub format: Option<Format>,
    /// Whether it may not be written.
    pub read_only: bool,
    /// How the system caches all images of the chain.
    pub cache: CacheMode,
    /// Directories beside the child's own in which parents may lie.
    pub allow_parents: Vec<PathBuf>,
    /// Whether a raw parent may have any name.
    pub allow_raw_parent: bool,
    /// Most images of a chain.
    pub max_depth: usize,
    /// Whether an image with children may be written.
    pub force_rw_parent: bool,
    /// Take no locks: others may write meanwhile, and what is read may be stale. Implies
    /// `read_only`.
    pub share: bool,
}

impl OpenOptions {
    /// The defaults for an image: writable, cached, parents beside their children only.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            read_only: false,
            cache: CacheMode::default(),
            allow_parents: Vec::new(),
            allow_raw_parent: false,
            max_depth: DEPTH_MAX,
            force_rw_parent: false,
            share: false,
        }
    }

    pub(super) const fn writes(&self) -> bool {
        !self.read_only && !self.share
    }

    fn claim(&self, write: bool) -> Option<Claim> {
        match (self.share, write) {
            (true, _) => None,
            (false, true) => Some(Claim::Write),
            (false, false) => Some(Claim::Read),
        }
    }
}

/// Opens an image with all its parents.
///
/// # Errors
/// The first thing that forbids it, with the file it concerns.
pub fn open(options: &OpenOptions) -> Result<OpenedChain, ImageError> {
    if null::is_null(&options.path) {
        return null::open(options);
    }
    let mut allowed = Vec::with_capacity(options.allow_parents.len());
    for path in &options.allow_parents {
        let place = Place::open(path);
        allowed.push(place.map_err(|e| ImageError::new(path, Cause::AllowedDirectory(e)))?);
    }
    let mut notices = Vec::new();
    let mut chain = vec![open_top(options, &mut notices)?];
    while let Some(child) = chain.last()
        && let Some(link) = child.content.vhd().and_then(vhd::Image::parent)
    {
        let parent = open_parent(options, &allowed, &chain, link)?;
        note_parent(&parent, child, &mut notices);
        chain.push(parent);
    }
    let size = chain[0].content.size();
    let layers = chain.into_iter().map(|image| image.into_layer(options.cache));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    Ok(OpenedChain { size, read_only: !options.writes(), layers, notices })
}

/// Opens one image, to read, and none of its parents.
///
/// # Errors
/// The first thing that forbids it.
pub fn open_alone(options: &OpenOptions) -> Result<(OpenedLayer, Vec<Notice>), ImageError> {
    let options = OpenOptions { read_only: true, ..options.clone() };
    if null::is_null(&options.path) {
        let mut chain = null::open(&options)?;
        return Ok((chain.layers.remove(0), chain.notices));
    }
    let mut notices = Vec::new();
    let top = open_top(&options, &mut notices)?;
    Ok((top.into_layer(options.cache)?, notices))
}

/// An image on its way into a chain.
#[derive(Debug)]
pub(super) struct OpenImage {
    pub(super) file: ImageFile,
    pub(super) content: Content,
}

impl OpenImage {
    pub(super) fn into_layer(self, cache: CacheMode) -> Result<OpenedLayer, ImageError> {
        let (file, content) = (self.file, self.content);
        let failed = |cause| ImageError::new(&file.path, cause);
        let allocated = file.allocated().map_err(failed)?;
        let mut cached = None;
        if cache == CacheMode::None {
            cached = file.open_cached().map_err(failed)?;
            // Only now: metadata was read without regard to alignment.
            file.make_direct().map_err(failed)?;
        }
        let mode = OpenMode::probe(file.as_fd()).map_err(|e| failed(Cause::io("probe it", e)))?;
        let file_bytes = ByteLen::new(file.len.get());
        let allocated_bytes = ByteLen::new(allocated.get());
        let (fd, path) = file.into_parts();
        Ok(OpenedLayer { path, fd, cached, mode, content, file_bytes, allocated_bytes })
    }

    fn note_oddities(&self, notices: &mut Vec<Notice>) {
        let warnings = self.content.vhd().map(|image| image.warnings.as_slice());
        for warning in warnings.unwrap_or_default() {
            let kind = NoticeKind::Odd(warning.clone());
            notices.push(Notice { path: self.file.path.clone(), kind });
        }
    }
}

/// The format of the image on top: what the user said, or what its name or kind promises.
pub(super) fn format_of(
    asked: Option<Format>,
    found: &FoundFile,
    path: &Path,
) -> Result<Format, Cause> {
    // The name the user gave counts, be it a link's: it is the user's word.
    let by_name = || Format::of_name(path).or_else(|| Format::of_name(Path::new(&found.name)));
    let by_kind = || (found.kind == FileKind::BlockDevice).then_some(Format::Raw);
    asked.or_else(by_kind).or_else(by_name).ok_or(Cause::FormatUnknown)
}

pub(super) fn content_of(file: &ImageFile, format: Format) -> Result<Content, Cause> {
    match format {
        Format::Vhd => Ok(Content::Vhd(Box::new(file.survey()?))),
        Format::Raw if file.len == vhd::ByteLen::ZERO => Err(Cause::Empty),
        Format::Raw => Ok(Content::Raw { size: ByteLen::new(file.len.get()) }),
    }
}

pub(super) fn open_top(
    options: &OpenOptions,
    notices: &mut Vec<Notice>,
) -> Result<OpenImage, ImageError> {
    let path = &options.path;
    let failed = |cause| ImageError::new(path, cause);
    let write = options.writes();
    let found = FoundFile::named(path)?;
    let format = format_of(options.format, &found, path).map_err(failed)?;
    let mut file = found.open(write, options.claim(write)).map_err(failed)?;
    let mut content = content_of(&file, format).map_err(failed)?;
    if write {
        content = make_writable(options, &mut file, content, notices).map_err(failed)?;
    }
    let image = OpenImage { file, content };
    image.note_oddities(notices);
    Ok(image)
}

/// Refuses images that must not be written; repairs the others if they need it.
fn make_writable(
    options: &OpenOptions,
    file: &mut ImageFile,
    content: Content,
    notices: &mut Vec<Notice>,
) -> Result<Content, Cause> {
    if !options.force_rw_parent && !file.device {
        if content.vhd().is_some_and(|image| image.footer.hidden != 0) {
            return Err(Cause::Hidden);
        }
        let census = children::find(file, &Known::of(file, &content))?;
        if let Some(child) = census.child {
            return Err(Cause::HasChildren { child });
        }
        if !census.complete {
            let looked_at = children::NEIGHBOURS_MAX;
            let kind = NoticeKind::ChildrenUnknown { looked_at };
            notices.push(Notice { path: file.path.clone(), kind });
        }
    }
    // A process that was killed may have left bytes in the page cache that were never synced. The
    // engine takes what it reads here for durable, and so will whoever is told of a flush.
    file.sync()?;
    let Some(image) = content.vhd() else { return Ok(content) };
    if let Some(reason) = image.write_refusal() {
        return Err(Cause::WriteRefused(reason));
    }
    let steps = vhd::recovery_plan(image, file.backing());
    if steps.is_empty() {
        return Ok(content);
    }
    file.carry_out(&steps)?;
    // What counts is what the file says now, not what the plan meant it to say.
    let image = file.survey()?;
    if !vhd::recovery_plan(&image, file.backing()).is_empty() {
        return Err(Cause::RepairFutile);
    }
    notices.push(Notice { path: file.path.clone(), kind: NoticeKind::Repaired(steps) });
    Ok(Content::Vhd(Box::new(image)))
}

/// Opens the parent of the last image of `chain`.
fn open_parent(
    options: &OpenOptions,
    allowed: &[Place],
    chain: &[OpenImage],
    link: &ParentLink,
) -> Result<OpenImage, ImageError> {
    let child = &chain.last().expect("a chain starts with its top").file;
    let mut search = Search::new(&child.place, allowed, link);
    let mut failure = None;
    while let Some(found) = search.next() {
        let path = found.path();
        if let Err(error) = admit(options, chain, link, &found) {
            search.refuse(error);
            continue;
        }
        match open_found(options, link, found) {
            Ok(Ok(image)) => return Ok(image),
            Ok(Err(error)) => search.refuse(error),
            Err(cause) => {
                let needed_by = Some(child.path.clone());
                failure.get_or_insert(ImageError { path, needed_by, cause });
            }
        }
    }
    // A candidate that opened as a file and is broken or busy says more than one that is not there.
    Err(failure.unwrap_or_else(|| ImageError::new(&child.path, search.into_error())))
}

/// What can be told of a parent before it is opened.
fn admit(
    options: &OpenOptions,
    chain: &[OpenImage],
    link: &ParentLink,
    found: &FoundFile,
) -> Result<(), GateError> {
    let same = |identity: Identity| identity == found.identity;
    let (last, above) = chain.split_last().expect("a chain starts with its top");
    if same(last.file.identity) {
        return Err(GateError::Itself);
    }
    if above.iter().any(|image| same(image.file.identity)) {
        return Err(GateError::Cycle { path: found.path() });
    }
    if link.raw && !options.allow_raw_parent && !is_called_raw(Path::new(&found.name)) {
        return Err(GateError::RawRefused { path: found.path() });
    }
    if chain.len() >= options.max_depth {
        return Err(GateError::TooDeep { most: options.max_depth });
    }
    // A copy of an image above would be the same circle under another name.
    let known = |image: &OpenImage| image.content.vhd().map(|vhd| vhd.footer.uuid);
    if !link.raw && chain.iter().any(|image| known(image) == Some(link.uuid)) {
        return Err(GateError::Cycle { path: found.path() });
    }
    Ok(())
}

pub(super) fn is_called_raw(name: &Path) -> bool {
    let extension = name.extension().and_then(std::ffi::OsStr::to_str);
    extension.is_some_and(|ext| ["raw", "img"].iter().any(|raw| ext.eq_ignore_ascii_case(raw)))
}

/// Opens a parent that was found, and compares its identity with the one its child names.
fn open_found(
    options: &OpenOptions,
    link: &ParentLink,
    found: FoundFile,
) -> Result<Result<OpenImage, GateError>, Cause> {
    let file = found.open(false, options.claim(false))?;
    let format = if link.raw { Format::Raw } else { Format::Vhd };
    let content = content_of(&file, format)?;
    if let Some(image) = content.vhd()
        && image.footer.uuid != link.uuid
    {
        let (expected, found) = (link.uuid, image.footer.uuid);
        return Ok(Err(GateError::Identity { path: file.path, expected, found }));
    }
    Ok(Ok(OpenImage { file, content }))
}

fn note_parent(parent: &OpenImage, child: &OpenImage, notices: &mut Vec<Notice>) {
    const WRITABLE_BY_ALL: u32 = 0o002;
    parent.note_oddities(notices);
    let mut note = |kind| notices.push(Notice { path: parent.file.path.clone(), kind });
    let (below, above) = (parent.content.size(), child.content.size());
    if below < above {
        note(NoticeKind::ParentSmaller { parent: below, child: above });
    } else if below > above {
        note(NoticeKind::ParentLarger { parent: below, child: above });
    }
    if parent.file.mode & WRITABLE_BY_ALL != 0 {
        note(NoticeKind::WritableByAll);
    }
}
