//! A life: peers that ask, leave and return, a host that fails, an end, and what is there after.
//!
//! Refuses to choose anything but by its seed.

use std::time::Duration;

use orlop::engine::effect::FileId;
use orlop::host::sim::enumerate::{CrashPoint, SizeMode};
use orlop::host::sim::image::Image;
use orlop::host::sim::rng::Rng;
use orlop::host::sim::script::Leave;
use orlop::transport::nbd::ClientLimits;

use crate::ends::{content_of, faults};
use crate::oracle::{Cells, Oracle};
use crate::peer::{Gone, Peer, Plan};
use crate::rig::{Asked, EXPORT, Rig, Setup, answered};
use crate::wire::{Header, STYLES, Style, command, flag};
use crate::world::World;

/// Peers at a time.
const PEERS: usize = 4;
/// Bytes of the arena's large region: room for the largest request, and not for many.
const ARENA_BYTES: u32 = 256 << 10;
/// Requests that one peer lets wait.
const PIPELINE: usize = 24;
/// Bytes of replies that may wait for a peer in the host: nothing but what was sent.
const TOLD_MAX: usize = 64 << 20;

/// What was counted over many lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) goodbyes: u64,
    pub(crate) crashes: u64,
    pub(crate) struck: u64,
}

/// A disk, its shard and its peers.
pub(crate) struct Life<'w> {
    world: &'w World,
    pub(crate) rig: Rig,
    pub(crate) oracle: Oracle,
    peers: Vec<Peer>,
    rng: Rng,
    version: u32,
    /// Something is pending at the mailbox; nobody new may come then.
    leaving: bool,
    /// So much time passed that the server may have cut anybody off.
    slow: bool,
    drain: Option<Asked<Result<(), orlop::shard::Refused>>>,
    pub(crate) tally: Tally,
}

impl<'w> Life<'w> {
    pub(crate) fn new(world: &'w World, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let rig = Rig::new(world, ARENA_BYTES, rng.bits());
        Self {
            world,
            rig,
            oracle: Oracle::new(1, world.content()),
            peers: Vec::new(),
            rng,
            version: 0,
            leaving: false,
            slow: false,
            drain: None,
            tally: Tally::default(),
        }
    }

    /// Lives it: `steps` moves, then an orderly end or a loss of power.
    ///
    /// # Errors
    /// What was wrong.
    pub(crate) fn live(&mut self, steps: usize) -> Result<(), String> {
        if self.rng.chance(1, 3) {
            let plan = faults(&mut self.rng);
            self.rig.script().disk().set_faults(plan);
        }
        for _ in 0..steps {
            self.act()?;
        }
        if self.rng.chance(1, 3) { self.lose_power() } else { self.end() }
    }

    fn excused(&mut self) -> bool {
        let struck = self.rig.script().disk().struck() > 0;
        struck || self.slow
    }

    fn act(&mut self) -> Result<(), String> {
        match self.rng.below(40) {
            0 | 1 => self.arrive(),
            2..10 => self.ask(),
            10..18 => self.feed(),
            18..28 => {
                for _ in 0..=self.rng.below(6) {
                    self.rig.script().step();
                }
            }
            28..34 => {
                self.rig.turn();
            }
            34..37 => self.hear()?,
            37 => self.leave(),
            38 => self.change_mind(),
            _ if self.rng.chance(1, 40) => self.drain_or_wait(),
            _ => {}
        }
        self.look_after()
    }

    /// Somebody new.
    pub(crate) fn arrive(&mut self) {
        if self.peers.len() >= PEERS || self.leaving {
            return;
        }
        let style = STYLES[self.rng.below(3)];
        let requests = [1, 2, 8, 64][self.rng.below(4)];
        let bytes = [1 << 10, 16 << 10, 1 << 20][self.rng.below(3)];
        let limits = ClientLimits { requests, bytes, ..ClientLimits::default() };
        let setup = Setup { style, limits };
        let mut peer = Peer::new(self.rig.connect(setup), style);
        peer.listens = !self.rng.chance(1, 12);
        peer.draining = self.drain.is_some();
        self.tally.connections += 1;
        if !peer.listens {
            self.rig.script().set_room(peer.id, 0);
        }
        self.peers.push(peer);
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.peers.len();
        (count > 0).then(|| self.rng.below(count))
    }

    fn ask(&mut self) {
        let Some(at) = self.pick() else { return };
        if !self.peers[at].speaks() || self.peers[at].waiting() >= PIPELINE {
            return;
        }
        self.tally.requests += 1;
        if self.rng.chance(1, 12) {
            return self.ask_nonsense(at);
        }
        let plan = self.plan(self.peers[at].style);
        self.version += 1;
        self.peers[at].ask(plan, self.version, &mut self.rng);
    }

