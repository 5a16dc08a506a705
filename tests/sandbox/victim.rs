//! A process that confines itself and then tries what it must not. Ends well if it was refused.

use std::fs::File;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use nix::libc::{EACCES, ENOSYS, EPERM};
use orlop::image::{self, CacheMode, OpenOptions};
use orlop::sandbox::{
    Allowed, Calls, Captive, Mode, SandboxError, User, assume, confine_calls, confine_files,
    drop_privileges,
};
use rustix::process::{DumpableBehavior, Resource, Signal};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Becomes the victim of this name.
pub(super) fn run(name: &str) {
    match name.split_once(' ') {
        Some(("without", number)) => without(number.parse().unwrap()),
        _ => match name {
            "files" => files(),
            "images" => images(),
            "outside" => outside(),
            "company" => company(),
            "calls" => calls(),
            "rings" => rings(),
            "privileges" => privileges(),
            "another user" => another_user(),
            "not root" => not_root(),
            "captive" => captive(),
            deadly => dying(deadly),
        },
    }
}

/// Checks that something failed, and with which number.
#[track_caller]
fn refused<T>(errno: i32, what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} succeeded"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno), "{what}: {error}"),
    }
}

fn files() {
    let own = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let writing = |path: &str| File::options().write(true).open(path);
    let mut open = File::open("open").unwrap();
    let allowed = Allowed::new().read("read").write("write").remove(Path::new("socket/file"));
    let report = confine_files(&allowed, Mode::Required).unwrap();
    assert_eq!(report.lacks(), []);
    assert_eq!(report.held().len(), 1);

    refused(EACCES, "a file never named", File::open("/etc/passwd"));
    refused(EACCES, "a file beside the named", File::open("other"));
    refused(EACCES, "writing to it", writing("other"));
    refused(EACCES, "cutting it", File::create("other"));
    refused(EACCES, "listing a folder", std::fs::read_dir("/etc"));
    refused(EACCES, "making a file", File::create("new"));

    assert_eq!(std::fs::read_to_string("read/file").unwrap(), "read");
    refused(EACCES, "writing what is to be read", writing("read/file"));
    writing("write/file").unwrap().set_len(1).unwrap();
    refused(EACCES, "making a file where one may write", File::create("write/new"));
    refused(EACCES, "removing where one may write", std::fs::remove_file("write/file"));
    refused(EACCES, "reading beside a socket", File::open("socket/file"));
    refused(EACCES, "moving", std::fs::rename("write/file", "socket/file"));
    std::fs::remove_file("socket/file").unwrap();

    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "open", "what is open stays open");
    refused(EACCES, "opening it once more", File::open(own(&open)));

    refused(EACCES, "running a program", Command::new("/bin/true").spawn());
    let elsewhere = std::thread::spawn(|| File::open("/etc/passwd"));
    refused(EACCES, "a later thread", elsewhere.join().unwrap());
}

/// What a server does when it is given another image while it serves.
fn images() {
    let _report = drop_privileges(Mode::Required).unwrap();
    let report = confine_files(&Allowed::new().write("allowed"), Mode::Required).unwrap();
    assert_eq!(report.lacks(), []);
    let (add, to_add) = channel::<OpenOptions>();
    let server = std::thread::spawn(move || {
        let mut depths = Vec::new();
        while let Ok(options) = to_add.recv() {
            depths.push(image::open(&options).map(|chain| chain.layers.len()));
        }
        depths
    });
    confined(true);
    let here = std::env::current_dir().unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        for path in ["allowed/child.vhd", "other.vhd"] {
            let options = OpenOptions { cache, ..OpenOptions::new(here.join(path)) };
            add.send(options).unwrap();
        }
    }
    drop(add);
    for (index, opened) in server.join().unwrap().into_iter().enumerate() {
        match opened {
            Ok(depth) => assert_eq!((index % 2, depth), (0, 2)),
            Err(error) => {
                assert_eq!(index % 2, 1, "{error:?}");
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let said = format!("{error} {}", cause.unwrap_or_default());
                assert!(said.contains("Permission denied"), "{said}");
            }
        }
    }
    // A file without a name, as overlays are.
    let unnamed = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::open("allowed", unnamed, mode).unwrap();
    let elsewhere = rustix::fs::open(".", unnamed, mode);
    refused(EACCES, "a file elsewhere", elsewhere.map_err(io::Error::from));
}

