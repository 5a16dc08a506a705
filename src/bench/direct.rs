//! One job over a plain file: the same load by `pread` and `pwrite`, as the ceiling that servers
//! are compared with.
//!
//! One request at a time, so the depth of a file's load is its number of jobs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::cpu;
use super::drive::Rules;
use super::plan::{Op, Plan, Step};
use super::tally::{Fault, Tally};
use crate::engine::units::{ByteLen, DiskOffset};

/// Runs `plan` over `file` until it ends, its time is up or somebody stops it.
pub(super) fn drive(file: &File, mut plan: Plan<'_>, rules: Rules<'_>) -> Tally {
    let mut tally = Tally::begin();
    let cpu_before = cpu::own_thread();
    let deadline = rules.time.map(|time| tally.span.0 + time);
    let mut block = rules.payload.to_vec();
    let mut now = Instant::now();
    loop {
        let late = deadline.is_some_and(|deadline| now >= deadline);
        if late || rules.stop.load(Ordering::Relaxed) {
            break;
        }
        let op = match plan.next_step() {
            Step::Issue(op) => op,
            Step::Done => break,
            Step::Wait => {
                std::thread::yield_now();
                now = Instant::now();
                continue;
            }
        };
        let fault = serve(file, op, &plan, &rules, &mut block, &mut tally, &mut now);
        if let Some(fault) = fault {
            tally.fault(fault);
            rules.stop.store(true, Ordering::Relaxed);
        }
    }
    tally.span.1 = now;
    tally.cpu = cpu::own_thread().saturating_sub(cpu_before);
    tally
}

fn serve(
    file: &File,
    op: Op,
    plan: &Plan<'_>,
    rules: &Rules<'_>,
    block: &mut [u8],
    tally: &mut Tally,
    now: &mut Instant,
) -> Option<Fault> {
    let window = plan.window();
    let (request, at) = match op {
        Op::Read(index, _) => ("read", window.offset(index)),
        Op::Write(index, _) => ("write", window.offset(index)),
        Op::Flush => ("flush", DiskOffset::default()),
    };
    if let (Op::Write(_, version), Some(ledger)) = (op, rules.ledger) {
        ledger.stamp(block, at, version);
    }
    let begun = *now;
    let done = act(file, op, at, block, rules.fua);
    *now = Instant::now();
    if let Err(error) = done {
        return Some(Fault::Refused { request, at, answer: error.to_string() });
    }
    let took = now.saturating_duration_since(begun);
    match op {
        Op::Flush => tally.flushes.record(took, ByteLen::ZERO),
        Op::Write(index, version) => {
            tally.writes.record(took, window.block);
            if let Some(ledger) = rules.ledger {
                ledger.answered(index, version);
            }
        }
        Op::Read(index, floor) => {
            tally.reads.record(took, window.block);
            let ledger = rules.ledger?;
            tally.checked += window.block;
            let checked = ledger.check(block, at, ledger.allowed(index, floor));
            return checked.err().map(Fault::Mismatch);
        }
    }
    None
}

fn act(file: &File, op: Op, at: DiskOffset, block: &mut [u8], fua: bool) -> io::Result<()> {
    match op {
        Op::Read(..) => file.read_exact_at(block, at.get()),
        Op::Write(..) => {
            file.write_all_at(block, at.get())?;
            if fua { file.sync_data() } else { Ok(()) }
        }
        Op::Flush => file.sync_data(),
    }
}
