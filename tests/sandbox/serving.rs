//! `orlop serve`, confined, with real clients at work.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::libc::{SYS_io_uring_setup, SYS_landlock_create_ruleset, SYS_seccomp, c_long};
use tempfile::TempDir;

use super::foreign::{have, orlop, run, text};
use super::server::Server;
use super::{Stage, VICTIM, is_root, me};

/// What the status of every thread of a process says of a field.
fn statuses(id: u32, field: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let field = format!("{field}:");
    tasks
        .map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(&field));
            line.unwrap().trim().to_owned()
        })
        .collect()
}

fn assert_confined(id: u32) {
    for (field, wanted) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        let found = statuses(id, field);
        assert!(found.len() > 1, "a server has a control thread and a shard: {found:?}");
        assert!(found.iter().all(|value| value == wanted), "{field} is {found:?}");
    }
}

/// Reads, writes, erases and flushes as much as it takes to make every call a server makes.
fn work(uri: &str) {
    let mut arguments = vec!["-f", "raw", uri];
    for command in [
        "write -P 7 0 1M",
        "write -P 9 100 1000",
        "write -P 3 4194000 70000",
        "discard 2M 4M",
        "write -z 8M 2M",
        "write -z -u 12M 1M",
        "flush",
        "read -P 9 100 1000",
        "read -P 7 8192 4096",
        "read -P 0 8M 2M",
    ] {
        arguments.extend(["-c", command]);
    }
    run("qemu-io", &arguments);
    run("nbdinfo", &["--map", uri]);
    run("nbdcopy", &[uri, "null:"]);
    let uri = format!("--uri={uri}");
    let fio = ["--name=x", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-64k", "--size=8M"];
    run(
        "fio",
        &[&fio[..], &["--offset=16M", "--iodepth=16", "--verify=crc32c", "--verify_state_save=0"]]
            .concat(),
    );
}

fn disk(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("disk.vhd");
    orlop(&["create", text(&path), "--size", "64M"]);
    path
}

const CLIENTS: [&str; 4] = ["qemu-io", "nbdinfo", "nbdcopy", "fio"];

pub(super) fn every_way() {
    if !have(&CLIENTS) {
        return;
    }
    for aio in ["auto", "threads"] {
        for cache in ["writeback", "none"] {
            let folder = TempDir::new().unwrap();
            let disk = disk(folder.path());
            let options = ["--aio", aio, "--cache", cache, "--sandbox", "required"];
            let server = Server::start(&disk, &options);
            assert_confined(server.id());
            work(server.uri());
            // Clients came and went, and threads with them.
            assert_confined(server.id());
            let socket = server.uri().split_once("socket=").unwrap().1.to_owned();
            assert!(Path::new(&socket).exists(), "{socket}");
            let log = server.log();
            assert!(!log.contains("WARN"), "{log}");
            server.close();
            assert!(!Path::new(&socket).exists(), "the socket was not removed");
            orlop(&["check", text(&disk)]);
        }
    }
}

pub(super) fn on_tcp() {
    if !have(&CLIENTS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let server = Server::start_tcp(&disk(folder.path()), &["--sandbox", "required"]);
    assert_confined(server.id());
    work(server.uri());
    server.close();
}

pub(super) fn off() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&disk(folder.path()), &["--sandbox", "off"]);
    assert!(statuses(server.id(), "Seccomp").iter().all(|value| value == "0"));
    assert!(!server.log().contains("sandbox"), "{}", server.log());
    server.close();
}

/// A client's work as a command of the server, with a look at the server itself.
const SCRIPT: &str = "grep -h -E '^(Seccomp|CapEff|Uid|Gid):' /proc/$PPID/task/*/status && \
                      qemu-io -f raw \"$uri\" -c 'write -P 5 0 1M' -c flush -c 'read -P 5 0 1M'";

fn served(mut command: Command, arguments: &[&str]) -> Output {
    command.arg("serve").args(arguments).args(["--sandbox", "required", "--run", SCRIPT]);
    command.env("ORLOP_LOG", "warn").stdin(Stdio::null()).output().unwrap()
}

fn assert_served(output: &Output, user: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let values = |field: &str| -> Vec<String> {
        let values = said.lines().filter_map(|line| line.strip_prefix(field));
        values.map(|value| value.split_whitespace().next().unwrap().to_owned()).collect()
    };
    assert!(values("Seccomp:").len() > 1, "{said}");
    assert!(values("Seccomp:").iter().all(|value| value == "2"), "{said}");
    assert!(values("CapEff:").iter().all(|value| value == "0000000000000000"), "{said}");
    assert!(values("Uid:").iter().all(|value| value == user), "{said}");
    assert!(said.contains("1048576/1048576"), "{said}");
}

