//! The engine against a flat array of bytes: chains of any depth, block size and mixture of
//! formats, requests of every kind in flight together, effects completing in any order, in memory
//! and on both real hosts. After a clean close the images must read the same and pass `check`.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "model/images.rs"]
mod images;
#[path = "model/life.rs"]
mod life;
#[path = "model/machine.rs"]
mod machine;
#[path = "model/script.rs"]
mod script;

use orlop::host::Aio;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use life::live;
use machine::{InMemory, OnHost};
use script::scripts;

fn config(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    }
}

#[test]
fn a_disk_in_memory_is_a_flat_array_of_bytes() {
    let outcome = TestRunner::new(config(1000)).run(&scripts(12_000), |script| {
        live(&script, &mut InMemory::new(script.order)).map_err(TestCaseError::fail)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn on_host(aio: Aio, direct: bool) {
    match OnHost::new(aio, direct) {
        Err(error) => println!("SKIPPED {aio:?}: {error}"),
        Ok((_, choice)) => println!("{choice}"),
    }
    let outcome = TestRunner::new(config(100)).run(&scripts(12_000), |script| {
        let Ok((mut machine, _)) = OnHost::new(aio, direct) else { return Ok(()) };
        live(&script, &mut machine).map_err(TestCaseError::fail)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_disk_on_threads_is_a_flat_array_of_bytes() {
    on_host(Aio::Threads, false);
}

#[test]
fn a_disk_on_threads_past_the_page_cache_is_a_flat_array_of_bytes() {
    on_host(Aio::Threads, true);
}

#[test]
fn a_disk_on_io_uring_is_a_flat_array_of_bytes() {
    on_host(Aio::Uring, false);
}

#[test]
fn a_disk_on_io_uring_past_the_page_cache_is_a_flat_array_of_bytes() {
    on_host(Aio::Uring, true);
}
