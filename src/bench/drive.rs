//! One job over one NBD connection: keeps its window of requests full and judges the replies.
//!
//! One thread, one socket, no locks. Requests that become possible together go out in one write;
//! all replies that are there come in by one read. Data that nobody checks is dropped where it
//! landed. Refuses to go on after a reply that breaks the protocol.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::client::{Connection, Export, PATIENCE};
use super::cpu;
use super::pipe::Pipe;
use super::plan::{Op, Plan, Step, Window};
use super::stamp::Ledger;
use super::tally::{Fault, Tally};
use super::wire::{self, Frame, FrameError};
use crate::engine::units::{ByteLen, DiskOffset};

/// Queued bytes above which requests are handed to the kernel before more are made, so that
/// payloads are still in the cache when they are copied.
const OUTPUT_BYTES: usize = 256 << 10;

/// What all jobs of a load share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// Requests in flight at once.
    pub(super) queue_depth: u32,
    /// Whether writes must be durable when answered.
    pub(super) fua: bool,
    /// How long to go on; for ever if only a count ends the load.
    pub(super) time: Option<Duration>,
    /// Set when one job found a fault, so that all stop.
    pub(super) stop: &'a AtomicBool,
    /// What reads must show, if they are checked.
    pub(super) ledger: Option<&'a Ledger>,
    /// What writes carry if nothing is checked; one block.
    pub(super) payload: &'a [u8],
}

/// Why a connection cannot go on.
#[derive(Debug, Error)]
enum Broken {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the server left {0} requests unanswered for {secs} s", secs = PATIENCE.as_secs())]
    Silent(usize),
    #[error("the server closed the connection with {0} requests unanswered")]
    Closed(usize),
    #[error("the server broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the server broke the protocol: it answered request {0:#x}, which is not in flight")]
    Cookie(u64),
    #[error("the server broke the protocol: a {0} where the other kind was agreed on")]
    Style(&'static str),
    #[error("the server broke the protocol: {len} at {at} do not lie in the request at {asked}")]
    Outside { at: DiskOffset, len: ByteLen, asked: DiskOffset },
    #[error("the server broke the protocol: {covered} of {asked} bytes in the reply to a request")]
    Coverage { covered: ByteLen, asked: ByteLen },
}

/// Runs `plan` over `connection` until it ends, its time is up or somebody stops it.
pub(super) fn drive(connection: &Connection, plan: Plan<'_>, rules: Rules<'_>) -> Tally {
    let mut job = Job::new(connection, plan, rules);
    let cpu_before = cpu::own_thread();
    if let Err(broken) = job.run() {
        let broken = job.blame(broken);
        job.fail(Fault::Broken(broken.to_string()));
    }
    job.tally.cpu = cpu::own_thread().saturating_sub(cpu_before);
    job.tally
}

/// A place for a request in flight.
#[derive(Debug)]
struct Slot {
    op: Option<Op>,
    /// Distinguishes the requests that use this slot one after another.
    turn: u32,
    sent: Instant,
    /// Bytes of the reply so far.
    covered: ByteLen,
    failed: bool,
    /// What was read, if somebody checks it.
    data: Vec<u8>,
}

/// Read data that is still to come.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    slot: usize,
    /// Where in the block the next byte belongs.
    at: usize,
    left: usize,
    done: bool,
}

struct Job<'a> {
    pipe: Pipe<'a>,
    export: Export,
    plan: Plan<'a>,
    window: Window,
    rules: Rules<'a>,
    deadline: Option<Instant>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    incoming: Option<Incoming>,
    finished: bool,
    tally: Tally,
}

