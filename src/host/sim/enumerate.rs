//! Which images a crash can leave: choices among effects, their fingerprints, their bytes.
//!
//! Refuses to build bytes nobody asked for: a state is known by its fingerprint first.

use std::collections::HashSet;

use crate::engine::units::ByteLen;

use super::atom::{Atom, Deed};
use super::image::{Image, length_print};
use super::rng::Rng;

/// Most effects whose every subset is tried.
pub const EXHAUSTIVE_ATOMS: usize = 12;
/// Most operations whose every subset (all effects of an operation or none) is tried.
const EXHAUSTIVE_OPS: usize = 6;
/// Random choices beyond the systematic ones.
const RANDOM_CHOICES: usize = 64;

/// How a file system orders a file's size against its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeMode {
    /// The size may persist without data (reads zeroes), data without the size is lost.
    Strict,
    /// The size persists only with the data of the write that grew the file (ext4, xfs).
    Ordered,
}

/// How thoroughly the choices of one crash point are tried.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Up to this many effects, all subsets.
    pub exhaustive: usize,
    /// Random choices when there are more.
    pub random: usize,
}

impl Default for Depth {
    fn default() -> Self {
        Self { exhaustive: EXHAUSTIVE_ATOMS, random: RANDOM_CHOICES }
    }
}

/// The effects that may or may not have reached a base image.
#[derive(Debug)]
pub struct CrashPoint<'a> {
    base: &'a Image,
    atoms: &'a [Atom],
    mode: SizeMode,
    fixed: bool,
    /// First atom of each operation, and one behind the last.
    ops: Vec<usize>,
    overlay: Vec<(u32, u64)>,
    round: u32,
    touched: Vec<u32>,
}

impl<'a> CrashPoint<'a> {
    /// A crash that leaves `base` with some of `atoms` applied, in their order. `fixed` says that
    /// the size cannot change (a device).
    pub fn new(base: &'a Image, atoms: &'a [Atom], mode: SizeMode, fixed: bool) -> Self {
        let mut ops: Vec<usize> =
            (0..atoms.len()).filter(|at| *at == 0 || atoms[*at].op != atoms[*at - 1].op).collect();
        ops.push(atoms.len());
        let end = atoms.iter().map(|atom| atom.deed.touched().0 + 8).max().unwrap_or(0);
        let sectors = end.max(base.sectors() + 1) as usize;
        Self {
            base,
            atoms,
            mode,
            fixed,
            ops,
            overlay: vec![(0, 0); sectors],
            round: 0,
            touched: Vec::new(),
        }
    }

    /// How many effects may be lost.
    pub fn len(&self) -> usize {
        self.atoms.len()
    }

    /// Whether nothing may be lost.
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// The effects, for telling a story.
    pub fn atoms(&self) -> &[Atom] {
        self.atoms
    }

    fn size_holds(&self, at: usize, picked: &[bool]) -> bool {
        if self.mode == SizeMode::Strict {
            return true;
        }
        let op = self.atoms[at].op;
        let start = self.atoms[..at].iter().rposition(|atom| atom.op != op).map_or(0, |p| p + 1);
        (start..at).all(|peer| picked[peer] || self.atoms[peer].deed.is_size())
    }

    fn set(&mut self, no: u32, print: u64) {
        let Some(slot) = self.overlay.get_mut(no as usize) else { return };
        if slot.0 != self.round {
            self.touched.push(no);
        }
        *slot = (self.round, print);
    }

    /// The fingerprint of the image that the choice leaves.
    pub fn print(&mut self, picked: &[bool]) -> u64 {
        self.round += 1;
        self.touched.clear();
        let mut len = self.base.len().get();
        for at in 0..self.atoms.len() {
            if !picked[at] {
                continue;
            }
            match self.atoms[at].deed {
                Deed::Put { no, print, .. } => self.set(no, print),
                Deed::Zero { first, mask } => {
                    for bit in (0..8).filter(|bit| mask & (1 << bit) != 0) {
                        self.set(first + bit, 0);
                    }
                }
                Deed::Grow(to) if self.size_holds(at, picked) => len = len.max(to),
                Deed::Grow(_) => {}
                Deed::Cut(to) => {
                    len = to;
                    for no in (to.div_ceil(512) as u32)..self.overlay.len() as u32 {
                        self.set(no, 0);
                    }
                }
            }
        }
        let sectors = len.div_ceil(512) as u32;
        let mut sum = self.base.sum();
        for no in &self.touched {
            let new = if *no < sectors { self.overlay[*no as usize].1 } else { 0 };
            sum = sum.wrapping_sub(self.base.print_of(*no)).wrapping_add(new);
        }
        sum.wrapping_add(length_print(len))
    }

