//! The NBD protocol, sentence by sentence, against a running server.
//!
//! Each case stands beside the sentence of the protocol it checks. The client in here is written
//! from the protocol's text alone and shares nothing with the server's crates. Named in the
//! environment, a foreign server is judged by the same cases:
//! `CONFORMANCE_SOCKET=/run/nbd.sock cargo test --test conformance foreign -- --nocapture`.
//! `CONFORMANCE_ONLY` is how the names of the wanted cases start; `world` tells of the rest.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "conformance/asking.rs"]
mod asking;
#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/certificates.rs"]
mod certificates;
#[path = "conformance/contexts.rs"]
mod contexts;
#[path = "conformance/draining.rs"]
mod draining;
#[path = "conformance/extended.rs"]
mod extended;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "conformance/greeting.rs"]
mod greeting;
#[path = "conformance/link.rs"]
mod link;
#[path = "conformance/names.rs"]
mod names;
#[path = "conformance/options.rs"]
mod options;
#[path = "conformance/peer.rs"]
mod peer;
#[path = "conformance/reading.rs"]
mod reading;
#[path = "conformance/reply.rs"]
mod reply;
#[path = "conformance/secure.rs"]
mod secure;
#[path = "support/server.rs"]
mod server;
#[path = "conformance/session.rs"]
mod session;
#[path = "conformance/status.rs"]
mod status;
#[path = "conformance/stepping.rs"]
mod stepping;
#[path = "conformance/wire.rs"]
mod wire;
#[path = "conformance/world.rs"]
mod world;
#[path = "conformance/writing.rs"]
mod writing;
#[path = "conformance/zeroing.rs"]
mod zeroing;

use std::sync::Arc;

use case::{Case, run};
use certificates::Certificates;
use foreign::have;
use world::{Manner, World};

/// Every table there is.
const TABLES: &[&[Case]] = &[
    greeting::CASES,
    options::CASES,
    names::CASES,
    asking::CASES,
    contexts::CASES,
    contexts::SETTING,
    reading::CASES,
    writing::CASES,
    zeroing::CASES,
    zeroing::HINTS,
    status::CASES,
    extended::CASES,
    stepping::CASES,
    stepping::READ_ONLY,
    draining::CASES,
    secure::CASES,
];

/// Runs everything against our own servers; nothing may fail, warn or be missing.
fn all_pass(name: &str, manner: Manner) {
    let world = World::ours(name, manner);
    let tally = run(&world, TABLES);
    assert!(tally.failed.is_empty(), "{name} breaks what it must: {:?}", tally.failed);
    assert!(tally.warned.is_empty(), "{name} breaks what it should: {:?}", tally.warned);
    assert!(tally.lacking.is_empty(), "{name} lacks: {:?}", tally.lacking);
    let filtered = std::env::var_os("CONFORMANCE_ONLY").is_some();
    assert!(filtered || tally.passed >= 150, "only {} cases", tally.passed);
}

#[test]
fn no_two_cases_have_one_name() {
    let mut names: Vec<_> = TABLES.iter().copied().flatten().map(|case| case.id).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn a_dynamic_vhd_on_a_unix_socket_conforms() {
    all_pass("dynamic VHD, unix socket", Manner::default());
}

#[test]
fn a_raw_image_on_tcp_conforms() {
    all_pass("raw image, TCP", Manner { tcp: true, raw: true, tls: None });
}

#[test]
fn a_dynamic_vhd_through_tls_conforms() {
    if have(&["openssl"]) {
        let tls = Some(Arc::new(Certificates::make()));
        all_pass("dynamic VHD, TLS over a unix socket", Manner { tls, ..Manner::default() });
    }
}

#[test]
fn a_raw_image_through_tls_on_tcp_conforms() {
    if have(&["openssl"]) {
        let tls = Some(Arc::new(Certificates::make()));
        all_pass("raw image, TLS over TCP", Manner { tcp: true, raw: true, tls });
    }
}

#[test]
fn a_foreign_server_is_judged_by_the_same_cases() {
    match World::from_environment() {
        None => println!("SKIPPED: CONFORMANCE_SOCKET names no server"),
        Some(world) => drop(run(&world, TABLES)),
    }
}
