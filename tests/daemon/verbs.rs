//! Every verb of `orlop sr` and `orlop vdi`: what it does, says and ends with.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::foreign;
use crate::house::House;

fn both<'a>(words: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [words, more].concat()
}

#[test]
fn an_sr_is_made_looked_at_and_removed() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let at = house.path("one");
    let location = format!("location={}", at.display());
    let place = ["--type", "file", "-o", &location];
    let call = |words: &[&'static str]| -> Vec<&str> { both(words, &place) };
    std::fs::create_dir(&at).unwrap();
    let probed = house.json(0, &call(&["sr", "probe"]));
    assert_eq!((&probed["holds"], &probed["sr"]), (&json!("nothing"), &json!(null)));
    house.fails(3, &call(&["sr", "attach"]));
    let made = house.json(0, &call(&["sr", "create", "--no-attach", "--label", "one"]));
    let sr = made["sr"].as_str().unwrap().to_owned();
    assert_eq!(house.done(&["sr", "list"]), "");
    let probed = house.json(0, &call(&["sr", "probe"]));
    assert_eq!((&probed["holds"], &probed["sr"]), (&json!("sr"), &json!(sr)));
    // What lies there says who it is.
    assert_eq!(house.done(&call(&["sr", "attach"])), sr);
    let listed = house.json(0, &["sr", "list"]);
    assert_eq!(listed["srs"][0]["sr"], json!(sr));
    let line = format!("{sr}\tone\tfile\t0\t{}", at.display());
    assert_eq!(house.done(&["sr", "ls"]), line);
    let shown = house.json(0, &["sr", "show", &sr[..6]]);
    assert_eq!((&shown["label"], &shown["vdis"]), (&json!("one"), &json!(0)));
    assert_eq!(shown["config"], json!({ "location": at.to_str().unwrap() }));
    let told = house.fails(1, &call(&["sr", "create"]));
    assert!(told.contains("there already"), "{told}");
    let vdi = house.done(&["vdi", "create", "-s", "1M"]);
    assert_eq!(house.json(0, &["sr", "scan", "one"])["vdis"][0]["uuid"], json!(vdi));
    // Nothing goes without being told, and no SR with VDIs goes at all.
    assert!(house.fails(2, &["sr", "delete", "one"]).contains("would be removed"));
    house.fails(4, &["sr", "delete", "one", "--yes"]);
    assert_eq!(house.done(&["sr", "list"]), line, "it is no longer attached");
    house.done(&["vdi", "delete", &vdi, "--yes"]);
    house.done(&["sr", "detach", "one"]);
    assert_eq!(house.done(&["sr", "list"]), "");
    house.fails(3, &["sr", "show", "one"]);
    house.done(&both(&["sr", "attach", &sr], &place));
    house.done(&["sr", "delete", "one", "--yes"]);
    assert_eq!(house.done(&["sr", "list"]), "");
    // Whoever is not attached is named in full.
    house.fails(2, &call(&["sr", "delete", "one", "--yes"]));
    house.done(&both(&["sr", "delete", &sr, "--yes"], &place));
    // Parameters that cannot be, and drivers that are not there yet.
    house.fails(2, &["sr", "create", "--type", "file", "-o", "location=relative"]);
    house.fails(2, &["sr", "create", "--type", "file", "-o", "location"]);
    house.fails(8, &["sr", "create", "--type", "nfs", "-o", "server=a"]);
    house.fails(3, &["sr", "probe", "--type", "file", "-o", "location=/nonexistent"]);
    // Places that hold something else are told apart from places that are not there.
    std::fs::create_dir_all(at.join("photos")).unwrap();
    assert!(house.fails(3, &call(&["sr", "probe"])).contains("no SR lies there"));
    assert!(house.fails(3, &call(&["sr", "attach"])).contains("belong to none"));
    std::fs::write(house.path("file"), "").unwrap();
    let location = format!("location={}", house.path("file").display());
    let told = house.fails(3, &["sr", "create", "--type", "file", "-o", &location]);
    assert!(told.contains("it is no directory"), "{told}");
    daemon.stop();
}

