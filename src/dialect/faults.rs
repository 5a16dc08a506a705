//! The table from kinds of failures to the fault numbers that xapi knows of a backend.

use crate::control::Error;
use crate::sr::Kind;

/// The call cannot be understood, or there is none of that name.
pub(super) const BAD_REQUEST: i32 = 143;
/// Why a call of no known name fails.
pub(super) const NO_COMMAND: &str = "there is no such command";

/// Something failed that has no number of its own.
pub(super) const UNEXPECTED: i32 = 202;

/// The string of a fault: what the number means, and what happened.
fn text(meaning: &str, detail: &str) -> String {
    format!("{meaning} [opterr={detail}]")
}

/// The string of [`BAD_REQUEST`].
pub(super) fn bad_request(detail: &str) -> String {
    text("The request cannot be understood", detail)
}

/// The string when nobody carries the call out.
pub(super) fn unanswered(detail: &str) -> String {
    text("The daemon does not answer", detail)
}

/// The number and the string of a failed call.
pub(super) fn of(verb: &str, error: &Error) -> (i32, String) {
    let failure = &error.failure;
    if failure.kind == Kind::Invalid && failure.why == NO_COMMAND {
        return (BAD_REQUEST, bad_request(&error.to_string()));
    }
    let (number, meaning) = number(verb, failure.kind, &failure.why);
    (number, text(meaning, &error.to_string()))
}

fn number(verb: &str, kind: Kind, why: &str) -> (i32, &'static str) {
    let of_vdi = verb.starts_with("vdi_");
    match kind {
        Kind::NoSr => (47, "The SR is not available"),
        Kind::NoVdi => (46, "The VDI is not available"),
        Kind::NoDevice if verb == "sr_create" => (19, "There is no such device"),
        Kind::NoDevice => (47, "The SR is not available"),
        Kind::SrExists => (42, "The SR exists already"),
        Kind::VdiExists => (43, "The VDI exists already"),
        Kind::Busy if of_vdi => (24, "The VDI is in use"),
        Kind::Busy => (16, "The SR is in use"),
        Kind::NotEmpty => (39, "The SR is not empty"),
        Kind::Invalid if why.contains("\"location\"") => (94, "The location is missing or wrong"),
        Kind::Invalid if why.contains("\"device\"") => (90, "The device is missing or wrong"),
        Kind::Invalid if ["vdi_create", "vdi_resize"].contains(&verb) => {
            (79, "The size or another argument of the VDI is invalid")
        }
        Kind::Invalid => (1, "An argument is invalid"),
        Kind::NoSpace => (44, "There is not enough space in the SR"),
        Kind::Locked => (37, "The lock cannot be taken or given back"),
        Kind::Unsupported => (38, "The operation is not supported on this SR"),
        Kind::ChainTooLong => (109, "The chain of snapshots is too long"),
        Kind::Corrupt if of_vdi => (65, "The VDI cannot be loaded"),
        Kind::Io if verb == "sr_scan" => (40, "The SR cannot be scanned"),
        Kind::Corrupt | Kind::Io => (200, "An I/O error occurred"),
        Kind::NotPermitted => match verb {
            "vdi_attach" | "vdi_activate" | "vdi_detach" => (46, "The VDI is not available"),
            "vdi_create" => (78, "The VDI cannot be created"),
            "vdi_delete" => (80, "The VDI cannot be deleted"),
            "vdi_clone" => (81, "The VDI cannot be cloned"),
            "vdi_snapshot" => (82, "The VDI cannot be snapshotted"),
            "vdi_resize" => (110, "The VDI cannot be resized"),
            _ => (UNEXPECTED, "The operation failed"),
        },
    }
}
