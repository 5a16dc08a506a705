//! Carries a script out on a machine, beside a flat array of bytes that is always right.

use std::collections::BTreeMap;

use orlop::engine::Disk;
use orlop::engine::request::{Answer, MapKind, Part, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, Span};
use orlop::host::sim::rng::mix;

use crate::images::{ImageBytes, open_disk};
use crate::machine::{InMemory, Machine};
use crate::script::{Ask, AskKind, Batch, Script};

/// Most bytes of one request, so that a batch fits the arena.
const MOST: u64 = 4 << 20;

/// Builds the chain of a script and carries its batches out; those of the top image on `machine`.
///
/// # Errors
/// The first byte, answer or finding that is not as the array says.
pub(crate) fn live(script: &Script, machine: &mut dyn Machine) -> Result<(), String> {
    let mut chain = vec![ImageBytes::bottom(script.bottom, script.sectors)];
    let mut expected = vec![0; chain[0].size as usize];
    let mut batches = &script.first;
    let mut stamp = 0;
    for depth in 0..=script.uppers.len() {
        let mut inner = InMemory::new(script.order ^ depth as u64);
        let is_top = depth == script.uppers.len();
        let on: &mut dyn Machine = if is_top { machine } else { &mut inner };
        let mut life = Life { chain, expected, machine: on, stamp, released: false };
        life.spend(batches).map_err(|why| format!("image {depth} from below: {why}"))?;
        Life { chain, expected, stamp, .. } = life;
        if let Some((upper, its_batches)) = script.uppers.get(depth) {
            let child = chain[0].child(*upper, depth as u8 + 1);
            // Beyond the parent's end there are zeroes; a smaller child shows a part (V13).
            expected.resize(child.size as usize, 0);
            chain.insert(0, child);
            batches = its_batches;
        }
    }
    Ok(())
}

/// What one image lives through while it is on top.
struct Life<'a> {
    chain: Vec<ImageBytes>,
    expected: Vec<u8>,
    machine: &'a mut dyn Machine,
    /// Makes every write's bytes its own.
    stamp: u64,
    /// Blocks may have been given back, which the next opening may find at the end of the file.
    released: bool,
}

/// A request in flight.
struct Flight {
    ask: Ask,
    extent: Extent,
    span: Span,
}