/// Has QEMU open what we tell people to write on its command line, as far as a program without
/// machines understands it.
fn qemu_understands(options: &str, bytes: u64) {
    const ASK: &str = "{'execute':'qmp_capabilities'}{'execute':'query-named-block-nodes'}\
        {'execute':'quit'}";
    if !foreign::have(&["qemu-storage-daemon"]) {
        return;
    }
    let node = options.strip_prefix("-blockdev '").unwrap().split('\'').next().unwrap();
    let mut command = Command::new("timeout");
    command.args(["20", "qemu-storage-daemon", "--blockdev", node, "--chardev", "stdio,id=c"]);
    command.args(["--monitor", "chardev=c"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut asked = child.stdin.take().unwrap();
    asked.write_all(ASK.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(asked);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(&format!("\"virtual-size\": {bytes}")), "{told}");
}

#[test]
fn a_vdi_is_made_used_and_deleted() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let sr = house.sr("sr");
    let fixed = "11111111-2222-4333-8444-555555555555";
    let create = ["vdi", "create", "-s", "64K", "--label", "root", "-p", "owner=me"];
    let made = house.json(0, &[&create[..], &["--uuid", fixed, "--description", "d"]].concat());
    assert_eq!(made["vdi"], fixed);
    house.fails(1, &["vdi", "create", "-s", "1M", "--uuid", fixed]);
    assert!(house.fails(2, &["vdi", "create", "-s", "1000"]).contains("512 and 1024"));
    let shown = house.json(0, &["vdi", "show", "root"]);
    assert_eq!(shown["properties"], json!({ "owner": "me" }));
    assert_eq!((&shown["size"], &shown["attached"]), (&json!(65536), &json!(false)));
    let reach = ["--qemu", "--libvirt", "--nbd-uri", "--path"];
    for how in reach {
        assert!(house.fails(1, &["vdi", "show", "root", how]).contains("not attached"));
    }
    for large in [&["create", "-s", "3T"][..], &["resize", "root", "3T"]] {
        let told = house.fails(2, &[&["vdi"], large].concat());
        assert!(told.contains("at most 2040 GiB"), "{told}");
    }
    house.done(&["vdi", "resize", "root", "128K"]);
    house.fails(2, &["vdi", "resize", "root", "64K"]);
    assert!(house.fails(2, &["vdi", "set", "root"]).contains("--label"));
    house.done(&["vdi", "set", "root", "--label", "boot"]);
    let (_, uri) = house.attached("boot");
    assert_eq!(house.attached("boot").1, uri);
    assert_eq!(house.json(0, &["vdi", "show", "boot"])["nbd_uri"], json!(uri));
    let socket = house.state().join("run/nbd.sock");
    let qemu = house.done(&["vdi", "show", "boot", "--qemu"]);
    let wanted = format!("server.path={},export={fixed}", socket.display());
    assert!(qemu.contains(&wanted), "{qemu}");
    qemu_understands(&qemu, 131_072);
    let libvirt = house.done(&["vdi", "show", "boot", "--libvirt"]);
    assert!(libvirt.contains(&format!("socket='{}'", socket.display())), "{libvirt}");
    for busy in [&["resize", "boot", "1M"][..], &["delete", "boot", "--yes"], &["clone", "boot"]] {
        assert!(house.fails(4, &[&["vdi"], busy].concat()).contains("attached"), "{busy:?}");
    }
    house.fails(4, &["sr", "detach", "sr"]);
    house.done(&["vdi", "detach", "boot"]);
    house.done(&["vdi", "attach", "boot", "--read-only"]);
    let qemu = house.done(&["vdi", "show", "boot", "--qemu"]);
    assert!(qemu.contains("read-only=on"), "{qemu}");
    qemu_understands(&qemu, 131_072);
    house.done(&["vdi", "detach", "boot"]);
    house.done(&["vdi", "detach", "boot"]);
    // Locks.
    house.done(&["vdi", "lock", "boot", "--user", "me", "--lease", "600"]);
    house.fails(4, &["vdi", "lock", "boot", "--user", "you"]);
    house.fails(2, &["vdi", "lock", "boot", "--user", "me", "--lease", "0"]);
    let told = house.fails(4, &["vdi", "delete", "boot", "--yes"]);
    assert!(told.contains("let the holder unlock it"), "{told}");
    assert!(house.done(&["vdi", "list"]).contains("locked"));
    house.done(&["vdi", "lock", "boot", "--user", "you", "--force"]);
    house.fails(4, &["vdi", "unlock", "boot", "--user", "me"]);
    house.done(&["vdi", "unlock", "boot", "--user", "you"]);
    // Nothing goes without being told.
    let told = house.fails(2, &["vdi", "delete", "boot"]);
    assert!(told.contains("128 KiB") && told.contains("would be deleted"), "{told}");
    house.done(&["vdi", "rm", "boot", "-y"]);
    let told = house.json(3, &["vdi", "show", "boot"]);
    assert_eq!(told["error"]["code"], "not-found");
    let raw = house.done(&["vdi", "create", "-s", "1M", "--format", "raw", "--read-only"]);
    assert!(house.path("sr").join(format!("{raw}.raw")).exists());
    house.fails(1, &["vdi", "attach", &raw, "--read-write"]);
    house.done(&["vdi", "attach", &raw]);
    assert!(house.done(&["vdi", "show", &raw, "--libvirt"]).contains("<readonly/>"));
    house.done(&["vdi", "detach", &raw, "--sr", &sr[..5]]);
    daemon.stop();
}

#[test]
fn words_stand_for_one_disk_or_the_others_are_named() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    house.fails(3, &["vdi", "create", "-s", "1M"]);
    house.sr("one");
    let uuids = ["aaaa1111", "aaaa2222", "bbbb3333"]
        .map(|head| format!("{head}-2222-4333-8444-555555555555"));
    for (uuid, label) in uuids.iter().zip(["x", "twin", "twin"]) {
        house.done(&["vdi", "create", "-s", "1M", "--uuid", uuid, "--label", label]);
    }
    let found = |word: &str| house.json(0, &["vdi", "show", word])["vdi"].clone();
    assert_eq!(found("b"), json!(uuids[2]));
    assert_eq!(found("AAAA1"), json!(uuids[0]));
    assert_eq!(found("x"), json!(uuids[0]));
    for word in ["aaaa", "twin"] {
        let told = house.json(2, &["vdi", "show", word]);
        assert_eq!(told["error"]["code"], "ambiguous");
        assert!(told["error"]["message"].as_str().unwrap().contains(&uuids[1]), "{told}");
    }
    house.fails(3, &["vdi", "show", "cccc"]);
    // With several SRs a new VDI needs to be told which.
    house.sr("two");
    assert!(house.fails(2, &["vdi", "create", "-s", "1M"]).contains("several SRs"));
    house.done(&["vdi", "create", "-s", "1M", "--sr", "two", "--label", "twin"]);
    house.done(&["vdi", "show", "twin", "--sr", "two"]);
    assert_eq!(house.done(&["vdi", "list", "--sr", "two"]).lines().count(), 1);
    assert_eq!(house.done(&["vdi", "list"]).lines().count(), 4);
    // A label can say anything, and none of it reaches the terminal.
    house.done(&["vdi", "set", "x", "--label", "\u{1b}[2Jx\ty"]);
    let listed = house.done(&["vdi", "list", "--sr", "one"]);
    assert!(!listed.contains('\u{1b}') && listed.contains("[2Jx\\ty"), "{listed}");
    daemon.stop();
}