fn outside() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let early = TcpStream::connect(address).unwrap();
    let name = format!("orlop-sandbox-{}", std::process::id());
    let abstract_address = SocketAddr::from_abstract_name(name).unwrap();
    let parent = rustix::process::getppid().unwrap();
    rustix::process::test_kill_process(parent).unwrap();
    // A socket of our own process: made before, so it belongs to the outside.
    let _abstract = UnixListener::bind_addr(&abstract_address).unwrap();

    assert_eq!(confine_files(&Allowed::new(), Mode::Required).unwrap().lacks(), []);
    refused(EACCES, "a connection", TcpStream::connect(address));
    refused(EACCES, "a listener", TcpListener::bind("127.0.0.1:0"));
    listener.accept().expect("who came before is served");
    drop(early);
    refused(EPERM, "a hidden socket", UnixStream::connect_addr(&abstract_address));
    let signal = rustix::process::test_kill_process(parent);
    refused(EPERM, "a signal", signal.map_err(io::Error::from));
}

fn company() {
    let (end, ended) = channel::<()>();
    let thread = std::thread::spawn(move || ended.recv().is_err());
    let too_late = |result: Result<_, SandboxError>| {
        assert!(matches!(result, Err(SandboxError::TooLate { others: 1, .. })), "{result:?}");
    };
    too_late(confine_files(&Allowed::new(), Mode::On));
    too_late(drop_privileges(Mode::On));
    drop(end);
    assert!(thread.join().unwrap());
    let missing = confine_files(&Allowed::new().read("/nowhere at all"), Mode::On).unwrap_err();
    assert!(missing.to_string().contains("/nowhere at all"), "{missing}");
}

fn confined(ring: bool) {
    let report = confine_calls(Calls { ring }, Mode::Required).unwrap();
    assert_eq!(report.lacks(), []);
}

fn calls() {
    let parent = rustix::process::getppid().unwrap();
    // It exists before, and is to be confined as well.
    let (ask, asked) = channel::<()>();
    let early = std::thread::spawn(move || {
        asked.recv().unwrap();
        UdpSocket::bind("127.0.0.1:0")
    });
    confined(false);
    ask.send(()).unwrap();
    refused(EPERM, "a socket of an early thread", early.join().unwrap());
    refused(EPERM, "a socket", TcpStream::connect("127.0.0.1:1"));
    refused(EPERM, "a process", Command::new("/bin/true").spawn());
    refused(EPERM, "a ring", io_uring::IoUring::new(8));
    let memory = memmap2::MmapMut::map_anon(4096).unwrap();
    refused(EPERM, "code made of data", memory.make_exec());
    let signal = rustix::process::kill_process(parent, Signal::TERM);
    refused(EPERM, "a signal", signal.map_err(io::Error::from));
    let limit = rustix::process::getrlimit(Resource::Core);
    let raised = rustix::process::setrlimit(Resource::Core, limit);
    refused(EPERM, "limits", raised.map_err(io::Error::from));
    refused(EPERM, "modes", std::fs::set_permissions(".", open_to_all()));
    refused(EPERM, "links", std::os::unix::fs::symlink("a", "b"));
    refused(EPERM, "names", nix::unistd::setuid(nix::unistd::getuid()).map_err(io::Error::from));

    let named = std::thread::Builder::new().name("late".to_owned());
    assert_eq!(named.spawn(|| 7).unwrap().join().unwrap(), 7, "threads can be made");
    let failing = std::thread::spawn(|| panic!("on purpose"));
    assert!(failing.join().is_err(), "a panic is caught as ever");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    drop(theirs);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    assert!(std::collections::HashSet::from([1]).contains(&1), "seeds are to be had");
}

fn open_to_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o777)
}

fn rings() {
    let Ok(ring) = io_uring::IoUring::new(8) else {
        return println!("SKIPPED: no io_uring here");
    };
    ring.submitter().register_files(&[-1]).unwrap();
    confined(true);
    ring.submit().unwrap();
    ring.submitter().register_files_update(0, &[-1]).unwrap();
    refused(EPERM, "another table of files", ring.submitter().register_files(&[-1]));
    refused(EPERM, "another ring", io_uring::IoUring::new(8));
}

