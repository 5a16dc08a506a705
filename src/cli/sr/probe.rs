//! `orlop sr probe`: which SR lies at a place, as far as this user may look. Opens to read only,
//! and asks no daemon, so that it can be asked before anything is attached.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::json;

use crate::cli::ask::AskOptions;
use crate::cli::output::{Exit, Failure, SCHEMA_VERSION};
use crate::cli::table::{Look, facts};
use crate::sr::{self, DeviceConfig, Holds, Kind, Probed, SrUuid};

/// Tells what is there.
pub(super) fn run(
    ask: &AskOptions,
    driver: &str,
    config: &BTreeMap<&str, &str>,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let Probed { place, holds, sr, label, vdis } = look(driver, config)?;
    // What lies there is told; that it is no SR, and that none can be made there, is an answer of
    // its own to a script.
    let exit = if holds == Holds::Else { Exit::NotFound } else { Exit::Ok };
    let place = place.display().to_string();
    let sr = sr.map(|sr| sr.to_string());
    if ask.json {
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "place": place, "holds": word(holds), "sr": sr, "label": label, "vdis": vdis,
        });
        writeln!(out, "{object}")?;
        return Ok(exit);
    }
    if exit == Exit::NotFound {
        let text = format!("{place}: no SR lies there, but {}", told(holds));
        let hint = "name the directory of an SR, or an empty one to make an SR in".to_owned();
        return Err(Failure::new(exit, "not-found", text, hint));
    }
    if !Look::of_output(ask.bytes).people {
        writeln!(out, "{}\t{}", sr.unwrap_or_default(), word(holds))?;
        return Ok(Exit::Ok);
    }
    facts(
        out,
        &[
            ("place", place),
            ("holds", told(holds).to_owned()),
            ("uuid", sr.unwrap_or_default()),
            ("label", label),
            ("vdis", vdis.map(|count| count.to_string()).unwrap_or_default()),
        ],
    )?;
    Ok(Exit::Ok)
}

/// The SR that says of itself that it lies there.
pub(super) fn uuid_at(driver: &str, config: &BTreeMap<&str, &str>) -> Result<SrUuid, Failure> {
    let probed = look(driver, config)?;
    probed.sr.ok_or_else(|| {
        let text = format!(
            "{}: no SR there says who it is: {}",
            probed.place.display(),
            told(probed.holds)
        );
        let hint = "name its uuid, or make an SR there: orlop sr create".to_owned();
        Failure::new(Exit::NotFound, "not-found", text, hint)
    })
}

fn look(driver: &str, config: &BTreeMap<&str, &str>) -> Result<Probed, Failure> {
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    sr::probe(driver, &DeviceConfig(config.collect())).map_err(|failure| {
        let (exit, code) = match failure.kind {
            Kind::NoDevice | Kind::NoSr => (Exit::NotFound, "not-found"),
            Kind::Invalid => (Exit::Usage, "usage"),
            Kind::Unsupported => (Exit::Unsupported, "unsupported"),
            _ => (Exit::Failed, "failed"),
        };
        Failure::new(exit, code, format!("{}: {}", failure.place, failure.why), failure.remedy)
    })
}

const fn word(holds: Holds) -> &'static str {
    match holds {
        Holds::Sr => "sr",
        Holds::Vdis => "vdis",
        Holds::FileSystem => "file-system",
        Holds::Nothing => "nothing",
        Holds::Else => "else",
    }
}

const fn told(holds: Holds) -> &'static str {
    match holds {
        Holds::Sr => "an SR",
        Holds::Vdis => "VDIs without a record of ours, as XenServer leaves them",
        Holds::FileSystem => "an ext file system; if it is an SR, this is its uuid",
        Holds::Nothing => "nothing; an SR can be made there",
        Holds::Else => "files that belong to none",
    }
}
