//! Answers of the disk as NBD replies.

use std::ops::Range;
use std::sync::atomic::Ordering;

use ::nbd::transmission::{Command, Request as NbdRequest};
use ::nbd::wire::{Errno, allocation, dirty};
use ::nbd::{Bytes, ContextName, ContextSet, Echo, Offset, reply};

use super::{InFlight, NbdClient};
use crate::engine::request::{Answer, Fault, FaultKind, MapKind, MapRun, Part, Segment, Stored};
use crate::engine::units::ByteLen;
use crate::host::memory::Lease;
use crate::shard::Context;

/// Failed requests of one connection that the log hears of.
const FAULTS_TOLD_MAX: u32 = 20;

/// The parts of an answer from the first on that was not sent in full.
struct Rest<'a> {
    parts: &'a [Part],
    /// Bytes of the answer before them.
    start: u32,
}

impl Rest<'_> {
    /// Shows the parts that a range of the answer lies in: each with how much of it comes before,
    /// and with what of the range is in it. Ranges come in order, and what is passed is not looked
    /// at again: else an answer of many holes would cost the square of their number.
    fn pass(&mut self, wanted: Range<u32>, mut show: impl FnMut(&Part, u32, Range<u32>)) {
        while let Some((part, parts)) = self.parts.split_first() {
            let end = self.start + part.len().get() as u32;
            let (from, to) = (wanted.start.max(self.start), wanted.end.min(end));
            if from < to {
                show(part, from - self.start, from..to);
            }
            if end > wanted.end {
                return;
            }
            *self = Self { parts, start: end };
            if end == wanted.end {
                return;
            }
        }
    }
}

impl NbdClient {
    /// Takes the disk's answer to the request in `slot`.
    pub(super) fn answer(
        &mut self,
        cx: &mut Context<'_>,
        slot: u32,
        result: Result<Answer, Fault>,
    ) {
        let InFlight { ask, lease } = self.requests.remove(slot as usize);
        let request = ask.request;
        let echo = request.echo();
        self.maps -= usize::from(matches!(request.command, Command::BlockStatus { .. }));
        let latency = cx.now().saturating_duration_since(ask.at);
        self.gauge.ended();
        self.gauge.answered(&request, latency, result.is_ok());
        match (result, &request.command, lease) {
            (Err(fault), _, lease) => {
                self.tell(&fault, &request);
                // The peer counts from the start of its export.
                let at = Offset(fault.at.get().saturating_sub(self.window.at.get()));
                self.push_error(echo, errno_of(&fault), Some(at), &fault.to_string());
                self.give_back(cx, lease);
            }
            (Ok(answer), Command::Read { .. }, Some(lease)) => {
                self.push_read(&request, answer, &lease);
                self.out.keep(lease);
            }
            (Ok(Answer::Map(runs)), Command::BlockStatus { contexts, .. }, lease) => {
                self.push_status(&request, *contexts, &runs);
                self.give_back(cx, lease);
            }
            (Ok(_), command, lease) => {
                if let (Command::Resize { .. }, Some(told)) = (command, &self.whole) {
                    told.store(cx.disk_size().get(), Ordering::Release);
                }
                self.out.push_bytes(&self.style.done(echo));
                self.give_back(cx, lease);
            }
        }
    }

    /// Tells the log of the first failures of a connection: more would be the client's to multiply.
    fn tell(&mut self, fault: &Fault, request: &NbdRequest) {
        self.faults_told = self.faults_told.saturating_add(1);
        if self.faults_told <= FAULTS_TOLD_MAX {
            tracing::warn!(%fault, command = ?request.command, "a request failed");
        } else if self.faults_told == FAULTS_TOLD_MAX + 1 {
            tracing::warn!("further failures of this connection are told to its client only");
        }
    }

