//! The stack of layers of a disk: the leaf on top (if the disk is writable) and the frozen layers
//! below it, whose combined answers are remembered in one resolved map.
//!
//! Frozen layers never change while they are open (I5), so what was resolved once stays true: a
//! chain of depth 30 costs what a chain of depth 1 costs.

use super::effect::{FileId, LeafFile};
use super::guest::View;
use super::layer::{Layer, Leaf, Located, MetaPage};
use super::units::{ByteLen, DiskOffset, Extent, FileOffset};

/// Bytes of disk that one entry of the resolved map describes.
const WINDOW: u64 = 2 << 20;
/// Entries of the resolved map; a window shares its slot with those that lie a multiple away.
const MAP_SLOTS: usize = 1 << 16;
/// Slots that are made at once, when the first of them is needed: an idle disk has few.
const PIECE_SLOTS: usize = 64;
/// Pages asked for on behalf of one window; with more, what is wanted is looked up by itself.
const MAX_TRIES: u16 = 512;
/// Most runs kept over all windows; when reached, the map starts afresh.
const MAX_RUNS: usize = 1 << 19;

/// Where the first bytes of an extent live in the whole stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In the file of the layer this many steps from the top.
    Here { layer: u16, file: FileId, at: FileOffset, len: ByteLen },
    /// In no layer.
    Hole(ByteLen),
    /// The layer says zero, hiding those below.
    Zero { layer: u16, len: ByteLen },
    /// The layer needs a page first.
    Ask { layer: u16, page: MetaPage },
}

impl Found {
    /// The same answer for no more than `most` bytes.
    fn capped(self, most: ByteLen) -> Self {
        match self {
            Self::Here { layer, file, at, len } => {
                Self::Here { layer, file, at, len: len.min(most) }
            }
            Self::Hole(len) => Self::Hole(len.min(most)),
            Self::Zero { layer, len } => Self::Zero { layer, len: len.min(most) },
            Self::Ask { .. } => self,
        }
    }
}

/// A layer that is only read, and the file it lives in.
pub struct FrozenLayer {
    /// What the format knows.
    pub layer: Box<dyn Layer>,
    /// The host's name of the file.
    pub file: FileId,
}

/// The layer that takes writes, and its file.
pub(super) struct LeafSeat {
    pub(super) leaf: Box<dyn Leaf>,
    pub(super) file: LeafFile,
}

/// A piece of a resolved window, in window order.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// First byte behind the run, from the window's start.
    end: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Hole,
    Zero {
        layer: u16,
    },
    /// `at` is where the run's first byte lives.
    Here {
        layer: u16,
        at: FileOffset,
    },
}

/// All layers of a disk.
pub(super) struct Stack {
    pub(super) leaf: Option<LeafSeat>,
    /// A guest's, in the place of a leaf.
    pub(super) view: Option<View>,
    frozen: Vec<FrozenLayer>,
    size: ByteLen,
    map: ResolvedMap,
}

impl Stack {
    /// A stack; `frozen` runs from the layer below the leaf (or the top) downwards.
    pub(super) fn new(leaf: Option<LeafSeat>, frozen: Vec<FrozenLayer>, size: ByteLen) -> Self {
        let map = ResolvedMap::new(size, frozen.len());
        Self { leaf, view: None, frozen, size, map }
    }

    /// The stack of a guest.
    pub(super) fn of_guest(view: View, frozen: Vec<FrozenLayer>, size: ByteLen) -> Self {
        Self { view: Some(view), ..Self::new(None, frozen, size) }
    }

    /// The disk has grown.
    pub(super) fn grown(&mut self, size: ByteLen) {
        self.size = size;
        // The last window was cut at the old end.
        let given_up = self.map.given_up;
        self.map = ResolvedMap::new(size, self.frozen.len());
        self.map.given_up = given_up;
    }

    /// The leaf is frozen, and this one lies over it.
    pub(super) fn push(&mut self, leaf: Box<dyn Leaf>, file: FileId) {
        let seat = LeafSeat { leaf, file: LeafFile::new(file) };
        if let Some(LeafSeat { leaf, file }) = self.leaf.replace(seat) {
            // I5: as a layer it has no way to be written, and its file's right to be goes here.
            self.frozen.insert(0, FrozenLayer { layer: leaf, file: file.file() });
        }
        let given_up = self.map.given_up;
        self.map = ResolvedMap::new(self.size, self.frozen.len());
        self.map.given_up = given_up;
    }

    /// Bytes of the disk that the layer below the leaf describes.
    pub(super) fn size_below(&self) -> Option<ByteLen> {
        self.frozen.first().map(|below| below.layer.size())
    }

    /// Layers in all.
    pub(super) fn depth(&self) -> u16 {
        self.frozen.len() as u16 + self.first_frozen()
    }