    /// Makes `into` the image that the choice leaves.
    pub fn build(&self, picked: &[bool], into: &mut Image) {
        into.clone_from(self.base);
        let sizes = |at: &usize| match self.atoms[*at].deed {
            Deed::Grow(_) => picked[*at] && self.size_holds(*at, picked),
            Deed::Cut(_) => picked[*at],
            _ => false,
        };
        let all: Vec<usize> = (0..self.atoms.len()).filter(sizes).collect();
        let mut len = into.len().get();
        let mut most = len;
        for at in &all {
            match self.atoms[*at].deed {
                Deed::Grow(to) => len = len.max(to),
                Deed::Cut(to) => len = to,
                _ => {}
            }
            most = most.max(len);
        }
        if !self.fixed {
            into.set_len(ByteLen::new(most));
        }
        for (atom, picked) in self.atoms.iter().zip(picked) {
            match &atom.deed {
                Deed::Cut(to) if *picked => {
                    into.set_len(ByteLen::new(*to));
                    into.set_len(ByteLen::new(most));
                }
                deed if *picked && !deed.is_size() => deed.apply(into),
                _ => {}
            }
        }
        if !self.fixed {
            into.set_len(ByteLen::new(len));
        }
    }

    /// Visits every distinct image of this crash point that `depth` asks for, until `visit` says
    /// stop by returning false. Returns how many it visited.
    pub fn visit(
        &mut self,
        depth: Depth,
        rng: &mut Rng,
        mut visit: impl FnMut(&Self, &[bool], u64) -> bool,
    ) -> usize {
        let mut seen = HashSet::new();
        let mut choices = Choices::new(self, depth, rng.fork());
        while choices.advance(self) {
            let print = self.print(&choices.picked);
            if seen.insert(print) && !visit(self, &choices.picked, print) {
                break;
            }
        }
        seen.len()
    }
}

/// The next choices of a crash point, one after the other.
#[derive(Debug)]
struct Choices {
    picked: Vec<bool>,
    round: usize,
    depth: Depth,
    rng: Rng,
}

impl Choices {
    fn new(point: &CrashPoint<'_>, depth: Depth, rng: Rng) -> Self {
        Self { picked: vec![false; point.len()], round: 0, depth, rng }
    }

    /// Takes the next choice into `picked`; false when there is none.
    fn advance(&mut self, point: &CrashPoint<'_>) -> bool {
        let round = self.round;
        self.round += 1;
        let atoms = point.len();
        if atoms <= self.depth.exhaustive {
            self.picked.iter_mut().enumerate().for_each(|(at, p)| *p = round >> at & 1 == 1);
            return round < 1 << atoms;
        }
        let ops = point.ops.len() - 1;
        let by_op = if ops <= EXHAUSTIVE_OPS { 1 << ops } else { 2 * ops + 2 };
        let systematic = [by_op, 2 * atoms, 2, self.depth.random];
        let mut round = round;
        for (group, count) in systematic.into_iter().enumerate() {
            if round < count {
                self.choose(point, group, round);
                return true;
            }
            round -= count;
        }
        false
    }

    fn choose(&mut self, point: &CrashPoint<'_>, group: usize, round: usize) {
        let atoms = point.len();
        match group {
            0 => self.choose_ops(point, round),
            1 => {
                self.picked.fill(round >= atoms);
                self.picked[round % atoms] = round < atoms;
            }
            2 => {
                let sizes = point.atoms.iter().map(|atom| atom.deed.is_size() == (round == 0));
                self.picked.iter_mut().zip(sizes).for_each(|(p, size)| *p = size);
            }
            _ => self.choose_randomly(point),
        }
    }

    /// All of an operation or nothing of it: every subset, or each alone lost or kept.
    fn choose_ops(&mut self, point: &CrashPoint<'_>, round: usize) {
        let ops = point.ops.len() - 1;
        for op in 0..ops {
            let keep = if ops <= EXHAUSTIVE_OPS {
                round >> op & 1 == 1
            } else if round < 2 * ops {
                (round % ops == op) == (round < ops)
            } else {
                round == 2 * ops
            };
            self.picked[point.ops[op]..point.ops[op + 1]].fill(keep);
        }
    }

    fn choose_randomly(&mut self, point: &CrashPoint<'_>) {
        let density = 1 + self.rng.below(15);
        let sizes = self.rng.below(3);
        for (picked, atom) in self.picked.iter_mut().zip(point.atoms) {
            *picked = match (atom.deed.is_size(), sizes) {
                (true, 0) => true,
                (true, 1) => false,
                _ => self.rng.chance(density, 16),
            };
        }
    }
}
