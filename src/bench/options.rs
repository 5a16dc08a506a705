//! What users may ask of a load, and what is made of it.
//!
//! Parses and checks; opens nothing. Refuses combinations that would measure nothing or destroy
//! data nobody said may go.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::plan::{Pattern, Window};
use super::stamp::Seed;
use super::uri::Target;
use crate::engine::units::{ByteLen, DiskOffset, SECTOR};

/// Most requests in flight on one connection.
const DEPTH_MAX: u32 = 4096;

/// Most connections.
const JOBS_MAX: u32 = 256;

/// Largest block, in bytes: what servers accept at most.
const BLOCK_MAX: u64 = 64 << 20;

/// Most bytes all requests in flight may cover, so that checking them fits memory.
const IN_FLIGHT_MAX: u64 = 2 << 30;

/// Most blocks verification keeps account of, at 8 bytes each.
const LEDGER_MAX: u64 = 1 << 26;

/// How long a load runs when nobody says.
const TIME_DEFAULT: Duration = Duration::from_secs(10);

/// Loads an NBD export or a file and measures it.
#[derive(Args, Clone, Debug)]
pub struct BenchOptions {
    /// nbd://HOST:PORT/NAME, nbd+unix:///NAME?socket=PATH, or the path of a file
    #[arg(required_unless_present_any = ["compare", "peers"])]
    pub target: Option<String>,

    /// Kind of load: read, write, randread, randwrite, randrw
    #[arg(long, default_value = "randread", value_name = "KIND")]
    pub rw: Pattern,

    /// Percentage of reads in randrw
    #[arg(long, default_value_t = 50, value_name = "PERCENT",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub mix: u8,

    /// Bytes per request (K, M, G: multiples of 1024)
    #[arg(long, default_value = "4K", value_name = "SIZE", value_parser = parse_size)]
    pub bs: ByteLen,

    /// Requests in flight per connection
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub qd: u32,

    /// Connections, each with a thread; for a file, threads
    #[arg(long, visible_alias = "connections", default_value_t = 1, value_name = "N")]
    pub jobs: u32,

    /// How long to load, in seconds (10 unless --ops is given)
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub time: Option<Duration>,

    /// How many requests to send, over all connections
    #[arg(long, value_name = "N")]
    pub ops: Option<u64>,

    /// Flush after every N writes of a connection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub flush_every: Option<u64>,

    /// Make each write durable before it is answered
    #[arg(long)]
    pub fua: bool,

    /// Bytes of the disk to touch (to its end)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<ByteLen>,

    /// First byte to touch
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = parse_size)]
    pub offset: ByteLen,

    /// Chooses random offsets and marks stamps (new for each run)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Stamp the window, check every read of the load, then check the whole window
    #[arg(long, conflicts_with = "verify_only")]
    pub verify: bool,

    /// Check against the stamps of an earlier --verify run with the same --seed; writes nothing
    #[arg(long, requires = "seed")]
    pub verify_only: bool,

    /// Let the contents of the target be overwritten
    #[arg(long)]
    pub yes: bool,

    /// Negotiate structured replies
    #[arg(long)]
    pub structured: bool,

    /// Process whose processor time to report (found by itself on unix sockets)
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Compare 'orlop serve' with the other NBD servers of this machine, data verified first; takes
    /// a minute or two (needs python3, qemu-img and nbdcopy)
    #[arg(long, conflicts_with_all = ["target", "compare"])]
    pub peers: bool,

    /// Print how the second of two JSON reports compares with the first
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with = "target")]
    pub compare: Option<Vec<PathBuf>>,
}

/// Options that make sense together.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) target: Target,
    pub(super) pattern: Pattern,
    pub(super) read_percent: u8,
    pub(super) block: ByteLen,
    pub(super) queue_depth: u32,
    pub(super) jobs: u32,
    pub(super) time: Option<Duration>,
    pub(super) ops: Option<u64>,
    pub(super) flush_every: Option<u64>,
    pub(super) fua: bool,
    pub(super) offset: DiskOffset,
    pub(super) size: Option<ByteLen>,
    pub(super) seed: Seed,
    pub(super) verify: Verify,
    pub(super) structured: bool,
    pub(super) server_pid: Option<u32>,
}

/// Whether reads are checked, and against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verify {
    /// Not at all.
    Off,
    /// Against what this run wrote.
    Own,
    /// Against what an earlier run wrote.
    Earlier,
}

impl Settings {
    /// Checks what was asked.
    ///
    /// # Errors
    /// What makes no sense, with what to do about it.
    pub(super) fn new(options: &BenchOptions, fresh_seed: Seed) -> Result<Settings> {
        let target = options.target.as_deref().context("no target is given")?;
        let target = target.parse().with_context(|| format!("cannot use target '{target}'"))?;
        let verify = match (options.verify, options.verify_only) {
            (_, true) => Verify::Earlier,
            (true, _) => Verify::Own,
            _ => Verify::Off,
        };
        let is_file = matches!(target, Target::File(_));
        let settings = Settings {
            target,
            pattern: options.rw,
            read_percent: options.mix,
            block: options.bs,
            // A thread of a file's load has one request in flight.
            queue_depth: if is_file { 1 } else { options.qd },
            jobs: options.jobs,
            time: options.time.or(options.ops.is_none().then_some(TIME_DEFAULT)),
            ops: options.ops,
            flush_every: options.flush_every,
            fua: options.fua,
            offset: DiskOffset::new(options.offset.get()),
            size: options.size,
            seed: options.seed.map_or(fresh_seed, Seed),
            verify,
            structured: options.structured,
            server_pid: options.server_pid,
        };
        settings.check(options.yes)?;
        Ok(settings)
    }

