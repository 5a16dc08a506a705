//! What a confined process can still do: this program runs itself again, confines itself with the
//! library's own calls, and tries. Then the server, confined, under clients nobody here wrote.
//!
//! No test harness: it runs tests on threads of their own, and confining comes before threads.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[path = "sandbox/serving.rs"]
mod serving;
#[path = "sandbox/victim.rs"]
mod victim;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use nix::libc::{SIGABRT, SIGSYS};
use tempfile::TempDir;

/// Says which victim this process is to be.
const VICTIM: &str = "ORLOP_SANDBOX_VICTIM";

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_confined_process_reaches_the_paths_it_named_and_no_others", files),
    ("images_beneath_a_permitted_folder_open_while_serving", images),
    ("a_confined_process_makes_no_connections_and_signals_nobody", outside),
    ("threads_that_run_already_are_not_forgotten", company),
    ("a_server_needs_neither_programs_nor_new_sockets_nor_rings", calls),
    ("calls_only_an_intruder_makes_kill_the_process", deadly),
    ("an_abort_still_looks_like_an_abort", abort),
    ("no_privilege_is_left_and_none_can_be_had", privileges),
    ("root_becomes_another_user_for_good", another_user),
    ("only_root_becomes_somebody_else", not_root),
    ("a_captive_command_is_not_confined", captive),
    ("every_thread_of_a_server_is_confined_and_it_serves_all_the_same", serving::every_way),
    ("a_server_on_tcp_is_confined", serving::on_tcp),
    ("a_server_of_no_particular_user_is_confined", serving::as_nobody),
    ("a_server_gives_its_root_up", serving::giving_root_up),
    ("a_server_writes_past_the_cache_to_an_image_of_another_user", serving::of_another_user),
    ("the_command_a_server_runs_is_free", serving::with_a_command),
    ("off_is_off", serving::off),
    ("a_kernel_that_lacks_a_piece_is_said_or_refused", serving::lacking),
    ("without_io_uring_the_server_is_confined", serving::without_rings),
];

fn main() -> ExitCode {
    if let Ok(victim) = std::env::var(VICTIM) {
        victim::run(&victim);
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let mut failed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| chosen(name)) {
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This program, in a folder that any user may look into.
struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A copy of a program that any user may run.
    fn program(&self, original: &Path) -> PathBuf {
        let copy = self.path().join(original.file_name().unwrap());
        std::fs::copy(original, &copy).unwrap();
        copy
    }
}

fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: only root can become somebody else");
    }
    root
}

/// Runs a victim, in a folder.
fn victim_in(folder: &Path, name: &str) -> Output {
    let mut command = Command::new(me());
    command.env(VICTIM, name).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn must_pass(name: &str, output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}\n{complained}", output.status);
}

fn files() {
    let folder = TempDir::new().unwrap();
    for name in ["read", "write", "socket"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("file"), name).unwrap();
    }
    for name in ["open", "other"] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    must_pass("files", &victim_in(folder.path(), "files"));
    assert!(!folder.path().join("socket/file").exists(), "the socket could be removed");
    assert!(folder.path().join("write/file").exists());
}

fn images() {
    let folder = TempDir::new().unwrap();
    let allowed = folder.path().join("allowed");
    std::fs::create_dir(&allowed).unwrap();
    let (base, child) = (allowed.join("base.vhd"), allowed.join("child.vhd"));
    let other = folder.path().join("other.vhd");
    foreign::orlop(&["create", foreign::text(&base), "--size", "64M"]);
    foreign::orlop(&["create", foreign::text(&child), "--parent", foreign::text(&base)]);
    foreign::orlop(&["create", foreign::text(&other), "--size", "64M"]);
    must_pass("images", &victim_in(folder.path(), "images"));
}

fn outside() {
    must_pass("outside", &victim_in(Path::new("/"), "outside"));
}

fn company() {
    must_pass("company", &victim_in(Path::new("/"), "company"));
}

fn calls() {
    must_pass("calls", &victim_in(Path::new("/"), "calls"));
    must_pass("rings", &victim_in(Path::new("/"), "rings"));
}

fn deadly() {
    for name in ["exec", "chroot", "mount", "ptrace", "setns", "steal"] {
        let output = victim_in(Path::new("/"), name);
        assert_eq!(output.status.signal(), Some(SIGSYS), "{name}: {output:?}");
    }
}

fn abort() {
    let output = victim_in(Path::new("/"), "abort");
    assert_eq!(output.status.signal(), Some(SIGABRT), "{output:?}");
}

fn privileges() {
    must_pass("privileges", &victim_in(Path::new("/"), "privileges"));
}

fn another_user() {
    if !is_root() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "root's").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    must_pass("another user", &victim_in(folder.path(), "another user"));
}

fn not_root() {
    if !is_root() || !foreign::have(&["setpriv"]) {
        return;
    }
    let stage = Stage::new();
    let copy = stage.program(&me());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    let output = command.env(VICTIM, "not root").stdin(Stdio::null()).output().unwrap();
    must_pass("not root", &output);
}

fn captive() {
    must_pass("captive", &victim_in(Path::new("/"), "captive"));
}
