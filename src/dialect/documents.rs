//! The XML documents that the specification's calls give back.
//!
//! Element names and their order are the specification's; booleans are True and False. What it does
//! not have (the NBD URI, findings of a scan) comes after what it has, under names of its own.

use super::xml::element;
use crate::control::{Access, Listed, Listing};

const DECLARATION: &str = "<?xml version=\"1.0\" ?>\n";

const fn word(flag: bool) -> &'static str {
    if flag { "True" } else { "False" }
}

struct Writer(String);

impl Writer {
    fn sr() -> Self {
        Self(format!("{DECLARATION}<sr>\n"))
    }

    fn line(&mut self, depth: usize, name: &str, text: impl std::fmt::Display) {
        self.0.push_str(&"\t".repeat(depth));
        element(&mut self.0, name, text);
        self.0.push('\n');
    }

    fn end(mut self) -> String {
        self.0.push_str("</sr>\n");
        self.0
    }
}

/// What sr_content_type gives back.
pub(super) fn content_type(content_type: &str) -> String {
    let mut out = Writer::sr();
    out.line(1, "type", content_type);
    out.end()
}

/// What vdi_attach gives back.
pub(super) fn access(access: &Access) -> String {
    let mut out = Writer::sr();
    out.line(1, "path", &access.path);
    out.line(1, "nbd_uri", &access.nbd_uri);
    out.end()
}

/// What sr_scan gives back.
pub(super) fn listing(listing: &Listing) -> String {
    let mut out = Writer::sr();
    out.line(1, "uuid", listing.sr);
    out.line(1, "physical_utilisation", listing.physical_utilisation);
    out.line(1, "virtual_allocation", listing.virtual_allocation);
    out.line(1, "physical_size", listing.physical_size);
    out.line(1, "default_vdi_visibility", word(listing.default_vdi_visibility));
    out.line(1, "label", &listing.label);
    out.line(1, "description", &listing.description);
    for vdi in &listing.vdis {
        out.0.push_str("\t<vdi>\n");
        listed(&mut out, vdi);
        out.0.push_str("\t</vdi>\n");
    }
    for finding in &listing.findings {
        out.0.push_str("\t<finding>\n");
        out.line(2, "name", &finding.name);
        out.line(2, "problem", &finding.problem);
        out.0.push_str("\t</finding>\n");
    }
    out.end()
}

fn listed(out: &mut Writer, vdi: &Listed) {
    out.line(2, "uuid", vdi.uuid);
    out.line(2, "size", vdi.size);
    out.line(2, "utilisation", vdi.utilisation);
    out.line(2, "locked", word(vdi.locked));
    out.line(2, "label", &vdi.record.label);
    out.line(2, "description", &vdi.record.description);
    out.line(2, "shareable", word(vdi.shareable));
    out.line(2, "read_only", word(vdi.read_only));
    if let Some(parent) = vdi.parent {
        out.line(2, "parent", parent);
    }
}
