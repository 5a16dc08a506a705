//! The built command, judged by other programs: what we make they read, what they lock we leave
//! alone, and the other way round. A program that is not installed is skipped aloud.
#![allow(clippy::unwrap_used, reason = "a test stops where its set-up fails")]

#[path = "support/odd_images.rs"]
mod odd_images;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use odd_images::{Builder, SLOTS, cases};
use orlop::image::{Cause, OpenOptions, OpenedChain, open};
use serde_json::Value;

/// Opens an image once nobody holds it. A test beside this one may have forked while we had the
/// image open; the copy of our descriptor lives until that child becomes another program.
fn open_soon(options: &OpenOptions) -> OpenedChain {
    for _ in 0..10_000 {
        match open(options) {
            Err(error) if matches!(error.cause, Cause::Lock(_)) => std::thread::yield_now(),
            result => return result.unwrap(),
        }
    }
    unreachable!("{} stays locked", options.path.display());
}

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a program in the directory; `None`, said aloud, when it is not installed.
    fn tool(&self, program: &str, args: &[&str]) -> Option<Output> {
        let run = Command::new(program).args(args).current_dir(self.dir.path()).output();
        if run.is_err() {
            eprintln!("SKIPPED: {program} is not installed");
        }
        run.ok()
    }

    fn orlop(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.tool(env!("CARGO_BIN_EXE_orlop"), args).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Runs orlop, which must end with this code.
    fn ends(&self, code: i32, args: &[&str]) -> String {
        let (status, out, err) = self.orlop(args);
        assert_eq!(status, code, "{args:?}: {out}{err}");
        out + &err
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        let (status, out, err) = self.orlop(args);
        assert_eq!(status, code, "{args:?}: {out}{err}");
        let object: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(object["schema_version"], 1);
        object
    }

    /// Lets a program judge: it must succeed, or not be there.
    fn judge(&self, program: &str, args: &[&str]) -> String {
        let Some(output) = self.tool(program, args) else { return String::new() };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {text}{error}");
        text
    }
}

#[test]
fn other_programs_read_what_we_create() {
    let desk = Desk::new();
    for (name, size, extra) in [
        ("dynamic.vhd", 20 << 20, &[][..]),
        ("fixed.vhd", 20 << 20, &["--format", "vhd-fixed"]),
        ("small-blocks.vhd", (20 << 20) + 512, &["--block-size", "512K"]),
        ("huge.vhd", 2040 << 30, &[]),
    ] {
        let bytes = u64::to_string(&size);
        let args = [&["create", name, "-s", &bytes, "--json"], extra].concat();
        assert_eq!(desk.json(0, &args)["size"], size);
        let info = desk.judge("qemu-img", &["info", "-f", "vpc", "--output=json", name]);
        if !info.is_empty() {
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"], size, "{name}");
        }
        desk.judge("vhdiinfo", &[name]);
        if name != "huge.vhd" {
            desk.judge("7zz", &["t", name]);
        }
        desk.ends(0, &["check", "--data", name]);
        assert_eq!(desk.json(0, &["info", "--json", name])["size"], size);
    }
    desk.ends(0, &["create", "plain.raw", "-s", "1M"]);
    assert_eq!(fs::metadata(desk.path("plain.raw")).unwrap().len(), 1 << 20);
    let left: Vec<_> = fs::read_dir(desk.dir.path()).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".tmp")));
}

#[test]
fn what_exists_is_replaced_on_request_only() {
    let desk = Desk::new();
    desk.ends(0, &["create", "a.vhd", "-s", "4M"]);
    let before = fs::read(desk.path("a.vhd")).unwrap();
    let error = desk.json(1, &["create", "a.vhd", "-s", "8M", "--json"]);
    assert_eq!(error["error"]["code"], "exists");
    assert_eq!(fs::read(desk.path("a.vhd")).unwrap(), before);
    desk.ends(0, &["create", "a.vhd", "-s", "8M", "--force"]);
    assert_eq!(desk.json(0, &["info", "--json", "a.vhd"])["size"], 8 << 20);
    let chain = open(&OpenOptions::new(desk.path("a.vhd"))).unwrap();
    desk.ends(4, &["create", "a.vhd", "-s", "4M", "--force"]);
    drop(chain);
    std::os::unix::fs::symlink("a.vhd", desk.path("link.vhd")).unwrap();
    desk.ends(1, &["create", "link.vhd", "-s", "4M", "--force"]);
}

