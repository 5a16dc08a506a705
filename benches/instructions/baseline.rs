//! What the paths took when they were last recorded, and whether what they take now will do.
//! Reads and writes text; counts nothing.

use std::error::Error;
use std::fmt;
use std::process::Command;
use std::str::FromStr;

/// More than the baseline by this part fails, with the compiler the baseline was recorded with.
const MOST: f64 = 0.05;
/// The same with another compiler, whose choices differ.
const MOST_ELSEWHERE: f64 = 0.25;
/// The same where the kernel decides how often it is asked, and kernels differ.
const MOST_WITH_KERNEL: f64 = 0.15;
/// What names of such paths end with.
pub(crate) const WITH_KERNEL: &str = "all but the kernel";
/// Less by this part is worth recording, so that it cannot be lost again unseen.
const WORTH_RECORDING: f64 = 0.05;
/// A few instructions on a path of a dozen are no regression.
const SLACK: f64 = 4.0;

const HOW_TO_RECORD: &str = "`just instructions-record` records";

/// Instructions per operation of a path.
pub(crate) struct Count {
    pub(crate) name: String,
    /// None for a path that this machine cannot take.
    pub(crate) each: Option<f64>,
}

/// What decides how many instructions the same source becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: String,
    pub(crate) architecture: String,
}

impl Toolchain {
    /// The compiler that cargo would call, for this machine.
    pub(crate) fn here() -> Result<Self, Box<dyn Error>> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let told = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
        let compiler = told.split_whitespace().nth(1).ok_or("rustc tells no version")?.to_owned();
        Ok(Self { compiler, architecture: std::env::consts::ARCH.to_owned() })
    }
}

/// What was recorded.
pub(crate) struct Baseline {
    pub(crate) toolchain: Toolchain,
    pub(crate) counts: Vec<Count>,
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Toolchain { compiler, architecture } = &self.toolchain;
        writeln!(f, "# Instructions per operation; {HOW_TO_RECORD} them.")?;
        writeln!(f, "rustc {compiler} {architecture}")?;
        self.counts.iter().try_for_each(|Count { name, each }| match each {
            Some(each) => writeln!(f, "{each:>10.1}  {name}"),
            None => writeln!(f, "{:>10}  {name}", "-"),
        })
    }
}

impl FromStr for Baseline {
    type Err = Box<dyn Error>;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let first = lines.next().unwrap_or_default();
        let ["rustc", compiler, architecture] = first.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("the baseline does not begin with its compiler: {first:?}").into());
        };
        let toolchain =
            Toolchain { compiler: compiler.to_owned(), architecture: architecture.to_owned() };
        let count = |line: &str| {
            let (each, name) = line.trim().split_once("  ").ok_or("a count and a name")?;
            let each = if each == "-" { None } else { Some(each.parse()?) };
            Ok(Count { name: name.to_owned(), each })
        };
        let counts: Result<Vec<Count>, Self::Err> = lines.map(count).collect();
        Ok(Self { toolchain, counts: counts? })
    }
}

/// A path beside its baseline.
struct Row {
    name: String,
    before: Option<f64>,
    now: Option<f64>,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Well,
    Better,
    Worse,
    /// Not taken here, or not where the baseline was recorded.
    Unseen,
    /// No baseline, or no path: the list of paths has changed and was not recorded.
    Alone,
}

/// What came of a comparison. As text: the table, and what to do.
pub(crate) struct Judged {
    rows: Vec<Row>,
    most: f64,
    note: Option<String>,
    /// Nothing can be said on this architecture.
    foreign: bool,
}

impl Baseline {
    /// Compares what was counted `here` with this.
    pub(crate) fn judge(&self, here: &Toolchain, counts: &[Count]) -> Judged {
        let foreign = here.architecture != self.toolchain.architecture;
        let other = here.compiler != self.toolchain.compiler;
        let most = if other { MOST_ELSEWHERE } else { MOST };
        let before = |name: &str| self.counts.iter().find(|count| count.name == name);
        let mut rows: Vec<Row> = counts
            .iter()
            .map(|count| {
                let known = before(&count.name);
                let (before, now) = (known.and_then(|was| was.each), count.each);
                let verdict = match before.zip(now) {
                    Some((was, now)) => verdict(&count.name, was, now, most),
                    None if known.is_some() => Verdict::Unseen,
                    None => Verdict::Alone,
                };
                Row { name: count.name.clone(), before, now, verdict }
            })
            .collect();
        let gone = self.counts.iter().filter(|old| counts.iter().all(|new| new.name != old.name));
        rows.extend(gone.map(|old| Row {
            name: old.name.clone(),
            before: old.each,
            now: None,
            verdict: Verdict::Alone,
        }));
        let was = &self.toolchain;
        let note = if foreign {
            Some(format!(
                "The baseline is of {}, this is {}: nothing is judged.",
                was.architecture, here.architecture
            ))
        } else {
            other.then(|| {
                format!(
                    "The baseline is of rustc {}, this is {}: up to {:.0} % more is let pass.",
                    was.compiler,
                    here.compiler,
                    MOST_ELSEWHERE * 100.0
                )
            })
        };
        Judged { rows, most, note, foreign }
    }
}

fn verdict(name: &str, was: f64, now: f64, most: f64) -> Verdict {
    let most = if name.ends_with(WITH_KERNEL) { most.max(MOST_WITH_KERNEL) } else { most };
    if now > was * (1.0 + most) + SLACK {
        Verdict::Worse
    } else if now < was * (1.0 - WORTH_RECORDING) - SLACK {
        Verdict::Better
    } else {
        Verdict::Well
    }
}

impl Judged {
    /// Whether no path is worse, and all are known.
    pub(crate) fn passes(&self) -> bool {
        let bad = |row: &Row| matches!(row.verdict, Verdict::Worse | Verdict::Alone);
        self.foreign || !self.rows.iter().any(bad)
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} {:>10} {:>8}  instructions per operation", "before", "now", "change")?;
        for Row { name, before, now, verdict } in &self.rows {
            let shown =
                |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
            let change = before.zip(*now).filter(|(before, _)| *before > 0.0);
            let change = change.map(|(before, now)| (now / before - 1.0) * 100.0);
            let change = change.map_or("-".into(), |change| format!("{change:+.1} %"));
            let word = match verdict {
                Verdict::Well => "",
                Verdict::Better => "  (better)",
                Verdict::Worse => "  TOO MANY",
                Verdict::Unseen => "  (not judged)",
                Verdict::Alone if now.is_none() => "  NO SUCH PATH",
                Verdict::Alone => "  NO BASELINE",
            };
            let (before, now) = (shown(*before), shown(*now));
            writeln!(f, "{before:>10} {now:>10} {change:>8}  {name}{word}")?;
        }
        if let Some(note) = &self.note {
            writeln!(f, "{note}")?;
        }
        let any = |wanted: Verdict| self.rows.iter().any(|row| row.verdict == wanted);
        if !self.passes() {
            writeln!(
                f,
                "FAILED: at most {:.0} % more is allowed, or {:.0} % with a kernel in it. Where \
                 more is worth it, say so in the commit; {HOW_TO_RECORD} what there is now.",
                self.most * 100.0,
                self.most.max(MOST_WITH_KERNEL) * 100.0
            )?;
        } else if any(Verdict::Better) {
            writeln!(f, "Some paths became shorter: {HOW_TO_RECORD} that.")?;
        }
        Ok(())
    }
}