    fn give_back(&mut self, cx: &mut Context<'_>, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.give(cx, lease);
        }
    }

    pub(super) fn push_error(&mut self, echo: Echo, error: Errno, at: Option<Offset>, text: &str) {
        let mut bytes = Vec::new();
        self.style.error(&mut bytes, echo, error, at, text);
        self.out.push_bytes(&bytes);
    }

    fn push_read(&mut self, request: &NbdRequest, answer: Answer, lease: &Lease) {
        let parts: Vec<Part> = match answer {
            Answer::Segments(segments) => segments.into_iter().map(Part::Segment).collect(),
            Answer::Fetched(parts) => parts,
            Answer::Done | Answer::Map(_) => {
                self.out.push_bytes(&self.style.before_data(request.echo(), lease.len()));
                self.out.push_span(lease.span());
                return;
            }
        };
        let told = parts.iter().map(|part| match part {
            Part::Segment(Segment::Hole(len)) => reply::Segment::Hole(Bytes(len.get())),
            data => reply::Segment::Data(Bytes(data.len().get())),
        });
        let segments: Vec<reply::Segment> = told.collect();
        let (mut headers, mut pieces) = (Vec::new(), Vec::new());
        if let Err(error) = self.style.plan_read(request, &segments, &mut headers, &mut pieces) {
            tracing::error!(%error, "the engine's answer does not add up");
            self.push_error(request.echo(), Errno::EIO, None, "internal error");
            return;
        }
        // The pieces come in the order of the parts.
        let mut rest = Rest { parts: &parts, start: 0 };
        for piece in pieces {
            self.out.push_bytes(&headers[piece.header]);
            match piece.body {
                reply::Body::None => {}
                reply::Body::Data { skip, length } => {
                    self.push_data(&mut rest, lease, skip..skip + length);
                }
                reply::Body::Zeroes { length } => {
                    self.out.push_zeroes(ByteLen::new(u64::from(length)));
                }
            }
        }
    }

    /// Sends a part of a read's answer that is data, from memory or from where it lies.
    fn push_data(&mut self, rest: &mut Rest<'_>, lease: &Lease, wanted: Range<u32>) {
        rest.pass(wanted, |part, skip, wanted| match part {
            Part::Stored(Stored { file, at, .. }) => self.out.push_stored(Stored {
                file: *file,
                at: *at + ByteLen::new(u64::from(skip)),
                len: ByteLen::new(u64::from(wanted.end - wanted.start)),
            }),
            Part::Segment(_) => self.out.push_span(lease.part(wanted)),
        });
    }

    /// Answers with one chunk for each context asked about, all from one map.
    fn push_status(&mut self, request: &NbdRequest, asked: ContextSet, runs: &[MapRun]) {
        let mut bytes = Vec::new();
        for context in self.contexts.iter().filter(|context| asked.contains(context.id)) {
            let extents = runs.iter().map(|run| reply::Extent {
                length: Bytes(run.len.get()),
                flags: flags_of(&context.name, run.kind),
            });
            let done = asked.last() == Some(context.id);
            let told = self.style.block_status(&mut bytes, request, context.id, extents, done);
            if let Err(error) = told {
                tracing::error!(%error, "the engine's map does not add up");
                self.push_error(request.echo(), Errno::EIO, None, "internal error");
                return;
            }
        }
        self.out.push_bytes(&bytes);
    }
}

/// What a context says of a run.
fn flags_of(name: &ContextName, kind: MapKind) -> u32 {
    let depth = match kind {
        MapKind::Hole => None,
        MapKind::Data { depth } | MapKind::Sparse { depth } | MapKind::Zero { depth } => {
            Some(depth)
        }
    };
    match name {
        ContextName::Allocation => match kind {
            MapKind::Hole => allocation::HOLE | allocation::ZERO,
            // A file system calls space that it allocated and never wrote a hole too, so whether
            // a hole of a file takes space cannot be told, and HOLE would be a guess.
            MapKind::Sparse { .. } | MapKind::Zero { .. } => allocation::ZERO,
            MapKind::Data { .. } => 0,
        },
        ContextName::AllocationDepth => depth.map_or(0, |depth| u32::from(depth) + 1),
        // What the top layer holds is what was written since it was made. It is the only bitmap
        // there is yet; `export_of` offers no other.
        ContextName::DirtyBitmap(_) if depth == Some(0) => dirty::DIRTY,
        ContextName::DirtyBitmap(_) => 0,
    }
}