#[test]
fn snapshots_and_clones_are_a_tree() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    house.sr("sr");
    let root = house.done(&["vdi", "create", "-s", "1M", "--label", "root"]);
    let snap = house.done(&["vdi", "snapshot", "root", "--label", "before"]);
    let copy = house.json(0, &["vdi", "clone", "root", "--label", "copy"])["vdi"].clone();
    let tree = house.done(&["vdi", "tree"]);
    let lines: Vec<&str> = tree.lines().collect();
    assert!(lines[1].starts_with("`-- ") && lines[1].contains(&snap), "{tree}");
    assert!(lines[2].starts_with("    `-- ") && lines[2].contains("hidden"), "{tree}");
    assert!(lines[3].starts_with("        |-- ") && lines[4].starts_with("        `-- "), "{tree}");
    let object = house.json(0, &["vdi", "tree"]);
    let hidden = &object["srs"][0]["roots"][0]["children"][0];
    let mut leaves: Vec<_> =
        hidden["children"].as_array().unwrap().iter().map(|vdi| vdi["uuid"].clone()).collect();
    leaves.sort_by_key(ToString::to_string);
    let mut wanted = vec![json!(root), copy];
    wanted.sort_by_key(ToString::to_string);
    assert_eq!(leaves, wanted);
    assert_eq!(house.json(0, &["vdi", "show", &snap])["snapshot_of"], json!(root));
    let told = house.fails(2, &["vdi", "delete", "before"]);
    assert!(told.contains("1 others keep"), "{told}");
    house.done(&["vdi", "delete", "before", "--yes"]);
    house.done(&["vdi", "delete", "copy", "--yes"]);
    let plan = house.json(0, &["sr", "gc", "sr", "--dry-run"]);
    let merges = plan["merge"].as_array().unwrap();
    assert!(merges.iter().any(|merge| merge["parent"] == json!(snap)), "{plan}");
    assert_eq!((&plan["remove"], merges.len()), (&json!([]), 2));
    let collected = house.json(0, &["sr", "gc", "sr"]);
    assert_eq!(collected["merged"].as_array().unwrap().len(), 2, "{collected}");
    assert!(house.done(&["sr", "gc", "sr"]).starts_with("removed 0, merged 0, left 0"));
    assert_eq!(house.done(&["vdi", "tree"]).lines().count(), 2);
    daemon.stop();
}

