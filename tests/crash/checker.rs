//! What a crash image turns into: recovered, opened, read and checked, once per distinct image.
//!
//! Refuses to judge the content: that takes the oracle and its moment in time.

use std::collections::HashMap;
use std::rc::Rc;

use orlop::engine::Disk;
use orlop::host::sim::enumerate::{CrashPoint, Depth, SizeMode};
use orlop::host::sim::fs::SimFile;
use orlop::host::sim::image::Image;
use orlop::host::sim::rng::Rng;

use crate::bugs::Bug;
use crate::probe::read_disk;
use crate::tag::Tag;
use crate::world::{RecoveryStep, World};

/// Images remembered before the memory is emptied.
const MEMO_LIMIT: usize = 60_000;
/// How deep crashes nest: a crash, and one inside its recovery, and one inside that one's.
const NESTING: u32 = 2;
/// One image of so many is also opened for reading only.
const READ_ONLY_SHARE: u64 = 4;

/// The cells of a recovered disk, or what is wrong with the image.
pub(crate) type Verdict = Result<Vec<Tag>, String>;

/// Numbers for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Crash states judged (distinct within their crash point).
    pub(crate) states: u64,
    /// Distinct images recovered, opened, read and checked.
    pub(crate) images: u64,
    /// Crash states inside recovery.
    pub(crate) nested: u64,
    /// Crash points.
    pub(crate) points: u64,
    /// New leaves that disks got while they lived.
    pub(crate) cuts: u64,
}

impl Tally {
    /// Adds another's numbers.
    pub(crate) fn add(&mut self, other: Self) {
        self.states += other.states;
        self.images += other.images;
        self.nested += other.nested;
        self.points += other.points;
        self.cuts += other.cuts;
    }
}

/// Judges images of one world.
pub(crate) struct Checker<'w> {
    world: &'w World,
    memo: HashMap<u64, Rc<Verdict>>,
    file: SimFile,
    mode: SizeMode,
    bug: Option<Bug>,
    /// Whether operations may have failed.
    pub(crate) faulty: bool,
    /// The numbers so far.
    pub(crate) tally: Tally,
}

impl<'w> Checker<'w> {
    /// A checker for images of `world`.
    pub(crate) fn new(world: &'w World, mode: SizeMode, bug: Option<Bug>) -> Self {
        let file = SimFile::new(world.backing(), &[]);
        Self {
            world,
            memo: HashMap::new(),
            file,
            mode,
            bug,
            faulty: false,
            tally: Tally::default(),
        }
    }

    /// What the image with this fingerprint turns into; `build` makes it if it is a new one.
    pub(crate) fn verdict(&mut self, print: u64, build: impl FnOnce(&mut Image)) -> Rc<Verdict> {
        if let Some(known) = self.memo.get(&print) {
            return Rc::clone(known);
        }
        let mut image = Image::default();
        build(&mut image);
        if image.print() != print {
            return Rc::new(Err("the simulator's own fingerprint of an image is wrong".into()));
        }
        self.judge(&image, NESTING)
    }

    fn judge(&mut self, image: &Image, nesting: u32) -> Rc<Verdict> {
        let print = image.print();
        if let Some(known) = self.memo.get(&print) {
            return Rc::clone(known);
        }
        if self.memo.len() >= MEMO_LIMIT {
            self.memo.clear();
        }
        self.tally.images += 1;
        let verdict = Rc::new(self.recover_and_read(image, nesting));
        self.memo.insert(print, Rc::clone(&verdict));
        verdict
    }

    fn recover_and_read(&mut self, image: &Image, nesting: u32) -> Verdict {
        let steps = self.world.recovery(image.bytes(), self.bug)?;
        let content = self.recover(image, &steps, nesting)?;
        // Now and then also as somebody's parent sees it: unrecovered, and never to be written.
        if image.print().is_multiple_of(READ_ONLY_SHARE)
            && let Some(mut disk) = self.world.open_frozen(image.bytes())?
            && self.read_all(&mut disk, image)? != content
        {
            return Err("opened for reading only, the image shows something else".into());
        }
        Ok(content)
    }

    fn recover(&mut self, image: &Image, steps: &[RecoveryStep], nesting: u32) -> Verdict {
        if steps.is_empty() {
            return self.read(image);
        }
        let mut file = std::mem::replace(&mut self.file, SimFile::new(self.world.backing(), &[]));
        file.reset(image.bytes());
        let mut inner = Vec::new();
        for step in steps {
            run_step(&mut file, step);
            if nesting > 0 {
                self.crash_inside(&file, &mut inner);
            }
        }
        let recovered = file.live().clone();
        self.file = file;
        let again = self.world.recovery(recovered.bytes(), self.bug)?;
        if !again.is_empty() {
            return Err(format!("recovering twice does more than once: {again:?}"));
        }
        let content = self.read(&recovered)?;
        for nested in inner {
            self.tally.nested += 1;
            match &*self.judge(&nested, nesting - 1) {
                Ok(other) if *other == content => {}
                Ok(_) => return Err("a crash inside recovery changed the content".into()),
                Err(why) => return Err(format!("after a crash inside recovery: {why}")),
            }
        }
        Ok(content)
    }

    fn crash_inside(&mut self, file: &SimFile, found: &mut Vec<Image>) {
        let fixed = self.world.is_device();
        let mut point = CrashPoint::new(file.durable(), file.pending(), self.mode, fixed);
        let depth = Depth { exhaustive: 5, random: 8 };
        point.visit(depth, &mut Rng::new(7), |point, picked, _| {
            let mut nested = Image::default();
            point.build(picked, &mut nested);
            found.push(nested);
            true
        });
    }

    fn read(&mut self, image: &Image) -> Verdict {
        let mut disk: Disk = self.world.open(image.bytes(), None)?;
        let cells = self.read_all(&mut disk, image)?;
        if self.world.plain_cells(image.bytes()).is_some_and(|plain| plain != cells) {
            return Err("another reader of the recovered image sees another content".into());
        }
        self.world.check(image.bytes(), self.faulty)?;
        Ok(cells)
    }

    fn read_all(&self, disk: &mut Disk, image: &Image) -> Verdict {
        let mut files: Vec<&[u8]> = vec![image.bytes()];
        files.extend(self.world.parents().iter().map(Vec::as_slice));
        read_disk(disk, &files)
    }
}

/// Carries out one step of a recovery, alone.
pub(crate) fn run_step(file: &mut SimFile, step: &RecoveryStep) {
    match step {
        RecoveryStep::Change(change) => {
            let op = file.execute(change);
            file.delivered(op, 0);
        }
        RecoveryStep::Sync => file.sync(u64::MAX),
    }
}
