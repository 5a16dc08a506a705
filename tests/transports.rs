//! Every way into a server, walked by clients nobody here wrote: sockets of each family, sockets
//! it was started with, connections passed to it, and standard input and output.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use foreign::{PYTHON, assert_same, content, have, run, run_any, text, told};
use server::Server;
use tempfile::TempDir;

const ORLOP: &str = env!("CARGO_BIN_EXE_orlop");
const MIB: u64 = 1 << 20;

/// A raw image of a mebibyte and a half that is recognised.
fn image(folder: &TempDir) -> (PathBuf, Vec<u8>) {
    let path = folder.path().join("disk.raw");
    let bytes = content(MIB + 512, 21);
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// What nbdcopy reads from there.
fn expect_content(uri: &str, bytes: &[u8]) {
    let copy = TempDir::new().unwrap();
    let path = copy.path().join("copy");
    run("nbdcopy", &[uri, text(&path)]);
    assert_same(&std::fs::read(&path).unwrap(), bytes, uri);
}

/// All URIs that a server announces with --json.
fn uris(first_line: &str) -> Vec<String> {
    let told: serde_json::Value = serde_json::from_str(first_line).unwrap();
    let uris = told["uris"].as_array().unwrap();
    uris.iter().map(|uri| uri.as_str().unwrap().to_owned()).collect()
}

fn mode(path: &Path) -> u32 {
    let meta = std::fs::symlink_metadata(path).unwrap();
    assert!(meta.file_type().is_socket(), "{} is no socket", path.display());
    meta.permissions().mode() & 0o777
}

/// Serving is refused, and the words say why.
fn expect_refusal(arguments: &[&str], about: &str) {
    let output = run_any(ORLOP, &[&["serve"], arguments].concat());
    let all = told("orlop serve", arguments, &output);
    assert!(!output.status.success() && all.contains(about), "not {about:?}: {all}");
    assert!(output.status.code().is_some_and(|code| code < 100), "it did not end by itself: {all}");
}

#[test]
fn unix_sockets_are_tight_and_gone_at_the_end() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let [second, admin, passed] = ["b", "admin", "passed"].map(|name| folder.path().join(name));
    let words = ["--socket", text(&second), "--admin", text(&admin), "--fd-socket", text(&passed)];
    let server = Server::start(&disk, &words);
    let first = server.path("nbd");
    for path in [&first, &second, &passed] {
        assert_eq!(mode(path), 0o660, "{}", path.display());
    }
    assert_eq!(mode(&admin), 0o600);
    for path in [&first, &second] {
        expect_content(&format!("nbd+unix:///?socket={}", path.display()), &bytes);
    }
    // Another server must not take over what is served, whatever kind of socket it is.
    for path in [&second, &admin, &passed] {
        for option in ["--socket", "--fd-socket", "--admin"] {
            let other = folder.path().join("other");
            let words = ["-r", text(&disk), "--socket", text(&other), option, text(path)];
            expect_refusal(&words, "another server is listening there");
            assert!(!other.exists(), "a socket that is not served stays behind");
        }
    }
    server.close();
    for path in [&second, &admin, &passed] {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_file_is_not() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let path = folder.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(&disk, &["--socket", text(&path)]);
    expect_content(&format!("nbd+unix:///?socket={}", path.display()), &bytes);
    server.close();
    std::fs::write(&path, "a letter").unwrap();
    expect_refusal(&[text(&disk), "--socket", text(&path)], "in use");
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
    expect_refusal(&[text(&disk), "--socket", "/nowhere/socket"], "/nowhere/socket");
    let long = format!("/tmp/{}", "x".repeat(200));
    expect_refusal(&[text(&disk), "--socket", &long], "cannot listen on");
}

#[test]
fn a_listener_that_does_not_answer_does_not_hold_up_a_start() {
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let path = folder.path().join("deaf");
    // Nobody accepts, and the backlog is full: to connect would mean to wait for ever.
    let script = "import socket,subprocess,sys\n\
        s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(0)\n\
        c=[socket.socket(socket.AF_UNIX) for _ in range(3)]\n\
        for one in c:\n  one.setblocking(False)\n  try: one.connect(sys.argv[1])\n\
        \u{20} except BlockingIOError: pass\n\
        r=subprocess.run(sys.argv[2:],capture_output=True,text=True,timeout=60)\n\
        assert r.returncode!=0 and 'another server' in r.stdout+r.stderr, r\n";
    let words = ["-c", script, text(&path), ORLOP, "serve", text(&disk), "--socket", text(&path)];
    run(PYTHON, &words);
}

#[test]
fn tcp_is_served_on_both_families_at_once() {
    if !have(&["nbdcopy", "nbdinfo", "qemu-img"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let words = ["--bind", "127.0.0.1", "--bind", "::1", "--bind", "127.0.0.2", "--json"];
    let server = Server::start_tcp(&disk, &words);
    let uris = uris(server.uri());
    assert_eq!(uris.len(), 3, "{uris:?}");
    assert!(uris[1].starts_with("nbd://[::1]:"), "{uris:?}");
    for uri in &uris {
        expect_content(uri, &bytes);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", uri, text(&disk)]);
        run("nbdinfo", &["--json", uri]);
    }
    server.close();
}

#[test]
fn one_slot_is_enough_for_any_number_of_listeners() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let [second, passed] = ["second", "passed"].map(|name| folder.path().join(name));
    let words = ["--socket", text(&second), "--fd-socket", text(&passed), "--port", "0"];
    let words = [&words[..], &["--max-connections", "1", "--json"]].concat();
    let server = Server::start(&disk, &words);
    for uri in uris(server.uri()) {
        run("nbdcopy", &["--connections=1", "--synchronous", &uri, "null:"]);
    }
    pass(&passed, &bytes);
    server.close();
}

#[test]
fn nobody_beyond_this_machine_is_let_in_by_accident() {
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let disk = text(&disk);
    for address in ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1"] {
        expect_refusal(&[disk, "--bind", address], "not a loopback address");
        expect_refusal(&[disk, "--bind", "127.0.0.1", "--bind", address], "--allow-remote");
    }
    expect_refusal(&[disk, "--vsock", "10810"], "--allow-remote");
    // A socket somebody else bound reaches as far.
    let script = "import os,socket,subprocess,sys\n\
        s=socket.create_server(('0.0.0.0',0)); os.set_inheritable(s.fileno(),True)\n\
        w=sys.argv[1:]+['--fd',str(s.fileno())]\n\
        r=subprocess.run(w,close_fds=False,capture_output=True,text=True,timeout=60)\n\
        assert r.returncode!=0 and '--allow-remote' in r.stdout+r.stderr, r\n\
        p=subprocess.Popen(w+['--allow-remote'],close_fds=False,stdout=subprocess.PIPE,text=True)\n\
        line=p.stdout.readline(); p.terminate(); p.wait()\n\
        assert line.startswith('nbd://0.0.0.0:'), line\n";
    run(PYTHON, &["-c", script, ORLOP, "serve", disk]);
    let server = Server::start_tcp(Path::new(disk), &["--bind", "0.0.0.0", "--allow-remote"]);
    server.close();
}

#[test]
fn vsock_listens_or_says_why_not() {
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let script = "import subprocess,sys\n\
        p=subprocess.Popen(sys.argv[1:],stdout=subprocess.PIPE,stderr=subprocess.PIPE,text=True)\n\
        line=p.stdout.readline()\n\
        if line.startswith('nbd+vsock://1:10809'): p.terminate(); p.communicate(); print('bound')\n\
        else:\n  _,log=p.communicate(timeout=60)\n\
        \u{20} assert p.returncode!=0 and 'vsock port 10809' in line+log, (line,log)\n";
    let words = ["-c", script, ORLOP, "serve", text(&disk), "--allow-remote", "--vsock", "10809"];
    println!("vsock: {}", run(PYTHON, &words));
}

#[test]
fn standard_input_and_output_are_a_connection() {
    if !have(&["nbdcopy", "nbdinfo", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let (disk, copy) = (text(&disk), folder.path().join("copy"));
    // libnbd starts the command and speaks to it over a socket pair.
    let words = ["--", "[", ORLOP, "serve", "--stdio", disk, "]", text(&copy)];
    run("nbdcopy", &words);
    assert_same(&std::fs::read(&copy).unwrap(), &bytes, "over a socket pair");
    let said = run("nbdinfo", &["--json", "--", "[", ORLOP, "serve", "--stdio", disk, "]"]);
    assert!(said.contains("1049088"), "{said}");
    let script = "import nbd,sys\nh=nbd.NBD(); h.connect_command(sys.argv[1:])\n\
        h.pwrite(b'x'*4096,8192); assert h.pread(4096,8192)==b'x'*4096; h.shutdown()\n";
    run(PYTHON, &["-c", script, ORLOP, "serve", "--stdio", disk]);
    assert_eq!(std::fs::read(disk).unwrap()[8192..12288], [b'x'; 4096]);
    expect_refusal(&[disk, "--stdio", "--port", "0"], "--stdio");
}

/// A client on two pipes that asks for much, disconnects, and only then begins to read: everything
/// that was outstanding must still come.
const ON_PIPES: &str = "import struct,subprocess,sys,time\n\
    want=open(sys.argv[1],'rb').read()\n\
    p=subprocess.Popen(sys.argv[2:],stdin=subprocess.PIPE,stdout=subprocess.PIPE)\n\
    n=lambda c:p.stdout.read(c)\n\
    assert n(18)[:8]==b'NBDMAGIC'\n\
    p.stdin.write(struct.pack('>I',3)+b'IHAVEOPT'+struct.pack('>II',7,6)+bytes(6))\n\
    p.stdin.flush()\n\
    while True:\n\
    \u{20} _,o,k,l=struct.unpack('>QIII',n(20)); n(l)\n\
    \u{20} if k==1: break\n\
    \u{20} assert k<1<<31\n\
    size=len(want)//2\n\
    for i in range(4): p.stdin.write(struct.pack('>IHHQQI',0x25609513,0,0,i,i%2*size,size))\n\
    p.stdin.write(struct.pack('>IHHQQI',0x25609513,0,2,9,0,0))\n\
    p.stdin.flush()\n\
    p.stdin.close()\n\
    time.sleep(1)\n\
    seen=set()\n\
    for _ in range(4):\n\
    \u{20} m,e,c=struct.unpack('>IIQ',n(16)); assert (m,e)==(0x67446698,0)\n\
    \u{20} at=c%2*size; assert n(size)==want[at:at+size]; seen.add(c)\n\
    assert seen=={0,1,2,3} and n(1)==b'' and p.wait(60)==0\n";

#[test]
fn replies_a_client_on_pipes_reads_late_are_not_lost() {
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    assert!(bytes.len() as u64 > MIB, "more than pipes and sockets hold");
    run(PYTHON, &["-c", ON_PIPES, text(&disk), ORLOP, "serve", "--stdio", text(&disk)]);
}

#[test]
fn a_service_manager_can_pass_sockets() {
    if !have(&["libnbd for Python", "qemu-img", "nbdinfo"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let script = "import nbd,sys\nh=nbd.NBD()\n\
        h.connect_systemd_socket_activation(sys.argv[1:])\n\
        assert h.get_size()==1049088; h.pread(512,0); h.shutdown()\n";
    run(PYTHON, &["-c", script, ORLOP, "serve", text(&disk)]);
    // Two of them, as sd_listen_fds(3) has it: from 3 on, for the process of that id.
    let script = "import json,os,signal,socket,subprocess,sys\n\
        u=sys.argv[1]; a=socket.socket(socket.AF_UNIX); a.bind(u); a.listen()\n\
        b=socket.create_server(('127.0.0.1',0))\n\
        r,w=os.pipe(); pid=os.fork()\n\
        if pid==0:\n\
        \u{20} x,y=os.dup(a.fileno()),os.dup(b.fileno()); os.dup2(w,1)\n\
        \u{20} os.dup2(x,40); os.dup2(y,41); os.dup2(40,3); os.dup2(41,4)\n\
        \u{20} os.environ.update(LISTEN_PID=str(os.getpid()),LISTEN_FDS='2')\n\
        \u{20} os.execv(sys.argv[2],sys.argv[2:])\n\
        os.close(w); out=os.fdopen(r); lines=json.loads(out.readline())['uris']\n\
        port=b.getsockname()[1]\n\
        try:\n\
        \u{20} for at in ('nbd+unix:///?socket='+u, 'nbd://127.0.0.1:%d'%port):\n\
        \u{20}   assert any(l.startswith(at) for l in lines),(at,lines)\n\
        \u{20}   subprocess.run(['qemu-img','info','--output=json',at],check=True)\n\
        \u{20}   subprocess.run(['nbdinfo',at],check=True)\n\
        finally: os.kill(pid,signal.SIGTERM)\n\
        assert os.waitpid(pid,0)[1]==0\n\
        assert os.path.exists(u), 'it is not ours to remove'\n";
    let socket = folder.path().join("given");
    run(PYTHON, &["-c", script, text(&socket), ORLOP, "serve", text(&disk), "--json"]);
}

/// nbdcopy hands its own standard output on to the server it starts, and may write the copy there.
#[test]
fn a_server_started_by_a_copy_says_nothing_into_it() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let copy = folder.path().join("copy.raw");
    run("nbdcopy", &["--", "[", ORLOP, "serve", text(&disk), "]", text(&copy)]);
    let whole = run_any("nbdcopy", &["--", "[", ORLOP, "serve", text(&disk), "]", "-"]);
    assert!(whole.status.success());
    assert!(whole.stdout == std::fs::read(&copy).unwrap(), "{} bytes", whole.stdout.len());
    assert_eq!(whole.stdout.len(), 1_049_088);
}

#[test]
fn inherited_sockets_are_served_whether_they_listen_or_are_connected() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, _) = image(&folder);
    let script = "import nbd,os,socket,subprocess,sys\n\
        ends=[socket.socketpair() for _ in range(2)]\n\
        for _,theirs in ends: os.set_inheritable(theirs.fileno(),True)\n\
        w=sys.argv[1:]+sum((['--fd',str(t.fileno())] for _,t in ends),[])\n\
        p=subprocess.Popen(w,close_fds=False)\n\
        for ours,theirs in ends:\n\
        \u{20} theirs.close(); h=nbd.NBD(); h.connect_socket(ours.detach())\n\
        \u{20} assert h.get_size()==1049088; h.pread(512,0); h.shutdown(); del h\n\
        assert p.wait(60)==0, 'it ends with its last connection'\n\
        s=socket.create_server(('127.0.0.1',0)); os.set_inheritable(s.fileno(),True)\n\
        w=sys.argv[1:]+['--fd',str(s.fileno())]\n\
        p=subprocess.Popen(w,close_fds=False,stdout=subprocess.PIPE,text=True)\n\
        for _ in range(2):\n\
        \u{20} h=nbd.NBD(); h.connect_tcp('127.0.0.1',str(s.getsockname()[1]))\n\
        \u{20} h.pread(512,0); h.shutdown()\n\
        p.terminate(); assert p.wait(60)==0\n";
    run(PYTHON, &["-c", script, ORLOP, "serve", text(&disk)]);
    let wrong = "import os,socket,subprocess,sys,tempfile\n\
        f=tempfile.TemporaryFile(); d=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
        u=socket.socket(); \n\
        for s,about in ((f,'no socket'),(d,'no stream'),(u,'neither listens nor is connected')):\n\
        \u{20} os.set_inheritable(s.fileno(),True)\n\
        \u{20} w=sys.argv[1:]+['--fd',str(s.fileno())]\n\
        \u{20} r=subprocess.run(w,close_fds=False,capture_output=True,text=True,timeout=60)\n\
        \u{20} assert r.returncode!=0 and about in r.stdout+r.stderr,(about,r)\n";
    run(PYTHON, &["-c", wrong, ORLOP, "serve", text(&disk)]);
    expect_refusal(&[text(&disk), "--fd", "900"], "is not open");
    expect_refusal(&[text(&disk), "--fd", "0"], "standard stream");
}

/// Passes one end of a pair and reads the disk at the other.
fn pass(socket: &Path, bytes: &[u8]) {
    let script = "import array,nbd,socket,sys\n\
        c=socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])\n\
        want=open(sys.argv[2],'rb').read()\n\
        for name in sys.argv[3:]:\n\
        \u{20} a,b=socket.socketpair(); socket.send_fds(c,[name.encode()+b'\\n'],[b.fileno()])\n\
        \u{20} b.close(); assert c.recv(100)==b'ok\\n'\n\
        \u{20} h=nbd.NBD(); h.connect_socket(a.detach())\n\
        \u{20} assert h.pread(len(want),0)==want; h.shutdown(); del h\n";
    let folder = TempDir::new().unwrap();
    let wanted = folder.path().join("wanted");
    std::fs::write(&wanted, bytes).unwrap();
    run(PYTHON, &["-c", script, text(socket), text(&wanted), "", ""]);
}

#[test]
fn connections_can_be_passed_and_get_the_export_they_are_passed_for() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let passed = folder.path().join("passed");
    let spec = format!("name=other,image={}", text(&disk));
    let server =
        Server::start(&disk, &["--fd-socket", text(&passed), "--add", &spec, "--default", ""]);
    pass(&passed, &bytes);
    // What the line names is what a client gets that asks for nothing; it outlives who passed it.
    let script = "import nbd,socket,sys\n\
        def go(name):\n\
        \u{20} c=socket.socket(socket.AF_UNIX); c.connect(sys.argv[1])\n\
        \u{20} a,b=socket.socketpair(); socket.send_fds(c,[name+b'\\n'],[b.fileno()]); b.close()\n\
        \u{20} assert c.recv(100)==b'ok\\n'; c.close()\n\
        \u{20} h=nbd.NBD(); h.set_full_info(True); h.set_opt_mode(True)\n\
        \u{20} h.connect_socket(a.detach()); h.opt_go()\n\
        \u{20} got=h.get_canonical_export_name(); h.pread(512,0); h.shutdown(); return got\n\
        assert go(b'other')=='other', go(b'other')\n\
        assert go(b'')=='', go(b'')\n";
    run(PYTHON, &["-c", script, text(&passed)]);
    server.close();
}

#[test]
fn a_message_of_another_shape_is_refused_with_the_reason() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (disk, bytes) = image(&folder);
    let passed = folder.path().join("passed");
    let server = Server::start(&disk, &["--fd-socket", text(&passed)]);
    let datagram = folder.path().join("datagram");
    let _datagram = UnixDatagram::bind(&datagram).unwrap();
    let script = "import os,socket,sys\n\
        def tell(text,fds,about):\n\
        \u{20} c=socket.socket(socket.AF_UNIX); c.settimeout(60); c.connect(sys.argv[1])\n\
        \u{20} if fds: socket.send_fds(c,[text],fds)\n\
        \u{20} else: c.send(text)\n\
        \u{20} said=b''\n\
        \u{20} while True:\n\
        \u{20}   try: more=c.recv(4096)\n\
        \u{20}   except ConnectionResetError: break\n\
        \u{20}   if not more: break\n\
        \u{20}   said+=more\n\
        \u{20} assert said.startswith(b'error: ') and said.endswith(b'\\n'),said\n\
        \u{20} assert about in said,(text[:50],fds,said)\n\
        a,b=socket.socketpair(); fd=a.fileno(); r,w=os.pipe()\n\
        d=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); d.connect(sys.argv[2])\n\
        q,_=socket.socketpair(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
        l=socket.create_server(('127.0.0.1',0)); n=socket.socket()\n\
        tell(b'\\n',[],b'0 descriptors'); tell(b'x'*100,[],b'0 descriptors')\n\
        tell(b'\\n',[fd,fd],b'2 descriptors'); tell(b'\\n',[fd]*200,b'descriptors')\n\
        tell(b'name',[fd],b'no line'); tell(b'x'*9000,[fd],b'no line')\n\
        tell(b'\\xff\\xfe\\n',[fd],b'UTF-8'); tell(b'a\\nb\\n',[fd],b'one line')\n\
        tell(b'a\\0b\\n',[fd],b'one line'); tell(b'nobody\\n',[fd],b'no export')\n\
        tell(b'\\n',[r],b'no socket'); tell(b'\\n',[d.fileno()],b'no connected stream')\n\
        tell(b'\\n',[q.fileno()],b'no connected stream')\n\
        tell(b'\\n',[l.fileno()],b'no connected stream')\n\
        tell(b'\\n',[n.fileno()],b'no connected stream')\n";
    run(PYTHON, &["-c", script, text(&passed), text(&datagram)]);
    // Passed descriptors that were refused are closed, and the next one is served.
    pass(&passed, &bytes);
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().filter(|entry| {
        let target = std::fs::read_link(entry.as_ref().unwrap().path()).unwrap_or_default();
        text(&target).starts_with("pipe:")
    });
    assert!(open.count() <= 2, "a passed pipe was kept");
    server.close();
}