#[test]
fn without_a_daemon_everything_says_so() {
    let house = House::new();
    for words in [&["sr", "list"][..], &["vdi", "list"], &["vdi", "show", "x"]] {
        let told = house.fails(7, words);
        assert!(told.contains("api.sock") && told.contains("systemctl start orlop"), "{told}");
        assert_eq!(house.json(7, words)["error"]["code"], "unreachable");
    }
    house.fails(2, &["vdi"]);
    house.fails(2, &["sr", "create"]);
}

#[test]
fn the_storage_manager_api_is_spoken_on_command_lines() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let sr = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
    let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
    let dconf = format!("<dconf><location>{}</location></dconf>", house.path("sr").display());
    let sm = |words: &[&str]| house.orlop(&[&["sm", "file", &dconf], words].concat());
    assert_eq!(sm(&["sr_create", sr, "0"]).0, 0);
    assert_eq!(sm(&["sr_create", sr, "0"]).0, 17);
    assert_eq!(sm(&["vdi_create", sr, vdi, "1048576"]).0, 19, "it is not attached");
    assert_eq!(sm(&["sr_attach", sr]).0, 0);
    assert_eq!(sm(&["vdi_create", sr, vdi, "1048576"]).0, 0);
    let (code, out, _) = sm(&["sr_scan", sr]);
    assert!(code == 0 && out.contains(vdi) && out.starts_with("<?xml"), "{out}");
    let (code, _, err) = sm(&["vdi_create", sr]);
    assert!(code == 22 && err.contains("VDI-UUID"), "{err}");
    assert_eq!(house.done(&["vdi", "list"]).lines().count(), 1);
    // A link whose name says which plugin it is.
    let plugin = house.path("FileSR");
    symlink(env!("CARGO_BIN_EXE_orlop"), &plugin).unwrap();
    let call = "<?xml version='1.0'?><methodCall><methodName>sr_get_driver_info</methodName>\
        <params><param><value><struct><member>\
        <name>command</name><value>sr_get_driver_info</value></member></struct></value></param>\
        </params></methodCall>";
    let run = |socket: &std::path::Path, words: &[&str]| {
        let mut command = Command::new(&plugin);
        let output = command.args(words).env("ORLOP_SOCKET", socket).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (well, answer) = run(&house.socket(), &[call]);
    assert!(well && answer.contains("capabilities") && !answer.contains("<fault>"), "{answer}");
    for (socket, words) in
        [(house.path("nobody"), &[call][..]), (house.socket(), &[]), (house.socket(), &["x", "y"])]
    {
        let (well, answer) = run(&socket, words);
        assert!(well && answer.contains("<fault>"), "{answer}");
    }
    daemon.stop();
}

#[test]
fn a_broken_vdi_is_spoken_of_as_broken_and_a_snapshot_does_not_take_its_name() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    house.sr("one");
    house.sr("two");
    let root = house.done(&["vdi", "create", "--sr", "one", "-s", "1M", "--label", "root"]);
    let snapshot = house.done(&["vdi", "snapshot", "root"]);
    // Both are called root; the word means the VDI.
    assert_eq!(house.json(0, &["vdi", "show", "root"])["vdi"], json!(root));
    assert_eq!(house.json(0, &["vdi", "show", &snapshot])["label"], "root");
    let base = house.path("one").join(format!("{snapshot}.vhd"));
    let aside = house.path("aside");
    std::fs::rename(&base, &aside).unwrap();
    for (words, code) in [(["attach", &root], 1), (["show", &root], 1), (["show", &root[..8]], 1)] {
        let told = house.fails(code, &[&["vdi"], &words[..]].concat());
        assert!(told.contains("its parent") && told.contains("not in this SR"), "{told}");
    }
    let (code, out, err) = house.orlop(&["vdi", "list"]);
    assert_eq!((code, out.contains(&root)), (0, false), "{out}");
    assert!(err.contains(&root) && err.contains("its parent"), "{err}");
    assert!(house.json(0, &["vdi", "list"])["findings"][0]["problem"].is_string());
    // Another image under the parent's name is not the parent.
    let other = house.done(&["vdi", "create", "--sr", "two", "-s", "1M"]);
    std::fs::copy(house.path("two").join(format!("{other}.vhd")), &base).unwrap();
    let told = house.fails(1, &["vdi", "attach", &root]);
    assert!(told.contains("is another image"), "{told}");
    std::fs::rename(&aside, &base).unwrap();
    house.attached("root");
    daemon.stop();
}
