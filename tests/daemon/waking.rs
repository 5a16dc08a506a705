//! How a daemon is started: its configuration, the service manager, its log.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::foreign;
use crate::house::House;

#[test]
fn a_daemon_needs_no_configuration_and_keeps_to_its_directory() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(house.socket()) & 0o777, 0o660);
    assert_eq!(mode(house.state().join("run/nbd.sock")) & 0o777, 0o660);
    assert_eq!(mode(house.state().join("state")) & 0o777, 0o700);
    assert_eq!(house.done(&["sr", "list"]), "");
    // Without files the answer is NBD alone, and whoever asks for a file is told.
    house.sr("sr");
    house.done(&["vdi", "create", "-s", "1M", "--label", "root"]);
    let (path, uri) = house.attached("root");
    assert_eq!(path.to_str(), Some(""));
    assert!(uri.starts_with("nbd+unix:///"), "{uri}");
    assert_eq!(house.done(&["vdi", "show", "root", "--nbd-uri"]), uri);
    assert!(house.fails(8, &["vdi", "show", "root", "--path"]).contains("only NBD"));
    daemon.stop();
}

#[test]
fn what_cannot_be_configured_is_told() {
    let house = House::new();
    let file = house.path("orlop.toml");
    let name = file.to_str().unwrap().to_owned();
    let check = |text: &str| -> (i32, String) {
        std::fs::write(&file, text).unwrap();
        let (code, out, err) = house.orlop(&["daemon", "--config", &name, "--check-config"]);
        (code, out + &err)
    };
    for (text, code, told) in [
        ("", 0, "state = /var/lib/orlop"),
        ("state = '/x'\n[io]\naio = 'threads'", 0, "io.aio = threads"),
        ("stat = '/x'", 2, "unknown field `stat`"),
        ("state = 'x'", 2, "write the whole path"),
        ("[api]\nmode = 'rw'", 2, "permission bits in octal"),
        ("[io]\nthreads = 65", 2, "io.threads = 65: from 1 to 64 is possible"),
        ("[log]\nlevel = 'orlop=loud'", 2, "write a level"),
        ("[log", 2, "orlop.toml: TOML parse error at line 1, column 5"),
        ("[sr]\nmounts = 1", 2, "line 2, column 10"),
    ] {
        let (found, said) = check(text);
        assert_eq!((found, said.contains(told)), (code, true), "{text}: {said}");
    }
    assert_eq!(check("[nbd]\nport = 1").0, 2);
    let object = house.json(2, &["daemon", "--config", &name, "--check-config"]);
    assert_eq!(object["error"]["code"], "configuration");
    let told = house.fails(3, &["daemon", "--config", "/nonexistent/orlop.toml"]);
    assert!(told.contains("/nonexistent/orlop.toml: cannot read"), "{told}");
    // What is on the command line goes over the file.
    std::fs::write(&file, "runtime = '/elsewhere'\n[log]\nformat = 'json'").unwrap();
    let own = ["--state-dir", "/d", "--socket", "/s", "--log-format", "text", "--no-fuse"];
    let args = [&["daemon", "--config", &name, "--check-config"], &own[..]].concat();
    let settings = house.json(0, &args)["settings"].clone();
    let of = |key: &str| settings[key].as_str().unwrap().to_owned();
    assert_eq!((of("api.socket"), of("nbd.socket")), ("/s".into(), "/d/run/nbd.sock".into()));
    assert_eq!((of("log.format"), of("fuse.mode")), ("text".into(), "off".into()));
}

#[test]
fn the_log_has_one_line_for_each_verb_and_its_level_changes_while_it_runs() {
    let house = House::new();
    let config = house.path("orlop.toml");
    std::fs::write(&config, "[log]\nformat = 'json'\n").unwrap();
    let mut daemon = house.start(&["--no-fuse", "--config", config.to_str().unwrap()]);
    let sr = house.sr("sr");
    house.fails(3, &["vdi", "detach", "nobody"]);
    let verbs = |log: &str| -> Vec<(String, String)> {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let verbs = lines.filter(|line| line["verb"].is_string());
        verbs
            .map(|line| {
                assert!(line["ms"].is_u64() && line["timestamp"].is_string(), "{line}");
                (of(&line, "verb"), of(&line, "message"))
            })
            .collect()
    };
    let told = verbs(&daemon.log());
    let done = |verb: &str| (verb.to_owned(), "done".to_owned());
    assert_eq!(told[..2], [done("sr_create"), done("sr_attach")]);
    assert_eq!(told.iter().filter(|(verb, _)| verb == "sr_create").count(), 1);
    house.fails(3, &["sr", "delete", &sr.replace(&sr[..4], "ffff"), "--yes"]);

    std::fs::write(&config, "[log]\nformat = 'json'\nlevel = 'error'\n[io]\nthreads = 3\n")
        .unwrap();
    daemon.signal(Signal::HUP);
    assert!(daemon.hears("READY=1"));
    let before = verbs(&daemon.log()).len();
    house.done(&["sr", "list"]);
    assert_eq!(verbs(&daemon.log()).len(), before, "an info was logged");
    std::fs::write(&config, "nonsense").unwrap();
    daemon.signal(Signal::HUP);
    assert!(daemon.hears("READY=1"));
    house.done(&["sr", "list"]);
    std::fs::write(&config, "[log]\nformat = 'json'\nlevel = 'info'\n[io]\nthreads = 3\n").unwrap();
    daemon.signal(Signal::HUP);
    assert!(daemon.hears("READY=1"));
    assert!(daemon.log().contains("io.threads"), "what needs a new start is not told");
    house.done(&["sr", "list"]);
    assert_eq!(verbs(&daemon.log()).len(), before + 1);
    daemon.stop();
}