#[test]
fn what_others_depend_on_is_not_replaced() {
    let desk = Desk::new();
    for (parent, size) in [("base.vhd", "8M"), ("base.raw", "4M")] {
        desk.ends(0, &["create", parent, "-s", size]);
        desk.ends(0, &["create", "child.vhd", "--parent", parent]);
        let before = fs::read(desk.path(parent)).unwrap();
        let error = desk.json(1, &["create", parent, "-s", "8M", "--force", "--json"]);
        assert_eq!(error["error"]["code"], "has-children");
        let told = error["error"]["message"].as_str().unwrap();
        assert!(told.contains("it is the parent of") && told.contains("child.vhd"), "{told}");
        assert!(fs::read(desk.path(parent)).unwrap() == before, "{parent} was replaced");
        // Not even what opens no more: a child may be all that is left of the disk.
        fs::write(desk.path(parent), [&before[..512], &[0xFF; 4096]].concat()).unwrap();
        desk.ends(1, &["create", parent, "-s", "8M", "--force"]);
        fs::remove_file(desk.path("child.vhd")).unwrap();
        desk.ends(0, &["create", parent, "-s", "8M", "--force"]);
    }
}

#[test]
fn a_child_keeps_its_parent_from_being_written_whatever_it_is_called() {
    let desk = Desk::new();
    for parent in ["base.vhd", "base.raw"] {
        let serve = ["serve", parent, "--json", "--socket", "s.sock", "--run", "true"];
        desk.ends(0, &["create", parent, "-s", "4M"]);
        // What README's `mount --overlay FILE` leaves behind looks like this.
        desk.ends(0, &["create", "keep", "--format", "vhd", "--parent", parent]);
        for name in ["keep", "kid.disk", "kid.avhd", "kid.vhdx"] {
            if name != "keep" {
                fs::rename(desk.path("keep"), desk.path(name)).unwrap();
            }
            let error = desk.json(1, &serve);
            assert_eq!(error["error"]["code"], "has-children", "{name}");
            let error = desk.json(1, &["create", parent, "-s", "4M", "--force", "--json"]);
            assert_eq!(error["error"]["code"], "has-children", "{name}");
            fs::rename(desk.path(name), desk.path("keep")).unwrap();
        }
        // The bytes of a file that is called raw are its guest's. It cannot know the identity of
        // another disk, but it can guess a name.
        fs::rename(desk.path("keep"), desk.path("guest.raw")).unwrap();
        desk.json(if parent == "base.vhd" { 1 } else { 0 }, &serve);
        fs::remove_file(desk.path("guest.raw")).unwrap();
        desk.json(0, &serve);
    }
}

#[test]
fn an_image_is_called_what_it_is() {
    let desk = Desk::new();
    for name in ["x.qcow2", "x.vhdx", "x.VMDK"] {
        for format in [&[][..], &["--format", "vhd"]] {
            let told = desk.ends(2, &[&["create", name, "-s", "1M"], format].concat());
            assert!(told.contains("promises another format"), "{told}");
        }
    }
    let told = desk.ends(2, &["create", "odd", "-s", "1M"]);
    assert!(told.contains("--format"), "{told}");
    desk.ends(2, &["serve", "odd", "--create", "1M", "--socket", "s.sock", "--run", "true"]);
    assert_eq!(fs::read_dir(desk.dir.path()).unwrap().count(), 0);
    desk.ends(0, &["create", "odd", "-s", "1M", "--format", "raw"]);
    assert_eq!(fs::metadata(desk.path("odd")).unwrap().len(), 1 << 20);
    let told = desk.ends(3, &["create", "nowhere/x.vhd", "-s", "1M"]);
    assert!(told.contains("directory"), "{told}");
}

