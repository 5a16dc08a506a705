//! What is counted about a connection, for itself and for its export at once.

use std::sync::Arc;
use std::time::Duration;

use ::nbd::transmission::{Command, Request as NbdRequest};
use ::nbd::wire::command;

use crate::meter::{Meter, Op};

/// The meters of a connection.
pub(super) struct Gauge {
    meters: [Arc<Meter>; 2],
    connected: bool,
}

impl Gauge {
    pub(super) const fn new(export: Arc<Meter>, own: Arc<Meter>) -> Self {
        Self { meters: [export, own], connected: false }
    }

    pub(super) fn connect(&mut self) {
        if !std::mem::replace(&mut self.connected, true) {
            self.meters.iter().for_each(|meter| meter.connected());
        }
    }

    pub(super) fn disconnect(&mut self) {
        if std::mem::replace(&mut self.connected, false) {
            self.meters.iter().for_each(|meter| meter.disconnected());
        }
    }

    pub(super) fn began(&self) {
        self.meters.iter().for_each(|meter| meter.began());
    }

    pub(super) fn ended(&self) {
        self.meters.iter().for_each(|meter| meter.ended());
    }

    pub(super) fn throttled(&self, time: Duration) {
        self.meters.iter().for_each(|meter| meter.throttled(time));
    }

    /// A request was answered.
    pub(super) fn answered(&self, request: &NbdRequest, latency: Duration, ok: bool) {
        let (op, bytes) = (op_of(&request.command), bytes_of(request));
        self.meters.iter().for_each(|meter| meter.record(op, bytes, latency, ok));
    }

    /// A request was refused; `None` when it was of no known kind.
    pub(super) fn refused(&self, op: Option<Op>) {
        if let Some(op) = op {
            self.meters.iter().for_each(|meter| meter.record(op, 0, Duration::ZERO, false));
        }
    }
}

/// The bytes a request is about; a question about the map moves none.
fn bytes_of(request: &NbdRequest) -> u64 {
    match request.command {
        Command::BlockStatus { .. } => 0,
        _ => request.length.0,
    }
}

/// The kind of a request.
pub(super) const fn op_of(command: &Command) -> Op {
    match command {
        Command::Read { .. } => Op::Read,
        Command::Write { .. } => Op::Write,
        Command::Flush { .. } => Op::Flush,
        Command::Trim { .. } => Op::Trim,
        Command::WriteZeroes { .. } => Op::Zero,
        Command::Cache => Op::Cache,
        Command::BlockStatus { .. } => Op::Status,
        Command::Resize { .. } => Op::Resize,
    }
}

/// The kind of a request that the gate refused, from its header; both kinds of headers tell it in
/// the same place.
pub(super) fn op_of_header(header: &[u8]) -> Option<Op> {
    let number = u16::from_be_bytes([*header.get(6)?, *header.get(7)?]);
    match number {
        command::READ => Some(Op::Read),
        command::WRITE => Some(Op::Write),
        command::FLUSH => Some(Op::Flush),
        command::TRIM => Some(Op::Trim),
        command::WRITE_ZEROES => Some(Op::Zero),
        command::CACHE => Some(Op::Cache),
        command::BLOCK_STATUS => Some(Op::Status),
        command::RESIZE => Some(Op::Resize),
        _ => None,
    }
}