fn dying(how: &str) {
    let file = File::open("/proc/self/ns/net").unwrap();
    let myself = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    confined(false);
    let outcome = match how {
        "exec" => format!("{:?}", Command::new("/bin/true").exec()),
        "chroot" => format!("{:?}", rustix::process::chroot("/")),
        "mount" => {
            let none = None::<&str>;
            let again = nix::mount::MsFlags::MS_REC;
            format!("{:?}", nix::mount::mount(none, "/", none, again, none))
        }
        "ptrace" => format!("{:?}", nix::sys::ptrace::traceme()),
        "setns" => {
            let net = Some(rustix::thread::LinkNameSpaceType::Network);
            format!("{:?}", rustix::thread::move_into_link_name_space(file.as_fd(), net))
        }
        "steal" => {
            let none = rustix::process::PidfdGetfdFlags::empty();
            format!("{:?}", rustix::process::pidfd_getfd(myself, file.as_raw_fd(), none))
        }
        "abort" => std::process::abort(),
        other => panic!("no victim is called {other}"),
    };
    println!("{how} did not kill: {outcome}");
}

fn status(field: &str) -> String {
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

fn privileges() {
    let was_root = rustix::process::geteuid().is_root();
    let report = drop_privileges(Mode::Required).unwrap();
    assert_eq!(report.lacks(), []);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    if was_root {
        assert_eq!(status("CapBnd"), "0000000000000000");
        // Root without capabilities is the owner of root's files and no more.
        let changed = std::os::unix::fs::chown("/proc/self/comm", Some(1), Some(1));
        refused(EPERM, "giving files away", changed);
    }
    assert_eq!(status("NoNewPrivs"), "1");
    let limit = rustix::process::getrlimit(Resource::Core);
    assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    let dumpable = rustix::process::dumpable_behavior().unwrap();
    assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    File::open(format!("/proc/self/fd/{}", File::open("/dev/null").unwrap().as_raw_fd()))
        .expect_err("it is closed by now");
    let null = File::open("/dev/null").unwrap();
    File::open(format!("/proc/self/fd/{}", null.as_raw_fd())).expect("one's own files stay open");
    // A program gets nothing back.
    let told = Command::new("grep").args(["^CapEff", "/proc/self/status"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "CapEff:\t0000000000000000");
}

fn another_user() {
    let user: User = "65534:12345".parse().unwrap();
    assume(&user).unwrap();
    assert_eq!(status("Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(status("Gid"), "12345\t12345\t12345\t12345");
    assert_eq!(status("Groups"), "12345");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    refused(EACCES, "a secret of root", File::open("secret"));
    refused(EPERM, "root", nix::unistd::setuid(0.into()).map_err(io::Error::from));
    assume(&user).expect("who one is already, one can be");
    assert!(assume(&"0:0".parse().unwrap()).is_err());
}

fn not_root() {
    let error = assume(&"0:0".parse().unwrap()).unwrap_err();
    assert!(matches!(&error, SandboxError::User { .. }), "{error}");
    assert!(error.to_string().contains("must be root"), "{error}");
    assert_eq!(drop_privileges(Mode::Required).unwrap().lacks(), []);
    let report = confine_files(&Allowed::new().read("/usr"), Mode::Required).unwrap();
    assert_eq!(report.lacks(), []);
    confined(true);
    refused(EACCES, "a file never named", File::open("/etc/passwd"));
    File::open("/usr").unwrap();
}

fn captive() {
    // Numbers of one digit are taken: the shell must read its line all the same.
    let _taken: Vec<File> = (0..12).map(|_| File::open("/dev/null").unwrap()).collect();
    let never = Captive::spawn("touch /tmp/orlop-never-released; exit 1").unwrap();
    let script = "test \"$uri\" = 'nbd://host/a b' && cat /etc/passwd >/dev/null && \
                  grep -q '^Seccomp:.*0$' /proc/self/status && exit 42";
    let mut captive = Captive::spawn(script).unwrap();
    let _report = drop_privileges(Mode::Required).unwrap();
    let _report = confine_files(&Allowed::new(), Mode::Required).unwrap();
    confined(false);
    // Dropped without a call it ends, and does not run its command.
    drop(never);
    captive.release("nbd://host/a b").unwrap();
    assert_eq!(captive.wait().unwrap().code(), Some(42));
    let children = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert!(children.is_err(), "no child is left: {children:?}");
    assert!(!Path::new("/tmp/orlop-never-released").exists());
}

/// Runs the program in the arguments on a kernel that seems to lack a call.
fn without(number: i64) {
    let absent = SeccompAction::Errno(ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = [(number, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    let mut arguments = std::env::args_os().skip(1);
    let mut command = Command::new(arguments.next().unwrap());
    command.args(arguments).env_remove(super::VICTIM);
    panic!("{command:?}: {}", command.exec());
}
