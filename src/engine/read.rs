//! Reads: the chain walk, one effect per run that is contiguous in file and memory, and holes
//! that are named instead of filled.

use super::chain::Found;
use super::disk::Disk;
use super::effect::{Effect, FileId, Target};
use super::request::{Part, Segment, Stored};
use super::task::{Lendable, MAX_PIECES, Outbox, Purpose, Task, TaskKey};
use super::units::{ByteLen, Extent, FileOffset, Span};

/// A run found but not yet asked for: the next one may continue it.
struct Pending {
    layer: u16,
    file: FileId,
    at: FileOffset,
    skip: ByteLen,
    len: ByteLen,
    /// Whether nobody writes these bytes.
    may_lend: bool,
}

impl Disk {
    pub(super) fn advance_read(&mut self, key: TaskKey, extent: Extent, into: Span, fetch: bool) {
        let mut pending: Option<Pending> = None;
        loop {
            let task = &mut self.tasks[key];
            let rest = extent.after(task.cursor);
            if rest.len.is_zero() || task.pending >= MAX_PIECES {
                break;
            }
            let found = if self.stack.view.is_none() {
                self.stack.find(rest)
            } else if let Some(found) = self.stack.find_published(rest) {
                found
            } else {
                // The owner is to answer all of it.
                (task.cursor, task.seen) = (extent.len, None);
                break;
            };
            match found {
                Found::Ask { layer, page } => {
                    self.wait_for_page(key, layer, page);
                    break;
                }
                Found::Hole(len) | Found::Zero { len, .. } => push_hole(task, into, len),
                Found::Here { layer, file, at, len } => {
                    push_data(task, into, len);
                    let skip = task.cursor - len;
                    // What may be written while a peer takes it would be torn within a sector.
                    let may_lend = fetch && self.stack.is_frozen(layer);
                    let next = Pending { layer, file, at, skip, len, may_lend };
                    if let Some(run) = merge(&mut pending, next) {
                        issue(task, &mut self.outbox, key, into, run);
                    }
                }
            }
        }
        if let Some(run) = pending {
            issue(&mut self.tasks[key], &mut self.outbox, key, into, run);
        }
    }
}

/// Adds a run to the pending one, or takes its place; then the old one is to be issued.
fn merge(pending: &mut Option<Pending>, next: Pending) -> Option<Pending> {
    match pending {
        Some(run)
            if run.file == next.file
                && run.at + run.len == next.at
                && run.skip + run.len == next.skip =>
        {
            run.len += next.len;
            None
        }
        _ => pending.replace(next),
    }
}

fn issue(task: &mut Task, outbox: &mut Outbox, key: TaskKey, into: Span, run: Pending) {
    task.pending += 1;
    let into = Target::Span(into.part(run.skip, run.len));
    let stored = Stored { file: run.file, at: run.at, len: run.len };
    let lendable = run.may_lend.then_some(Lendable { skip: run.skip, stored });
    let purpose = Purpose::Read { task: key, layer: run.layer, lendable };
    outbox.emit(purpose, |id| Effect::Read {
        id,
        file: run.file,
        at: run.at,
        into,
        may_lend: run.may_lend,
    });
}

/// The answer to a fetch: what was lent in the place of the data it stands for. Each lent part
/// lies in one run of data: it was found as a part of it.
pub(super) fn with_lent(
    into: Span,
    segments: Option<Vec<Segment>>,
    mut lent: Vec<Lendable>,
) -> Vec<Part> {
    lent.sort_unstable_by_key(|part| part.skip);
    let mut lent = lent.into_iter().peekable();
    let mut all = Vec::new();
    let mut at = ByteLen::ZERO;
    for segment in segments.unwrap_or_else(|| vec![Segment::Data(into)]) {
        let Segment::Data(span) = segment else {
            if let Segment::Hole(len) = segment {
                at += len;
            }
            all.push(Part::Segment(segment));
            continue;
        };
        let end = at + span.bytes();
        while at < end {
            match lent.next_if(|part| part.skip == at) {
                Some(part) => {
                    all.push(Part::Stored(part.stored));
                    at += part.stored.len;
                }
                None => {
                    let next = lent.peek().map_or(end, |part| part.skip.min(end));
                    all.push(Part::Segment(Segment::Data(into.part(at, next - at))));
                    at = next;
                }
            }
        }
    }
    all
}

fn push_hole(task: &mut Task, into: Span, len: ByteLen) {
    let cursor = task.cursor;
    let segments = task.segments.get_or_insert_with(|| {
        let data = (!cursor.is_zero()).then(|| Segment::Data(into.part(ByteLen::ZERO, cursor)));
        data.into_iter().collect()
    });
    match segments.last_mut() {
        Some(Segment::Hole(before)) => *before += len,
        _ => segments.push(Segment::Hole(len)),
    }
    task.cursor += len;
}

fn push_data(task: &mut Task, into: Span, len: ByteLen) {
    if let Some(segments) = &mut task.segments {
        match segments.last_mut() {
            Some(Segment::Data(span)) => span.len += len.get() as u32,
            _ => segments.push(Segment::Data(into.part(task.cursor, len))),
        }
    }
    task.cursor += len;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::effect::FileId;
    use super::super::request::{Part, Segment, Stored};
    use super::super::task::Lendable;
    use super::super::units::{ByteLen, FileOffset, RegionId, Span};
    use super::with_lent;

    const fn span(start: u32, len: u32) -> Span {
        Span { region: RegionId(0), start, len }
    }

    fn stored(at: u64, len: u64) -> Stored {
        Stored { file: FileId(3), at: FileOffset::new(at), len: ByteLen::new(len) }
    }

    fn lendable(skip: u64, at: u64, len: u64) -> Lendable {
        Lendable { skip: ByteLen::new(skip), stored: stored(at, len) }
    }

    #[test]
    fn what_was_lent_takes_the_place_of_its_data() {
        let data = |start, len| Part::Segment(Segment::Data(span(start, len)));
        let hole = |len| Segment::Hole(ByteLen::new(len));
        // Told in any order, all of it, the middle, the ends.
        let whole = with_lent(span(100, 50), None, vec![lendable(0, 7, 50)]);
        assert_eq!(whole, [Part::Stored(stored(7, 50))]);
        let middle = with_lent(span(100, 50), None, vec![lendable(10, 900, 5)]);
        assert_eq!(middle, [data(100, 10), Part::Stored(stored(900, 5)), data(115, 35)]);
        let ends = vec![lendable(40, 4, 10), lendable(0, 0, 4)];
        let ends = with_lent(span(100, 50), None, ends);
        assert_eq!(ends, [Part::Stored(stored(0, 4)), data(104, 36), Part::Stored(stored(4, 10))]);
        // Around a hole.
        let segments = vec![Segment::Data(span(100, 10)), hole(20), Segment::Data(span(130, 20))];
        let lent = vec![lendable(35, 5, 15), lendable(0, 1, 10)];
        assert_eq!(
            with_lent(span(100, 50), Some(segments), lent),
            [
                Part::Stored(stored(1, 10)),
                Part::Segment(hole(20)),
                data(130, 5),
                Part::Stored(stored(5, 15)),
            ]
        );
    }
}
