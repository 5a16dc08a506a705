//! `orlop bench --peers`: a short form of the comparison with other servers, `benches/peers`, whose
//! scripts this program carries with it. They are handed to Python through a pipe: nothing is
//! written where somebody else could change it.
//!
//! Measures nothing itself, and leaves out the peers that are not installed, aloud.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::Verdict;

/// Each before those that import it.
const SCRIPTS: [(&str, &str); 13] = [
    ("machine", include_str!("../../benches/peers/machine.py")),
    ("images", include_str!("../../benches/peers/images.py")),
    ("servers", include_str!("../../benches/peers/servers.py")),
    ("load", include_str!("../../benches/peers/load.py")),
    ("counts", include_str!("../../benches/peers/counts.py")),
    ("client", include_str!("../../benches/peers/client.py")),
    ("jobs", include_str!("../../benches/peers/jobs.py")),
    ("metadata", include_str!("../../benches/peers/metadata.py")),
    ("sampling", include_str!("../../benches/peers/sampling.py")),
    ("report", include_str!("../../benches/peers/report.py")),
    ("page", include_str!("../../benches/peers/page.py")),
    ("race", include_str!("../../benches/peers/race.py")),
    ("peers", include_str!("../../benches/peers/__main__.py")),
];

/// Makes modules of what comes in.
const LOADER: &str = "
import json, sys, types
for name, text in json.load(sys.stdin):
    module = types.ModuleType(name)
    module.__file__ = name + '.py'
    sys.modules[name] = module
    exec(compile(text, module.__file__, 'exec'), module.__dict__)
";

/// Runs the comparison and writes its table, or its report as JSON, to `out`. Progress goes to
/// standard error.
///
/// # Errors
/// When Python or a program that makes images is missing, or `out` does not take the report.
pub(super) fn run(json: bool, out: &mut dyn Write) -> Result<Verdict> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut words: Vec<&OsStr> = vec!["--short".as_ref(), "--orlop".as_ref(), program.as_ref()];
    if json {
        words.push("--json".as_ref());
    }
    let ended = python(&words)?;
    out.write_all(&ended.stdout)?;
    match ended.status.code() {
        Some(0) => Ok(Verdict::Clean),
        // It told a report, in which something fails.
        Some(1) if !ended.stdout.is_empty() => Ok(Verdict::Faulty),
        _ => bail!("the comparison did not end well ({}); see above", ended.status),
    }
}

fn python(words: &[&OsStr]) -> Result<Output> {
    let mut child = Command::new("python3")
        .args(["-B", "-c", LOADER])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run python3, which compares the servers")?;
    let scripts = serde_json::to_vec(&SCRIPTS).context("cannot write the scripts as JSON")?;
    let told = child.stdin.take().map(|mut pipe| pipe.write_all(&scripts));
    let ended = child.wait_with_output().context("cannot wait for python3")?;
    ensure!(matches!(told, Some(Ok(()))), "python3 did not take the scripts");
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::python;

    #[test]
    fn the_scripts_that_are_carried_along_are_all_there() {
        if std::env::var_os("CI").is_none() && python(&["--help".as_ref()]).is_err() {
            eprintln!("SKIPPED: there is no python3");
            return;
        }
        let ended = python(&["--help".as_ref()]).expect("python3 runs");
        let told = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && told.contains("--short"), "{ended:?}");
    }
}