    /// A request of the seed's choice that a server must carry out.
    pub(crate) fn plan(&mut self, style: Style) -> Plan {
        let cells = self.cells();
        let rng = &mut self.rng;
        let fua = if rng.chance(1, 4) { flag::FUA } else { 0 };
        let mut either = |bit| if rng.chance(1, 2) { bit } else { 0 };
        let (hole, fast) = (either(flag::NO_HOLE), either(flag::FAST_ZERO));
        let (df, one) = (either(flag::DF), either(flag::REQ_ONE));
        let chunked = style != Style::Simple;
        let (command, flags) = match self.rng.below(20) {
            0..8 => (command::WRITE, fua),
            8..12 => (command::READ, if chunked { df } else { 0 }),
            12 | 13 => (command::FLUSH, 0),
            14 => (command::TRIM, fua),
            15 => (command::WRITE_ZEROES, fua | hole | fast),
            16 => (command::WRITE_ZEROES, fua | hole),
            17 => (command::CACHE, 0),
            _ if chunked => (command::BLOCK_STATUS, one),
            _ => (command::READ, 0),
        };
        Plan { command, flags, cells }
    }

    /// A part of the disk: short mostly, ragged sometimes, large now and then.
    fn cells(&mut self) -> Cells {
        let all = self.world.cells();
        let (first, most) = match self.rng.below(10) {
            0..5 => (self.rng.below(all as usize / 4) as u32 * 4, 32),
            5..9 => (self.rng.below(all as usize) as u32, 40),
            _ => (self.rng.below(all as usize) as u32 / 32 * 32, all),
        };
        let most = (all - first).min(most);
        let count = 1 + self.rng.below(most as usize) as u32;
        let whole = count.next_multiple_of(4).min(most);
        Cells { first, count: if first % 4 == 0 { whole } else { count } }
    }

    fn ask_nonsense(&mut self, at: usize) {
        let end = u64::from(self.world.cells()) * 128;
        let peer = &mut self.peers[at];
        let header =
            |command, flags, offset, length| Header { command, flags, cookie: 0, offset, length };
        let (header, payload) = match self.rng.below(8) {
            0 => (header(command::READ, 0, end - 128, 256), 0),
            1 => (header(command::WRITE, 0, end, 300), 300),
            2 => (header(command::WRITE, 0x100, 0, 512), 512),
            3 => (header(99, 0, 0, 0), 0),
            4 => (header(command::TRIM, 0, u64::MAX - 5, 512), 0),
            5 => (header(command::WRITE_ZEROES, 0, end, 1), 0),
            6 if peer.style == Style::Simple => (header(command::BLOCK_STATUS, 0, 0, 512), 0),
            _ if self.rng.chance(1, 4) => return peer.say_rubbish(),
            _ => (header(command::FLUSH, 0x8000, 0, 0), 0),
        };
        peer.ask_nonsense(header, &vec![0x77; payload], &mut self.rng);
    }

    fn feed(&mut self) {
        let Some(at) = self.pick() else { return };
        if self.peers[at].unsent() == 0 {
            return;
        }
        let most = match self.rng.below(6) {
            0 => 1,
            1 => 1 + self.rng.below(40),
            2 => 1 + self.rng.below(4096),
            _ => usize::MAX,
        };
        let bytes = self.peers[at].take(most, &mut self.oracle);
        let id = self.peers[at].id;
        self.rig.script().feed(id, &bytes);
    }

    fn hear(&mut self) -> Result<(), String> {
        match self.pick() {
            Some(at) => self.hear_of(at),
            None => Ok(()),
        }
    }

    fn hear_of(&mut self, at: usize) -> Result<(), String> {
        let excused = self.excused();
        let peer = &mut self.peers[at];
        let bytes = self.rig.script().drain(peer.id);
        if bytes.len() > TOLD_MAX {
            return Err(format!("{} bytes of replies", bytes.len()));
        }
        peer.hear(&bytes, &mut self.oracle, excused).map_err(|why| format!("{why}\n{peer:?}"))
    }

    /// Somebody says goodbye, stops, closes or is torn away.
    fn leave(&mut self) {
        let Some(at) = self.pick() else { return };
        let (id, speaks) = (self.peers[at].id, self.peers[at].speaks());
        match self.rng.below(8) {
            0..4 if speaks => {
                self.tally.goodbyes += 1;
                self.peers[at].say_goodbye();
                if self.rng.chance(1, 2) {
                    // All at once, and off.
                    let bytes = self.peers[at].take(usize::MAX, &mut self.oracle);
                    self.rig.script().feed(id, &bytes);
                    self.peers[at].listens = false;
                    self.rig.script().leave(id, Leave::Closed);
                }
            }
            4 | 5 => {
                let half = self.peers[at].unsent() == 0 && speaks;
                self.peers[at].go(half);
                self.rig.script().leave(id, if half { Leave::Half } else { Leave::Closed });
            }
            6 => {
                if self.peers[at].gone != Gone::No {
                    return;
                }
                self.peers[at].go(false);
                self.rig.script().leave(id, Leave::Reset);
            }
            _ => {}
        }
    }

    /// Somebody stops listening, or listens again.
    fn change_mind(&mut self) {
        let Some(at) = self.pick() else { return };
        let room = [0, 1, 1000, u64::MAX, u64::MAX][self.rng.below(5)];
        let id = self.peers[at].id;
        self.rig.script().set_room(id, room);
    }

