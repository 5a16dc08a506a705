//! Reads a whole disk through the engine, as the next owner of a crashed image would.
//!
//! Refuses to write: any effect but a read is an error here.

use orlop::engine::Disk;
use orlop::engine::effect::{Effect, Outcome, Target};
use orlop::engine::request::{Answer, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};

use crate::tag::{CELL, Tag};

/// Reads every cell of `disk` from `files` (by file id).
///
/// # Errors
/// What went wrong, for the report.
pub(crate) fn read_disk(disk: &mut Disk, files: &[&[u8]]) -> Result<Vec<Tag>, String> {
    let len = disk.size().get() as usize;
    let mut memory = vec![0xEE; len];
    let whole = Extent::new(DiskOffset::new(0), ByteLen::new(len as u64));
    let into = Span { region: RegionId(0), start: 0, len: len as u32 };
    if len > 0 {
        disk.submit(RequestId(0), Request::Read { extent: whole, into });
        serve(disk, files, &mut memory)?;
        let reply = disk.poll_reply().ok_or("a read of the whole disk is never replied to")?;
        let answer = reply.result.map_err(|fault| format!("reading after recovery: {fault}"))?;
        fill_holes(&answer, &mut memory)?;
    }
    Ok(tags(0, &memory))
}

fn serve(disk: &mut Disk, files: &[&[u8]], memory: &mut [u8]) -> Result<(), String> {
    while let Some(effect) = disk.poll_effect() {
        let Effect::Read { id, file, at, into, .. } = effect else {
            return Err(format!("reading caused {effect:?}"));
        };
        let start = at.get() as usize;
        let len = into.len().get() as usize;
        let bytes = files[usize::from(file.0)].get(start..start + len);
        let bytes = bytes.ok_or_else(|| format!("a read at {at} meets the end of the file"))?;
        let outcome = match into {
            Target::Span(span) => {
                memory[span.start as usize..][..len].copy_from_slice(bytes);
                Outcome::Done
            }
            Target::Owned(mut own) => {
                own.copy_from_slice(bytes);
                Outcome::Bytes(own)
            }
        };
        disk.complete(id, outcome);
    }
    Ok(())
}

/// Writes the zeroes that a read's answer stands for into the memory of its span.
///
/// # Errors
/// When the answer does not cover the span, or places data elsewhere than in its order.
pub(crate) fn fill_holes(answer: &Answer, memory: &mut [u8]) -> Result<(), String> {
    let segments = match answer {
        Answer::Done => return Ok(()),
        Answer::Segments(segments) => segments,
        Answer::Fetched(_) | Answer::Map(_) => {
            return Err(format!("a read was answered {answer:?}"));
        }
    };
    let mut at = 0;
    let mut base = None;
    for segment in segments {
        match segment {
            Segment::Data(span) => {
                let start = *base.get_or_insert(i64::from(span.start) - at as i64);
                if i64::from(span.start) - at as i64 != start {
                    return Err("a read's data lies where another byte belongs".into());
                }
                at += span.len as usize;
            }
            Segment::Hole(len) => {
                let len = len.get() as usize;
                memory.get_mut(at..at + len).ok_or("holes beyond the request")?.fill(0);
                at += len;
            }
        }
    }
    if at == memory.len() { Ok(()) } else { Err(format!("{at} of {} bytes read", memory.len())) }
}

/// Decodes memory into cells; `first` is the number of the first.
pub(crate) fn tags(first: u32, memory: &[u8]) -> Vec<Tag> {
    (first..).zip(memory.chunks(CELL)).map(|(cell, bytes)| Tag::read(cell, bytes)).collect()
}