    /// Where the first bytes of `wanted` live. Never an empty answer.
    pub(super) fn find(&mut self, wanted: Extent) -> Found {
        let Some(seat) = &mut self.leaf else { return self.find_frozen(wanted) };
        let file = seat.file.file();
        match seat.leaf.locate(wanted) {
            Located::Here(at, len) => Found::Here { layer: 0, file, at, len },
            Located::Zero(len) => Found::Zero { layer: 0, len },
            Located::Ask(page) => Found::Ask { layer: 0, page },
            Located::Below(len) => self.find_frozen(wanted.first(len)),
        }
    }

    /// Gives a learnt page to the layer that asked for it.
    pub(super) fn learn(
        &mut self,
        layer: u16,
        page: MetaPage,
        bytes: &[u8],
    ) -> Result<(), super::layer::Corrupt> {
        let first = self.first_frozen();
        match (&mut self.leaf, layer) {
            (Some(seat), 0) => seat.leaf.learn(page, bytes),
            (_, n) => self.frozen[usize::from(n - first)].layer.learn(page, bytes),
        }
    }

    /// The file of a layer, counted from the top.
    pub(super) fn file_of(&self, layer: u16) -> FileId {
        match (&self.leaf, layer) {
            (Some(seat), 0) => seat.file.file(),
            (_, n) => self.frozen[usize::from(n - self.first_frozen())].file,
        }
    }

    /// Whether a layer, counted from the top, has no metadata that tells what is empty.
    pub(super) fn is_flat(&self, layer: u16) -> bool {
        match (&self.leaf, layer) {
            (Some(seat), 0) => seat.leaf.is_flat(),
            (_, n) => self.frozen[usize::from(n - self.first_frozen())].layer.is_flat(),
        }
    }

    /// Whether a layer, counted from the top, is a frozen one.
    pub(super) fn is_frozen(&self, layer: u16) -> bool {
        layer >= self.first_frozen()
    }

    fn first_frozen(&self) -> u16 {
        u16::from(self.leaf.is_some() || self.view.is_some())
    }

    pub(super) fn find_frozen(&mut self, wanted: Extent) -> Found {
        if self.frozen.is_empty() {
            return Found::Hole(wanted.len);
        }
        // One layer below is as quick to ask as the map.
        if self.frozen.len() == 1 {
            return self.walk(wanted);
        }
        let window = wanted.at.get() / WINDOW;
        if !self.map.holds(window) {
            if self.map.is_hopeless(window) {
                return self.walk(wanted);
            }
            if let Err(ask) = self.resolve(window) {
                self.map.note_try(window);
                return ask;
            }
        }
        let skip = wanted.at.get() % WINDOW;
        let (place, len) = self.map.look_up(window, skip as u32);
        let found = match place {
            Place::Hole => Found::Hole(len),
            Place::Zero { layer } => Found::Zero { layer, len },
            Place::Here { layer, at } => Found::Here { layer, file: self.file_of(layer), at, len },
        };
        found.capped(wanted.len)
    }

    /// A page of a frozen layer cannot be learnt. Windows are not resolved any more: those who do
    /// not need that page must not fail for it. True when that is news.
    pub(super) fn give_up_resolving(&mut self) -> bool {
        !std::mem::replace(&mut self.map.given_up, true)
    }

    /// Fills the map's entry for a window, or says which page that needs.
    fn resolve(&mut self, window: u64) -> Result<(), Found> {
        let start = window * WINDOW;
        let len = WINDOW.min(self.size.get() - start);
        let whole = Extent::new(DiskOffset::new(start), ByteLen::new(len));
        let mut runs: Vec<Run> = Vec::with_capacity(1);
        let mut done = ByteLen::ZERO;
        while done < whole.len {
            let (place, len) = match self.walk(whole.after(done)) {
                ask @ Found::Ask { .. } => return Err(ask),
                Found::Hole(len) => (Place::Hole, len),
                Found::Zero { layer, len } => (Place::Zero { layer }, len),
                Found::Here { layer, at, len, .. } => (Place::Here { layer, at }, len),
            };
            push_run(&mut runs, done, place, len);
            done += len;
        }
        self.map.insert(window, runs);
        Ok(())
    }

    /// Asks the frozen layers one after the other.
    ///
    /// A layer shorter than the one above is a shorter disk: beyond its end there are zeroes, and
    /// the layers below it are not asked (V13).
    fn walk(&mut self, wanted: Extent) -> Found {
        let first = self.first_frozen();
        let mut rest = wanted;
        for (index, frozen) in self.frozen.iter_mut().enumerate() {
            let layer = first + index as u16;
            let end = frozen.layer.size();
            if rest.at.get() >= end.get() {
                return Found::Hole(rest.len);
            }
            rest = rest.first(ByteLen::new(end.get() - rest.at.get()));
            match frozen.layer.locate(rest) {
                Located::Here(at, len) => {
                    return Found::Here { layer, file: frozen.file, at, len };
                }
                Located::Zero(len) => return Found::Zero { layer, len },
                Located::Ask(page) => return Found::Ask { layer, page },
                Located::Below(len) => rest = rest.first(len),
            }
        }
        Found::Hole(rest.len)
    }
}