/// An image that belongs to nobody, in a folder of nobody's.
fn nobodys(stage: &Stage) -> (std::path::PathBuf, String) {
    let folder = stage.path().join("nobodys");
    std::fs::create_dir(&folder).unwrap();
    let disk = disk(&folder);
    for path in [&folder, &disk] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let socket = folder.join("socket");
    (disk, text(&socket).to_owned())
}

pub(super) fn as_nobody() {
    if !is_root() || !have(&["setpriv", "qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let (disk, socket) = nobodys(&stage);
    let program = stage.program(Path::new(env!("CARGO_BIN_EXE_orlop")));
    for aio in ["auto", "threads"] {
        for cache in ["writeback", "none"] {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
            let options = [text(&disk), "--socket", &socket, "--aio", aio, "--cache", cache];
            assert_served(&served(command, &options), "65534");
        }
    }
}

/// Root may open what belongs to others. A confined server has no such right any more, and its
/// unaligned writes past the cache need a second descriptor.
pub(super) fn of_another_user() {
    if !is_root() || !have(&CLIENTS) {
        return;
    }
    let stage = Stage::new();
    let (disk, _) = nobodys(&stage);
    std::fs::set_permissions(&disk, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for aio in ["auto", "threads"] {
        let options = ["--aio", aio, "--cache", "none", "--sandbox", "required"];
        let server = Server::start(&disk, &options);
        assert_confined(server.id());
        work(server.uri());
        server.close();
    }
}

pub(super) fn giving_root_up() {
    if !is_root() || !have(&["qemu-io"]) {
        return;
    }
    let stage = Stage::new();
    let (disk, socket) = nobodys(&stage);
    for cache in ["writeback", "none"] {
        let command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        let options = [text(&disk), "--socket", &socket, "--user", "65534:65534", "--cache", cache];
        assert_served(&served(command, &options), "65534");
        assert!(!Path::new(&socket).exists(), "the socket was not removed");
    }
    // An image that user may not open is refused, whoever started the server.
    let secret = stage.path().join("secret.raw");
    std::fs::write(&secret, [0; 512]).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    let output = served(command, &[text(&secret), "--socket", &socket, "--user", "65534:65534"]);
    assert!(!output.status.success());
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(complained.contains("Permission denied"), "{complained}");
}

pub(super) fn with_a_command() {
    let folder = TempDir::new().unwrap();
    let disk = disk(folder.path());
    let script = "test -n \"$uri\" || exit 1; grep -q '^Seccomp:.*0$' /proc/self/status || exit 2; \
                  test -r /etc/passwd || exit 3; test \"$(cat)\" = typed || exit 4; exit 17";
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.arg("serve").arg(&disk).arg("--socket").arg(folder.path().join("socket"));
    command.args(["--sandbox", "required", "--run", script]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut typed = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut typed, b"typed").unwrap();
    drop(typed);
    assert_eq!(child.wait().unwrap().code(), Some(17));
}

/// The words that start a program on a kernel that seems to lack a call.
fn without(call: c_long) -> Vec<String> {
    let victim = format!("{VICTIM}=without {call}");
    vec!["env".to_owned(), victim, text(&me()).to_owned()]
}

pub(super) fn lacking() {
    let folder = TempDir::new().unwrap();
    let disk = disk(folder.path());
    for (call, missing) in [
        (SYS_landlock_create_ruleset, "any file the user may open can be opened"),
        (SYS_seccomp, "any system call can be made"),
    ] {
        let words = without(call);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let server = Server::start_under(&words, &disk, &[]);
        let log = server.log();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(warnings[0].contains(missing), "{log}");
        server.close();

        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_orlop"));
        let socket = folder.path().join("socket");
        let output = served(command, &[text(&disk), "--socket", text(&socket)]);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{complained}");
        assert!(complained.contains(missing), "{complained}");
        assert!(complained.contains("--sandbox on"), "{complained}");
        assert!(!socket.exists(), "the socket was left behind");
    }
}

pub(super) fn without_rings() {
    if !have(&CLIENTS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let words = without(SYS_io_uring_setup);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let server = Server::start_under(&words, &disk(folder.path()), &["--sandbox", "required"]);
    assert!(server.log().contains("I/O by threads"), "{}", server.log());
    assert_confined(server.id());
    work(server.uri());
    server.close();
}
