//! A shard on threads, with raw disks, and peers that talk to it over socket pairs as if they had
//! negotiated. Judges nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use nbd::export::Capabilities;
use nbd::handshake::{Context, Session};
use nbd::wire::HeaderFormat;
use nbd::{Bytes, ContextId, ContextName, Export};
use orlop::engine::Disk;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::format::Flat;
use orlop::host::memory::ArenaSize;
use orlop::host::{Aio, Choice, Descriptors, OpenMode};
use orlop::meter::{Meter, Rates, Throttle};
use orlop::shard::{DiskTag, ExportKey, Link, Mailbox, NewClient};
use orlop::transport::nbd::{ClientLimits, ClientSettings, ExportShape, NbdClient, export_of};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) const MIB: u64 = 1 << 20;
/// How long anything may take at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shard, and the thread of control that talks to it.
pub(crate) struct Rig {
    pub(crate) mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
    runtime: Runtime,
    folder: TempDir,
    /// Whether mounts are to come through its ring.
    #[allow(dead_code)]
    pub(crate) inlets: bool,
}

/// What a peer's connection is like.
pub(crate) struct Setup {
    pub(crate) export: ExportKey,
    pub(crate) window: Extent,
    /// What the gate believes the export's size to be.
    pub(crate) size: u64,
    pub(crate) structured: bool,
    pub(crate) limits: ClientLimits,
    pub(crate) export_meter: Arc<Meter>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) throttle: Arc<Throttle>,
}

impl Setup {
    /// The first so many bytes of the disk, for export 1.
    pub(crate) fn of(size: u64) -> Self {
        Self::window(0, size)
    }

    pub(crate) fn window(at: u64, len: u64) -> Self {
        Self {
            export: ExportKey(1),
            window: Extent::new(DiskOffset::new(at), ByteLen::new(len)),
            size: len,
            structured: false,
            limits: ClientLimits::default(),
            export_meter: Arc::default(),
            meter: Arc::default(),
            throttle: Arc::new(Throttle::new(Rates::default())),
        }
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with_drain_limit(Duration::from_secs(10))
    }

    pub(crate) fn with_drain_limit(limit: Duration) -> Self {
        Self::with(ArenaSize::default(), limit)
    }

    pub(crate) fn with(memory: ArenaSize, limit: Duration) -> Self {
        Self::on(Aio::Threads, memory, limit)
    }

    pub(crate) fn on(aio: Aio, memory: ArenaSize, limit: Duration) -> Self {
        Self::of(orlop::shard::spawn_within(aio, memory, limit).unwrap(), false)
    }

    /// A shard whose ring carries mounts' requests.
    #[allow(dead_code)]
    pub(crate) fn with_inlets(memory: ArenaSize) -> Self {
        Self::of(orlop::shard::spawn_with_inlets(Aio::Uring, memory).unwrap(), true)
    }

