//! `orlop vdi tree`: who depends on whom, deleted VDIs included that others still need.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::{Value, json};

use super::state;
use crate::cli::ask::{AskOptions, Scan, Sr, Vdi, tell_findings};
use crate::cli::output::{Failure, SCHEMA_VERSION};
use crate::cli::table::{Look, printable};

/// Depth to which dependence is shown; chains have an end long before.
const DEPTH_MAX: usize = 64;

/// The VDIs of an SR, by what they depend on.
struct Forest<'a> {
    sr: &'a Sr,
    scan: &'a Scan,
    hidden: BTreeSet<&'a str>,
    children: BTreeMap<&'a str, Vec<&'a Vdi>>,
    look: Look,
}

/// Shows it.
pub(super) fn run(ask: &AskOptions, sr: Option<&str>, out: &mut dyn Write) -> Result<(), Failure> {
    let srs = match sr {
        Some(sr) => vec![ask.sr(sr)?],
        None => ask.srs()?,
    };
    let mut all = Vec::new();
    for sr in &srs {
        let scan = ask.scan(&sr.sr)?;
        let forest = Forest::new(sr, &scan, Look::of_output(ask.bytes));
        if ask.json {
            let roots: Value = forest.roots().iter().map(|vdi| forest.as_json(vdi, 0)).collect();
            all.push(json!({ "sr": scan.sr, "label": scan.label, "roots": roots }));
        } else {
            tell_findings(&scan);
            forest.draw(out)?;
        }
    }
    if ask.json {
        writeln!(out, "{}", json!({ "schema_version": SCHEMA_VERSION, "srs": all }))?;
    }
    Ok(())
}

impl<'a> Forest<'a> {
    fn new(sr: &'a Sr, scan: &'a Scan, look: Look) -> Self {
        let hidden = scan.hidden.iter().map(|vdi| vdi.uuid.as_str()).collect();
        let mut children: BTreeMap<&str, Vec<&Vdi>> = BTreeMap::new();
        for vdi in scan.vdis.iter().chain(&scan.hidden) {
            if let Some(parent) = &vdi.parent {
                children.entry(parent).or_default().push(vdi);
            }
        }
        Self { sr, scan, hidden, children, look }
    }

    /// Those that depend on nobody who is there.
    fn roots(&self) -> Vec<&'a Vdi> {
        let all = || self.scan.vdis.iter().chain(&self.scan.hidden);
        let known: BTreeSet<&str> = all().map(|vdi| vdi.uuid.as_str()).collect();
        let is_root = |vdi: &&Vdi| vdi.parent.as_deref().is_none_or(|p| !known.contains(p));
        all().filter(is_root).collect()
    }

    fn children_of(&self, vdi: &Vdi, depth: usize) -> &[&'a Vdi] {
        if depth >= DEPTH_MAX {
            return &[];
        }
        self.children.get(vdi.uuid.as_str()).map(Vec::as_slice).unwrap_or_default()
    }

    fn state(&self, vdi: &Vdi) -> String {
        let hidden = self.hidden.contains(vdi.uuid.as_str());
        state(self.sr, vdi, if hidden { "hidden" } else { "" })
    }

    fn as_json(&self, vdi: &Vdi, depth: usize) -> Value {
        let children = self.children_of(vdi, depth).iter();
        json!({
            "uuid": vdi.uuid, "label": vdi.label, "size": vdi.size,
            "utilisation": vdi.utilisation, "read_only": vdi.read_only,
            "hidden": self.hidden.contains(vdi.uuid.as_str()),
            "attached": self.sr.vdis.contains(&vdi.uuid),
            "children": children.map(|child| self.as_json(child, depth + 1)).collect::<Value>(),
        })
    }

    fn draw(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "SR {} {}", self.scan.sr, printable(&self.scan.label))?;
        let roots = self.roots();
        self.branch(out, &roots, "", 0)
    }

    fn branch(
        &self,
        out: &mut dyn Write,
        vdis: &[&Vdi],
        indent: &str,
        depth: usize,
    ) -> io::Result<()> {
        for (at, vdi) in vdis.iter().enumerate() {
            let last = at + 1 == vdis.len();
            let (arm, below) = if last { ("`-- ", "    ") } else { ("|-- ", "|   ") };
            let (size, used) = (self.look.size(vdi.size), self.look.size(vdi.utilisation));
            let label = printable(&vdi.label);
            let gap = if label.is_empty() { "" } else { " " };
            let (uuid, state) = (&vdi.uuid, self.state(vdi));
            writeln!(out, "{indent}{arm}{uuid}{gap}{label}: {size}, {used} used, {state}")?;
            let deeper = format!("{indent}{below}");
            self.branch(out, self.children_of(vdi, depth), &deeper, depth + 1)?;
        }
        Ok(())
    }
}
