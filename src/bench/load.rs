//! A whole run: connects, stamps, loads, checks, and takes the processor's accounts around it.
//!
//! One thread per job. Only the load itself is measured; stamping and the last check are not.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::client::{Connection, Export};
use super::cpu::{Account, Pid, Reading};
use super::drive::{self, Rules};
use super::options::{Settings, Verify};
use super::plan::{Pattern, Plan, Window};
use super::stamp::{Ledger, Seed, scramble};
use super::tally::Tally;
use super::uri::{Address, Target};
use super::{direct, wire};
use crate::engine::units::ByteLen;

/// What a run found out.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What the jobs saw, all together; faults of the stamping and the last check included.
    pub(super) tally: Tally,
    /// The part of the disk that was used.
    pub(super) window: Window,
    /// The disk's size.
    pub(super) disk: ByteLen,
    /// What the server used during the load.
    pub(super) server: Option<ServerCpu>,
}

/// Processor time of a server during a load.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerCpu {
    /// Which process.
    pub(super) pid: Pid,
    /// How much.
    pub(super) used: Duration,
    /// By which account.
    pub(super) account: Account,
}

/// Runs the load.
///
/// # Errors
/// What keeps it from starting. What goes wrong later stands in the outcome.
pub(super) fn run(settings: &Settings) -> Result<Outcome> {
    let seats = Seats::open(settings)?;
    let disk = seats.size()?;
    let window = settings.window(disk)?;
    seats.check_fit(settings)?;
    // --verify bounds the number of blocks; without it there is no ledger.
    let blocks = window.blocks as usize;
    let ledger = match settings.verify {
        Verify::Off => None,
        Verify::Own => Some(Ledger::unwritten(settings.seed, blocks)),
        Verify::Earlier => Some(Ledger::inherited(settings.seed, blocks)),
    };
    let stop = AtomicBool::new(false);
    let payload = payload(settings);
    let run = Run { settings, window, ledger: ledger.as_ref(), stop: &stop, payload: &payload };

    let stamped = match settings.verify {
        Verify::Own => Some(run.pass(&seats, Pattern::Write)),
        _ => None,
    };
    let pid = settings.server_pid.map(Pid).or_else(|| seats.peer());
    let (mut tally, server) = run.load(&seats, pid)?;
    if let Some(stamped) = stamped {
        tally.absorb_findings(stamped);
    }
    if ledger.is_some() && !stop.load(Ordering::Relaxed) {
        tally.absorb_findings(run.pass(&seats, Pattern::Read));
    }
    seats.close();
    Ok(Outcome { tally, window, disk, server })
}

/// A seed that differs from run to run.
pub(super) fn fresh_seed() -> Seed {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_nanos() as u64);
    // Short enough to type again.
    Seed(scramble(now ^ u64::from(std::process::id()) << 40) >> 32)
}

/// What one job works on.
#[derive(Debug)]
enum Seat {
    Nbd(Connection),
    File(File),
}

/// What all jobs work on.
#[derive(Debug)]
struct Seats(Vec<Seat>);

impl Seats {
    fn open(settings: &Settings) -> Result<Seats> {
        let open = |_| match &settings.target {
            Target::Nbd { address, export } => open_nbd(settings, address, export),
            Target::File(path) => open_file(path, settings.writes()).map(Seat::File),
        };
        let seats: Result<Vec<Seat>> = (0..settings.jobs).map(open).collect();
        Ok(Seats(seats.with_context(|| format!("cannot load {}", settings.target))?))
    }

    fn size(&self) -> Result<ByteLen> {
        match self.0.first() {
            Some(Seat::Nbd(connection)) => Ok(connection.export.size),
            Some(Seat::File(file)) => {
                // Works for block devices too, which have no length among their attributes.
                let end = (&*file).seek(SeekFrom::End(0)).context("cannot find the file's size")?;
                Ok(ByteLen::new(end))
            }
            None => Ok(ByteLen::ZERO),
        }
    }

    fn peer(&self) -> Option<Pid> {
        match self.0.first()? {
            Seat::Nbd(connection) => connection.socket.peer(),
            Seat::File(_) => None,
        }
    }

    fn check_fit(&self, settings: &Settings) -> Result<()> {
        let Some(Seat::Nbd(connection)) = self.0.first() else { return Ok(()) };
        check_export(connection.export, settings)
            .with_context(|| format!("{} cannot take this load", settings.target))
    }

    fn close(self) {
        for seat in self.0 {
            if let Seat::Nbd(connection) = seat {
                connection.close();
            }
        }
    }
}

fn open_nbd(settings: &Settings, address: &Address, export: &str) -> Result<Seat> {
    Connection::open(address, export, settings.structured).map(Seat::Nbd)
}

fn open_file(path: &Path, writes: bool) -> Result<File> {
    let file = OpenOptions::new().read(true).write(writes).open(path);
    file.with_context(|| format!("cannot open file {}", path.display()))
}

