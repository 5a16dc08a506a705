//! Reads: the chain walk, one effect per run that is contiguous in file and memory, and holes
//! that are named instead of filled.

use super::chain::Found;
use super::disk::Disk;
use super::effect::{Effect, FileId, Target};
use super::request::Segment;
use super::task::{MAX_PIECES, Outbox, Purpose, Task, TaskKey};
use super::units::{ByteLen, Extent, FileOffset, Span};

/// A run found but not yet asked for: the next one may continue it.
struct Pending {
    layer: u16,
    file: FileId,
    at: FileOffset,
    skip: ByteLen,
    len: ByteLen,
}

impl Disk {
    pub(super) fn advance_read(&mut self, key: TaskKey, extent: Extent, into: Span) {
        let mut pending: Option<Pending> = None;
        loop {
            let task = &mut self.tasks[key];
            let rest = extent.after(task.cursor);
            if rest.len.is_zero() || task.pending >= MAX_PIECES {
                break;
            }
            match self.stack.find(rest) {
                Found::Ask { layer, page } => {
                    self.wait_for_page(key, layer, page);
                    break;
                }
                Found::Hole(len) | Found::Zero { len, .. } => push_hole(task, into, len),
                Found::Here { layer, file, at, len } => {
                    push_data(task, into, len);
                    let skip = task.cursor - len;
                    let next = Pending { layer, file, at, skip, len };
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
    let purpose = Purpose::Read { task: key, layer: run.layer };
    outbox.emit(purpose, |id| Effect::Read { id, file: run.file, at: run.at, into });
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