impl<'a> Job<'a> {
    fn new(connection: &'a Connection, plan: Plan<'a>, rules: Rules<'a>) -> Job<'a> {
        let tally = Tally::begin();
        let window = plan.window();
        let checked = if rules.ledger.is_some() { window.block.get() as usize } else { 0 };
        let slot = |_| Slot {
            op: None,
            turn: 0,
            sent: tally.span.0,
            covered: ByteLen::ZERO,
            failed: false,
            data: vec![0; checked],
        };
        Job {
            pipe: Pipe::new(&connection.socket),
            export: connection.export,
            window,
            plan,
            deadline: rules.time.map(|time| tally.span.0 + time),
            slots: (0..rules.queue_depth).map(slot).collect(),
            free: (0..rules.queue_depth as usize).rev().collect(),
            rules,
            incoming: None,
            finished: false,
            tally,
        }
    }

    fn run(&mut self) -> Result<(), Broken> {
        loop {
            self.refill()?;
            let in_flight = self.in_flight();
            if in_flight == 0 {
                if self.finished {
                    return Ok(());
                }
                // Other jobs are writing every block we may write.
                std::thread::yield_now();
                continue;
            }
            let rest = self.incoming.map_or(0, |incoming| incoming.left);
            match self.pipe.wait(rest) {
                Ok(true) => self.parse()?,
                Ok(false) => return Err(Broken::Closed(in_flight)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Broken::Silent(in_flight));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A closed connection shows as one thing when read and as others when written.
    fn blame(&self, broken: Broken) -> Broken {
        match broken {
            Broken::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Broken::Closed(self.in_flight())
            }
            other => other,
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn refill(&mut self) -> Result<(), Broken> {
        loop {
            if self.free.is_empty() || self.finished {
                return Ok(self.pipe.push()?);
            }
            let now = Instant::now();
            let late = self.deadline.is_some_and(|deadline| now >= deadline);
            self.finished |= late || self.rules.stop.load(Ordering::Relaxed);
            let mut waits = false;
            while !self.finished && !waits && self.pipe.unsent() < OUTPUT_BYTES {
                let Some(&slot) = self.free.last() else { break };
                match self.plan.next_step() {
                    Step::Issue(op) => {
                        self.free.pop();
                        self.issue(slot, op, now);
                    }
                    Step::Wait => waits = true,
                    Step::Done => self.finished = true,
                }
            }
            self.pipe.push()?;
            if waits || self.pipe.unsent() > 0 {
                return Ok(());
            }
        }
    }

    fn issue(&mut self, index: usize, op: Op, now: Instant) {
        let slot = &mut self.slots[index];
        slot.turn = slot.turn.wrapping_add(1);
        (slot.op, slot.sent) = (Some(op), now);
        (slot.covered, slot.failed) = (ByteLen::ZERO, false);
        let cookie = u64::from(slot.turn) << 32 | index as u64;
        // Blocks were checked to fit a request's 32-bit length.
        let len = self.window.block.get() as u32;
        let fua = if self.rules.fua { wire::CMD_FLAG_FUA } else { 0 };
        match op {
            Op::Read(block, _) => {
                let at = self.window.offset(block);
                self.pipe.queue(&wire::request(wire::CMD_READ, 0, cookie, at, len));
            }
            Op::Write(block, version) => {
                let at = self.window.offset(block);
                self.pipe.queue(&wire::request(wire::CMD_WRITE, fua, cookie, at, len));
                match self.rules.ledger {
                    None => self.pipe.queue(self.rules.payload),
                    Some(ledger) => ledger.stamp(self.pipe.queue_room(len as usize), at, version),
                }
            }
            Op::Flush => {
                let nowhere = DiskOffset::default();
                self.pipe.queue(&wire::request(wire::CMD_FLUSH, 0, cookie, nowhere, 0));
            }
        }
    }

    fn parse(&mut self) -> Result<(), Broken> {
        let (input, filled) = self.pipe.take_input();
        let now = Instant::now();
        let mut at = 0;
        loop {
            at += self.absorb_data(&input[at..filled], now)?;
            if self.incoming.is_some() {
                break;
            }
            match wire::frame(&input[at..filled])? {
                None => break,
                Some((frame, len)) => {
                    at += len;
                    self.accept(frame, now)?;
                }
            }
        }
        self.pipe.put_back(input, at);
        Ok(())
    }

    /// Takes read data off the front of `bytes`, and says how much.
    fn absorb_data(&mut self, bytes: &[u8], now: Instant) -> Result<usize, Broken> {
        let Some(mut incoming) = self.incoming.take() else { return Ok(0) };
        let count = incoming.left.min(bytes.len());
        if self.rules.ledger.is_some() {
            let place = incoming.at..incoming.at + count;
            self.slots[incoming.slot].data[place].copy_from_slice(&bytes[..count]);
        }
        incoming.at += count;
        incoming.left -= count;
        if incoming.left > 0 {
            self.incoming = Some(incoming);
        } else if incoming.done {
            self.complete(incoming.slot, now)?;
        }
        Ok(count)
    }

    fn accept(&mut self, frame: Frame, now: Instant) -> Result<(), Broken> {
        let is_simple = matches!(frame, Frame::Simple { .. });
        match frame {
            Frame::Simple { cookie, error } => {
                let slot = self.slot_of(cookie)?;
                if error != 0 {
                    self.refused(slot, error, "");
                    return self.complete(slot, now);
                }
                if !matches!(self.slots[slot].op, Some(Op::Read(..))) {
                    return self.complete(slot, now);
                }
                if self.export.structured {
                    return Err(Broken::Style("simple reply to a read"));
                }
                let len = self.window.block;
                self.slots[slot].covered = len;
                let left = len.get() as usize;
                self.incoming = Some(Incoming { slot, at: 0, left, done: true });
                Ok(())
            }
            _ if !self.export.structured && !is_simple => Err(Broken::Style("reply chunk")),
            Frame::Data { cookie, done, at, len } => {
                let slot = self.slot_of(cookie)?;
                let at = self.cover(slot, at, len)?;
                self.incoming = Some(Incoming { slot, at, left: len.get() as usize, done });
                Ok(())
            }
            Frame::Hole { cookie, done, at, len } => {
                let slot = self.slot_of(cookie)?;
                let at = self.cover(slot, at, len)?;
                if self.rules.ledger.is_some() {
                    self.slots[slot].data[at..at + len.get() as usize].fill(0);
                }
                if done { self.complete(slot, now) } else { Ok(()) }
            }
            Frame::Nothing { cookie, done } => {
                let slot = self.slot_of(cookie)?;
                if done { self.complete(slot, now) } else { Ok(()) }
            }
            Frame::Failed { cookie, done, error, text } => {
                let slot = self.slot_of(cookie)?;
                self.refused(slot, error, &text);
                if done { self.complete(slot, now) } else { Ok(()) }
            }
        }
    }

    fn slot_of(&self, cookie: u64) -> Result<usize, Broken> {
        let (turn, index) = ((cookie >> 32) as u32, cookie as u32 as usize);
        match self.slots.get(index) {
            Some(slot) if slot.op.is_some() && slot.turn == turn => Ok(index),
            _ => Err(Broken::Cookie(cookie)),
        }
    }

    /// Notes that the reply has data for these bytes, and says where they start in the block.
    fn cover(&mut self, slot: usize, at: DiskOffset, len: ByteLen) -> Result<usize, Broken> {
        let block = self.window.block;
        let slot = &mut self.slots[slot];
        let asked = match slot.op {
            Some(Op::Read(block, _)) => self.window.offset(block),
            _ => return Err(Broken::Style("data chunk to what was no read")),
        };
        let start = at.get().checked_sub(asked.get());
        let start = start.filter(|start| start.saturating_add(len.get()) <= block.get());
        let Some(start) = start else { return Err(Broken::Outside { at, len, asked }) };
        slot.covered += len;
        Ok(start as usize)
    }

    fn complete(&mut self, index: usize, now: Instant) -> Result<(), Broken> {
        let slot = &mut self.slots[index];
        let Some(op) = slot.op.take() else { return Ok(()) };
        self.free.push(index);
        if slot.failed {
            return Ok(());
        }
        let took = now.saturating_duration_since(slot.sent);
        self.tally.span.1 = now;
        let asked = self.window.block;
        match op {
            Op::Flush => self.tally.flushes.record(took, ByteLen::ZERO),
            Op::Write(block, version) => {
                self.tally.writes.record(took, asked);
                if let Some(ledger) = self.rules.ledger {
                    ledger.answered(block, version);
                }
            }
            Op::Read(block, floor) => {
                if slot.covered != asked {
                    return Err(Broken::Coverage { covered: slot.covered, asked });
                }
                self.tally.reads.record(took, asked);
                let Some(ledger) = self.rules.ledger else { return Ok(()) };
                let allowed = ledger.allowed(block, floor);
                self.tally.checked += asked;
                if let Err(finding) = ledger.check(&slot.data, self.window.offset(block), allowed) {
                    self.fail(Fault::Mismatch(finding));
                }
            }
        }
        Ok(())
    }

    fn refused(&mut self, index: usize, error: u32, text: &str) {
        let slot = &mut self.slots[index];
        slot.failed = true;
        let (request, at) = match slot.op {
            Some(Op::Read(block, _)) => ("read", self.window.offset(block)),
            Some(Op::Write(block, _)) => ("write", self.window.offset(block)),
            _ => ("flush", DiskOffset::default()),
        };
        let answer = format!("error {error} ({}) {text}", wire::errno_name(error));
        self.fail(Fault::Refused { request, at, answer: answer.trim_end().into() });
    }

    fn fail(&mut self, fault: Fault) {
        self.tally.fault(fault);
        self.rules.stop.store(true, Ordering::Relaxed);
    }
}
