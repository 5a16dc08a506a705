//! `orlop sr`: the repositories of a running daemon.

mod probe;

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::{AskOptions, Scan, versioned};
use super::output::{Exit, Failure, SCHEMA_VERSION};
use super::table::{Look, Table, facts, printable};
use crate::engine::units::ByteLen;
use crate::size::parse_bytes;
use crate::sr::SrUuid;

/// Make, attach and look at storage repositories.
#[derive(Args, Clone, Debug)]
#[command(after_help = "An SR is named by its uuid, the beginning of it, or its label.

Examples:
  orlop sr create --type file -o location=/srv/vdis --label fast
  orlop sr create --type ext -o device=/dev/sdb1
  orlop sr list
  orlop sr attach --type file -o location=/srv/vdis      what lies there says who it is
  orlop sr delete fast --yes")]
pub(super) struct SrOptions {
    #[command(flatten)]
    ask: AskOptions,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Make an SR, and attach it; prints its uuid
    Create(Create),
    /// Remove an SR that has no VDIs
    Delete(Delete),
    /// Attach an SR that exists; prints its uuid
    Attach(Attach),
    /// Take that back: its VDIs must be detached
    Detach {
        /// The SR
        sr: String,
    },
    /// List what an SR holds, what is hidden in it, and what is wrong with it
    Scan {
        /// The SR
        sr: String,
    },
    /// List the SRs that are attached
    #[command(visible_alias = "ls")]
    List,
    /// Tell all about an SR that is attached
    Show {
        /// The SR
        sr: String,
    },
    /// Tell which SR lies at a place, without changing anything and without a daemon
    Probe(Place),
    /// Give back the space of what nobody needs: chains of deleted VDIs are merged
    Gc {
        /// The SR
        sr: String,
        /// Only say what there is to be removed and merged
        #[arg(long, short = 'n')]
        dry_run: bool,
    },
}

/// Where an SR lies.
#[derive(Args, Clone, Debug)]
struct Place {
    /// The type of SR: file or ext
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    driver: String,
    /// A parameter of its type: location=DIR for file, device=NODE for ext (may be repeated)
    #[arg(long = "option", short = 'o', value_name = "NAME=VALUE", value_parser = named_value)]
    config: Vec<(String, String)>,
}

#[derive(Args, Clone, Debug)]
struct Create {
    #[command(flatten)]
    place: Place,
    /// Its uuid (a fresh one when not given)
    #[arg(long)]
    uuid: Option<SrUuid>,
    /// A name for people
    #[arg(long, default_value = "")]
    label: String,
    /// More for people
    #[arg(long, default_value = "")]
    description: String,
    /// Bytes it is to have, where the place does not say
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    size: ByteLen,
    /// Leave it detached
    #[arg(long)]
    no_attach: bool,
}

#[derive(Args, Clone, Debug)]
struct Attach {
    /// Its uuid (when not given, what lies at the place says)
    sr: Option<SrUuid>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Clone, Debug)]
struct Delete {
    /// The SR; one that is not attached needs its whole uuid, --type and -o
    sr: String,
    /// The type of an SR that is not attached
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    driver: Option<String>,
    /// A parameter of its type (may be repeated)
    #[arg(long = "option", short = 'o', value_name = "NAME=VALUE", value_parser = named_value,
        requires = "driver")]
    config: Vec<(String, String)>,
    /// Do it; without, say what would go
    #[arg(long, short = 'y')]
    yes: bool,
}

/// NAME=VALUE.
pub(super) fn named_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