    fn drain_or_wait(&mut self) {
        if self.drain.is_some() || self.leaving {
            return;
        }
        if self.rng.chance(1, 3) {
            self.slow = true;
            self.rig.now += Duration::from_secs(self.rng.below(90) as u64);
            return;
        }
        let mailbox = self.rig.mailbox.clone();
        self.drain = Some(Box::pin(async move { mailbox.drain(EXPORT).await }));
        self.peers.iter_mut().for_each(|peer| peer.draining = true);
    }

    /// Whose connection is over, and whether a drain is.
    fn look_after(&mut self) -> Result<(), String> {
        let still_drains = self.drain.as_mut().is_some_and(|drain| answered(drain).is_none());
        if !still_drains {
            self.drain = None;
        } else {
            self.peers.iter_mut().for_each(|peer| peer.draining = true);
        }
        let excused = self.excused();
        let mut at = 0;
        while at < self.peers.len() {
            let id = self.peers[at].id;
            let closed = !self.rig.script().is_connected(id) && self.rig.script().was_connected(id);
            if !closed {
                at += 1;
                continue;
            }
            self.hear_of(at)?;
            let mut peer = self.peers.swap_remove(at);
            let (cut, failed) = (self.slow, excused);
            let result = peer.closed(&mut self.oracle, failed, cut);
            result.map_err(|why| format!("{why}\n{peer:?}"))?;
        }
        Ok(())
    }

    /// Everybody says what is left to say, hears what is left to hear, and goes; then the shard.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        // Or the disk is taken from under them.
        let hasty = self.rng.chance(1, 3);
        if hasty {
            self.peers.iter_mut().for_each(|peer| peer.draining = true);
        }
        let staying = if hasty { 0 } else { self.peers.len() };
        for at in 0..staying {
            let peer = &mut self.peers[at];
            if peer.speaks() {
                peer.say_goodbye();
            }
            let (id, bytes) = (peer.id, peer.take(usize::MAX, &mut self.oracle));
            self.rig.script().feed(id, &bytes);
            self.rig.script().set_room(id, u64::MAX);
        }
        if !hasty {
            self.rig.settle();
        }
        self.look_after()?;
        let clean = !self.excused();
        if clean && !hasty && !self.peers.is_empty() {
            let shard = &self.rig.shard;
            let state = (shard.clients(), shard.lent(), shard.in_flight());
            return Err(format!("the server keeps {:?} (clients, leases, {state:?})", self.peers));
        }
        let issue = self.oracle.tick();
        self.slow = true;
        let result = if hasty { self.rig.detach() } else { self.rig.shut_down() };
        self.look_after()?;
        let clean = clean && self.rig.script().disk().struck() == 0;
        match result {
            Ok(()) => self.oracle.flushed(issue),
            Err(why) if clean => return Err(format!("the end failed: {why}")),
            Err(_) => {}
        }
        self.rig.judge_rest();
        if !clean {
            return self.lose_power();
        }
        let durable = self.rig.script().disk().file(FileId(0)).durable().bytes().to_vec();
        self.judge_content(&durable)
    }

    /// Power is lost here and now; the disk holds what the laws of the simulator allow.
    fn lose_power(&mut self) -> Result<(), String> {
        self.tally.crashes += 1;
        for at in 0..self.peers.len() {
            self.hear_of(at)?;
        }
        let mut atoms = Vec::new();
        let host = self.rig.shard.script().disk();
        host.at_risk(FileId(0), &mut atoms);
        let density = self.rng.below(17);
        let picked: Vec<bool> = atoms.iter().map(|_| self.rng.chance(density, 16)).collect();
        let base = host.file(FileId(0)).durable();
        let point = CrashPoint::new(base, &atoms, SizeMode::Strict, false);
        let mut image = Image::default();
        point.build(&picked, &mut image);
        self.judge_content(image.bytes())
    }

    /// Opens an image as the next process does, and holds it against the oracle.
    fn judge_content(&mut self, image: &[u8]) -> Result<(), String> {
        self.tally.struck += u64::from(self.rig.script().disk().struck());
        let content = content_of(self.world, image)?;
        let mut allowed = Vec::new();
        for (cell, tag) in (0..).zip(content) {
            self.oracle.allowed(cell, &mut allowed);
            if !allowed.contains(&tag) {
                let story = self.oracle.story(cell);
                return Err(format!("after the end cell {cell} holds {tag}\n{story}"));
            }
        }
        for (no, parent) in (1..).zip(self.world.parents()) {
            if self.rig.script().disk().file(FileId(no)).live().bytes() != parent.as_slice() {
                return Err(format!("parent {no} was changed"));
            }
        }
        Ok(())
    }
}

impl Tally {
    /// Adds another's numbers.
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.connections += other.connections;
        self.goodbyes += other.goodbyes;
        self.crashes += other.crashes;
        self.struck += other.struck;
    }

    /// Whether everything that may happen did.
    pub(crate) fn is_varied(&self) -> bool {
        [self.requests, self.connections, self.goodbyes, self.crashes, self.struck]
            .iter()
            .all(|count| *count > 20)
    }
}