#[test]
fn who_holds_an_image_tells_what_can_be_done_about_it() {
    let desk = Desk::new();
    desk.ends(0, &["create", "a.vhd", "-s", "4M"]);
    let serve = ["serve", "a.vhd", "--json", "--socket", "s.sock", "--run", "true"];
    let chain = open(&OpenOptions::new(desk.path("a.vhd"))).unwrap();
    let error = desk.json(4, &serve);
    // It would be refused as well.
    assert!(!error["error"]["hint"].as_str().unwrap().contains("--read-only"), "{error}");
    desk.json(4, &[&serve[..], &["--read-only"]].concat());
    drop(chain);
    let reading = OpenOptions { read_only: true, ..OpenOptions::new(desk.path("a.vhd")) };
    let chain = open_soon(&reading);
    let error = desk.json(4, &serve);
    assert!(error["error"]["hint"].as_str().unwrap().contains("--read-only"), "{error}");
    desk.json(0, &[&serve[..], &["--read-only"]].concat());
    drop(chain);
}

#[test]
fn a_command_line_that_makes_no_sense_says_what_would() {
    let desk = Desk::new();
    let told = desk.ends(2, &["create", "a.vhd", "-s", "1000"]);
    assert!(told.contains("512 and 1024"), "{told}");
    desk.ends(2, &["create", "a.vhd"]);
    desk.ends(2, &["create", "a.vhd", "-s", "2041G"]);
    desk.ends(2, &["create", "a.img", "-s", "1M", "--format", "vhd"]);
    desk.ends(2, &["create", "a.vhd", "-s", "1M", "--block-size", "3M"]);
    desk.ends(3, &["info", "none.vhd"]);
    fs::write(desk.path("disk"), vec![0; 4096]).unwrap();
    let told = desk.ends(2, &["info", "disk"]);
    assert!(told.contains("--format raw"), "{told}");
    desk.ends(0, &["info", "disk", "--format", "raw"]);
    desk.ends(8, &["check", "disk", "--format", "raw"]);
    assert_eq!(desk.json(3, &["map", "none.vhd", "--json"])["error"]["code"], "not-found");
    assert!(fs::read_dir(desk.dir.path()).unwrap().count() == 1);
}

#[test]
fn a_child_finds_its_parent_and_the_map_tells_them_apart() {
    let desk = Desk::new();
    desk.ends(0, &["create", "base.vhd", "-s", "8M"]);
    let write = ["-f", "vpc", "-c", "write -P 0xaa 2M 64k", "base.vhd"];
    if desk.tool("qemu-io", &write).is_none_or(|output| !output.status.success()) {
        eprintln!("SKIPPED: qemu-io did not write");
        return;
    }
    let made = desk.json(0, &["create", "child.vhd", "--parent", "base.vhd", "--json"]);
    assert_eq!((&made["size"], &made["parent"]), (&(8 << 20).into(), &"base.vhd".into()));
    let info = desk.json(0, &["info", "--chain", "--json", "child.vhd"]);
    assert_eq!(info["layers"].as_array().unwrap().len(), 2);
    assert_eq!(info["layers"][0]["parent"]["uuid"], info["layers"][1]["uuid"]);
    let map = desk.json(0, &["map", "--json", "child.vhd"]);
    let extents = map["extents"].as_array().unwrap();
    assert_eq!(
        extents[0],
        serde_json::json!({
            "start": 0, "length": 2 << 20, "kind": "hole", "depth": null,
        })
    );
    assert_eq!((&extents[1]["kind"], &extents[1]["depth"]), (&"data".into(), &1.into()));
    let sum: u64 = extents.iter().map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert_eq!(sum, 8 << 20);
    let totals = desk.json(0, &["map", "--json", "--totals", "child.vhd"]);
    let bytes = totals["totals"].as_array().unwrap().iter().map(|row| row["bytes"].as_u64());
    assert_eq!(bytes.map(Option::unwrap).sum::<u64>(), 8 << 20);
    desk.ends(0, &["map", "child.vhd"]);
    desk.ends(0, &["check", "--chain", "child.vhd"]);
    fs::remove_file(desk.path("base.vhd")).unwrap();
    desk.ends(0, &["info", "child.vhd"]);
    assert_eq!(desk.json(1, &["map", "--json", "child.vhd"])["error"]["code"], "parent-missing");
    let checked = desk.json(5, &["check", "--chain", "--json", "child.vhd"]);
    assert_eq!(checked["images"][1]["error"]["code"], "parent-missing");
}

