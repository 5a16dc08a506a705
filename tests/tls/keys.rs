//! Pre-shared keys, with the programs of libnbd and QEMU. Keys are made by `psktool`.

use tempfile::TempDir;

use crate::foreign::{have, run, run_any, text, told};
use crate::server::Server;
use crate::{MIB, raw, socket};

/// A key that nobody has.
const WRONG: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn who_knows_a_key_is_let_in_and_nobody_else() {
    if !have(&["psktool", "nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, _) = raw(&folder, "disk.raw", MIB, 1);
    let place = |name: &str| folder.path().join(name).join("keys.psk");
    for name in ["right", "wrong", "unknown"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let right = place("right");
    for user in ["alice", "bob"] {
        run("psktool", &["-u", user, "-p", text(&right)]);
    }
    std::fs::write(place("wrong"), format!("alice:{WRONG}\n")).unwrap();
    std::fs::write(place("unknown"), format!("mallory:{WRONG}\n")).unwrap();
    let both = std::fs::read_to_string(&right).unwrap();
    let spec = format!("name=bobs,image={},allow=psk:bob", text(&disk));
    let words = ["--tls-psk", text(&right), "--add", &spec, "--default", ""];
    let server = Server::start(&disk, &words);
    let uri = |user: &str, keys: &str, export: &str| {
        let uri = server.uri_of(export).replace("nbd+", "nbds+");
        let uri = uri.replace("unix://", &format!("unix://{user}@"));
        format!("{uri}&tls-psk-file={}", text(&place(keys)))
    };
    let told_of = |user: &str, keys: &str, export: &str| {
        let words = ["--json".to_owned(), uri(user, keys, export)];
        let output = run_any("nbdinfo", &words);
        (output.status.success(), told("nbdinfo", &words, &output))
    };
    for (user, keys, export, good) in [
        ("alice", "right", "", true),
        ("bob", "right", "", true),
        ("bob", "right", "bobs", true),
        ("alice", "right", "bobs", false),
        ("alice", "wrong", "", false),
        ("mallory", "unknown", "", false),
    ] {
        let (let_in, all) = told_of(user, keys, export);
        assert_eq!(let_in, good, "{user} {keys} {export}: {all}\n{}", server.log());
    }
    let about = "user name or its pre-shared key is wrong";
    assert_eq!(server.log().matches(about).count(), 2, "{}", server.log());
    assert!(server.log().contains("may not use an export"), "{}", server.log());
    run("nbdcopy", &[&uri("alice", "right", ""), "null:"]);
    let qemu = |user: &str, keys: &str| {
        let dir = folder.path().join(keys);
        let credentials =
            format!("tls-creds-psk,id=t,endpoint=client,username={user},dir={}", text(&dir));
        let place = format!("server.type=unix,server.path={}", socket(&server));
        let words = ["--object", &credentials, "--image-opts"];
        let image = format!("driver=nbd,{place},tls-creds=t");
        let write = ["-c", "write -P 7 4k 64k", "-c", "read -P 7 4k 64k", &image];
        run_any("qemu-io", &[&words[..], &write].concat())
    };
    let output = qemu("alice", "right");
    assert!(output.status.success(), "{}", told("qemu-io", &["alice"], &output));
    assert!(
        !qemu("alice", "wrong").status.success() && !qemu("mallory", "unknown").status.success()
    );
    assert!(both.contains("alice:") && both.contains("bob:"));
    server.close();
    assert_eq!(std::fs::read(&disk).unwrap()[4096..69632], [7; 65536]);
}