    /// Whether anything at all is written.
    pub(super) fn writes(&self) -> bool {
        self.pattern.writes() || self.verify == Verify::Own
    }

    fn check(&self, may_overwrite: bool) -> Result<()> {
        let (depth, jobs, block) = (self.queue_depth, self.jobs, self.block.get());
        ensure!((1..=DEPTH_MAX).contains(&depth), "--qd {depth} is not from 1 to {DEPTH_MAX}");
        ensure!((1..=JOBS_MAX).contains(&jobs), "--jobs {jobs} is not from 1 to {JOBS_MAX}");
        ensure!((1..=BLOCK_MAX).contains(&block), "--bs {block} is not from 1 byte to 64 MiB");
        let in_flight = block * u64::from(depth) * u64::from(jobs);
        ensure!(
            in_flight <= IN_FLIGHT_MAX,
            "--bs x --qd x --jobs is {in_flight} bytes in flight, more than {IN_FLIGHT_MAX}"
        );
        ensure!(self.ops != Some(0), "--ops 0 measures nothing");
        ensure!(
            self.flush_every.is_none() || self.pattern.writes(),
            "--flush-every counts writes, and --rw {} has none; use randwrite or randrw",
            self.pattern.name()
        );
        ensure!(
            !(self.verify == Verify::Earlier && self.pattern.writes()),
            "--verify-only writes nothing, but --rw {} does; use read or randread, or --verify",
            self.pattern.name()
        );
        let aligned = block.is_multiple_of(SECTOR) && self.offset.get().is_multiple_of(SECTOR);
        ensure!(
            self.verify == Verify::Off || aligned,
            "verification stamps sectors of 512 bytes, so --bs and --offset must divide by 512"
        );
        ensure!(
            may_overwrite || !self.writes(),
            "this load overwrites the contents of {}; add --yes if they may go",
            self.target
        );
        Ok(())
    }

    /// The window on a disk of `size`.
    ///
    /// # Errors
    /// A window that does not lie on the disk or holds no block.
    pub(super) fn window(&self, size: ByteLen) -> Result<Window> {
        let (at, block) = (self.offset.get(), self.block.get());
        ensure!(at <= size.get(), "--offset {at} lies behind the end of the disk, {size}");
        let room = size.get() - at;
        let len = self.size.map_or(room, ByteLen::get);
        ensure!(
            len <= room,
            "--offset {at} and --size {len} reach behind the end of the disk, {size}"
        );
        let blocks = len / block;
        ensure!(
            blocks >= u64::from(self.jobs),
            "the window of {len} bytes has {blocks} blocks of {block}, fewer than jobs; \
             use a smaller --bs or a larger --size"
        );
        ensure!(
            self.verify == Verify::Off || blocks <= LEDGER_MAX,
            "verification of {blocks} blocks would need too much memory; use --size to check \
             at most {} bytes, or a larger --bs",
            LEDGER_MAX.saturating_mul(block)
        );
        Ok(Window { at: self.offset, block: self.block, blocks })
    }
}

/// Bytes from a number with an optional unit: K, KiB and so on are 1024, KB and so on 1000.
///
/// # Errors
/// Text that is no size, or one beyond 64 bits.
fn parse_size(text: &str) -> Result<ByteLen, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 =
        digits.parse().map_err(|_| format!("'{text}' does not start with a number"))?;
    let upper = unit.to_ascii_uppercase();
    let (letter, rest) = upper.split_at(upper.chars().next().map_or(0, char::len_utf8));
    let base: u64 = match rest {
        "" | "IB" => 1024,
        "B" => 1000,
        _ => return Err(format!("unit '{unit}' is not known; use K, M, G, T, KiB or KB")),
    };
    let power = match letter {
        "" => 0,
        "B" if rest.is_empty() => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("unit '{unit}' is not known; use K, M, G, T, KiB or KB")),
    };
    let bytes = base.checked_pow(power).and_then(|unit| number.checked_mul(unit));
    bytes.map(ByteLen::new).ok_or_else(|| format!("'{text}' is beyond 64 bits"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(format!("'{text}' seconds is not from 0.001 to 86400"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::{parse_seconds, parse_size};

    #[test]
    fn sizes_know_both_kinds_of_units() {
        let size = |text| parse_size(text).map(|len| len.get());
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("4KiB"), Ok(4096));
        assert_eq!(size("4KB"), Ok(4000));
        assert_eq!(size("2G"), Ok(2 << 30));
        assert_eq!(size("7B"), Ok(7));
        for wrong in ["", "K", "1.5K", "4X", "4KX", "99999999T", "-1"] {
            size(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn seconds_may_have_a_fraction_but_not_be_nothing() {
        assert_eq!(parse_seconds("0.5").map(|time| time.as_millis()), Ok(500));
        for wrong in ["0", "-1", "x", "1e9", "nan"] {
            parse_seconds(wrong).expect_err(wrong);
        }
    }
}