#[test]
fn a_parent_elsewhere_needs_the_users_word() {
    let desk = Desk::new();
    fs::create_dir(desk.path("base")).unwrap();
    fs::create_dir(desk.path("home")).unwrap();
    desk.ends(0, &["create", "base/base.vhd", "-s", "4M"]);
    let create = ["create", "home/child.vhd", "--parent", "base/base.vhd"];
    desk.ends(1, &create);
    desk.ends(0, &[&create[..], &["--allow-parent", "base"]].concat());
    desk.ends(1, &["map", "home/child.vhd"]);
    desk.ends(0, &["map", "home/child.vhd", "--allow-parent", "base"]);
    desk.ends(0, &["create", "base/plain.raw", "-s", "4M"]);
    desk.ends(0, &["create", "base/over-raw.vhd", "--parent", "base/plain.raw"]);
    let info = desk.json(0, &["info", "--json", "--chain", "base/over-raw.vhd"]);
    assert_eq!(info["layers"][0]["parent"]["raw"], true);
    assert_eq!(info["layers"][1]["kind"], "raw");
    desk.ends(1, &["create", "base/base.vhd", "--parent", "base/base.vhd"]);
    desk.ends(2, &["create", "base/base.vhd", "--parent", "base/base.vhd", "--force"]);
}

fn place(desk: &Desk, number: u32, name: &str) -> PathBuf {
    let case = cases().into_iter().find(|case| case.number == number).unwrap();
    let path = desk.path(name);
    case.file().write_to(&path).unwrap();
    path
}

#[test]
fn a_check_finds_damage_and_repairs_what_needs_no_guess() {
    let desk = Desk::new();
    place(&desk, 0, "good.vhd");
    assert_eq!(desk.json(0, &["check", "--json", "good.vhd"])["sound"], true);
    place(&desk, 1, "crossed.vhd");
    let report = desk.json(5, &["check", "--json", "crossed.vhd"]);
    assert_eq!(report["images"][0]["findings"][0]["rule"], "V5");
    desk.ends(5, &["check", "--repair=all", "crossed.vhd"]);
    let path = place(&desk, 11, "torn.vhd");
    let before = fs::read(&path).unwrap();
    let told = desk.ends(5, &["check", "torn.vhd"]);
    assert!(told.contains("write the footer"), "{told}");
    assert_eq!(fs::read(&path).unwrap(), before, "a check writes nothing");
    desk.ends(6, &["check", "--repair=footer", "torn.vhd"]);
    desk.ends(0, &["check", "torn.vhd"]);
    desk.judge("vhdiinfo", &["torn.vhd"]);
    desk.judge("7zz", &["t", "torn.vhd"]);
}

/// A program that holds an image open until dropped.
struct Holder {
    pid: Option<String>,
}

