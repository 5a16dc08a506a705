//! How many instructions the hot paths take, counted by valgrind's callgrind: the same number on an
//! idle machine and on a busy one, so that a change which makes a path longer is seen at once.
//!
//! `cargo bench --bench instructions` counts, compares with `benches/instructions/baseline.txt` and
//! fails where a path takes more than it may; with `-- --record` it writes that file anew. What is
//! counted is this program itself, started again under valgrind: the kernel's instructions are not
//! among them, and no time is taken.

#[path = "instructions/baseline.rs"]
mod baseline;
#[path = "instructions/connection.rs"]
mod connection;
#[path = "instructions/engine.rs"]
mod engine;
#[path = "instructions/protocols.rs"]
mod protocols;
mod support;

use std::error::Error;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use baseline::{Baseline, Count, Toolchain};

/// Says to the program started under valgrind what it is for.
const COUNTED: &str = "--counted";
/// C libraries choose how to copy by what the processor can; this is what every x86-64 can, so that
/// each machine takes the same way. Others ignore it.
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM,\
                            -AVX_Fast_Unaligned_Load,-SSSE3,-SSE4_1,-SSE4_2";

type Done<T = ()> = Result<T, Box<dyn Error>>;

/// A path that is measured: `act` is called with the number of its turn.
pub(crate) struct PathUnderTest<'a> {
    /// What it is called in tables.
    pub(crate) name: &'a str,
    /// Turns taken before counting, so that caches are as they stay.
    pub(crate) warm: u64,
    /// Turns that are counted.
    pub(crate) turns: u64,
    /// Operations of each turn.
    pub(crate) each: u64,
}

impl PathUnderTest<'_> {
    /// Takes the turns. What is counted ends up in a dump of its own, in the order of these calls.
    pub(crate) fn take(&self, mut act: impl FnMut(u64)) {
        for turn in 0..self.warm {
            act(black_box(turn));
        }
        counted(&mut act, self.warm, self.turns);
        println!("{}\t{}", self.turns * self.each, self.name);
    }
}

/// Says that a path cannot be taken on this machine, so that it is not missed.
pub(crate) fn leave_out(name: &str) {
    println!("0\t{name}");
}

/// Collection is switched on in here and nowhere else, and dumped at the end: so it is found by its
/// name, which must not be folded into another function.
#[inline(never)]
fn counted(act: &mut dyn FnMut(u64), from: u64, turns: u64) {
    for turn in from..from + turns {
        act(black_box(turn));
    }
}

/// Counts everything in a second process and returns it in order.
fn count(dumps: &Path) -> Done<Vec<Count>> {
    let mut out_file = std::ffi::OsString::from("--callgrind-out-file=");
    out_file.push(dumps);
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no"])
        .args(["--toggle-collect=instructions::counted", "--dump-after=instructions::counted"])
        .arg(out_file)
        .arg(env::current_exe()?)
        .arg(COUNTED)
        .env("GLIBC_TUNABLES", PLAIN_COPIES)
        .env_remove("MALLOC_ARENA_MAX")
        .stderr(Stdio::inherit())
        .output();
    let run = match run {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err("valgrind is missing: install Debian's package `valgrind`".into());
        }
        run => run?,
    };
    if !run.status.success() {
        return Err(format!("the counted program ended with {}", run.status).into());
    }
    let told = String::from_utf8(run.stdout)?;
    let mut dumped = 0;
    let mut counts = Vec::new();
    for line in told.lines() {
        let (operations, name) = line.split_once('\t').ok_or("a path is told by two words")?;
        let operations: u32 = operations.parse()?;
        let mut each = None;
        if operations > 0 {
            dumped += 1;
            let mut dump = dumps.as_os_str().to_owned();
            dump.push(format!(".{dumped}"));
            each = Some(total(&PathBuf::from(dump))? as f64 / f64::from(operations));
        }
        counts.push(Count { name: name.to_owned(), each });
    }
    Ok(counts)
}

/// The instructions of a dump: what stands behind `totals:`.
fn total(dump: &Path) -> Done<u64> {
    let text = fs::read_to_string(dump).map_err(|error| format!("{}: {error}", dump.display()))?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let totals = totals.ok_or_else(|| format!("{} tells no totals", dump.display()))?;
    Ok(totals.trim().parse()?)
}

fn count_all() {
    protocols::count_all();
    engine::count_all();
    connection::count_all();
}

fn judge(record: bool) -> Done<bool> {
    let place = tempfile::Builder::new().prefix("orlop-instructions-").tempdir()?;
    let counts = count(&place.path().join("dump"))?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.txt");
    let here = Toolchain::here()?;
    if record {
        fs::write(&file, Baseline { toolchain: here, counts }.to_string())?;
        println!("recorded in {}", file.display());
        return Ok(true);
    }
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let judged = text.parse::<Baseline>()?.judge(&here, &counts);
    print!("{judged}");
    Ok(judged.passes())
}

fn main() -> Done<ExitCode> {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.iter().any(|word| word == COUNTED) {
        count_all();
        return Ok(ExitCode::SUCCESS);
    }
    let passes = judge(words.iter().any(|word| word == "--record"))?;
    Ok(if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