fn map_of(config: &[(String, String)]) -> BTreeMap<&str, &str> {
    config.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

impl SrOptions {
    /// Whether answers and errors are JSON.
    pub(super) fn json(&self) -> bool {
        self.ask.json
    }
}

/// Runs the command.
pub(super) fn run(options: &SrOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let ask = &options.ask;
    match &options.verb {
        Verb::Create(create) => made(ask, &self::create(ask, create)?, out)?,
        Verb::Delete(delete) => return self::delete(ask, delete, out),
        Verb::Attach(attach) => made(ask, &self::attach(ask, attach)?, out)?,
        Verb::Detach { sr } => {
            let sr = ask.sr(sr)?;
            ask.call("sr_detach", json!({ "sr": sr.sr }))?;
            nothing(ask, &sr.sr, out)?;
        }
        Verb::Scan { sr } => scan(ask, sr, out)?,
        Verb::List => list(ask, out)?,
        Verb::Show { sr } => show(ask, sr, out)?,
        Verb::Probe(place) => return probe::run(ask, &place.driver, &map_of(&place.config), out),
        Verb::Gc { sr, dry_run: true } => plan(ask, sr, out)?,
        Verb::Gc { sr, dry_run: false } => gc(ask, sr, out)?,
    }
    Ok(Exit::Ok)
}

fn made(ask: &AskOptions, sr: &str, out: &mut dyn Write) -> Result<(), Failure> {
    if ask.json {
        writeln!(out, "{}", json!({ "schema_version": SCHEMA_VERSION, "sr": sr }))?;
    } else {
        writeln!(out, "{sr}")?;
    }
    Ok(())
}

fn nothing(ask: &AskOptions, sr: &str, out: &mut dyn Write) -> Result<(), Failure> {
    if ask.json { made(ask, sr, out) } else { Ok(()) }
}

fn create(ask: &AskOptions, create: &Create) -> Result<String, Failure> {
    let sr = create.uuid.unwrap_or_else(SrUuid::random).to_string();
    let (driver, config) = (&create.place.driver, map_of(&create.place.config));
    let params = json!({
        "sr": sr, "driver": driver, "config": config, "size": create.size.get(),
        "label": create.label, "description": create.description,
    });
    ask.call("sr_create", params)?;
    if !create.no_attach {
        let attached =
            ask.call("sr_attach", json!({ "sr": sr, "driver": driver, "config": config }));
        attached.map_err(|failure| failure.after(&format!("the SR {sr} was made, but")))?;
    }
    Ok(sr)
}

fn attach(ask: &AskOptions, attach: &Attach) -> Result<String, Failure> {
    let (driver, config) = (&attach.place.driver, map_of(&attach.place.config));
    let sr = match attach.sr {
        Some(sr) => sr.to_string(),
        None => probe::uuid_at(driver, &config)?.to_string(),
    };
    ask.call("sr_attach", json!({ "sr": sr, "driver": driver, "config": config }))?;
    Ok(sr)
}

/// What goes with an SR, and whether it may.
fn delete(ask: &AskOptions, delete: &Delete, out: &mut dyn Write) -> Result<Exit, Failure> {
    let Delete { sr, driver, config, yes } = delete;
    let (sr, driver, config, attached) = match driver {
        Some(driver) => {
            let uuid: SrUuid = sr.parse().map_err(|error| {
                Failure::usage(
                    format!("{error}"),
                    "an SR that is not attached needs its whole uuid",
                )
            })?;
            (uuid.to_string(), driver.clone(), json!(map_of(config)), None)
        }
        None => {
            let sr = ask.sr(sr)?;
            (sr.sr.clone(), sr.driver.clone(), sr.config.clone(), Some(sr))
        }
    };
    let place = match &attached {
        Some(sr) => sr.place.clone(),
        None => config.to_string(),
    };
    if !yes {
        let text = format!("the SR {sr} at {} would be removed", printable(&place));
        let hint = "add --yes to do it; its VDIs must be deleted before";
        return Err(Failure::new(Exit::Usage, "needs-yes", text, hint.to_owned()));
    }
    let params = json!({ "sr": sr, "driver": driver, "config": config });
    if attached.is_some() {
        ask.call("sr_detach", json!({ "sr": sr }))?;
    }
    let deleted = ask.call("sr_delete", params.clone());
    if deleted.is_err() && attached.is_some() {
        // As it was before; the first failure is the one to tell.
        let _detached = ask.call("sr_attach", params);
    }
    deleted?;
    nothing(ask, &sr, out)?;
    Ok(Exit::Ok)
}

fn list(ask: &AskOptions, out: &mut dyn Write) -> Result<(), Failure> {
    if ask.json {
        writeln!(out, "{}", versioned(ask.call("sr_list", json!({}))?))?;
        return Ok(());
    }
    let heading = ["UUID", "LABEL", "TYPE", "ATTACHED VDIS", "PLACE"];
    let mut table = Table::new(Look::of_output(ask.bytes), &heading);
    for sr in ask.srs()? {
        table.row([sr.sr, sr.label, sr.driver, sr.vdis.len().to_string(), sr.place]);
    }
    Ok(table.write(out)?)
}

fn show(ask: &AskOptions, word: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let sr = ask.sr(word)?;
    let scan: Scan = ask.scan(&sr.sr)?;
    if ask.json {
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "sr": sr.sr, "label": scan.label, "description": scan.description,
            "driver": sr.driver, "config": sr.config, "place": sr.place,
            "physical_size": scan.physical_size,
            "physical_utilisation": scan.physical_utilisation,
            "virtual_allocation": scan.virtual_allocation,
            "vdis": scan.vdis.len(), "hidden": scan.hidden.len(),
            "findings": scan.findings.len(), "attached_vdis": sr.vdis,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let look = Look::of_output(ask.bytes);
    let config = sr.config.as_object().cloned().unwrap_or_default();
    let config = config.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    facts(
        out,
        &[
            ("uuid", sr.sr.clone()),
            ("label", scan.label.clone()),
            ("description", scan.description.clone()),
            ("type", sr.driver.clone()),
            ("options", config.collect::<Vec<_>>().join(" ")),
            ("place", sr.place.clone()),
            ("size", look.size(scan.physical_size)),
            ("used", look.size(scan.physical_utilisation)),
            ("disks together", look.size(scan.virtual_allocation)),
            ("vdis", scan.vdis.len().to_string()),
            ("attached", sr.vdis.len().to_string()),
            ("hidden", scan.hidden.len().to_string()),
            ("findings", scan.findings.len().to_string()),
        ],
    )?;
    Ok(())
}

fn scan(ask: &AskOptions, word: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let sr = ask.sr(word)?;
    let answer = ask.call("sr_scan", json!({ "sr": sr.sr }))?;
    if ask.json {
        writeln!(out, "{}", versioned(answer))?;
        return Ok(());
    }
    let scan = Scan::deserialize(answer).map_err(|error| Failure::other(&error.into()))?;
    let look = Look::of_output(ask.bytes);
    let mut table = super::vdi::table(look);
    for vdi in &scan.vdis {
        super::vdi::row(&mut table, look, &sr, vdi, "");
    }
    for vdi in &scan.hidden {
        super::vdi::row(&mut table, look, &sr, vdi, "hidden");
    }
    table.write(out)?;
    out.flush()?;
    let mut stderr = std::io::stderr().lock();
    for finding in &scan.findings {
        let (name, problem) = (printable(&finding.name), printable(&finding.problem));
        // A finding nobody can read is no reason to fail.
        let _unread = writeln!(stderr, "orlop: {}: {name}: {problem}", sr.place);
    }
    Ok(())
}

fn gc(ask: &AskOptions, word: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let sr = ask.sr(word)?;
    let answer = ask.call("sr_gc", json!({ "sr": sr.sr }))?;
    if ask.json {
        writeln!(out, "{}", versioned(answer))?;
        return Ok(());
    }
    let count = |key: &str| answer[key].as_array().map_or(0, Vec::len);
    let look = Look::of_output(ask.bytes);
    writeln!(
        out,
        "removed {}, merged {}, left {}",
        count("removed"),
        count("merged"),
        count("left")
    )?;
    if let (Some(before), Some(after)) =
        (answer["space_before"].as_u64(), answer["space_after"].as_u64())
    {
        writeln!(out, "used {} before, {} now", look.size(before), look.size(after))?;
    }
    for left in answer["left"].as_array().into_iter().flatten() {
        let text = |key: &str| printable(left[key].as_str().unwrap_or_default());
        writeln!(out, "left {}: {}", text("vdi"), text("why"))?;
    }
    Ok(())
}

/// What a collection would look at: hidden data that nobody needs, or one VDI only.
fn plan(ask: &AskOptions, word: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let sr = ask.sr(word)?;
    let scan = ask.scan(&sr.sr)?;
    let look = Look::of_output(ask.bytes);
    let (mut remove, mut merge) = (Vec::new(), Vec::new());
    let kept = |uuid: &str| {
        let mut all = scan.vdis.iter().chain(&scan.hidden);
        all.any(|vdi| vdi.uuid == uuid && !vdi.strays.is_empty())
    };
    for vdi in scan.hidden.iter().filter(|vdi| !kept(&vdi.uuid)) {
        match scan.children_of(&vdi.uuid).as_slice() {
            [] => remove.push(vdi),
            [child] if !kept(child) => merge.push((vdi, child.to_owned())),
            _ => {}
        }
    }
    if ask.json {
        let remove: Vec<_> = remove.iter().map(|vdi| &vdi.uuid).collect();
        let merge: Vec<_> = merge
            .iter()
            .map(|(vdi, child)| json!({ "parent": vdi.uuid, "child": child }))
            .collect();
        let object = json!({
            "schema_version": SCHEMA_VERSION, "sr": scan.sr, "remove": remove, "merge": merge,
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    for vdi in remove {
        writeln!(out, "remove {}, {}", vdi.uuid, look.size(vdi.utilisation))?;
    }
    for (vdi, child) in merge {
        writeln!(out, "merge {}, {}, with {child}", vdi.uuid, look.size(vdi.utilisation))?;
    }
    Ok(())
}