    fn of(started: (Mailbox, Choice, JoinHandle<()>), inlets: bool) -> Self {
        let (mailbox, _, thread) = started;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let folder = TempDir::new().unwrap();
        Self { mailbox, thread: Some(thread), runtime, folder, inlets }
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A raw disk in a new file of this size, full of holes.
    pub(crate) fn disk(&self, name: &str, size: u64) -> DiskTag {
        let path = self.image(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(size).unwrap();
        self.attach(file, size)
    }

    pub(crate) fn attach(&self, file: File, size: u64) -> DiskTag {
        let attached = self.mailbox.attach(Box::new(move |add_file| {
            let file = add_file(Descriptors::new(OwnedFd::from(file), OpenMode::BUFFERED))?;
            Ok(Disk::writable(Box::new(Flat::new(ByteLen::new(size))), file, vec![]))
        }));
        self.wait(attached).unwrap()
    }

    pub(crate) fn connect(&self, disk: DiskTag, setup: Setup) -> Peer {
        let (mine, its) = UnixStream::pair().unwrap();
        its.set_nonblocking(true).unwrap();
        let export: Export = export_of(ExportShape {
            name: String::new(),
            description: String::new(),
            size: ByteLen::new(setup.size),
            read_only: false,
            resize: false,
        });
        assert_eq!(export.size, Bytes(setup.size));
        assert!(export.capabilities != Capabilities::default());
        let allocation = Context { id: ContextId(1), name: ContextName::Allocation };
        let session = Session {
            export,
            structured: setup.structured,
            contexts: if setup.structured { vec![allocation] } else { vec![] },
            no_zeroes: true,
            headers: HeaderFormat::Compact,
            leftover: vec![],
        };
        let settings = ClientSettings {
            whole: None,
            window: setup.window,
            limits: setup.limits,
            export_meter: setup.export_meter,
            meter: setup.meter,
            throttle: setup.throttle,
        };
        let client = Box::new(NbdClient::new(&session, settings));
        let socket = OwnedFd::from(its);
        let (export, guard) = (setup.export, Box::new(()));
        self.mailbox
            .connect(NewClient { disk, export, link: Link::Socket(socket), client, guard })
            .unwrap();
        mine.set_read_timeout(Some(PATIENCE)).unwrap();
        mine.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer { stream: mine }
    }

    /// Ends the shard, which must say that all went well.
    pub(crate) fn close(mut self) {
        assert_eq!(self.wait(self.mailbox.shut_down()), Ok(()));
        self.thread.take().expect("it is closed once").join().unwrap();
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..600 {
        if so() {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    panic!("not within a minute: {what}");
}

/// Whether this process has a file open.
pub(crate) fn is_open(path: &Path) -> bool {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.into_iter().any(|target| target == path)
}

pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// The other end of a connection.
pub(crate) struct Peer {
    stream: UnixStream,
}

/// The header of a request.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    flagged(0, command, cookie, offset, len)
}

pub(crate) fn flagged(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

impl Peer {
    /// The same connection, for another thread.
    pub(crate) fn try_clone(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads a simple reply: its error and, without one, so many bytes of data.
    pub(crate) fn reply(&mut self, cookie: u64, len: usize) -> Result<Vec<u8>, u32> {
        let head = self.receive(16);
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes(), "{head:02x?}");
        assert_eq!(head[8..], cookie.to_be_bytes(), "a reply to another request");
        match u32::from_be_bytes([head[4], head[5], head[6], head[7]]) {
            0 => Ok(self.receive(len)),
            error => Err(error),
        }
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.send(&request(command::READ, 11, offset, len));
        self.reply(11, len as usize)
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> Result<(), u32> {
        self.send(&flagged(flags, command::WRITE, 12, offset, bytes.len() as u32));
        self.send(bytes);
        self.reply(12, 0).map(drop)
    }

    /// Reads a structured chunk: its flags, type and payload.
    pub(crate) fn chunk(&mut self) -> (u16, u16, Vec<u8>) {
        let head = self.receive(20);
        assert_eq!(head[..4], 0x668E_33EF_u32.to_be_bytes(), "{head:02x?}");
        let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        (half(4), half(6), self.receive(len as usize))
    }

    /// Says that nothing more will come.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads simple replies without payload until the server hangs up: how many were no errors.
    pub(crate) fn await_good(&mut self) -> usize {
        let mut all = Vec::new();
        let ended = self.stream.read_to_end(&mut all);
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        assert!(ended.as_ref().is_ok() || ended.is_err_and(|error| reset(&error)), "no end");
        all.chunks_exact(16).filter(|reply| reply[4..8] == [0; 4]).count()
    }

    /// Reads until the server hangs up: how many bytes came.
    pub(crate) fn await_end(&mut self) -> usize {
        let (mut sink, mut seen) = (vec![0; 1 << 16], 0);
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return seen,
                Ok(count) => seen += count,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return seen,
                Err(error) => panic!("the server does not hang up: {error}"),
            }
        }
    }
}