#[test]
fn a_service_manager_hears_that_the_daemon_lives_and_stops() {
    let house = House::new();
    let mut daemon = house.start_with(&["--no-fuse"], &[("WATCHDOG_USEC", "400000")]);
    for _ in 0..3 {
        assert!(daemon.hears("WATCHDOG=1"), "{}", daemon.log());
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.hears("STOPPING=1"), "{}", daemon.log());
    assert!(daemon.await_end().success());
}

#[test]
fn a_socket_that_a_service_manager_opened_is_answered_and_left_in_place() {
    if !foreign::have(&["systemd-socket-activate"]) {
        return;
    }
    let house = House::new();
    let socket = house.path("activated.sock");
    let start = |name: &str| {
        let _earlier = std::fs::remove_file(&socket);
        let mut command = Command::new("systemd-socket-activate");
        command.arg(format!("--listen={}", socket.display()));
        command.arg(format!("--fdname={name}"));
        for passed in ["NOTIFY_SOCKET", "PATH"] {
            command.arg(format!("--setenv={passed}"));
        }
        command.arg(env!("CARGO_BIN_EXE_orlop")).args(["daemon", "--no-fuse", "--state-dir"]);
        command.arg(house.state());
        // The first connection starts it.
        let trigger = socket.clone();
        std::thread::spawn(move || {
            for _ in 0..600 {
                if std::os::unix::net::UnixStream::connect(&trigger).is_ok() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        command
    };
    let daemon = house.wait_for(start("api"));
    house.done(&["sr", "list", "--socket", socket.to_str().unwrap()]);
    house.fails(7, &["sr", "list"]);
    daemon.stop();
    assert!(socket.exists(), "the service manager's socket was removed");
}

#[test]
fn what_cannot_be_attached_again_is_told_and_tried_by_the_next_start() {
    let house = House::new();
    let options = ["--no-fuse"];
    let daemon = house.start(&options);
    house.sr("sr");
    let vdi = house.done(&["vdi", "create", "-s", "1M", "--label", "root"]);
    house.attached("root");
    daemon.stop();
    let (place, elsewhere) = (house.path("sr"), house.path("elsewhere"));
    std::fs::rename(&place, &elsewhere).unwrap();
    let daemon = house.start(&options);
    assert_eq!(house.done(&["sr", "list"]), "");
    assert!(daemon.log().contains("not attached again"), "{}", daemon.log());
    daemon.stop();
    std::fs::rename(&elsewhere, &place).unwrap();
    // Another program has the image open.
    let image = orlop::image::OpenOptions::new(place.join(format!("{vdi}.vhd")));
    let held = orlop::image::open(&image).unwrap();
    let daemon = house.start(&options);
    let listed = house.done(&["vdi", "list"]);
    assert!(listed.contains(&vdi) && !listed.contains("attached"), "{listed}");
    drop(held);
    daemon.stop();
    let daemon = house.start(&options);
    assert!(house.done(&["vdi", "list"]).contains("attached"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn an_ordinary_user_may_have_a_daemon_too() {
    if !rustix::process::geteuid().is_root() || !foreign::have(&["setpriv"]) {
        println!("SKIPPED: only root can become another user");
        return;
    }
    let house = House::new();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(house.path(""), all).unwrap();
    // What cargo builds may lie where nobody else may look.
    let program = house.path("orlop");
    std::fs::copy(env!("CARGO_BIN_EXE_orlop"), &program).unwrap();
    let state = house.state();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["daemon", "--state-dir"]).arg(&state).current_dir("/");
    // The notify socket is made by root.
    let daemon = house.wait_for_nobody(command);
    house.sr("sr");
    house.done(&["vdi", "create", "-s", "1M", "--label", "root"]);
    house.attached("root");
    house.done(&["vdi", "detach", "root"]);
    daemon.stop();
    assert_eq!(house.mounts(), Vec::<String>::new());
}

#[test]
fn the_units_are_understood() {
    if !foreign::have(&["systemd-analyze"]) {
        return;
    }
    let house = House::new();
    let packaging = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let units = ["orlop.service", "orlop.socket"].map(|name| {
        let text = std::fs::read_to_string(packaging.join(name)).unwrap();
        let unit = house.path(name);
        std::fs::write(&unit, text.replace("/usr/bin/orlop", env!("CARGO_BIN_EXE_orlop"))).unwrap();
        unit
    });
    let words = ["verify", foreign::text(&units[0]), foreign::text(&units[1])];
    let output = foreign::run_any("systemd-analyze", &words);
    let told = foreign::told("systemd-analyze", &words, &output);
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours = complaints.lines().any(|line| line.contains("orlop."));
    assert!(output.status.success() && !ours, "{told}");
}

#[test]
fn the_unit_lets_no_call_of_the_server_end_it() {
    let unit = include_str!("../../packaging/orlop.service");
    let line = |start: &str| unit.lines().find_map(|line| line.strip_prefix(start)).unwrap();
    // In none of systemd's groups.
    let calls: Vec<&str> = line("SystemCallFilter=").split(' ').collect();
    for call in ["mincore", "io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(calls.contains(&call), "{call} is missing");
    }
    // What a version of systemd does not know by name (cachestat) must fail, and not kill.
    assert_eq!(line("SystemCallErrorNumber="), "EPERM");
}
