//! Answers of the disk as NBD replies.

use ::nbd::transmission::{Command, Request as NbdRequest};
use ::nbd::wire::{Errno, allocation, simple_reply};
use ::nbd::{Bytes, Cookie, Offset, ReplyStyle, reply};

use super::{InFlight, NbdClient};
use crate::engine::request::{Answer, Fault, FaultKind, MapKind, MapRun, Segment};
use crate::engine::units::ByteLen;
use crate::host::memory::Lease;
use crate::shard::Context;

impl NbdClient {
    /// Takes the disk's answer to the request in `slot`.
    pub(super) fn answer(
        &mut self,
        cx: &mut Context<'_>,
        slot: u32,
        result: Result<Answer, Fault>,
    ) {
        let InFlight { request, lease } = self.requests.remove(slot as usize);
        let cookie = request.cookie;
        self.maps -= usize::from(matches!(request.command, Command::BlockStatus { .. }));
        match (result, &request.command, lease) {
            (Err(fault), _, lease) => {
                tracing::warn!(%fault, command = ?request.command, "a request failed");
                let at = Offset(fault.at.get());
                self.push_error(cookie, errno_of(&fault), Some(at), &fault.to_string());
                self.give_back(cx, lease);
            }
            (Ok(answer), Command::Read { .. }, Some(lease)) => {
                self.push_read(&request, &answer, &lease);
                self.out_leases.push(lease);
            }
            (Ok(Answer::Map(runs)), _, lease) => {
                self.push_status(&request, &runs);
                self.give_back(cx, lease);
            }
            (Ok(_), _, lease) => {
                self.push_done(cookie);
                self.give_back(cx, lease);
            }
        }
    }

    fn give_back(&mut self, cx: &mut Context<'_>, lease: Option<Lease>) {
        if let Some(lease) = lease {
            self.give(cx, lease);
        }
    }

    fn push_done(&mut self, cookie: Cookie) {
        match self.style {
            ReplyStyle::Simple => self.out.push_bytes(&simple_reply(cookie, None)),
            ReplyStyle::Structured => self.out.push_bytes(&reply::none_done(cookie)),
        }
    }

    pub(super) fn push_error(
        &mut self,
        cookie: Cookie,
        error: Errno,
        at: Option<Offset>,
        text: &str,
    ) {
        let mut bytes = Vec::new();
        match at {
            Some(at) => self.style.error_at(&mut bytes, cookie, error, at, text),
            None => self.style.error(&mut bytes, cookie, error, text),
        }
        self.out.push_bytes(&bytes);
    }

    fn push_read(&mut self, request: &NbdRequest, answer: &Answer, lease: &Lease) {
        let Answer::Segments(segments) = answer else {
            match self.style {
                ReplyStyle::Simple => self.out.push_bytes(&simple_reply(request.cookie, None)),
                ReplyStyle::Structured => self.out.push_bytes(&reply::offset_data(
                    request.cookie,
                    request.offset,
                    lease.len(),
                    true,
                )),
            }
            self.out.push_span(lease.span());
            return;
        };
        let segments: Vec<reply::Segment> = segments
            .iter()
            .map(|segment| match segment {
                Segment::Data(span) => reply::Segment::Data(Bytes(u64::from(span.len))),
                Segment::Hole(len) => reply::Segment::Hole(Bytes(len.get())),
            })
            .collect();
        let (mut headers, mut pieces) = (Vec::new(), Vec::new());
        if let Err(error) = self.style.plan_read(request, &segments, &mut headers, &mut pieces) {
            tracing::error!(%error, "the engine's answer does not add up");
            self.push_error(request.cookie, Errno::EIO, None, "internal error");
            return;
        }
        for piece in pieces {
            self.out.push_bytes(&headers[piece.header]);
            match piece.body {
                reply::Body::None => {}
                reply::Body::Data { skip, length } => {
                    self.out.push_span(lease.part(skip..skip + length));
                }
                reply::Body::Zeroes { length } => {
                    self.out.push_zeroes(ByteLen::new(u64::from(length)));
                }
            }
        }
    }

    fn push_status(&mut self, request: &NbdRequest, runs: &[MapRun]) {
        let Some(context) = self.allocation else {
            self.push_error(request.cookie, Errno::EINVAL, None, "no context was negotiated");
            return;
        };
        let extents = runs.iter().map(|run| reply::Extent {
            length: Bytes(run.len.get()),
            flags: match run.kind {
                MapKind::Hole => allocation::HOLE | allocation::ZERO,
                MapKind::Zero { .. } => allocation::ZERO,
                MapKind::Data { .. } => 0,
            },
        });
        let mut bytes = Vec::new();
        match reply::block_status(&mut bytes, request, context, extents, true) {
            Ok(()) => self.out.push_bytes(&bytes),
            Err(error) => {
                tracing::error!(%error, "the engine's map does not add up");
                self.push_error(request.cookie, Errno::EIO, None, "internal error");
            }
        }
    }
}

/// The protocol's number for a fault.
fn errno_of(fault: &Fault) -> Errno {
    match &fault.kind {
        FaultKind::Io(error) if error.is_space() => Errno::ENOSPC,
        FaultKind::NoSpace(_) => Errno::ENOSPC,
        FaultKind::ReadOnly => Errno::EPERM,
        FaultKind::Io(_) | FaultKind::Corrupt(_) | FaultKind::Stopped(_) => Errno::EIO,
    }
}