impl Holder {
    /// qemu-nbd, serving; `None` when it is not installed.
    fn nbd(desk: &Desk, extra: &[&str], image: &str) -> Option<Self> {
        let (socket, pid_file) = (desk.path("nbd.sock"), desk.path("nbd.pid"));
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (socket, pid) = (path(&socket), path(&pid_file));
        let image = path(&desk.path(image));
        let fixed = ["--fork", "-t", "-f", "vpc", "-k", &socket, "--pid-file", &pid];
        // With --fork it returns when it serves; its output stays open in the child.
        let run = Command::new("qemu-nbd")
            .args([&fixed[..], extra, &[&image]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let Ok(status) = run else {
            eprintln!("SKIPPED: qemu-nbd is not installed");
            return None;
        };
        assert!(status.success(), "qemu-nbd does not start");
        Some(Self { pid: Some(fs::read_to_string(pid_file).unwrap().trim().to_owned()) })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let Some(pid) = self.pid.take() else { return };
        let _gone = Command::new("kill").arg(&pid).status();
        while Path::new("/proc").join(&pid).exists() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_image_that_qemu_writes_is_left_alone() {
    let desk = Desk::new();
    Builder::dynamic().build().write_to(&desk.path("a.vhd")).unwrap();
    let Some(holder) = Holder::nbd(&desk, &[], "a.vhd") else { return };
    let error = desk.json(4, &["check", "--json", "a.vhd"]);
    assert_eq!(error["error"]["code"], "locked");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("\"write\" lock") && message.contains("qemu-nbd (pid"), "{message}");
    desk.ends(4, &["info", "a.vhd"]);
    desk.ends(4, &["map", "a.vhd"]);
    desk.ends(4, &["check", "--repair=all", "a.vhd"]);
    desk.ends(4, &["create", "a.vhd", "-s", "4M", "--force"]);
    desk.ends(4, &["create", "child.vhd", "--parent", "a.vhd"]);
    desk.ends(0, &["info", "-U", "a.vhd"]);
    drop(holder);
    desk.ends(0, &["info", "a.vhd"]);
}

#[test]
fn an_image_that_qemu_reads_may_be_read_but_not_written() {
    let desk = Desk::new();
    Builder::dynamic().build().write_to(&desk.path("a.vhd")).unwrap();
    let Some(_holder) = Holder::nbd(&desk, &["-r"], "a.vhd") else { return };
    desk.ends(0, &["info", "a.vhd"]);
    desk.ends(0, &["map", "a.vhd"]);
    desk.ends(4, &["check", "--repair=all", "a.vhd"]);
    let error = open(&OpenOptions::new(desk.path("a.vhd"))).unwrap_err();
    assert_eq!(error.code(), "locked");
}

#[test]
fn qemu_leaves_alone_what_we_have_open() {
    let desk = Desk::new();
    let path = desk.path("a.vhd");
    Builder::dynamic().build().write_to(&path).unwrap();
    let read = ["-r", "-f", "vpc", "-c", "read 0 512", "a.vhd"];
    let write = ["-f", "vpc", "-c", "write 0 512", "a.vhd"];
    let chain = open(&OpenOptions::new(&path)).unwrap();
    let Some(refused) = desk.tool("qemu-io", &read) else { return };
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("lock"), "{told}");
    assert!(!desk.tool("qemu-io", &write).unwrap().status.success());
    assert!(!desk.tool("qemu-img", &["info", "-f", "vpc", "a.vhd"]).unwrap().status.success());
    desk.judge("qemu-img", &["info", "-U", "-f", "vpc", "a.vhd"]);
    drop(chain);
    let chain = open_soon(&OpenOptions { read_only: true, ..OpenOptions::new(&path) });
    desk.judge("qemu-io", &read);
    assert!(!desk.tool("qemu-io", &write).unwrap().status.success());
    drop(chain);
    drop(open_soon(&OpenOptions::new(&path)));
    desk.judge("qemu-io", &write);
}

#[test]
fn a_server_says_in_json_when_it_is_ready_and_why_it_is_not() {
    let desk = Desk::new();
    let serve = ["serve", "d.vhd", "--create", "1M", "--json", "--socket", "s.sock"];
    // The captive command ends the server, and its exit code is the server's.
    let ready = desk.json(7, &[&serve[..], &["--run", "test \"$uri\" && exit 7"]].concat());
    assert_eq!(ready["size"], 1 << 20);
    assert_eq!(ready["read_only"], false);
    let uri = format!("nbd+unix:///?socket={}", desk.path("s.sock").display());
    assert_eq!(ready["uris"][0], uri.as_str());
    let missing = desk.json(3, &["serve", "absent.vhd", "--json", "--socket", "s.sock"]);
    assert_eq!(missing["error"]["code"], "not-found");
}

#[test]
fn a_server_s_end_before_it_began_has_its_own_exit_code() {
    let desk = Desk::new();
    desk.ends(0, &["create", "a.vhd", "-s", "4M"]);
    let _taken = std::os::unix::net::UnixListener::bind(desk.path("taken")).unwrap();
    let error = desk.json(4, &["serve", "a.vhd", "--json", "--socket", "taken"]);
    assert_eq!(error["error"]["code"], "address-in-use");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port.local_addr().map(|at| (at.port().to_string(), port)).unwrap();
    desk.json(4, &["serve", "a.vhd", "--json", "--port", &port.0]);
    let serve = ["serve", "a.vhd", "--json", "--socket", "s.sock"];
    let error = desk.json(3, &[&serve[..], &["--partition", "1"]].concat());
    assert_eq!(error["error"]["code"], "no-partition");
    desk.ends(2, &["bench", "file:x.raw", "--rw", "randwrite", "--time", "1"]);
    // README's own form.
    desk.json(0, &[&serve[..], &["--overlay", "--run", "true"]].concat());
    desk.json(0, &[&serve[..], &["--overlay=.", "--run", "true"]].concat());
    let told = desk.ends(0, &[&serve[..], &["--create", "8M", "--run", "true"]].concat());
    assert!(told.contains("there already"), "{told}");
}

/// A server told to end at any moment of its start ends in order, if it had begun at all: whoever
/// kills it before it can hear finds nothing of it.
#[test]
fn a_server_that_is_told_to_end_while_it_starts_leaves_no_socket() {
    let desk = Desk::new();
    desk.ends(0, &["create", "a.vhd", "-s", "64M"]);
    let (mut in_order, socket) = (0, desk.path("s.sock"));
    for turn in 0..40 {
        let mut server = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["serve", "a.vhd", "--socket", "s.sock"])
            .current_dir(desk.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first as soon as its socket is there, the others somewhere around that.
        if turn % 4 == 0 {
            while !socket.exists() {
                assert!(server.try_wait().unwrap().is_none(), "it ended by itself");
                std::thread::yield_now();
            }
        } else {
            std::thread::sleep(std::time::Duration::from_micros(turn * 250));
        }
        let pid = rustix::process::Pid::from_raw(server.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = server.wait().unwrap();
        assert!(!socket.exists(), "turn {turn}: {status}, and the socket is left behind");
        in_order += u32::from(status.success());
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(15);
        assert!(status.success() || (killed && turn % 4 != 0), "turn {turn}: {status}");
    }
    assert!(in_order >= 10);
}

#[test]
fn an_answer_that_nobody_reads_to_its_end_is_no_failure() {
    let desk = Desk::new();
    // Every second sector is there: far more extents than a pipe holds.
    let bitmaps = SLOTS.map(|slot| (u64::from(slot) * 512, vec![0xAA; 512]));
    let image = Builder::dynamic().with(|b| b.raw.extend(bitmaps));
    image.build().write_to(&desk.path("many.vhd")).unwrap();
    let mut map = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["map", "many.vhd"])
        .current_dir(desk.dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(map.stdout.take());
    assert!(map.wait().unwrap().success());
    let totals = desk.json(0, &["map", "--json", "--totals", "many.vhd"]);
    assert_eq!(totals["totals"][1]["extents"], 4096);
}