/// Appends a run, merging it with the one before where that continues it.
fn push_run(runs: &mut Vec<Run>, start: ByteLen, place: Place, len: ByteLen) {
    let end = (start + len).get() as u32;
    let before = runs.len().checked_sub(2).map_or(0, |i| runs[i].end);
    if let Some(last) = runs.last_mut() {
        let continues = match (last.place, place) {
            (Place::Here { layer, at }, Place::Here { layer: next, at: next_at }) => {
                layer == next && at + ByteLen::new(u64::from(last.end - before)) == next_at
            }
            (a, b) => a == b,
        };
        if continues {
            last.end = end;
            return;
        }
    }
    runs.push(Run { end, place });
}

/// Direct-mapped: bounded by construction, and a look-up is an index and a comparison.
struct ResolvedMap {
    pieces: Vec<Option<Box<[Window]>>>,
    /// A power of two, or none.
    slots: usize,
    runs: usize,
    /// Pages are missing that nobody can read.
    given_up: bool,
}

#[derive(Clone)]
struct Window {
    /// Number of the window, or `NO_WINDOW`.
    number: u64,
    runs: Runs,
    /// The window that was last tried in vain, and how often.
    tried: (u64, u16),
}

/// One run is the common case and needs no allocation.
#[derive(Clone)]
enum Runs {
    One(Run),
    /// Ends apart from places: the search for one touches few lines of the processor's cache.
    Many {
        ends: Box<[u32]>,
        places: Box<[Place]>,
    },
}

const NO_WINDOW: u64 = u64::MAX;

impl ResolvedMap {
    fn new(size: ByteLen, layers: usize) -> Self {
        let windows = size.get().div_ceil(WINDOW) as usize;
        let count = if layers < 2 { 0 } else { windows.next_power_of_two().min(MAP_SLOTS) };
        let pieces = vec![None; count.div_ceil(PIECE_SLOTS)];
        Self { pieces, slots: count, runs: 0, given_up: false }
    }

    fn empty() -> Window {
        let runs = Runs::One(Run { end: 0, place: Place::Hole });
        Window { number: NO_WINDOW, runs, tried: (NO_WINDOW, 0) }
    }

    /// The piece of a window, and the slot in it.
    fn place(&self, window: u64) -> (usize, usize) {
        let slot = window as usize & (self.slots - 1);
        (slot / PIECE_SLOTS, slot % PIECE_SLOTS)
    }

    fn slot(&self, window: u64) -> Option<&Window> {
        let (piece, slot) = self.place(window);
        self.pieces[piece].as_deref().map(|piece| &piece[slot])
    }

    fn slot_mut(&mut self, window: u64) -> &mut Window {
        let (piece, slot) = self.place(window);
        let piece = self.pieces[piece]
            .get_or_insert_with(|| vec![Self::empty(); PIECE_SLOTS].into_boxed_slice());
        &mut piece[slot]
    }

    fn holds(&self, window: u64) -> bool {
        self.slot(window).is_some_and(|slot| slot.number == window)
    }

    /// Whether the window should be walked instead: it may need more pages at once than its layers
    /// keep, and would ask for them for ever.
    fn is_hopeless(&self, window: u64) -> bool {
        let tried = self.slot(window).map_or((NO_WINDOW, 0), |slot| slot.tried);
        self.given_up || (tried.0 == window && tried.1 >= MAX_TRIES)
    }

    fn note_try(&mut self, window: u64) {
        let tried = &mut self.slot_mut(window).tried;
        *tried = if tried.0 == window { (window, tried.1.saturating_add(1)) } else { (window, 1) };
    }

    fn look_up(&self, window: u64, skip: u32) -> (Place, ByteLen) {
        let slot = self.slot(window).expect("a window is looked up after it was found here");
        let (start, end, place) = match &slot.runs {
            Runs::One(Run { end, place }) => (0, *end, *place),
            Runs::Many { ends, places } => {
                let index = ends.partition_point(|end| *end <= skip);
                let start = if index == 0 { 0 } else { ends[index - 1] };
                (start, ends[index], places[index])
            }
        };
        let into = ByteLen::new(u64::from(skip - start));
        let place = match place {
            Place::Here { layer, at } => Place::Here { layer, at: at + into },
            other => other,
        };
        (place, ByteLen::new(u64::from(end - skip)))
    }

    fn insert(&mut self, window: u64, runs: Vec<Run>) {
        if self.runs + runs.len() > MAX_RUNS {
            self.pieces.fill(None);
            self.runs = 0;
        }
        if let Some(Window { runs: Runs::Many { ends, .. }, .. }) = self.slot(window) {
            self.runs -= ends.len();
        }
        let runs = match runs.as_slice() {
            [one] => Runs::One(*one),
            _ => {
                self.runs += runs.len();
                let (ends, places) = runs.into_iter().map(|run| (run.end, run.place)).unzip();
                let (ends, places): (Vec<_>, Vec<_>) = (ends, places);
                Runs::Many { ends: ends.into(), places: places.into() }
            }
        };
        *self.slot_mut(window) = Window { number: window, runs, tried: (NO_WINDOW, 0) };
    }
}