impl Life<'_> {
    fn spend(&mut self, batches: &[Batch]) -> Result<(), String> {
        let mut disk = self.open(true);
        for (n, batch) in batches.iter().enumerate() {
            self.carry_out(&mut disk, batch).map_err(|why| format!("batch {n}: {why}"))?;
            if batch.reopen {
                self.close(&mut disk).map_err(|why| format!("batch {n}, closing: {why}"))?;
                if self.chain[0].recover() > 0 && !self.released {
                    return Err(format!("batch {n}: an image closed in order had to be repaired"));
                }
                disk = self.open(true);
                self.compare(&mut disk).map_err(|why| format!("batch {n}, reopened: {why}"))?;
            }
        }
        self.compare(&mut disk).map_err(|why| format!("at the end: {why}"))?;
        self.close(&mut disk).map_err(|why| format!("closing: {why}"))?;
        let mut disk = self.open(false);
        self.compare(&mut disk).map_err(|why| format!("opened to read: {why}"))?;
        self.close(&mut disk)
    }

    fn open(&mut self, writable: bool) -> Disk {
        let files = self.machine.attach(&self.chain);
        open_disk(&self.chain, &files, writable)
    }

    fn close(&mut self, disk: &mut Disk) -> Result<(), String> {
        disk.submit(RequestId(0), Request::Flush);
        let answers = self.drain(disk)?;
        if answers.get(&0) != Some(&Answer::Done) {
            return Err(format!("the last flush said {answers:?}"));
        }
        if disk.is_dirty() || disk.in_flight() > 0 || disk.effects_in_flight() > 0 {
            return Err("something is left to do after the last flush".to_owned());
        }
        self.chain[0].bytes = self.machine.detach();
        match self.chain[0].findings() {
            findings if findings.is_empty() => Ok(()),
            findings => Err(findings.join("\n")),
        }
    }

    /// Lets the disk run until nothing is in flight, and gives all answers.
    fn drain(&mut self, disk: &mut Disk) -> Result<BTreeMap<u64, Answer>, String> {
        let mut answers = BTreeMap::new();
        loop {
            while let Some(effect) = disk.poll_effect() {
                self.machine.start(effect);
            }
            while let Some(reply) = disk.poll_reply() {
                let answer = reply.result.map_err(|fault| format!("{}: {fault}", reply.id.0))?;
                if answers.insert(reply.id.0, answer).is_some() {
                    return Err(format!("request {} was answered twice", reply.id.0));
                }
            }
            if disk.has_output() {
                continue;
            }
            if disk.effects_in_flight() == 0 {
                break;
            }
            let (id, outcome) = self.machine.finished();
            disk.complete(id, outcome);
        }
        if disk.in_flight() > 0 {
            return Err(format!("{} requests are never answered", disk.in_flight()));
        }
        Ok(answers)
    }

    fn carry_out(&mut self, disk: &mut Disk, batch: &Batch) -> Result<(), String> {
        let before = self.expected.clone();
        let mut touched = vec![false; before.len()];
        let mut flights = Vec::new();
        let mut discarded = Vec::new();
        for ask in &batch.asks {
            let extent = self.extent_of(ask);
            let range = range(extent);
            let changes = !matches!(ask.kind, AskKind::Read | AskKind::Map { .. } | AskKind::Flush);
            // The protocol orders nothing that overlaps in flight: such a request stays at home.
            if changes && touched[range.clone()].iter().any(|byte| *byte) {
                continue;
            }
            let span = self.machine.lend(extent.len.get() as u32);
            if changes {
                touched[range.clone()].fill(true);
            }
            match ask.kind {
                AskKind::Write => {
                    self.stamp += 1;
                    let bytes = &mut self.expected[range];
                    for (i, byte) in bytes.iter_mut().enumerate() {
                        *byte = mix(self.stamp << 32 | i as u64) as u8;
                    }
                    self.machine.bytes(span).copy_from_slice(bytes);
                }
                AskKind::Zero { may_unmap } => {
                    self.released |= may_unmap;
                    self.expected[range].fill(0);
                }
                AskKind::Discard => {
                    self.released = true;
                    discarded.push(extent);
                }
                AskKind::Read | AskKind::Map { .. } | AskKind::Flush => {}
            }
            flights.push(Flight { ask: *ask, extent, span });
            disk.submit(RequestId(flights.len() as u64), flights[flights.len() - 1].request());
        }
        let answers = self.drain(disk)?;
        for (n, flight) in flights.iter().enumerate() {
            let answer = answers.get(&(n as u64 + 1)).ok_or("a request was not answered")?;
            self.judge(flight, answer, &before, &discarded)
                .map_err(|why| format!("{:?} of {:?}: {why}", flight.ask.kind, flight.extent))?;
        }
        self.machine.reclaim();
        for extent in discarded {
            self.settle_discard(disk, extent)?;
        }
        self.compare(disk)
    }

    /// What a discard left behind: each byte as it was, or zero, and from now on so.
    fn settle_discard(&mut self, disk: &mut Disk, extent: Extent) -> Result<(), String> {
        let bytes = self.read(disk, extent)?;
        for (i, byte) in bytes.into_iter().enumerate() {
            let at = extent.at.get() as usize + i;
            if byte != self.expected[at] && byte != 0 {
                return Err(format!("byte {at} is neither old nor zero after a discard: {byte}"));
            }
            self.expected[at] = byte;
        }
        Ok(())
    }

    fn judge(
        &mut self,
        flight: &Flight,
        answer: &Answer,
        before: &[u8],
        discarded: &[Extent],
    ) -> Result<(), String> {
        match (flight.ask.kind, answer) {
            (AskKind::Read, answer) => {
                let bytes = self.read_bytes(flight.span, answer)?;
                for (byte, at) in bytes.into_iter().zip(range(flight.extent)) {
                    let spot = Extent::new(DiskOffset::new(at as u64), ByteLen::new(1));
                    let gone = byte == 0 && discarded.iter().any(|extent| extent.overlaps(spot));
                    if byte != before[at] && byte != self.expected[at] && !gone {
                        let wanted = (before[at], self.expected[at]);
                        return Err(format!("byte {at} reads {byte}, not one of {wanted:?}"));
                    }
                }
                Ok(())
            }
            (AskKind::Map { limit }, Answer::Map(runs)) => {
                let total: u64 = runs.iter().map(|run| run.len.get()).sum();
                let short = runs.iter().any(|run| run.len.is_zero());
                let most = usize::from(limit.max(1));
                if total == 0 || total > flight.extent.len.get() || short || runs.len() > most {
                    return Err(format!("a map of {runs:?}"));
                }
                Ok(())
            }
            (_, Answer::Done) => Ok(()),
            (_, other) => Err(format!("answered by {other:?}")),
        }
    }

    /// The bytes a read brought, holes filled in.
    fn read_bytes(&mut self, span: Span, answer: &Answer) -> Result<Vec<u8>, String> {
        let parts: Vec<Part> = match answer {
            Answer::Done => return Ok(self.machine.bytes(span).to_vec()),
            Answer::Segments(segments) => segments.iter().copied().map(Part::Segment).collect(),
            Answer::Fetched(parts) => parts.clone(),
            Answer::Map(_) => return Err("a read was answered by a map".to_owned()),
        };
        let mut bytes = Vec::with_capacity(span.len as usize);
        for part in &parts {
            match *part {
                Part::Segment(Segment::Data(part)) => {
                    if part.start != span.start + bytes.len() as u32 {
                        return Err(format!("data of a read lies at the wrong place: {parts:?}"));
                    }
                    bytes.extend_from_slice(self.machine.bytes(part));
                }
                Part::Segment(Segment::Hole(len)) => {
                    bytes.resize(bytes.len() + len.get() as usize, 0);
                }
                Part::Stored(stored) => bytes.extend(self.machine.stored(stored)),
            }
        }
        if bytes.len() == span.len as usize {
            Ok(bytes)
        } else {
            Err(format!("{} of {} bytes read", bytes.len(), span.len))
        }
    }

    fn read(&mut self, disk: &mut Disk, extent: Extent) -> Result<Vec<u8>, String> {
        let into = self.machine.lend(extent.len.get() as u32);
        disk.submit(RequestId(0), Request::Read { extent, into });
        let answers = self.drain(disk)?;
        let bytes = self.read_bytes(into, answers.get(&0).ok_or("a read was not answered")?)?;
        self.machine.reclaim();
        Ok(bytes)
    }

    /// Compares the whole disk with the array, and its map with its bytes.
    fn compare(&mut self, disk: &mut Disk) -> Result<(), String> {
        let size = self.expected.len() as u64;
        let mut at = 0;
        while at < size {
            let len = ByteLen::new(MOST.min(size - at));
            let bytes = self.read(disk, Extent::new(DiskOffset::new(at), len))?;
            let wanted = &self.expected[at as usize..][..bytes.len()];
            if let Some(i) = bytes.iter().zip(wanted).position(|(a, b)| a != b) {
                let (found, wanted) = (bytes[i], wanted[i]);
                return Err(format!("byte {} reads {found}, not {wanted}", at as usize + i));
            }
            at += len.get();
        }
        self.compare_map(disk)
    }

    fn compare_map(&mut self, disk: &mut Disk) -> Result<(), String> {
        let size = self.expected.len() as u64;
        let mut at = 0;
        while at < size {
            let extent = Extent::new(DiskOffset::new(at), ByteLen::new(size - at));
            disk.submit(RequestId(0), Request::Map { extent, limit: 7 });
            let answers = self.drain(disk)?;
            let Some(Answer::Map(runs)) = answers.get(&0) else {
                return Err(format!("a map was answered by {answers:?}"));
            };
            if runs.is_empty() {
                return Err(format!("an empty map at {at}"));
            }
            for run in runs {
                let bytes = &self.expected[at as usize..][..run.len.get() as usize];
                let empty = bytes.iter().all(|byte| *byte == 0);
                let sound = match run.kind {
                    MapKind::Hole => empty,
                    MapKind::Sparse { depth } | MapKind::Zero { depth } => {
                        empty && depth < disk.depth()
                    }
                    MapKind::Data { depth } => depth < disk.depth(),
                };
                if !sound {
                    return Err(format!("at {at} the map says {run:?}"));
                }
                at += run.len.get();
            }
        }
        Ok(())
    }

    /// Folds an ask into the disk.
    fn extent_of(&self, ask: &Ask) -> Extent {
        let size = self.expected.len() as u64;
        let grain = u64::from(ask.grain);
        let at = u64::from(ask.at) * grain % size / grain * grain;
        let len = (u64::from(ask.len) * grain).min(size - at).min(MOST);
        Extent::new(DiskOffset::new(at), ByteLen::new(len))
    }
}

impl Flight {
    fn request(&self) -> Request {
        let (extent, span) = (self.extent, self.span);
        let fua = self.ask.fua;
        match self.ask.kind {
            AskKind::Write => Request::Write { extent, from: span, fua },
            AskKind::Zero { may_unmap } => Request::Zero { extent, may_unmap, fua },
            AskKind::Discard => Request::Discard { extent, fua },
            AskKind::Read => Request::Fetch { extent, into: span },
            AskKind::Map { limit } => Request::Map { extent, limit: limit.into() },
            AskKind::Flush => Request::Flush,
        }
    }
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.at.get() as usize..extent.end().get() as usize
}