fn check_export(export: Export, settings: &Settings) -> Result<()> {
    let writes = settings.writes();
    ensure!(
        !writes || !export.has(wire::FLAG_READ_ONLY),
        "the export is read-only; use --rw read or randread without --verify"
    );
    ensure!(
        !settings.fua || export.has(wire::FLAG_FUA),
        "the server offers no FUA; leave out --fua"
    );
    ensure!(
        settings.flush_every.is_none() || export.has(wire::FLAG_FLUSH),
        "the server offers no FLUSH; leave out --flush-every"
    );
    ensure!(
        settings.jobs == 1
            || !writes
            || settings.verify == Verify::Off
            || export.has(wire::FLAG_MULTI_CONN),
        "the server does not promise that several connections see the same disk \
         (CAN_MULTI_CONN), so verification of writes needs --jobs 1"
    );
    if let Some((min, max)) = export.limits {
        let (block, at) = (settings.block.get(), settings.offset.get());
        let min = u64::from(min.max(1));
        ensure!(
            block <= u64::from(max),
            "--bs {block} is more than the {max} bytes the server takes at once"
        );
        ensure!(
            block % min == 0 && at % min == 0,
            "the server's smallest block is {min} bytes, and --bs and --offset must divide by it"
        );
    }
    Ok(())
}

/// One block that no server can compress or take for zeroes.
fn payload(settings: &Settings) -> Vec<u8> {
    let words = settings.block.get().div_ceil(8);
    let mut bytes: Vec<u8> =
        (0..words).flat_map(|word| scramble(settings.seed.0 ^ word).to_le_bytes()).collect();
    bytes.truncate(settings.block.get() as usize);
    bytes
}

#[derive(Clone, Copy)]
struct Run<'a> {
    settings: &'a Settings,
    window: Window,
    ledger: Option<&'a Ledger>,
    stop: &'a AtomicBool,
    payload: &'a [u8],
}

impl<'a> Run<'a> {
    fn pass(self, seats: &Seats, pattern: Pattern) -> Tally {
        let rules = Rules { fua: false, ..self.rules(None) };
        let jobs = self.jobs();
        let plan = |job| Plan::pass(pattern, self.window, (job, jobs)).with_ledger(self.ledger);
        self.jobs_over(seats, rules, plan, || ())
    }

    fn load(self, seats: &Seats, pid: Option<Pid>) -> Result<(Tally, Option<ServerCpu>)> {
        let settings = self.settings;
        let jobs = self.jobs();
        let plan = |job| {
            let ops = settings.ops.map(|ops| ops / jobs + u64::from(job < ops % jobs));
            Plan::load(settings.pattern, self.window, (job, jobs), settings.seed, ops)
                .with_mix(settings.read_percent)
                .with_flush_every(settings.flush_every)
                .with_ledger(self.ledger)
        };
        let mut before = None;
        let rules = self.rules(settings.time);
        let tally = self.jobs_over(seats, rules, plan, || before = pid.map(Reading::of));
        let server = match (pid, before.transpose()?) {
            // A server that died has no account any more; the faults will say that it did.
            (Some(pid), Some(before)) => Reading::of(pid).ok().map(|after| {
                let (used, account) = after.since(&before);
                ServerCpu { pid, used, account }
            }),
            _ => None,
        };
        Ok((tally, server))
    }

    fn rules(self, time: Option<Duration>) -> Rules<'a> {
        Rules {
            queue_depth: self.settings.queue_depth,
            fua: self.settings.fua,
            time,
            stop: self.stop,
            ledger: self.ledger,
            payload: self.payload,
        }
    }

    fn jobs(self) -> u64 {
        self.settings.jobs.into()
    }

    /// Runs one thread per seat; `at_start` is called when all are ready and none has begun.
    fn jobs_over(
        self,
        seats: &Seats,
        rules: Rules<'_>,
        plan: impl Fn(u64) -> Plan<'a>,
        at_start: impl FnOnce(),
    ) -> Tally {
        let ready = Barrier::new(seats.0.len() + 1);
        let go = Barrier::new(seats.0.len() + 1);
        std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(seats.0.len());
            for (job, seat) in (0..).zip(&seats.0) {
                let (plan, ready, go) = (plan(job), &ready, &go);
                threads.push(scope.spawn(move || {
                    ready.wait();
                    go.wait();
                    match seat {
                        Seat::Nbd(connection) => drive::drive(connection, plan, rules),
                        Seat::File(file) => direct::drive(file, plan, rules),
                    }
                }));
            }
            ready.wait();
            at_start();
            go.wait();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Tally>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).reduce(together).unwrap_or_else(Tally::begin)
        })
    }
}

fn together(mut all: Tally, one: Tally) -> Tally {
    all.absorb(one);
    all
}
