//! What a guest writes at the end of its image's file must not be taken for the image's own words,
//! and a disk that grew is reached to its new end by those connected before. A raw client speaks
//! the protocol's bytes.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;

use tempfile::TempDir;

use foreign::{PYTHON, orlop, run, text};
use server::Server;

/// EXPORT_NAME, then requests with simple replies.
const CLIENT: &str = r#"
import socket, struct, sys
def connect(path):
    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(path)
    take(s, 18); s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 0))
    take(s, 10)
    return s
def take(s, n):
    b = b''
    while len(b) < n:
        p = s.recv(n - len(b)); assert p, 'hung up'; b += p
    return b
def ask(s, command, at, length, data=b''):
    s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, command, 7, at, length) + data)
    magic, error, cookie = struct.unpack('>IIQ', take(s, 16))
    assert (magic, cookie) == (0x67446698, 7)
    return error
def footer(size):
    f = bytearray(512)
    f[0:8] = b'conectix'
    struct.pack_into('>IIQI4sI4sQQHBBI', f, 8, 2, 0x10000, 2**64 - 1, 0, b'win ', 0x60001,
                     b'Wi2k', size, size, 65, 4, 17, 2)
    f[68:84] = bytes(range(16))
    struct.pack_into('>I', f, 64, ~sum(f) & 0xffffffff)
    return bytes(f)
"#;

fn client(script: &str, arguments: &[&str]) {
    let whole = format!("{CLIENT}{script}");
    run(PYTHON, &[&["-c", &whole], arguments].concat());
}

#[test]
fn a_footer_that_a_guest_wrote_at_the_end_is_not_believed_after_a_kill() {
    for tail in ["footer(2 << 20)", "footer(2 << 20) + bytes(512)"] {
        let folder = TempDir::new().unwrap();
        let image = folder.path().join("a.vhd");
        orlop(&["create", text(&image), "--size", "64M"]);
        let server = Server::start(&image, &[]);
        let socket = server.path("nbd");
        let script = format!(
            "s = connect(sys.argv[1])\n\
             assert ask(s, 1, 0, 4096, b's' * 4096) == 0 and ask(s, 3, 0, 0) == 0\n\
             tail = {tail}\n\
             assert ask(s, 1, (4 << 20) - len(tail), len(tail), tail) == 0\n"
        );
        client(&script, &[text(&socket)]);
        server.kill();
        let told = orlop(&["info", "--json", text(&image)]);
        assert!(told.contains("dynamic") && told.contains("67108864"), "{told}");
        let server = Server::start(&image, &[]);
        let script = "s = connect(sys.argv[1])\n\
             assert ask(s, 0, 0, 4096) == 0 and take(s, 4096) == b's' * 4096\n";
        client(script, &[text(&server.path("nbd"))]);
        server.close();
    }
}

#[test]
fn a_disk_that_grew_is_reached_to_its_end_by_those_connected_before() {
    let folder = TempDir::new().unwrap();
    for name in ["a.vhd", "a.raw"] {
        let image = folder.path().join(name);
        orlop(&["create", text(&image), "--size", "64M"]);
        let server = Server::start(&image, &["--allow-resize"]);
        let script = "s = connect(sys.argv[1]); other = connect(sys.argv[1])\n\
             far = 100 << 20\n\
             assert ask(s, 1, far, 512, b'x' * 512) == 28\n\
             assert ask(s, 8, 128 << 20, 0) == 0\n\
             assert ask(s, 1, far, 512, b'x' * 512) == 0\n\
             assert ask(other, 1, far + 512, 512, b'y' * 512) == 0\n\
             late = connect(sys.argv[1])\n\
             assert ask(late, 0, far, 1024) == 0\n\
             assert take(late, 1024) == b'x' * 512 + b'y' * 512\n\
             assert ask(s, 8, 64 << 20, 0) != 0\n";
        client(script, &[text(&server.path("nbd"))]);
        server.close();
        assert!(orlop(&["info", "--json", text(&image)]).contains("134217728"));
    }
}