/// The protocol's number for a fault.
fn errno_of(fault: &Fault) -> Errno {
    match &fault.kind {
        FaultKind::Io(error) if error.is_space() => Errno::ENOSPC,
        FaultKind::NoSpace(_) => Errno::ENOSPC,
        FaultKind::ReadOnly => Errno::EPERM,
        FaultKind::Unsupported(_) => Errno::ENOTSUP,
        FaultKind::Io(_) | FaultKind::Corrupt(_) | FaultKind::Stopped(_) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::{Rest, flags_of};
    use crate::engine::effect::FileId;
    use crate::engine::request::MapKind::{self, Data, Hole, Sparse, Zero};
    use crate::engine::request::{Part, Segment, Stored};
    use crate::engine::units::{ByteLen, FileOffset};
    use ::nbd::ContextName::{self, Allocation, AllocationDepth, DirtyBitmap};

    fn told(name: &ContextName) -> [u32; 6] {
        let kinds: [MapKind; 6] = [
            Hole,
            Data { depth: 0 },
            Data { depth: 29 },
            Zero { depth: 0 },
            Zero { depth: 1 },
            Sparse { depth: 0 },
        ];
        kinds.map(|kind| flags_of(name, kind))
    }

    #[test]
    fn each_context_tells_its_own_side_of_the_same_map() {
        // HOLE is bit 0 and ZERO bit 1; a zero that a layer holds is allocated.
        assert_eq!(told(&Allocation), [3, 0, 0, 2, 2, 2]);
        // Unallocated is 0 and the top layer 1. A flat layer holds its holes as well.
        assert_eq!(told(&AllocationDepth), [0, 1, 30, 1, 2, 1]);
        // Dirty is what the top layer holds, zeroes included: they hide what lies below.
        assert_eq!(told(&DirtyBitmap("leaf".to_owned())), [0, 1, 0, 1, 0, 1]);
    }

    /// Parts by turns of data and of a hole, of so many bytes each.
    fn by_turns(pairs: usize, data: u64, hole: u64) -> Vec<Part> {
        let (at, len) = (FileOffset::new(0), ByteLen::new(data));
        let hole = Part::Segment(Segment::Hole(ByteLen::new(hole)));
        let pair = [Part::Stored(Stored { file: FileId(0), at, len }), hole];
        pair.into_iter().cycle().take(2 * pairs).collect()
    }

    #[test]
    fn no_part_of_an_answer_is_looked_at_again_once_it_is_passed() {
        let parts = by_turns(5000, 100, 28);
        let mut rest = Rest { parts: &parts, start: 0 };
        for pair in 0..5000_usize {
            let start = pair as u32 * 128;
            let mut shown = Vec::new();
            rest.pass(start..start + 100, |part, skip, range| shown.push((*part, skip, range)));
            assert_eq!(shown, [(parts[0], 0, start..start + 100)]);
            // The hole behind it is passed with the next data.
            assert_eq!(rest.parts.len(), 2 * (5000 - pair) - 1);
        }
    }

    #[test]
    fn a_range_is_shown_in_the_parts_it_lies_in() {
        let parts = by_turns(3, 100, 28);
        let mut rest = Rest { parts: &parts, start: 0 };
        let mut pass = |range| {
            let mut shown = Vec::new();
            rest.pass(range, |part, skip, range| shown.push((part.len().get(), skip, range)));
            shown
        };
        assert_eq!(pass(10..20), [(100, 10, 10..20)]);
        assert_eq!(pass(20..110), [(100, 20, 20..100), (28, 0, 100..110)]);
        assert_eq!(pass(130..131), [(100, 2, 130..131)]);
        assert_eq!(
            pass(200..400),
            [(100, 72, 200..228), (28, 0, 228..256), (100, 0, 256..356), (28, 0, 356..384)]
        );
        assert_eq!(pass(384..385), []);
    }
}
